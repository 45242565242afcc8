"""What ``doctor`` finds, and that nothing it finds stops it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from RTDigitalTwinLib import doctor
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.doctor import INSTALL_SCENE

ROOT = Path(__file__).resolve().parent.parent


def test_doctor_finds_the_installation_sound(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for name in ("torch", "slicer-core", "weights", "GPU", "off-screen pictures"):
        assert name in printed


def test_doctor_notices_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "NEEDED_PACKAGES", ("a-package-that-is-not-there",))
    monkeypatch.setattr(doctor, "SCENE_PACKAGES", ("another-that-is-not-there",))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("not installed") == 2
    assert "pip install . -c constraints.txt" in printed and INSTALL_SCENE in printed


def test_doctor_survives_a_broken_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ValueError('built for another\\ncomputer')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from RTDigitalTwinLib.cli import main; "
    code += "sys.exit(main(['doctor']))"
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot be imported: ValueError: built for another computer" in done.stdout
    assert "SimpleITK" in done.stdout and "weights" in done.stdout


def test_doctor_asks_for_what_the_library_imports() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "RTDigitalTwinLib").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {(n.module or "").split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    theirs = names - set(sys.stdlib_module_names) - {"RTDigitalTwinLib", "slicer", "vtk", "vtkmodules"}
    spared = {"markupsafe", "distributed"}  # jinja2's own; asked for by --dask alone
    assert theirs - spared == set(doctor.NEEDED_PACKAGES)
