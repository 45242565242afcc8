"""Numbers in sentences agree with what they count."""

from __future__ import annotations

from RTDigitalTwinLib.report.course_tables import course_markdown
from RTDigitalTwinLib.words import counted


def test_one_is_singular() -> None:
    assert [counted(k, "patient") for k in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
    assert counted(1, "process", "processes") == "1 process" and counted(2, "process", "processes") == "2 processes"
    assert counted(1, "file is", "files are") == "1 file is" and counted(3, "file is", "files are") == "3 files are"


def test_a_study_of_one_patient_says_so() -> None:
    summary = {"patients": ["pt_1"], "means": [], "decisions": [], "cases": [], "per_patient": []}
    assert course_markdown(summary).startswith("Simulated courses, 1 patient: pt_1.")
