"""Report and export: HTML report with tables, RTDOSE, the whole scene."""

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.scene.bundle import save_mrb


class ReportPanel:
    """Writes what is to be kept."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        ui.outputFolderLineEdit.connect("currentPathChanged(QString)", shell.refresh)
        ui.dicomSourceLineEdit.connect("currentPathChanged(QString)", shell.refresh)
        ui.writeReportButton.connect("clicked(bool)", self.onReport)
        ui.exportDoseButton.connect("clicked(bool)", self.onDose)
        ui.saveSceneButton.connect("clicked(bool)", self.onScene)

    def forget(self):
        self.ui.exportedLabel.setText("")

    @property
    def folder(self):
        path = self.ui.outputFolderLineEdit.currentPath
        return Path(path) if path and Path(path).is_dir() else None

    @property
    def source(self):
        """The patient's DICOM folder: as loaded in this session, or as chosen here."""
        path = self.ui.dicomSourceLineEdit.currentPath
        return Path(path) if path and Path(path).is_dir() else self.shell.source

    def refresh(self, *unused):
        busy = self.shell.reasonNotToCompute()
        nowhere = None if self.folder else _("Choose the output folder first.")
        none = None if self.shell.twin.outcome else _("Predict the dose first.")
        self.shell.enable(
            self.ui.writeReportButton, busy or none or nowhere, _("HTML report, tables, dose volumes and pictures.")
        )
        noSource = None if self.source else _("RTDOSE goes back to a DICOM record: choose the patient's DICOM folder.")
        self.shell.enable(
            self.ui.exportDoseButton,
            busy or none or nowhere or noSource,
            _("Mean and spread as RTDOSE and the structures as used, under the patient's identity."),
        )
        running = _("Wait for the computation under way.") if self.shell.task.isRunning else None
        self.shell.enable(
            self.ui.saveSceneButton,
            running or self.shell.reasonNoPatient() or nowhere,
            _("The scene with the twin's whole state: opened again, it goes on where it was."),
        )

    def onReport(self, *unused):
        out = self._free("report")
        self.shell.run(self.shell.twin.reporting(out), self._written)

    def onDose(self, *unused):
        out = self._free("rtdose")
        self.shell.run(self.shell.twin.reporting(dicom_out=out, source=self.source), self._written)

    def onScene(self, *unused):
        try:
            self._written(save_mrb(slicer.mrmlScene, self._free("scene", ".mrb")))
        except RTDigitalTwinError as error:
            slicer.util.errorDisplay(str(error))

    def _free(self, what, suffix=""):
        """A name that is not taken yet."""
        name = f"{self.shell.twin.pseudonym}-{what}"
        number, path = 1, self.folder / f"{name}{suffix}"
        while path.exists():
            number += 1
            path = self.folder / f"{name}-{number}{suffix}"
        return path

    def _written(self, path):
        self.ui.exportedLabel.setText(_("Written: {name}").format(name=path.name))
