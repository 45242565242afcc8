"""Numbers in sentences agree with what they count."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from RTDigitalTwinLib import words
from RTDigitalTwinLib.calibration.treatment_change import FoundChange
from RTDigitalTwinLib.cli_tables import number_text, with_error
from RTDigitalTwinLib.decision.spatial_actions import _extent
from RTDigitalTwinLib.dosimetry.delivery import Change
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


def test_sentences_show_no_sign_before_zero() -> None:
    assert Change(output_error_ratio=-0.0002).words == "simulated: output 0.0%"
    assert Change(output_error_ratio=0.031).words == "simulated: output +3.1%"
    (shift,) = FoundChange(0.9, (4.0, -0.01, 0.04), 0.0, 0.0).words
    assert "by +4.0, 0.0, 0.0 mm (LPS)" in shift
    assert _extent(np.array([-0.04, 0.01, 2.0])) == "The mean dose changes by 0.0 to +2.0 Gy."
    sources = {path.name: path.read_text("utf-8") for path in Path(words.__file__).parent.rglob("*.py")}
    assert len(sources) > 100 and not [name for name, text in sources.items() if re.search(r":\+\.\d[f%]\}", text)]


def test_a_study_of_one_patient_says_so() -> None:
    summary = {"patients": ["pt_1"], "means": [], "decisions": [], "cases": [], "per_patient": []}
    assert course_markdown(summary).startswith("Simulated courses, 1 patient: pt_1.")
