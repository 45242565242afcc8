"""Numbers in sentences agree with what they count."""

from __future__ import annotations

from RTDigitalTwinLib.cli_tables import number_text, with_error
from RTDigitalTwinLib.report.course_tables import course_markdown
from RTDigitalTwinLib.words import counted, decimal


def test_one_is_singular() -> None:
    assert [counted(k, "patient") for k in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
    assert counted(1, "process", "processes") == "1 process" and counted(2, "process", "processes") == "2 processes"
    assert counted(1, "file is", "files are") == "1 file is" and counted(3, "file is", "files are") == "3 files are"


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [decimal(value, 1) for value in (-0.04, -0.0, 0.04, -0.06)] == ["0.0", "0.0", "0.0", "-0.1"]
    assert [decimal(value, 1, signed=True) for value in (-0.04, 0.04, 0.06, -0.06)] == ["0.0", "0.0", "+0.1", "-0.1"]
    assert decimal(-0.4, 0, signed=True) == "0" and decimal(12.345, 2, signed=True) == "+12.35"
    assert number_text(-0.04, 1, signed=True) == "0.0" and with_error(-0.0, None, "Gy") == "0.0 Gy"


def test_a_study_of_one_patient_says_so() -> None:
    summary = {"patients": ["pt_1"], "means": [], "decisions": [], "cases": [], "per_patient": []}
    assert course_markdown(summary).startswith("Simulated courses, 1 patient: pt_1.")
