"""The page on DICOM: every trap has its tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTING = Path(__file__).parent
PAGE = (TESTING.parent / "docs" / "dicom.md").read_text(encoding="utf-8")


def functions(name: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (TESTING / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_trap_names_tests_that_exist() -> None:
    table = PAGE.split("## Traps")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 25
    for trap, happens, tests in rows:
        assert happens.strip() and re.search(r"`test_\w+::test_\w+`", tests), trap
    named = re.findall(r"`(test_\w+)::(test_\w+)`", PAGE)
    assert [f"{file}::{test}" for file, test in named if test not in functions(file)] == []


def test_the_page_names_what_is_written() -> None:
    from RTDigitalTwinLib.patient.dicom_writing import DIFFERENCE_NOTICE, DOSE_NOTICES, NOTICE

    for notice in set(DOSE_NOTICES) - {NOTICE, DIFFERENCE_NOTICE}:
        assert f'"{notice}"' in PAGE
