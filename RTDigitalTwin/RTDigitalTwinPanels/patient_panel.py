"""Patient: a folder, the sample, or nodes of the scene; what its structures are; what was noticed."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.jobs import Choice
from RTDigitalTwinLib.patient.naming import TARGETS
from RTDigitalTwinLib.patient.structure_matching import KNOWN_NAMES, MatchState
from RTDigitalTwinLib.scene.twin_patient import (
    confirm_names,
    notes_of,
    pseudonym_of,
    segment_matches,
    stored_plan,
)
from RTDigitalTwinPanels.layout import centreOn, showLayout

_SOURCE, _MEANING, _CONFIDENCE, _STATE = range(4)
_SETTLED = (MatchState.EXACT, MatchState.CONFIRMED, MatchState.HELPER, MatchState.LEFT_OUT, MatchState.EMPTY)


class PatientPanel:
    """Chooses whose twin it is."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self.content = None  # of the folder that is being chosen from
        self._listed = self._watched = None
        ui.sourceFolderLineEdit.connect("currentPathChanged(QString)", self.onFolder)
        ui.patientComboBox.connect("currentIndexChanged(int)", self.onPatient)
        ui.loadFolderButton.connect("clicked(bool)", self.onLoadFolder)
        ui.loadSampleButton.connect("clicked(bool)", self.onLoadSample)
        ui.confirmButton.connect("clicked(bool)", self.onConfirm)
        titles = [_("Structure"), _("Is to the model"), _("Confidence"), _("State")]
        ui.structureTable.setColumnCount(len(titles))
        ui.structureTable.setHorizontalHeaderLabels(titles)
        ui.structureTable.verticalHeader().hide()
        ui.structureTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.structureTable.horizontalHeader().setStretchLastSection(True)

    @property
    def folder(self):
        """The folder chosen; None where there is none."""
        path = self.ui.sourceFolderLineEdit.currentPath
        return Path(path) if path and Path(path).is_dir() else None

    def forget(self):
        """Of a scene that was closed."""
        self._watch(None)
        self.content = self._listed = None

    def refresh(self):
        ui, parameters, busy = self.ui, self.shell.parameters, self.shell.reasonNotToCompute()
        self.shell.enable(ui.loadSampleButton, busy, _("Load the built-in head-and-neck patient and plan its dose."))
        reason = busy or (None if self.folder else _("Choose the patient's folder first."))
        self.shell.enable(ui.loadFolderButton, reason, _("Read the patient in the folder."))
        several = self.content is not None and len(self.content.matches) > 1
        ui.patientLabel.setVisible(several)
        ui.patientComboBox.setVisible(several)
        plan = stored_plan(parameters.ct) if parameters.ct else None
        ui.fractionsSpinBox.setEnabled(plan is None)
        ui.fractionsSpinBox.setToolTip(
            _("In how many fractions the dose is given; no plan tells it.")
            if plan is None
            else _("The plan has {n} fractions.").format(n=plan.prescription.fractions)
        )
        self._list()
        rows = ui.structureTable.rowCount
        self.shell.enable(
            ui.confirmButton,
            busy or (None if rows else _("There are no structures yet.")),
            _("Take the names as the table has them; only these count."),
        )
        notes = notes_of(parameters.ct) if parameters.ct else []
        who = [_("Patient {name}.").format(name=pseudonym_of(parameters.ct))] if parameters.ct else []
        ui.patientNotesLabel.setText("\n".join([*who, *notes]))

    def onFolder(self, *unused):
        self.content = self._listed = None
        self.shell.refresh()

    def onLoadSample(self, *unused):
        self.shell.run(self.shell.twin.loading(), self._loaded)

    def onLoadFolder(self, *unused):
        if self.content is None:
            self.shell.run(self.shell.twin.inspecting(self.folder, self._found))
        else:
            self._read({})

    def onPatient(self, *unused):
        if self.content is not None:
            self._listed = None
            self.shell.refresh()

    def onConfirm(self, *unused):
        table = self.ui.structureTable
        names = {}
        for row in range(table.rowCount):
            meaning = table.cellWidget(row, _MEANING).currentText
            names[table.item(row, _SOURCE).text()] = "" if meaning == _("leave out") else meaning
        if self.content is not None:
            self._read(names)
            return
        try:
            confirm_names(self.shell.parameters.segmentation, names)
        except RTDigitalTwinError as error:
            slicer.util.errorDisplay(str(error))
        self._listed = None
        self.shell.refresh()

    def _found(self, content):
        """What a folder holds: read it at once where nothing is to be asked."""
        self.content, self._listed = content, None
        self.ui.patientComboBox.clear()
        self.ui.patientComboBox.addItems(list(content.matches))
        if len(content.matches) == 1:
            (pseudonym,) = content.matches
            if content.problems:
                self.content = None
                raise RTDigitalTwinError(content.problems[pseudonym])
            if not any(match.waits for match in content.matches[pseudonym]):
                qt.QTimer.singleShot(0, lambda: self._read({}))

    def _read(self, names):
        pseudonym = self.ui.patientComboBox.currentText
        if self.content is not None and pseudonym in self.content.problems:
            slicer.util.errorDisplay(self.content.problems[pseudonym])
            return
        is_dicom = self.content is not None and self.content.is_dicom
        plan = Choice(pseudonym if is_dicom else "", names)
        self.shell.source = self.folder if is_dicom else None
        self.shell.run(self.shell.twin.loading(self.folder, plan), self._loaded)

    def _loaded(self, ct):
        self.content = self._listed = None
        showLayout()
        bounds = [0.0] * 6
        ct.GetRASBounds(bounds)
        for index in range(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            composite = slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode")
            composite.SetBackgroundVolumeID(ct.GetID())
            composite.SetForegroundVolumeID(None)
        centreOn([(bounds[k] + bounds[k + 1]) / 2 for k in (0, 2, 4)])
        self.shell.refresh()

    def _watch(self, segmentation):
        """Hear of segments that are drawn, renamed or deleted."""
        inner = segmentation.GetSegmentation() if segmentation else None
        if inner is self._watched:
            return
        events = (slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved)
        events += (slicer.vtkSegmentation.SegmentModified,)
        for event in events:
            if self._watched is not None:
                self.shell.removeObserver(self._watched, event, self.shell.refresh)
            if inner is not None:
                self.shell.addObserver(inner, event, self.shell.refresh)
        self._watched = inner

    def _list(self):
        """Fill the table with the folder's structures while one is chosen from, else with the scene's segments."""
        segmentation = self.shell.parameters.segmentation
        self._watch(segmentation)
        if self.content is not None:
            chosen = self.content.matches.get(self.ui.patientComboBox.currentText, ())
            signature = ("folder", self.ui.patientComboBox.currentText)
        else:
            stamp = segmentation.GetSegmentation().GetMTime() if segmentation else 0
            chosen, signature = None, ("scene", segmentation.GetID() if segmentation else "", stamp)
        if signature == self._listed:
            return
        self._listed = signature
        if chosen is None:
            try:
                chosen = segment_matches(segmentation) if segmentation else ()
            except RTDigitalTwinError as error:
                chosen = ()
                self.shell.say(str(error))
        table = self.ui.structureTable
        table.setRowCount(0)
        table.setRowCount(len(chosen))
        for row, match in enumerate(chosen):
            self._fill(table, row, match)

    def _fill(self, table, row, match):
        confidence = "" if match.state in _SETTLED and not match.counts else f"{100 * match.confidence:.0f} %"
        for column, words in ((_SOURCE, match.source), (_CONFIDENCE, confidence), (_STATE, match.state.value)):
            item = qt.QTableWidgetItem(words)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
            item.setToolTip(match.reason)
            table.setItem(row, column, item)
        box = qt.QComboBox()
        known = [*TARGETS, *KNOWN_NAMES]
        box.addItems([_("leave out"), *known, *([match.name] if match.name and match.name not in known else [])])
        box.setCurrentIndex(max(box.findText(match.name), 0) if match.name and match.state != MatchState.EMPTY else 0)
        box.setEditable(True)
        box.setToolTip(_("A name of the model, or PTV_ with the dose in cGy. {why}").format(why=match.reason))
        table.setCellWidget(row, _MEANING, box)
