"""The outcome of a prediction as MRML nodes beside its patient: added all at once, found again, taken away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from RTDigitalTwinLib.outcome import ABSOLUTE, BEFORE, CHANGE, DIFFERENCE, MEAN, STD, WIDTH, BesideWords, Outcome
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.scene import slicerrt_names as names, volume_nodes
from RTDigitalTwinLib.scene.dvh_curves import CurveChoice, show_curves
from RTDigitalTwinLib.scene.dvh_nodes import DvhNodes, add_dvhs
from RTDigitalTwinLib.scene.hierarchy import folder_item, hierarchy, put_under
from RTDigitalTwinLib.scene.isodose_nodes import (
    IsodoseNodes,
    colours_of_isodoses,
    isodoses_of,
    show_isodoses_of,
)
from RTDigitalTwinLib.scene.patient_nodes import show_isodoses
from RTDigitalTwinLib.scene.table_nodes import GOALS_ATTRIBUTE, RANKING_ATTRIBUTE, add_table

OVERLAY_OPACITY = 0.5
_PROVENANCE = {"seed": "RTDigitalTwin.Seed", "samples": "RTDigitalTwin.Samples", "weights": "RTDigitalTwin.Weights"}
_PREFIX = "RTDigitalTwin."
_CHART, _METRICS, _GOALS, _OBSERVATIONS, _COMPARED, _RANKING, _SERIES, _CT, _SEGMENTATION, _REFERENCE_DOSE = (
    f"{_PREFIX}{role}"
    for role in (
        "chart", "metrics", "goals", "observations", "compared", "ranking", "series", "ct", "structures", "plannedDose",
    )
)  # fmt: skip
MEASUREMENTS_REFERENCE, PREVIOUS_REFERENCE = "RTDigitalTwin.measurements", "RTDigitalTwin.previous"
RANKING_REFERENCE, ACTION_REFERENCE, ACTION_ATTRIBUTE = _RANKING, f"{_PREFIX}action", f"{_PREFIX}Action"


@dataclass(frozen=True, eq=False)
class OutcomeNodes:
    """Nodes of a prediction, any of which but the mean may have been deleted since.

    Attributes
    ----------
    volumes : by role, ``outcome.MEAN`` first.
    ct, segmentation, reference_dose : of its patient.
    measurements : table of what there is to observe; None where there is none.
    series : every curve, shown in the chart or not.
    goals, metrics : tables.
    observations, compared : tables; None where nothing was observed.
    ranking : table of the actions; None where none were ranked.
    models : isodose surfaces.
    """

    volumes: dict[str, Any]
    ct: Any | None
    segmentation: Any | None
    reference_dose: Any | None
    measurements: Any | None
    chart: Any | None
    series: tuple[Any, ...]
    goals: Any | None
    metrics: Any | None
    observations: Any | None
    compared: Any | None
    ranking: Any | None
    models: tuple[Any, ...]

    @property
    def mean(self) -> Any:
        return self.volumes[MEAN]


@dataclass(frozen=True, eq=False)
class AddedOutcome:
    """What was added: the nodes, the tables of curves, the isodoses and the folder that holds them."""

    nodes: OutcomeNodes
    dvh: DvhNodes
    isodoses: IsodoseNodes
    folder: int


def add_outcome(
    scene: Any,
    outcome: Outcome,
    ct: Any,
    segmentation: Any,
    reference_dose: Any | None,
    study: int,
    progress: Progress = silent,
) -> AddedOutcome:
    """Add everything of an outcome; what was added is taken away again where something goes wrong on the way."""
    before = {scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())}
    folder = 0
    try:
        folder = folder_item(scene, study, outcome.name)
        return _added(scene, outcome, ct, segmentation, reference_dose, folder, progress)
    except BaseException:
        for node in [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]:
            if node not in before and node is not None:
                scene.RemoveNode(node)
        if folder:
            hierarchy(scene).RemoveItem(folder)
        raise


def _added(
    scene: Any,
    outcome: Outcome,
    ct: Any,
    segmentation: Any,
    reference_dose: Any | None,
    folder: int,
    progress: Progress,
) -> AddedOutcome:
    progress(0.0, "Showing the dose")
    mean = volume_nodes.add_dose(scene, outcome.mean, outcome.name, outcome.highest_gy)
    mean.SetDescription(_description(outcome))
    mean.SetAttribute(_PROVENANCE["seed"], "" if outcome.seed is None else str(outcome.seed))
    mean.SetAttribute(_PROVENANCE["samples"], str(outcome.samples))
    mean.SetAttribute(_PROVENANCE["weights"], outcome.weights_sha256)
    volumes = {MEAN: mean} | {role: _add(scene, outcome, role) for role in _ADDED if role in outcome.volumes}
    for role, node in volumes.items():
        if node is not mean:
            mean.SetNodeReferenceID(_PREFIX + role.replace(" ", ""), node.GetID())
    dvh = add_dvhs(scene, outcome, mean, segmentation, part(progress, 0.2, 0.8))
    goals = add_table(scene, "Clinical goals", outcome.goals)
    goals.SetAttribute(GOALS_ATTRIBUTE, names.TRUE)
    observations = None if outcome.observations is None else add_table(scene, "Observations", outcome.observations)
    compared = None if outcome.compared is None else add_table(scene, "Metrics before and after", outcome.compared)
    ranking = None if outcome.ranking is None else add_table(scene, "Ranking of actions", outcome.ranking)
    if ranking is not None:
        ranking.SetAttribute(RANKING_ATTRIBUTE, names.TRUE)
    tables = [goals, *(node for node in (observations, compared, ranking) if node is not None)]
    for node in tables:
        node.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, mean.GetID())
    referred = {_CHART: dvh.chart, _METRICS: dvh.metrics, _GOALS: goals, _OBSERVATIONS: observations}
    referred |= {
        _COMPARED: compared,
        _RANKING: ranking,
        _CT: ct,
        _SEGMENTATION: segmentation,
        _REFERENCE_DOSE: reference_dose,
    }
    for role, node in referred.items():
        if node is not None:
            mean.SetNodeReferenceID(role, node.GetID())
    for one in dvh.series:
        mean.AddNodeReferenceID(_SERIES, one.GetID())
    series = [one for one in dvh.series if not one.GetHideFromEditors()]
    put_under(scene, folder, [*volumes.values(), *tables, *dvh.tables.values(), dvh.metrics, *series, dvh.chart])
    progress(0.8, "Showing the isodoses")
    isodoses = show_isodoses(scene, outcome.highest_gy, outcome.mean, mean, shown=True)
    nodes = find_outcome(scene, mean)
    show_curves(nodes, CurveChoice())
    progress(1.0, "Dose shown")
    return AddedOutcome(nodes, dvh, isodoses, folder)


_ADDED = (STD, WIDTH, DIFFERENCE, ABSOLUTE, BEFORE, CHANGE)


def _add(scene: Any, outcome: Outcome, role: str) -> Any:
    volume = outcome.volumes[role]
    if role == BEFORE:
        return volume_nodes.add_dose(scene, volume, f"Dose {_beside(outcome).before}", outcome.highest_gy)
    if role == ABSOLUTE:
        return volume_nodes.add_absolute_difference(scene, volume, "Absolute difference to reference", outcome.shown)
    if role in (DIFFERENCE, CHANGE):
        name = "Difference to reference" if role == DIFFERENCE else _beside(outcome).change
        return volume_nodes.add_difference(scene, volume, name, outcome.shown)
    if role == STD:
        return volume_nodes.add_spread(scene, volume, "Sampled spread (std)", outcome.shown, "Sampled std [Gy]")
    name = "Calibrated 95 % half width"
    return volume_nodes.add_spread(scene, volume, name, outcome.shown, "95 % half width [Gy]")


def _beside(outcome: Outcome) -> BesideWords:
    assert outcome.beside is not None, "a dose before it has a name"
    return outcome.beside


def find_outcome(scene: Any, mean: Any) -> OutcomeNodes:
    """The nodes that belong to a prediction's mean dose, such as after a scene was read; deleted ones are None."""
    volumes = {MEAN: mean}
    for role in _ADDED:
        node = mean.GetNodeReference(_PREFIX + role.replace(" ", ""))
        if node is not None:
            volumes[role] = node
    series = [mean.GetNthNodeReference(_SERIES, k) for k in range(mean.GetNumberOfNodeReferences(_SERIES))]
    return OutcomeNodes(
        volumes,
        mean.GetNodeReference(_CT),
        mean.GetNodeReference(_SEGMENTATION),
        mean.GetNodeReference(_REFERENCE_DOSE),
        mean.GetNodeReference(MEASUREMENTS_REFERENCE),
        mean.GetNodeReference(_CHART),
        tuple(node for node in series if node is not None),
        mean.GetNodeReference(_GOALS),
        mean.GetNodeReference(_METRICS),
        mean.GetNodeReference(_OBSERVATIONS),
        mean.GetNodeReference(_COMPARED),
        mean.GetNodeReference(_RANKING),
        tuple(isodoses_of(scene, mean)),
    )


