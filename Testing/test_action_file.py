"""Actions from a file, and those that are customary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.decision.action_file import customary_actions, read_actions
from RTDigitalTwinLib.decision.actions import Keep, ReImage, Scale, ScaleWithin
from RTDigitalTwinLib.decision.bounds import ChangeBounds
from RTDigitalTwinLib.decision.library_plan import LibraryPlan
from RTDigitalTwinLib.decision.spatial_actions import Boost, Replan, Spare
from RTDigitalTwinLib.errors import ProtocolError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import write_nrrd
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

ALL = """
[[action]]
kind = "keep"
[[action]]
kind = "scale"
factor = 0.97
[[action]]
kind = "scale"
lowest = 0.95
highest = 1.02
risk = 0.1
[[action]]
kind = "spare"
structure = "Parotid_L"
most_change_ratio = 0.2
steepest_gy_per_cm = 3
risk = 0.1
steps = 12
[[action]]
kind = "boost"
structure = "PTV_7000"
aim_gy = 71.5
[[action]]
kind = "library"
title = "of the day"
dose = "other.nrrd"
[[action]]
kind = "replan"
steps = 25
[[action]]
kind = "re-image"
"""


@pytest.fixture(scope="module")
def patient() -> Patient:
    return small_patient()


def written(folder: Path, text: str) -> Path:
    path = folder / "actions.toml"
    path.write_text(text)
    return path


def test_every_kind_is_read(patient: Patient, tmp_path: Path) -> None:
    dose = patient.plan.dose
    assert dose is not None
    write_nrrd(dose, str(tmp_path / "other.nrrd"), predicted=False)
    found = read_actions(written(tmp_path, ALL), patient)
    plan = found[5]
    assert isinstance(plan, LibraryPlan) and np.array_equal(plan.dose.values, dose.values)
    assert [action for action in found if action is not plan] == [
        Keep(),
        Scale(0.97),
        ScaleWithin(0.95, 1.02, 0.1),
        Spare("Parotid_L", ChangeBounds(0.2, steepest_gy_per_cm=3.0), None, 0.1, 12),
        Boost("PTV_7000", aim_gy=71.5),
        Replan(steps=25),
        ReImage(),
    ]


def entry(**keys: object) -> str:
    return "[[action]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in keys.items()) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"actions\.toml: .*names no \[\[action\]\]"),
        ("action = 3", r"names no \[\[action\]\]"),
        ("[[action", "cannot be read"),
        ("[[actions]]\nkind = 'keep'", "unknown: actions"),
        ("action = ['keep']", "'keep' is no table"),
        (entry(structure="PTV_7000"), "action 1: kind is missing"),
        (entry(kind="pray"), r"action 1 \(pray\): .*there is no kind 'pray'; there are keep, scale"),
        (entry(kind="keep") + entry(kind="spare", structure="Liver"), r"action 2 \(spare\): Liver: .*no structure"),
        (entry(kind="spare"), "structure is missing"),
        (entry(kind="spare", structure="Parotid_L", dose_gy=3), r"unknown: dose_gy; spare takes aim_gy"),
        (entry(kind="keep", structure="Parotid_L"), "unknown: structure; keep takes nothing"),
        (entry(kind="spare", structure="PTV_7000"), "is a target, which cannot be spared"),
        (entry(kind="boost", structure="Parotid_L"), "no dose is prescribed to Parotid_L: give aim_gy"),
        (entry(kind="spare", structure="Parotid_L", most_change_ratio=1.5), r"\(spare\): .*cannot be bounded"),
        (entry(kind="spare", structure="Parotid_L", most_change_ratio="10 %"), "'10 %', which is no number"),
        (entry(kind="spare", structure="Parotid_L", risk=2), "A risk of 2 has no meaning"),
        (entry(kind="spare", structure="Parotid_L", steps=2.5), "no whole number"),
        (entry(kind="spare", structure="Parotid_L", aim_gy=True), "True, which is no number"),
        (entry(kind="scale"), "write either factor, or lowest and highest"),
        (entry(kind="scale", factor=0.95, highest=1.0), "a factor leaves no room for highest"),
        (entry(kind="scale", factor=1.3), "cannot be scaled by 1.3"),
        (entry(kind="scale", lowest=1.02, highest=1.05), "cannot be scaled from 1.02"),
        (entry(kind="scale", factor=0.95) * 2, "It is the same as action 1: scale by 0.95"),
        (entry(kind="library", title="a", dose="absent.nrrd"), "no file absent.nrrd"),
        (entry(kind="library", title="a", dose="actions.toml"), r"\(library\): .*cannot be read as an image"),
        (entry(kind="replan", steps=0), "Nothing is found in 0 steps"),
    ],
)
def test_bad_entries_are_named(patient: Patient, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as raised:
        read_actions(written(tmp_path, text), patient)
    assert str(raised.value).startswith("actions.toml")


def test_a_file_that_is_not_there(patient: Patient, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="absent.toml"):
        read_actions(tmp_path / "absent.toml", patient)


def test_a_dose_in_the_openkbp_layout(sample_folder: Path, patient: Patient, tmp_path: Path) -> None:
    there = Patient.load(sample_folder)
    (tmp_path / "dose.csv").write_bytes((sample_folder / "dose.csv").read_bytes())
    text = entry(kind="library", title="b", dose="dose.csv")
    (found,) = read_actions(written(tmp_path, text), there)
    assert isinstance(found, LibraryPlan) and there.plan.dose is not None
    assert np.array_equal(found.dose.values, there.plan.dose.values)
    with pytest.raises(ProtocolError, match="needs a patient in that layout"):
        read_actions(written(tmp_path, text), patient)


def test_what_is_customary(patient: Patient) -> None:
    names = [action.name for action in customary_actions(patient)]
    assert names[0] == "keep" and names[-2:] == ["replan", "re-image"] and len(set(names)) == len(names)
    assert [n for n in names if n.startswith("spare")] == [
        f"spare {organ} by at most 10 %" for organ in ("SpinalCord", "Parotid_R", "Parotid_L")
    ]
    assert "boost PTV_7000 by at most 10 %" in names
    arcs = replace(patient, plans=(replace(patient.plan, not_fixed_fields="2 beams are arcs."),))
    assert not any(n.startswith(("spare", "boost", "replan")) for n in (a.name for a in customary_actions(arcs)))


def test_one_sample_of_twenty_is_not_more_than_5_percent(patient: Patient) -> None:
    drawn = hand_made_ensemble(patient, samples=20)
    lowest, *others = np.sort(drawn.metric("PTV_7000", "D95").samples)
    for level_gy, boosts in (((lowest + others[0]) / 2, 0), ((others[0] + others[1]) / 2, 1)):
        dose = replace(patient.plan.prescription, target_dose_gy=(("PTV_7000", float(level_gy)),))
        asked = replace(drawn, patient=replace(patient, plans=(replace(patient.plan, prescription=dose),)))
        found = customary_actions(asked.patient, asked)
        assert sum(isinstance(action, Boost) for action in found) == boosts


def test_only_what_is_in_danger_is_spared_or_boosted(patient: Patient) -> None:
    prediction = replace(hand_made_ensemble(patient, samples=16), calibration=hand_made_calibration(16))
    little = replace(prediction, deterministic_gy=0.3 * prediction.deterministic_gy)
    much = replace(prediction, deterministic_gy=np.maximum(1.3 * prediction.deterministic_gy, 75).astype(np.float32))
    of_little, of_much = ({action.kind.value for action in customary_actions(patient, one)} for one in (little, much))
    assert "boost" in of_little and "spare" not in of_little
    assert "spare" in of_much and "boost" not in of_much
