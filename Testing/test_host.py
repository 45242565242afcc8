"""The stand-in application's own contract: what desktop Slicer does, as far as the module leans on it."""

# No postponed annotations: a parameter node reads the types of classes made inside a test.

import enum
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

from Testing.host.fixtures import own_files_folder, skip_where_missing

skip_where_missing()
pytest.importorskip("PySide6.QtWidgets", reason="desktop Slicer needs no stand-in", exc_type=ImportError)

import slicer  # noqa: E402

from Testing.host.session import has_own, slicer_application  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def host() -> Iterator[Any]:
    with slicer_application() as running:
        yield running


@pytest.fixture
def qt(host: Any) -> Any:
    import qt

    return qt


@pytest.fixture
def ctk(host: Any) -> Any:
    import ctk

    return ctk


def test_the_host_leaves_the_process_as_it_was() -> None:
    before = set(sys.modules), set(dir(slicer)), list(sys.path)
    for _ in range(2):
        with slicer_application() as host:
            host.load_module()
            assert {"qt", "ctk", "RTDigitalTwin"} <= set(sys.modules)
    assert not {"qt", "ctk", "RTDigitalTwin", "slicer.i18n", "slicer.packaging"} & set(sys.modules)
    assert (set(dir(slicer)), list(sys.path)) == (before[1], before[2])
    assert not hasattr(slicer, "app")


# PythonQt


def test_properties_are_attributes_and_unknown_ones_are_refused(qt: Any) -> None:
    box = qt.QCheckBox("Sample")
    assert (box.text, box.checked, box.enabled) == ("Sample", False, True)
    box.checked, box.toolTip = True, "why"
    assert box.isChecked() and box.toolTip == "why"
    table = qt.QTableWidget(2, 3)
    table.rowCount = 5
    assert (table.rowCount, table.columnCount) == (5, 3)
    with pytest.raises(AttributeError, match="checkd"):
        box.checkd = True
    with pytest.raises(TypeError):
        box.text()

    class Own(qt.QWidget):
        pass

    own = Own()
    own.anything = 3  # a Python class may have what it likes
    assert own.anything == 3


def test_both_ways_to_connect(qt: Any) -> None:
    heard: list[Any] = []
    button = qt.QPushButton("Go")
    button.connect("clicked(bool)", lambda on: heard.append(on))
    button.connect("clicked()", lambda: heard.append("bare"))
    button.clicked.connect(lambda: heard.append("signal"))
    button.click()
    assert heard == [False, "bare", "signal"]
    with pytest.raises(ValueError, match="no signal pressd"):
        button.connect("pressd()", print)
    spin = qt.QSpinBox()
    slot = heard.append
    spin.connect("valueChanged(int)", slot)
    spin.value = 4
    assert spin.disconnect("valueChanged(int)", slot)
    spin.value = 5
    assert heard[-1] == 4

    class Own(qt.QPushButton):
        pass

    own = Own("derived")
    own.connect("clicked()", lambda: heard.append("derived"))
    own.click()
    assert heard[-1] == "derived"


def test_timers_and_processes_run_in_the_event_loop(host: Any, qt: Any) -> None:
    ticks: list[int] = []
    qt.QTimer.singleShot(0, lambda: ticks.append(1))
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(2))
    timer.interval = 1
    timer.start()
    host.wait_until(lambda: len(ticks) > 2)
    timer.stop()
    assert ticks[0] == 1 and not timer.active
    ended: list[int] = []
    process = qt.QProcess()
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ended.append(code))
    process.start(sys.executable, ["-c", "import sys; print('words'); sys.exit(3)"])
    host.wait_until(lambda: bool(ended))
    assert ended == [3] and process.readAllStandardOutput().data().split() == [b"words"]
    process.start(sys.executable, ["-c", "import time; time.sleep(60)"])
    assert process.waitForStarted()
    process.kill()
    host.wait_until(lambda: len(ended) == 2)


def test_settings_are_the_tests_own(host: Any, qt: Any) -> None:
    qt.QSettings().setValue("RTDigitalTwin/Device", "cpu")
    assert qt.QSettings().value("RTDigitalTwin/Device") == "cpu"
    assert qt.QSettings().fileName().startswith(slicer.app.temporaryPath)


# ctk and qMRML


def test_a_collapsed_area_hides_what_it_holds(qt: Any, ctk: Any) -> None:
    area = ctk.ctkCollapsibleButton()
    area.text = "Dose"
    form = qt.QFormLayout(area)
    shown, hidden = qt.QLabel("shown"), qt.QLabel("hidden")
    form.addRow(shown)
    form.addRow(hidden)
    hidden.visible = False
    area.collapsed = True
    assert shown.isHidden() and not area.checked
    area.collapsed = False
    assert not shown.isHidden() and hidden.isHidden()


