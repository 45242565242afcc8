"""A folder that no command can use is refused before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import ModelError, told_of

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "run": ["run", "FOLDER", "--out", "OUT"],
    "observe": ["observe", "FOLDER", "--out", "OUT"],
    "loop": ["loop", "FOLDER", "--out", "OUT"],
    "course": ["course", "FOLDER", "--out", "OUT"],
    "recommend": ["recommend", "FOLDER", "--out", "OUT"],
    "replay": ["replay", "ledger.jsonl", "FOLDER"],
    "dose": ["dose", "FOLDER"],
    "compare": ["compare", "FOLDER", "FOLDER"],
    "accumulate": ["accumulate", "FOLDER", "FOLDER=3", "--out", "OUT"],
    "evaluate": ["evaluate", "FOLDER", "--out", "OUT"],
    "calibrate": ["calibrate", "FOLDER"],
    "recalibration-study": ["recalibration-study", "FOLDER", "--out", "OUT"],
    "course-study": ["course-study", "FOLDER", "--out", "OUT"],
}
OF_COHORTS = {"evaluate", "calibrate", "recalibration-study", "course-study"}
HEAVY = ("torch", "monai", "scipy", "matplotlib", "slicer", "vtk")


def refusals(folder: Path, out: Path, commands: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    """Exit code and words of each command, all in one process that has imported nothing heavy when it ends."""
    code = f"""
import contextlib, io, sys
from RTDigitalTwinLib import cli_terminal
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import ModelError, told_of
for name, command in {commands}.items():
    cli_terminal.console.file = told = io.StringIO()
    command = [{{"FOLDER": sys.argv[1], "OUT": sys.argv[2]}}.get(word, word) for word in command]
    command = [word.replace("FOLDER", sys.argv[1]) for word in command]
    print(name, main(command), " ".join(told.getvalue().split()), sep="\\t")
    print("heavy", name, *(module for module in {HEAVY} if module in sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(out)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert [line.split()[2:] for line in done.stderr.splitlines()] == [[]] * len(commands), done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: (int(code), words) for name, code, words in rows}


def test_a_folder_without_a_patient_is_refused_before_heavy_imports(tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.jpg").write_bytes(b"\xff\xd8" + bytes(400))
    found = refusals(folder, tmp_path / "out", COMMANDS)
    for name, (code, words) in found.items():
        expected = "holds no patients" if name in OF_COHORTS else "holds nothing known"
        assert code == 1 and expected in words, (name, words)
    assert len(found) == len(COMMANDS) and not (tmp_path / "out").exists()


def test_dicom_files_that_do_not_go_together_are_refused_before_heavy_imports(
    clinical_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ct-only"
    folder.mkdir()
    for path in clinical_set.glob("CT*"):
        (folder / path.name).symlink_to(path)
    one = {name: command for name, command in COMMANDS.items() if name not in OF_COHORTS}
    for name, (code, words) in refusals(folder, tmp_path / "out", one).items():
        assert code == 1 and "no structure set" in words, (name, words)


def test_commands_on_doses_refuse_names_and_goals_before_heavy_imports(clinical_set: Path, tmp_path: Path) -> None:
    commands = {name: COMMANDS[name] for name in ("dose", "compare")}
    for code, words in refusals(clinical_set, tmp_path / "out", commands).values():
        assert code == 1 and "wait to be confirmed" in words
    commands = {name: [*command, "--goals", "nothing"] for name, command in commands.items()}
    for code, words in refusals(clinical_set, tmp_path / "out", commands).values():
        assert code == 1 and "There are no goals of this name" in words


@pytest.mark.parametrize("name", ["absent", "letter.txt"])
def test_what_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    one = {"run": COMMANDS["run"]}
    ((code, words),) = refusals(tmp_path / name, tmp_path / "out", one).values()
    assert code == 1 and "Give the folder that holds one patient's files." in words


@pytest.mark.parametrize(
    "command",
    [
        "run ABSENT --out OUT", "dose ABSENT", "dose sample --dose ABSENT", "dose sample --goals ABSENT",
        "compare sample ABSENT", "accumulate sample ABSENT=3 --out OUT", "replay ABSENT sample",
        "observe sample --measurements ABSENT --out OUT", "observe sample --new-ct ABSENT=3 --out OUT",
        "run sample --map-file ABSENT --out OUT", "recommend sample --protocol ABSENT --out OUT",
        "evaluate ABSENT --out OUT", "inspect ABSENT", "anonymize ABSENT --out OUT",
        "course sample --out OUT --actions ABSENT",
        "course sample --out OUT --protocol ABSENT", "run sample --weights ABSENT --out OUT",
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_as_it_was_typed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for typed in ("days/absent", str(tmp_path / "absent")):
        assert main(command.replace("ABSENT", typed).replace("OUT", "out").split()) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert f"Error: {typed}: " in told and ("no such" in told.lower()), told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["observe", "loop", "recommend"])
def test_a_mistake_in_measurements_is_told_before_the_patient_is_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(seed: int) -> None:
        raise AssertionError("the patient was made")

    monkeypatch.setattr("RTDigitalTwinLib.patient.sample_anatomy.sample_patient", made)
    path = tmp_path / "day.csv"
    path.write_text(
        "patient,kind,structure,metric,value,unit,days,fraction,fractions,noise_ratio,noise_floor,source\n"
        "sample-0,metric,Larynx,mean,116,cGy,0,1,1,0.02,0.02,log\n"
    )
    whole = [command, "sample", "--out", str(tmp_path / "out"), "--measurements"]
    assert main([*whole, str(path)]) == 1
    assert "day.csv, line 2: The unit is cGy, not Gy" in " ".join(capsys.readouterr().err.split())
    assert main([*whole, str(tmp_path / "none.csv")]) == 1
    assert "There is no such file" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "where", "told"),
    [
        ("a", "Parotid_L", "a/Parotid_L"),
        ("days/pt_2", "pt_2", "days/pt_2"),
        ("pt_1", "pt_1/ct.csv", "pt_1/ct.csv"),
        ("pt_1", "pt_10", "pt_1/pt_10"),
        ("pt_1", "", "pt_1"),
    ],
)
def test_errors_of_one_of_several_inputs_name_it_once(source: str, where: str, told: str) -> None:
    with pytest.raises(ModelError) as caught, told_of(source):
        raise ModelError("It does not fit.", where=where, remedy="Choose another.")
    assert caught.value.where == told and caught.value.remedy == "Choose another."
