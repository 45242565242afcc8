"""The module's own layout: three slices and space at the left, chart and table at the right."""

import slicer

LAYOUT = 54720
_SLICE = (
    '<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
    '<property name="orientation" action="default">{orientation}</property>'
    '<property name="viewlabel" action="default">{letter}</property>'
    '<property name="viewcolor" action="default">{colour}</property></view></item>'
)
_RED = _SLICE.format(tag="Red", orientation="Axial", letter="R", colour="#F34A33")
_GREEN = _SLICE.format(tag="Green", orientation="Coronal", letter="G", colour="#6EB04B")
_YELLOW = _SLICE.format(tag="Yellow", orientation="Sagittal", letter="Y", colour="#EDD54C")
_SPACE = (
    '<item><view class="vtkMRMLViewNode" singletontag="1">'
    '<property name="viewlabel" action="default">1</property></view></item>'
)
_CHART = (
    '<item splitSize="600"><view class="vtkMRMLPlotViewNode" singletontag="PlotView1">'
    '<property name="viewlabel" action="default">P</property></view></item>'
)
_TABLE = (
    '<item splitSize="400"><view class="vtkMRMLTableViewNode" singletontag="TableView1">'
    '<property name="viewlabel" action="default">T</property></view></item>'
)
XML = (
    '<layout type="horizontal" split="true">'
    '<item splitSize="600"><layout type="vertical">'
    f'<item><layout type="horizontal">{_RED}{_SPACE}</layout></item>'
    f'<item><layout type="horizontal">{_GREEN}{_YELLOW}</layout></item>'
    "</layout></item>"
    f'<item splitSize="400"><layout type="vertical" split="true">{_CHART}{_TABLE}</layout></item>'
    "</layout>"
)


def showLayout():
    """Show the module's layout; nothing where there are no views."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    node = manager.layoutLogic().GetLayoutNode()
    if not node.IsLayoutDescription(LAYOUT):
        node.AddLayoutDescription(LAYOUT, XML)
    if manager.layout != LAYOUT:
        manager.setLayout(LAYOUT)


def centreOn(position):
    """Every slice through a point in RAS, and all views on the patient."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    manager.resetSliceViews()
    for name in manager.sliceViewNames():
        manager.sliceWidget(name).mrmlSliceNode().JumpSliceByCentering(*position)
    manager.resetThreeDViews()