def is_latest_outcome(scene: Any, node: Any) -> bool:
    """Whether a volume node is the mean dose of a prediction that no observing followed, and of no action."""
    if node.GetAttribute(_PROVENANCE["samples"]) is None or node.GetAttribute(ACTION_ATTRIBUTE) is not None:
        return False
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    others = (scene.GetNthNodeByClass(k, "vtkMRMLScalarVolumeNode") for k in range(count))
    return all(other.GetNodeReference(PREVIOUS_REFERENCE) is not node for other in others)


def action_means(mean: Any) -> list[Any]:
    """Mean doses of the actions that were shown of a prediction."""
    count = mean.GetNumberOfNodeReferences(ACTION_REFERENCE)
    return [node for node in (mean.GetNthNodeReference(ACTION_REFERENCE, k) for k in range(count)) if node is not None]


def remove_actions(scene: Any, mean: Any, action: str | None = None) -> None:
    """Take away the doses of a prediction's actions and their ranking, or the dose of one action alone."""
    for one in action_means(mean):
        if action in (None, one.GetAttribute(ACTION_ATTRIBUTE)):
            remove_outcome(scene, one)
    table = mean.GetNodeReference(RANKING_REFERENCE)
    if action is None and table is not None:
        storages = _storages(table)
        for node in (table, *storages):
            scene.RemoveNode(node)


