"""The house rules of design: which room may import which, what import costs, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "RTDigitalTwinLib"
MODULE = ROOT / "RTDigitalTwin"

# A room imports from its own level and those before it.
LEVELS = (
    ("errors", "progress", "stopwatch", "resources", "files", "allocation", "versions", "words"),
    ("patient",),
    ("dosimetry",),
    ("source",),
    ("model",),
    ("solver",),
    ("calibration",),
    ("decision",),
    ("ledger", "ledger_entries"),
    ("twin", "course", "course_deciding", "course_projection", "course_record"),
    ("record",),
    (
        "outcome",
        "report",
        "run",
        "jobs",
        "job_course",
        "job_twins",
        "job_recommend",
        "course_outcome",
        "job_process",
        "background",
        "scene",
        "doctor",
    ),
    ("observe", "cohort", "study", "replay", "loop", "loop_summary", "recommend", "course_run", "course_study"),
    ("train",),
    ("cli_terminal",),
    ("cli_tables",),
    ("cli_dicom", "cli_dosimetry", "cli_options", "cli_accumulation"),
    ("cli_patient", "cli_study", "cli_decision", "cli_course"),
    ("cli",),
    ("__main__",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
APPLICATION = {"slicer", "vtk", "vtkmodules", "qt", "ctk", "PySide6"}
LONGEST_FILE_LINES = 450
SLOWEST_IMPORT_SECONDS = 0.5


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a source, lazy ones inside functions too, none only for type checking."""

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.orelse:
                yield from visit(statement)
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(source))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imported_names(path.read_text(encoding="utf-8"), package)


def room_of(path: Path) -> str:
    """The folder of the library a file lies in, or a single file's own name."""
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import numpy as np\nfrom . import grid\nfrom ..model import network\n"
        "def f():\n    from RTDigitalTwinLib.twin import Twin\n"
        "if TYPE_CHECKING:\n    import torch\n"
    )
    assert [name for _, name in imported_names(source, "RTDigitalTwinLib.patient")] == [
        "numpy",
        "RTDigitalTwinLib.patient.grid",
        "RTDigitalTwinLib.model.network",
        "RTDigitalTwinLib.twin.Twin",
    ]


def test_every_part_of_the_library_has_its_level() -> None:
    rooms = {room_of(path) for path in python_files(LIBRARY)} - {"__init__"}
    assert rooms <= LEVEL_OF.keys(), "give it a level in LEVELS"


def test_imports_point_one_way() -> None:
    upwards = []
    for path in python_files(LIBRARY):
        room = room_of(path)
        if room == "__init__":  # re-exports Patient and Twin lazily, by name
            continue
        for line, name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "RTDigitalTwinLib" or len(parts) < 2:
                continue
            other = {"Patient": "patient", "Twin": "twin", "__version__": "errors"}.get(parts[1], parts[1])
            if {other, room} <= LEVEL_OF.keys() and LEVEL_OF[other] > LEVEL_OF[room]:
                upwards.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not upwards


def test_only_the_scene_imports_the_application() -> None:
    strays = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files(LIBRARY)
        if room_of(path) != "scene"
        for line, name in imports_of(path)
        if name.split(".")[0] in APPLICATION
    ]
    assert not strays


def test_only_the_command_line_imports_argparse() -> None:
    importers = {
        path.relative_to(LIBRARY).as_posix()
        for path in python_files(LIBRARY)
        for _, name in imports_of(path)
        if name.split(".")[0] == "argparse"
    }
    assert importers <= {"cli.py", "train.py"}


def test_the_library_never_imports_the_module() -> None:
    assert not [
        path for path in python_files(LIBRARY) for _, name in imports_of(path) if name.split(".")[0] == "RTDigitalTwin"
    ]


def test_importing_the_library_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "monai", "numpy", "SimpleITK", "pydicom", "matplotlib", "slicer", "vtk")
    # Processor time, interpreter start included: the machine may be busy.
    code = f"import sys, time, RTDigitalTwinLib; print(time.process_time(), *(set(sys.modules) & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.split()
    assert not imported
    assert float(seconds) < SLOWEST_IMPORT_SECONDS


def test_patient_is_exported() -> None:
    from RTDigitalTwinLib import Patient
    from RTDigitalTwinLib.patient.patient import Patient as PatientAtHome

    assert Patient is PatientAtHome


def test_twin_is_exported() -> None:
    from RTDigitalTwinLib import Twin
    from RTDigitalTwinLib.twin import Twin as TwinAtHome

    assert Twin is TwinAtHome


def test_an_unknown_name_is_an_attribute_error() -> None:
    import RTDigitalTwinLib

    with pytest.raises(AttributeError, match="Physician"):
        _ = RTDigitalTwinLib.Physician
    assert {"Patient", "Twin", "__version__"} <= set(dir(RTDigitalTwinLib))


def test_no_file_is_too_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(LIBRARY, MODULE, ROOT / "Testing")
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE_LINES} == {}
