"""DVH: which curves the chart shows, at which band, and which table lies in view."""

import qt
import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.scene.dvh_curves import (
    BAND,
    BEFORE,
    REFERENCE,
    chosen_structures,
    kinds_of,
    show_curves,
    structures_of,
)
from RTDigitalTwinLib.scene.outcome_nodes import show_table
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from RTDigitalTwinPanels.parameters import CurvesOf


class DvhPanel:
    """Chooses what chart and table show."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self._listed = self._applied = self._watched = None
        self._tables, self._isListing = {}, False
        ui.dvhStructuresList.connect("itemChanged(QListWidgetItem*)", self.onStructure)
        ui.tableComboBox.connect("currentIndexChanged(int)", self.onTable)

    def forget(self):
        self._watch(None)
        self._listed = self._applied = None

    def refresh(self):
        twin = self.shell.twin
        nodes = twin.shown
        ready = nodes is not None and nodes.chart is not None
        for widget in (self.ui.dvhStructuresList, self.ui.curvesOfComboBox, self.ui.tableComboBox):
            widget.setEnabled(ready)
        self._offerKinds(kinds_of(nodes) if ready else set())
        if not ready:
            self.forget()
            self.ui.dvhStructuresList.clear()
            self._tables = {}
            self.ui.tableComboBox.clear()
            self.ui.goalsLabel.setText(_("Predict the dose first."))
            return
        self._watch(nodes.segmentation)
        self._applyCurves(nodes, twin.curves)
        if self._listed != self._signature(nodes):
            self._listTables(nodes)
        outcomes = words_of_column(nodes.goals, "Outcome") if nodes.goals else []
        counted = {words: outcomes.count(words) for words in dict.fromkeys(outcomes)}
        self.ui.goalsLabel.setText(", ".join(f"{count} {words}" for words, count in counted.items()))
        self.ui.goalsLabel.setToolTip(nodes.goals.GetDescription() if nodes.goals else "")

    def onStructure(self, *unused):
        """One was checked or not: from now on the checks say what is shown."""
        if self._isListing:
            return
        box = self.ui.dvhStructuresList
        items = [box.item(row) for row in range(box.count)]
        names = [item.text() for item in items if item.checkState() == qt.Qt.Checked]
        parameters = self.shell.parameters
        parameters.chosenCurves = names
        parameters.curvesOf = CurvesOf.CHOSEN
        self.shell.refresh()

    def onTable(self, index):
        tables = list(self._tables.values())
        if 0 <= index < len(tables):
            show_table(slicer.mrmlScene, tables[index])

    def onDisplay(self, *unused):
        """A segment was shown or hidden."""
        if self.shell.parameters is not None and self.shell.parameters.curvesOf == CurvesOf.VISIBLE:
            self.shell.refresh()

    def _offerKinds(self, known):
        """What can be shown beside the mean."""
        isAction = bool(self.shell.parameters.shownAction)
        self.ui.beforeCurvesCheckBox.setText(_("Without the action") if isAction else _("Before observing"))
        none = _("Predict the dose first.") if not known else None
        for widget, kind, reason, tip in (
            (self.ui.bandCurvesCheckBox, BAND, _("A single dose has no band."), _("Its limits, thin and dashed.")),
            (self.ui.bandLevelComboBox, BAND, _("A single dose has no band."),
             _("Share of cases that the band is meant to hold, point by point.")),
            (self.ui.beforeCurvesCheckBox, BEFORE, _("Nothing was observed, and no action is in view."),
             _("What the dose was believed to be before, dash-dotted.")),
            (self.ui.referenceCurvesCheckBox, REFERENCE, _("The patient has no reference dose."), _("Dotted.")),
        ):  # fmt: skip
            self.shell.enable(widget, none or (None if kind in known else reason), tip)

    def _applyCurves(self, nodes, choice):
        """Chart and checks as chosen, where any of it changed."""
        names = chosen_structures(nodes, choice)
        if (nodes.chart.GetID(), choice, names) == self._applied:
            return
        self._applied = nodes.chart.GetID(), choice, names
        show_curves(nodes, choice)
        box, known = self.ui.dvhStructuresList, structures_of(nodes)
        self._isListing = True  # that changes no choice
        if [box.item(row).text() for row in range(box.count)] != known:
            box.clear()
            for name in known:
                item = qt.QListWidgetItem(name)
                item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                box.addItem(item)
        for row, name in enumerate(known):
            box.item(row).setCheckState(qt.Qt.Checked if name in names else qt.Qt.Unchecked)
        self._isListing = False

    def _listTables(self, nodes):
        """The tables that there are."""
        named = {
            _("Clinical goals"): nodes.goals,
            _("Dose metrics"): nodes.metrics,
            _("Observations"): nodes.observations,
            _("Metrics before and after"): nodes.compared,
            _("Ranking of actions"): self.shell.twin.ranking,
        }
        self._tables = {}
        self.ui.tableComboBox.clear()
        present = {words: table for words, table in named.items() if table is not None}
        self.ui.tableComboBox.addItems(list(present))
        self._tables = present
        self._listed = self._signature(nodes)

    def _watch(self, segmentation):
        """Hear of segments that are shown or hidden."""
        if segmentation is self._watched:
            return
        event = slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent
        if self._watched is not None:
            self.shell.removeObserver(self._watched, event, self.onDisplay)
        if segmentation is not None:
            self.shell.addObserver(segmentation, event, self.onDisplay)
        self._watched = segmentation

    def _signature(self, nodes):
        ranking = self.shell.twin.ranking
        return nodes.chart.GetID(), ranking.GetID() if ranking else ""