def remove_outcome(scene: Any, mean: Any) -> None:
    """Take away everything of a prediction and of its actions; its patient stays."""
    remove_actions(scene, mean)
    nodes = find_outcome(scene, mean)
    tree = hierarchy(scene)
    folder = tree.GetItemParent(tree.GetItemByDataNode(mean))
    kinds = (nodes.goals, nodes.metrics, nodes.observations, nodes.compared, nodes.ranking)
    tables = [node for node in kinds if node is not None]
    curves = {one.GetTableNode() for one in nodes.series}
    legends = []
    for node in (*nodes.volumes.values(), *nodes.models):
        legends += [node.GetNthDisplayNode(k) for k in range(node.GetNumberOfDisplayNodes())]
    isodose_colours = colours_of_isodoses(mean)
    gone = [nodes.chart, *nodes.series, *curves, *tables, *nodes.models, isodose_colours, *nodes.volumes.values()]
    for node in (*gone, *legends):
        if node is not None and scene.IsNodePresent(node):
            storages = _storages(node)
            scene.RemoveNode(node)
            for storage in storages:
                scene.RemoveNode(storage)
    if folder and tree.GetItemLevel(folder) == "Folder" and not tree.GetNumberOfItemChildren(folder):
        tree.RemoveItem(folder)


def _storages(node: Any) -> list[Any]:
    if not node.IsA("vtkMRMLStorableNode"):
        return []
    found = (node.GetNthStorageNode(k) for k in range(node.GetNumberOfStorageNodes()))
    return [storage for storage in found if storage is not None]


def show_overlay(
    scene: Any,
    nodes: OutcomeNodes,
    overlay: Any | None = None,
    *,
    opacity: float = OVERLAY_OPACITY,
    isodoses: bool = True,
) -> None:
    """The CT in every slice view with an overlay above (by default the mean dose).

    Isodoses are those of the overlay, or where it has none those of the mean dose.
    """
    overlay = overlay or nodes.mean
    show_isodoses_of(scene, *((overlay, nodes.mean) if isodoses else ()))
    show_over_ct(scene, nodes.ct, overlay, opacity)


def show_over_ct(scene: Any, ct: Any | None, overlay: Any, opacity: float = OVERLAY_OPACITY) -> None:
    """A CT in every slice view with a volume above."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
        composite = scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode")
        was = composite.StartModify()
        composite.SetBackgroundVolumeID(ct.GetID() if ct is not None else None)
        composite.SetForegroundVolumeID(overlay.GetID())
        composite.SetForegroundOpacity(opacity)
        composite.EndModify(was)


def show_chart_and_goals(scene: Any, nodes: OutcomeNodes) -> None:
    """The chart in every plot view; the ranking, or else the goals, in every table view."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLPlotViewNode")):
        if nodes.chart is not None:
            scene.GetNthNodeByClass(index, "vtkMRMLPlotViewNode").SetPlotChartNodeID(nodes.chart.GetID())
    show_table(scene, nodes.ranking or nodes.goals)


def show_table(scene: Any, table: Any | None) -> None:
    """A table in every table view."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLTableViewNode")):
        if table is not None:
            scene.GetNthNodeByClass(index, "vtkMRMLTableViewNode").SetTableNodeID(table.GetID())


def _description(outcome: Outcome) -> str:
    """What must stay with the dose when the scene is saved."""
    bands = f"Bands: {outcome.band_words}." if outcome.band_words else "One dose, without bands."
    return " ".join(("Research use only.", bands, *outcome.notes))
