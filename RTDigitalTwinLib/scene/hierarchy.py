"""The subject hierarchy: a patient, its study, and everything made for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import slicer

from RTDigitalTwinLib.scene import slicerrt_names as names

STUDY = "RT Digital Twin"
_PATIENT_ATTRIBUTE = "RTDigitalTwin.Patient"


def study_item(scene: Any, pseudonym: str) -> int:
    """The study item of this patient, with patient item and dose unit, made when the scene has none."""
    tree = hierarchy(scene)
    patient = tree.GetItemChildWithName(tree.GetSceneItemID(), pseudonym)
    if not patient or tree.GetItemAttribute(patient, _PATIENT_ATTRIBUTE) != names.TRUE:
        patient = tree.CreateSubjectItem(tree.GetSceneItemID(), pseudonym)
        tree.SetItemAttribute(patient, _PATIENT_ATTRIBUTE, names.TRUE)
    study = tree.GetItemChildWithName(patient, STUDY) or tree.CreateStudyItem(patient, STUDY)
    for attribute, value in ((names.DOSE_UNIT_NAME, names.GRAY), (names.DOSE_UNIT_VALUE, "1.0")):
        if not tree.GetItemAttribute(study, attribute):
            tree.SetItemAttribute(study, attribute, value)
    return study


def folder_item(scene: Any, parent: int, name: str) -> int:
    """A new folder beneath an item."""
    tree = hierarchy(scene)
    return tree.CreateFolderItem(parent, tree.GenerateUniqueItemName(name))


def put_under(scene: Any, parent: int, nodes: Iterable[Any]) -> None:
    """Place nodes beneath an item, in this order. Without the application's plugins a node has no item at first."""
    tree = hierarchy(scene)
    for node in nodes:
        item = tree.GetItemByDataNode(node) or tree.CreateItem(parent, node)
        tree.SetItemParent(item, parent)


def hierarchy(scene: Any) -> Any:
    """The scene's subject hierarchy node."""
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
