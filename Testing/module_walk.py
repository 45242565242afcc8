"""What tests of the module's window share: a small patient, and waiting for what runs beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from RTDigitalTwinLib.scene.twin_patient import show_loaded
from Testing.builders import small_patient

PATIENCE_S = 240.0  # for a process that computes on a busy machine


def show_small_patient(host: Any, module: Any) -> Any:
    """The small patient's nodes, as chosen in the Patient panel."""
    nodes = show_loaded(host.scene, small_patient())
    module.ui.ctSelector.setCurrentNode(nodes.ct)
    module.ui.segmentationSelector.setCurrentNode(nodes.segmentation)
    module.ui.doseSelector.setCurrentNode(nodes.reference_dose)
    host.process_events()
    return nodes


def finish(host: Any, module: Any) -> None:
    """Wait until the work beside the window has landed."""
    host.wait_until(lambda: not module.widget.task.isRunning, PATIENCE_S, "for the task")
    host.process_events()


def predict(host: Any, module: Any, samples: int = 2) -> Any:
    """Click through a prediction; returns its mean dose node."""
    module.ui.samplesSpinBox.value = samples
    module.ui.predictButton.click()
    finish(host, module)
    return module.widget.parameters.prediction


def texts(box: Any) -> list[str]:
    """What a combo box offers."""
    return [box.itemText(k) for k in range(box.count)]


def foregrounds(scene: Any) -> set[str]:
    """Names of the volumes above the CT in the slice views."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")
    composites = [scene.GetNthNodeByClass(k, "vtkMRMLSliceCompositeNode") for k in range(count)]
    ids = {composite.GetForegroundVolumeID() for composite in composites}
    return {scene.GetNodeByID(one).GetName() if one else "" for one in ids}


def count_nodes(scene: Any) -> int:
    return int(scene.GetNumberOfNodes())


def column(node: Any, title: str) -> np.ndarray:
    from vtk.util import numpy_support

    return numpy_support.vtk_to_numpy(node.GetTable().GetColumnByName(title))
