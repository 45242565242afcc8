"""Decide: what could be done next, ranked under an allowed risk; any action's dose beside the present one."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.jobs import CUSTOMARY, Recommend
from RTDigitalTwinLib.scene.action_nodes import DECIDED_ATTRIBUTE, KEEP, action_nodes, ranked_actions
from RTDigitalTwinLib.scene.dvh_curves import structures_of
from RTDigitalTwinLib.scene.outcome_nodes import show_table
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from RTDigitalTwinPanels.layout import showLayout

_COLUMNS = (
    "Place", "Action", "Outcome", "Utility", "Gain on keeping", "Violated in", "Nearest limit", "Reasons",
)  # fmt: skip
_REASONS_COLUMN = _COLUMNS.index("Reasons")


def candidateWords(candidate):
    """What a candidate is called in the list; of those the user added, what they say."""
    words = {
        "spare": _("Spare organs whose goals are in danger"),
        "boost": _("Boost targets that miss their dose"),
        "replan": _("Plan anew with the same beams"),
        "re-image": _("Take a new image"),
    }
    verb, __, of = candidate.partition(" ")
    if verb == "scale":
        return _("Scale the dose by {factor}").format(factor=of)
    if not of:
        return words[verb]
    return (_("Spare {structure}") if verb == "spare" else _("Boost {structure}")).format(structure=of)


class DecidePanel:
    """Ranks actions."""

    def __init__(self, ui, shell):
        self.ui, self.shell = ui, shell
        self._listed = self._ranked = self._offered = None
        ui.candidatesList.connect("itemChanged(QListWidgetItem*)", self.onCandidate)
        ui.addActionButton.connect("clicked(bool)", self.onAdd)
        ui.actionKindComboBox.addItems([_("Spare"), _("Boost")])
        ui.actionKindComboBox.connect("currentIndexChanged(int)", shell.refresh)
        ui.actionsFileLineEdit.connect("currentPathChanged(QString)", shell.refresh)
        ui.protocolFileLineEdit.connect("currentPathChanged(QString)", shell.refresh)
        ui.rankButton.connect("clicked(bool)", self.onRank)
        ui.rankingTable.connect("itemSelectionChanged()", self.onSelect)
        ui.computeActionButton.connect("clicked(bool)", self.onCompute)
        ui.presentDoseButton.connect("clicked(bool)", self.onPresent)
        titles = [_("Place"), _("Action"), _("Outcome"), _("Utility"), _("Gain"), _("Violated in"),
                  _("Nearest limit"), _("Reasons")]  # fmt: skip
        ui.rankingTable.setColumnCount(len(titles))
        ui.rankingTable.setHorizontalHeaderLabels(titles)
        ui.rankingTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)

    def forget(self):
        self._listed = self._ranked = self._offered = None

    @property
    def candidates(self):
        """Customary ones and those the user added; with the file, none of them counts."""
        return [*CUSTOMARY, *self.shell.parameters.addedActions]

    @property
    def selected(self):
        """The action of the selected row; "" where none is."""
        rows = {item.row() for item in self.ui.rankingTable.selectedItems()}
        return self.ui.rankingTable.item(min(rows), 1).text() if rows else ""

    def refresh(self, *unused):
        parameters, nodes = self.shell.parameters, self.shell.twin.outcome
        busy = self.shell.reasonNotToCompute() or self.shell.reasonNoPatient()
        none = None if nodes else _("Predict the dose first.")
        self._listCandidates()
        self._offerStructures(nodes)
        byFile = _("The file of actions says it.") if self._file(self.ui.actionsFileLineEdit) else None
        byProtocol = _("The protocol file says it.") if self._file(self.ui.protocolFileLineEdit) else None
        self.shell.enable(self.ui.candidatesList, byFile, _("What is weighed; keeping the plan always is."))
        noStructure = None if self.ui.actionStructureComboBox.count else _("There are no structures yet.")
        self.shell.enable(
            self.ui.addActionButton, byFile or none or noStructure, _("Weigh this too: by at most 10 % of the dose.")
        )
        self.shell.enable(
            self.ui.riskSpinBox, byProtocol, _("Probability of violating a hard limit that is still allowed.")
        )
        self.shell.enable(
            self.ui.uncertaintyWeightSpinBox,
            byProtocol,
            _("How much the spread of an action's benefit counts against it; 0 is risk-neutral."),
        )
        nothing = None if byFile or self._chosen() else _("Check at least one action beside keeping the plan.")
        self.shell.enable(
            self.ui.rankButton,
            busy or none or self._fileMissing() or nothing,
            _("Judge every action on the samples of the dose and rank them. Research use only."),
        )
        self._listRanking()
        self._refreshSelected()
        shown = parameters.shownAction
        self.ui.shownActionLabel.setText(
            _("In view: dose with action {action}").format(action=shown) if shown else _("In view: the present dose")
        )

    def onCandidate(self, *unused):
        if self._listed is None:
            return
        box = self.ui.candidatesList
        items = [box.item(row) for row in range(box.count)]
        self.shell.parameters.uncheckedActions = [
            candidate
            for candidate, item in zip(self.candidates, items, strict=True)
            if item.checkState() != qt.Qt.Checked
        ]

    def onAdd(self, *unused):
        verb = ("spare", "boost")[self.ui.actionKindComboBox.currentIndex]
        candidate = f"{verb} {self.ui.actionStructureComboBox.currentText}"
        parameters = self.shell.parameters
        if candidate not in parameters.addedActions:
            parameters.addedActions = [*parameters.addedActions, candidate]
        parameters.uncheckedActions = [one for one in parameters.uncheckedActions if one != candidate]
        self.shell.refresh()

    def job(self):
        """The ranking as it is chosen."""
        parameters, chosen = self.shell.parameters, self._chosen()
        protocol = self._file(self.ui.protocolFileLineEdit)
        return Recommend(
            samples=parameters.decideSamples,
            seed=parameters.seed,
            device=parameters.device.value,
            risk=None if protocol else parameters.riskPercent / 100,
            uncertainty_weight=None if protocol else parameters.uncertaintyWeight,
            customary=tuple(one for one in chosen if one in CUSTOMARY),
            spare=self._of("spare", chosen),
            boost=self._of("boost", chosen),
            actions=self._file(self.ui.actionsFileLineEdit),
            protocol=protocol,
        )

    def onRank(self, *unused):
        self.shell.run(self.shell.twin.recommending(self.job()), self.landed)

    def onSelect(self, *unused):
        """Show the selected action where its dose is in the scene."""
        if self._ranked is None or not self.selected:
            return
        self._refreshSelected()
        nodes = self.shell.twin.outcome
        if nodes is not None and action_nodes(slicer.mrmlScene, nodes.mean, self.selected) is not None:
            self._view(self.selected)

    def onCompute(self, *unused):
        try:
            errand = self.shell.twin.computing_action(
                self.selected,
                self.shell.parameters.device.value,
                self._file(self.ui.actionsFileLineEdit),
                self._file(self.ui.protocolFileLineEdit),
            )
        except RTDigitalTwinError as error:
            slicer.util.errorDisplay(str(error))
            return
        self.shell.run(errand, self.landed)

    def onPresent(self, *unused):
        self._view("")

    def landed(self, table):
        """A ranking, or the dose of one of its actions, came home."""
        showLayout()
        self._ranked = None
        self.shell.dose.landed(self.shell.parameters.prediction)
        show_table(slicer.mrmlScene, table)

    def _view(self, action):
        self.shell.parameters.shownAction = "" if action == KEEP else action
        self.shell.dose.landed(self.shell.parameters.prediction)

    def _refreshSelected(self):
        nodes, selected = self.shell.twin.outcome, self.selected
        ranked = nodes is not None and nodes.ranking is not None
        reason = None if ranked else _("Rank the actions first.")
        reason = reason or (None if selected else _("Select an action in the table first."))
        if reason is None and action_nodes(slicer.mrmlScene, nodes.mean, selected) is not None:
            reason = _("Its dose is in the scene: selecting its row shows it.")
        self.shell.enable(
            self.ui.computeActionButton,
            reason or self.shell.reasonNotToCompute(),
            _("Compute this action's dose, histograms and goals beside the present ones."),
        )
        atPresent = None if self.shell.parameters.shownAction else _("The present dose is in view.")
        self.shell.enable(self.ui.presentDoseButton, atPresent, _("Show the dose if nothing is changed."))

    def _chosen(self):
        return [one for one in self.candidates if one not in self.shell.parameters.uncheckedActions]

    def _of(self, verb, chosen):
        return tuple(one.partition(" ")[2] for one in chosen if one.startswith(f"{verb} "))

    def _file(self, lineEdit):
        path = lineEdit.currentPath
        return path if path and Path(path).is_file() else ""

    def _fileMissing(self):
        for lineEdit in (self.ui.actionsFileLineEdit, self.ui.protocolFileLineEdit):
            if lineEdit.currentPath and not self._file(lineEdit):
                return _("There is no file {name}.").format(name=Path(lineEdit.currentPath).name)
        return None

    def _listCandidates(self):
        signature = (tuple(self.candidates), tuple(self.shell.parameters.uncheckedActions))
        if signature == self._listed:
            return
        self._listed = None  # filling the list shall choose nothing
        box = self.ui.candidatesList
        box.clear()
        for candidate in self.candidates:
            item = qt.QListWidgetItem(candidateWords(candidate))
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            checked = candidate not in self.shell.parameters.uncheckedActions
            item.setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)
            box.addItem(item)
        self._listed = signature

    def _offerStructures(self, nodes):
        """Organs to spare or targets to boost, by whose curves there are; the library says which cannot be."""
        names = structures_of(nodes) if nodes else []
        boost = self.ui.actionKindComboBox.currentIndex == 1
        offered = [name for name in names if name.startswith(("PTV", "CTV", "GTV")) == boost]
        if offered != self._offered:
            self.ui.actionStructureComboBox.clear()
            self.ui.actionStructureComboBox.addItems(offered)
            self._offered = offered

    def _listRanking(self):
        table = self.shell.twin.ranking
        signature = (table.GetID(), table.GetMTime()) if table else ("",)
        self.ui.decidedLabel.setText((table.GetAttribute(DECIDED_ATTRIBUTE) or "") if table else "")
        self.ui.decidedLabel.setToolTip(table.GetDescription() if table else "")
        if signature == self._ranked:
            return
        self._ranked = None  # filling the table shall show nothing
        shown = self.ui.rankingTable
        shown.setRowCount(0)
        columns = [words_of_column(table, name) for name in _COLUMNS] if table else []
        shown.setRowCount(len(columns[0]) if columns else 0)
        for column, words in enumerate(columns):
            for row, word in enumerate(words):
                item = qt.QTableWidgetItem("" if word == "nan" else word)
                item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)
                item.setToolTip(columns[_REASONS_COLUMN][row])
                shown.setItem(row, column, item)
        if table:
            action = self.shell.parameters.shownAction or KEEP
            actions = ranked_actions(table)
            if action in actions:
                shown.selectRow(actions.index(action))
        self._ranked = signature