@pytest.mark.parametrize("name", ["ctkSliderWidget", "ctkDoubleSpinBox"])
def test_numbers_are_kept_in_bounds_and_told(ctk: Any, name: str) -> None:
    widget, told = getattr(ctk, name)(), []
    widget.minimum, widget.maximum, widget.decimals = 0.0, 2.0, 3
    widget.connect("valueChanged(double)", told.append)
    widget.value = 0.125
    widget.value = 9
    assert told == [0.125, 2.0] and widget.value == 2.0


def test_a_node_selector_follows_the_scene(host: Any) -> None:
    box, told = slicer.qMRMLNodeComboBox(), []
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.noneEnabled = True
    box.setMRMLScene(host.scene)
    box.connect("currentNodeChanged(vtkMRMLNode*)", told.append)
    ct = host.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    host.scene.AddNewNodeByClass("vtkMRMLTableNode", "not listed")
    assert [box.itemText(i) for i in range(box.count)] == ["None", "CT"] and box.currentNode() is None
    box.setCurrentNode(ct)
    ct.SetName("Planning CT")
    assert box.currentText == "Planning CT" and box.currentNodeID == ct.GetID()
    host.scene.RemoveNode(ct)
    assert box.currentNode() is None and told == [ct, None]


def test_a_table_view_shows_its_node(host: Any) -> None:
    table = host.scene.AddNewNodeByClass("vtkMRMLTableNode", "Goals")
    slicer.util.updateTableFromArray(table, np.array([[1.5], [2.5]]), ["Dose"])
    view = slicer.qMRMLTableView()
    view.setMRMLScene(host.scene)
    view.setMRMLTableNode(table)
    assert (view.rowCount, view.columnCount) == (2, 1) and view.item(1, 0).text() == "2.5"


# Parameters


def test_parameters_are_typed_kept_in_the_scene_and_survive_its_file(host: Any, tmp_path: Path) -> None:
    from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper, parameterPack

    class Side(enum.Enum):
        LEFT = 1
        RIGHT = 2

    @parameterPack
    class Point:
        x: Annotated[float, WithinRange(0, 10)]
        label: str = "none"

    @parameterNodeWrapper
    class Parameters:
        ct: slicer.vtkMRMLScalarVolumeNode
        samples: Annotated[int, WithinRange(2, 8)] = 4
        ratio: Annotated[float, Default(0.5)]
        device: Annotated[str, Choice(["cpu", "cuda"])] = "cpu"
        side: Side
        point: Point
        names: list[str]
        folder: pathlib.Path

    node = host.scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "Parameters")
    kept = Parameters(node)
    assert (kept.ct, kept.samples, kept.ratio, kept.side, list(kept.names)) == (None, 4, 0.5, Side.LEFT, [])
    for name, value in (
        ("samples", 9), ("samples", "4"), ("device", "tpu"), ("ct", node), ("ratio", None), ("names", [1]),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            setattr(kept, name, value)
    ct = host.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    slicer.util.updateVolumeFromArray(ct, np.zeros((2, 2, 2)))
    kept.ct, kept.side, kept.names, kept.point.x = ct, Side.RIGHT, ["a", "b"], 3.5
    with pytest.raises(ValueError):
        kept.point.x = 11.0
    heard: list[str] = []
    kept.AddObserver("ModifiedEvent", lambda *unused: heard.append("modified"))
    kept.samples = 6
    assert heard
    host.save_mrb(tmp_path / "kept.mrb")
    host.load_mrb(tmp_path / "kept.mrb")
    again = Parameters(slicer.util.getNode("Parameters"))
    assert (again.ct.GetName(), again.samples, again.side, list(again.names)) == ("CT", 6, Side.RIGHT, ["a", "b"])
    assert again.point.x == 3.5


def test_widgets_are_bound_by_their_exact_class(host: Any, qt: Any, ctk: Any) -> None:
    from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

    @parameterNodeWrapper
    class Parameters:
        opacity: Annotated[float, WithinRange(0, 1)] = 0.5
        device: Annotated[str, Choice(["cpu", "cuda"])] = "cuda"
        volume: slicer.vtkMRMLScalarVolumeNode

    panel = qt.QWidget()
    column = qt.QVBoxLayout(panel)
    slider, choice, nodes = ctk.ctkSliderWidget(), qt.QComboBox(), slicer.qMRMLNodeComboBox()
    nodes.noneEnabled = True
    for widget, name in ((slider, "opacity"), (choice, "device"), (nodes, "volume")):
        widget.setProperty("SlicerParameterName", name)
        column.addWidget(widget)
    nodes.setMRMLScene(host.scene)
    kept = Parameters(host.scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))
    tag = kept.connectGui(panel)
    assert (slider.maximum, slider.value, choice.currentText) == (1.0, 0.5, "cuda")
    volume = host.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Dose")
    slider.value = 0.25
    choice.currentIndex = 0
    nodes.setCurrentNode(volume)
    assert (kept.opacity, kept.device, kept.volume) == (0.25, "cpu", volume)
    kept.opacity = 0.75
    assert slider.value == 0.75
    kept.disconnectGui(tag)
    slider.value = 0.1
    assert kept.opacity == 0.75

    class Derived(ctk.ctkSliderWidget):
        pass

    with pytest.raises(RuntimeError, match="connector"):
        kept.connectParametersToGui({"opacity": Derived()})


