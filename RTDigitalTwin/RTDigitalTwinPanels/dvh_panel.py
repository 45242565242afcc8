"""DVH: which curves the chart shows, at which band, and which table lies in view."""

import qt
import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.scene.dvh_nodes import band_level_of, show_band_level, show_curves, structure_of_series
from RTDigitalTwinLib.scene.outcome_nodes import show_table
from RTDigitalTwinLib.scene.table_nodes import words_of_column


class DvhPanel:
    """Chooses what chart and table show."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self._listed, self._tables = None, {}
        ui.dvhStructuresList.connect("itemChanged(QListWidgetItem*)", self.onStructure)
        ui.tableComboBox.connect("currentIndexChanged(int)", self.onTable)

    def forget(self):
        self._listed = None

    def refresh(self):
        nodes = self.shell.twin.shown
        ready = nodes is not None and nodes.chart is not None
        for widget in (self.ui.dvhStructuresList, self.ui.bandLevelComboBox, self.ui.tableComboBox):
            widget.setEnabled(ready)
        if not ready:
            self._listed = None
            self.ui.dvhStructuresList.clear()
            self._tables = {}
            self.ui.tableComboBox.clear()
            self.ui.goalsLabel.setText(_("Predict the dose first."))
            return
        if self._listed != self._signature(nodes):
            self._list(nodes)
        level = self.shell.parameters.bandLevel.value
        if band_level_of(nodes.chart) != level:
            show_band_level(nodes.chart, nodes.series, level)
        outcomes = words_of_column(nodes.goals, "Outcome") if nodes.goals else []
        counted = {words: outcomes.count(words) for words in dict.fromkeys(outcomes)}
        self.ui.goalsLabel.setText(", ".join(f"{count} {words}" for words, count in counted.items()))
        self.ui.goalsLabel.setToolTip(nodes.goals.GetDescription() if nodes.goals else "")

    def onStructure(self, *unused):
        nodes = self.shell.twin.shown
        if self._listed is None or nodes is None or nodes.chart is None:
            return
        box = self.ui.dvhStructuresList
        items = [box.item(row) for row in range(box.count)]
        show_curves(nodes.chart, nodes.series, [i.text() for i in items if i.checkState() == qt.Qt.Checked])

    def onTable(self, index):
        tables = list(self._tables.values())
        if 0 <= index < len(tables):
            show_table(slicer.mrmlScene, tables[index])

    def _list(self, nodes):
        """The structures, checked where the chart has their curves; the tables that there are."""
        self._listed = None  # filling the list shall change no chart
        shown = {nodes.chart.GetNthPlotSeriesNode(k) for k in range(nodes.chart.GetNumberOfPlotSeriesNodes())}
        structures = dict.fromkeys(structure_of_series(series) for series in nodes.series)
        visible = {structure_of_series(series) for series in shown if series is not None}
        box = self.ui.dvhStructuresList
        box.clear()
        for name in structures:
            item = qt.QListWidgetItem(name)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if name in visible else qt.Qt.Unchecked)
            box.addItem(item)
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

    def _signature(self, nodes):
        ranking = self.shell.twin.ranking
        return nodes.chart.GetID(), ranking.GetID() if ranking else ""
