"""The pages under docs: tests they name are there, and their figures are of the weights that come with the software."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

TESTING = Path(__file__).parent
DOCS = TESTING.parent / "docs"
PAGE = (DOCS / "dicom.md").read_text(encoding="utf-8")


def functions(name: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (TESTING / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_trap_names_tests_that_exist() -> None:
    table = PAGE.split("## Traps")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 25
    for trap, happens, tests in rows:
        assert happens.strip() and re.search(r"`test_\w+::test_\w+`", tests), trap


@pytest.mark.parametrize("page", ["dicom.md", "dosimetry.md"])
def test_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", (DOCS / page).read_text(encoding="utf-8"))
    assert len(named) >= 5
    assert [f"{file}::{test}" for file, test in named if test not in functions(file)] == []


def test_the_study_says_of_which_weights_it_is() -> None:
    manifest = json.loads((TESTING.parent / "Resources" / "Models" / "dose-unet.json").read_text(encoding="utf-8"))
    page = (DOCS / "recalibration.md").read_text(encoding="utf-8")
    named = re.findall(r"Weights ([0-9a-f]{8,})", page)
    # Of the dose network that training went on from, without a coarse one, only where the page says so.
    says_before = "that the last stage of training began from, without a coarse one" in " ".join(page.split())
    of = manifest["training"]["begun_from"] if says_before else manifest["sha256"]
    assert named and all(of.startswith(digest) for digest in named)


def test_the_page_names_what_is_written() -> None:
    from RTDigitalTwinLib.patient.dicom_writing import DIFFERENCE_NOTICE, DOSE_NOTICES, NOTICE

    for notice in set(DOSE_NOTICES) - {NOTICE, DIFFERENCE_NOTICE}:
        assert f'"{notice}"' in PAGE