# Messages, layouts, .ui files


def test_messages_are_kept_and_questions_must_be_answered(host: Any) -> None:
    with pytest.raises(ValueError, match="bad"), slicer.util.tryWithErrorDisplay("It failed."):
        raise ValueError("bad")
    assert [message.text for message in host.dialogs.errors] == ["It failed.\n\nbad"]
    host.dialogs.answers += [True, False]
    assert slicer.util.confirmOkCancelDisplay("Install?") is True
    assert slicer.util.confirmYesNoDisplay("Sure?") is False
    with pytest.raises(AssertionError, match="Again"):
        slicer.util.confirmOkCancelDisplay("Again?")


def test_a_layout_of_ones_own_makes_its_views(host: Any) -> None:
    kinds = (("vtkMRMLSliceNode", "Red"), ("vtkMRMLPlotViewNode", "Dvh"), ("vtkMRMLTableViewNode", "Goals"))
    views = "".join(f'<item><view class="{kind}" singletontag="{tag}"/></item>' for kind, tag in kinds)
    manager = slicer.app.layoutManager()
    node = manager.layoutLogic().GetLayoutNode()
    node.AddLayoutDescription(5101, f'<layout type="vertical">{views}</layout>')
    manager.setLayout(5101)
    assert manager.layout == 5101 and list(manager.sliceViewNames()) == ["Red"]
    assert manager.plotWidget(0).mrmlPlotViewNode().GetLayoutName() == "Dvh"
    assert manager.tableWidget(0).mrmlTableViewNode().GetLayoutName() == "Goals"
    with pytest.raises(ValueError, match="no layout"):
        manager.setLayout(9999)


def test_an_unknown_widget_of_a_panel_is_named(host: Any, tmp_path: Path) -> None:
    from Testing.host.ui_loader import MissingWidget

    file = tmp_path / "panel.ui"
    file.write_text('<ui version="4.0"><widget class="ctkUnheardOf" name="w"/></ui>')
    with pytest.raises(MissingWidget, match="ctkUnheardOf"):
        slicer.util.loadUI(str(file))


def test_an_exception_in_a_slot_is_heard_of(host: Any, qt: Any) -> None:
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    assert [type(error) for error in host.uncaught] == [ZeroDivisionError]


def test_the_layout_is_drawn(host: Any, tmp_path: Path) -> None:
    from RTDigitalTwinLib.scene.rendering import rendering_problem

    if rendering_problem():
        pytest.skip(f"nothing can be drawn here: {rendering_problem()}")
    module = host.load_module()
    host.grab_layout(module, tmp_path / "layout.png")
    assert (tmp_path / "layout.png").stat().st_size > 10_000


PRINT_ORIGINS = """
import slicer
from Testing.host.session import slicer_application
with slicer_application():
    for name in ("i18n", "packaging", "ScriptedLoadableModule", "parameterNodeWrapper"):
        print(name, getattr(getattr(slicer, name), "__file__", "stand-in"))
"""


def origins(folder: Path) -> dict[str, str]:
    """Where the host took each of Slicer's Python parts from, told a folder with files of Slicer's own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RTDT_SLICER_PYTHON": str(folder)}
    command = [sys.executable, "-c", PRINT_ORIGINS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def test_files_of_a_named_folder_take_the_stand_ins_place(tmp_path: Path) -> None:
    own = tmp_path / "slicer" / "i18n.py"
    own.parent.mkdir()
    own.write_text("def tr(text):\n    return text\n\n\ndef translate(context, text):\n    return text\n")
    found = origins(tmp_path)
    assert found.pop("i18n") == str(own)
    assert set(found.values()) == {"stand-in"}


def test_slicers_own_files_are_used_where_they_are() -> None:
    folder = own_files_folder()
    if folder is None:
        pytest.skip("RTDT_SLICER_PYTHON names no folder with Slicer's own files: tested with the stand-ins ONLY")
    found = origins(folder)
    assert [name for name in found if has_own(folder, name) and not found[name].startswith(str(folder))] == []
    assert set(found.values()) != {"stand-in"}, f"{folder} has none of Slicer's own files below slicer/"
