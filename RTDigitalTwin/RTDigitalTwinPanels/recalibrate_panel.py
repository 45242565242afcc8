"""Recalibrate: measurements in a table, absorbed into what is believed of the dose, and taken back."""

from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.outcome import CHANGE
from RTDigitalTwinLib.scene.dvh_curves import structures_of
from RTDigitalTwinLib.scene.measurement_nodes import (
    OUTCOME,
    add_measurement,
    import_measurements,
    measurement_table,
    measurements,
    remove_measurements,
    set_measurements,
    waiting_measurements,
)
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from RTDigitalTwinLib.scene.twin_nodes import previous_of
from RTDigitalTwinLib.scene.twin_patient import pseudonym_of

# Of a measurement's columns those that the table shows; points' coordinates are imported.
_SHOWN = (
    "structure",
    "metric",
    "value",
    "unit",
    OUTCOME,
    "fraction",
    "fractions",
    "days",
    "noise_ratio",
    "noise_floor",
)


class RecalibratePanel:
    """Absorbs measurements."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self._listed = self._watched = None
        ui.addMeasurementButton.connect("clicked(bool)", self.onAdd)
        ui.importMeasurementsButton.connect("clicked(bool)", self.onImport)
        ui.removeMeasurementsButton.connect("clicked(bool)", self.onRemove)
        ui.measurementsTable.connect("cellChanged(int,int)", self.onCell)
        ui.measurementsTable.connect("itemSelectionChanged()", self._refreshRemove)
        ui.observeButton.connect("clicked(bool)", self.onObserve)
        ui.showChangeButton.connect("clicked(bool)", self.onShowChange)
        ui.undoButton.connect("clicked(bool)", self.onUndo)
        titles = [
            _("Structure"), _("Metric"), _("Value"), _("Unit"), _("Outcome"), _("Fraction"), _("Fractions"), _("Day"),
            _("Noise (share)"), _("Noise (floor)"),
        ]  # fmt: skip
        ui.measurementsTable.setColumnCount(len(titles))
        ui.measurementsTable.setHorizontalHeaderLabels(titles)
        ui.measurementsTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)

    def forget(self):
        self._watch(None)
        self._listed = None

    def refresh(self):
        parameters, busy = self.shell.parameters, self.shell.reasonNotToCompute()
        noPatient = self.shell.reasonNoPatient()
        self.shell.enable(self.ui.addMeasurementButton, noPatient, _("Add a measurement to fill in."))
        self.shell.enable(
            self.ui.importMeasurementsButton, noPatient, _("Add the measurements of a CSV file: metrics and points.")
        )
        self._list()
        outcome = self.shell.twin.outcome
        none = None if outcome else _("Predict the dose first.")
        try:
            waiting = waiting_measurements(parameters.measurements)
        except RTDigitalTwinError as error:
            waiting, none = [], str(error)
        reason = busy or noPatient or none or (None if waiting else _("There is no measurement that was not absorbed."))
        self.shell.enable(
            self.ui.observeButton,
            reason,
            _("Absorb the measurement into what is believed of the dose.")
            if len(waiting) == 1
            else _("Absorb {n} measurements into what is believed of the dose.").format(n=len(waiting)),
        )
        undoable = outcome is not None and previous_of(outcome.mean) is not None
        nothing = _("Nothing was observed yet.")
        self.shell.enable(
            self.ui.undoButton, busy or (None if undoable else nothing), _("Go back before the last observing.")
        )
        changed = outcome is not None and CHANGE in outcome.volumes
        self.shell.enable(
            self.ui.showChangeButton, None if changed else nothing, _("Lay the change of the dose over the CT.")
        )
        self.ui.observedLabel.setText(self._outcomeWords(outcome))
        self._refreshRemove()

    def onAdd(self, *unused):
        structures = self._structures()
        self._do(lambda node: add_measurement(node, structure=structures[0] if structures else ""))

    def onImport(self, *unused):
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Measurements"), "", _("Measurements (*.csv)")
        )
        if path:
            pseudonym = pseudonym_of(self.shell.parameters.ct)
            self._do(lambda node: import_measurements(node, Path(path), pseudonym))

    def onRemove(self, *unused):
        rows = self._selected()
        if rows:
            self._do(lambda node: remove_measurements(node, rows))

    def onCell(self, row, column):
        node = self.shell.parameters.measurements if self.shell.parameters else None
        if self._listed is None or node is None:
            return
        rows = measurements(node)
        if row < len(rows):
            rows[row][_SHOWN[column]] = self.ui.measurementsTable.item(row, column).text().strip()
            if _SHOWN[column] == "metric":
                rows[row]["unit"] = "%" if rows[row]["metric"].startswith("V") else "Gy"
            self._listed = None
            set_measurements(node, rows)
            self.shell.refresh()

    def onObserve(self, *unused):
        chosen = self.shell.parameters
        errand = self.shell.twin.observing(
            chosen.samples,
            chosen.seed,
            chosen.device.value,
            method=chosen.method.value,
            absorb_outliers=chosen.absorbOutliers,
        )
        self.shell.run(errand, self.shell.dose.landed)

    def onShowChange(self, *unused):
        self.shell.parameters.shownAction = ""
        self.shell.parameters.overlay = CHANGE

    def onUndo(self, *unused):
        self.shell.twin.undo()
        self.shell.refresh()

    def _do(self, edit):
        parameters = self.shell.parameters
        try:
            if parameters.measurements is None:
                parameters.measurements = measurement_table(slicer.mrmlScene)
            edit(parameters.measurements)
        except RTDigitalTwinError as error:
            slicer.util.errorDisplay(str(error))
        self.shell.refresh()

    def _structures(self):
        outcome = self.shell.twin.outcome
        return structures_of(outcome) if outcome else []

    def _selected(self):
        return sorted({item.row() for item in self.ui.measurementsTable.selectedItems()})

    def _refreshRemove(self):
        if self.shell.parameters is None:
            return
        reason = None if self._selected() else _("Select measurements in the table first.")
        self.shell.enable(self.ui.removeMeasurementsButton, reason, _("Remove the selected measurements."))

    def _watch(self, node):
        """Hear of changes of the table, by a script or by another module."""
        if node is self._watched:
            return
        if self._watched is not None:
            self.shell.removeObserver(self._watched, vtk.vtkCommand.ModifiedEvent, self.shell.refresh)
        if node is not None:
            self.shell.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.shell.refresh)
        self._watched = node

    def _list(self):
        node = self.shell.parameters.measurements
        self._watch(node)
        signature = (node.GetID(), node.GetTable().GetMTime(), node.GetMTime()) if node else ("",)
        if signature == self._listed:
            return
        self._listed = None  # filling the table shall edit nothing
        try:
            rows = measurements(node) if node else []
        except RTDigitalTwinError as error:
            rows = []
            self.shell.say(str(error))
        table = self.ui.measurementsTable
        table.setRowCount(0)
        table.setRowCount(len(rows))
        for at, row in enumerate(rows):
            fixed = row[OUTCOME].startswith("absorbed")
            for column, name in enumerate(_SHOWN):
                item = qt.QTableWidgetItem(row[name])
                if fixed or name in (OUTCOME, "unit"):
                    item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
                if row[OUTCOME].startswith("outlier"):
                    item.setToolTip(_("Beyond what belief, noise and a change of treatment can explain."))
                table.setItem(at, column, item)
        self._listed = signature

    def _outcomeWords(self, outcome):
        if outcome is None or outcome.observations is None:
            return ""
        words = words_of_column(outcome.observations, "Outcome")
        counted = {word: words.count(word) for word in dict.fromkeys(words)}
        return ", ".join(f"{count} {word}" for word, count in counted.items())
