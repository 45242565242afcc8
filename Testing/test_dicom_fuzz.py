"""Mutated DICOM files: bits, lengths, truncation, missing and absurd tags. No crash, no hang, no silent wrong result.

A case changes one file of a set and reads the whole. It may end in one of our own errors, or in a patient whose every
number is either the original's or told of in a warning.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_anonymize import anonymize_folder
from RTDigitalTwinLib.patient.dicom_inspection import inspect_folder
from RTDigitalTwinLib.patient.dicom_patient import read_patient
from RTDigitalTwinLib.patient.patient import Patient
from Testing.dicom_sets import small_set

SLOWEST_CASE_SECONDS = 5.0
QUICK_CASES = 60
CASES_VARIABLE = "RTDT_FUZZ_CASES"
FILES = ("CT.0012.dcm", "RTSTRUCT.dcm", "RTPLAN.dcm", "RTDOSE.dcm")
ABSURD = (
    "", " ", "-1", "0", "1e400", "nan", "inf", "99999999999", "1\\2", "\\\\\\", "A" * 300, "-0.0", "1e-30", "\x00",
    "é\x1b$B",
)  # fmt: skip
HEADER_BYTES = 1500


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Patient]:
    folder = tmp_path_factory.mktemp("fuzz") / "set"
    small_set(folder)
    return folder, read_patient(folder)


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    reach = len(changed) if rng.random() < 0.3 else min(len(changed), HEADER_BYTES)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_short(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def change_a_length(content: bytes, rng: random.Random) -> bytes:
    """The length of an element with a short explicit VR, or four bytes anywhere as a huge length."""
    changed = bytearray(content)
    kinds = (b"DS", b"IS", b"UI", b"CS", b"SQ")
    places = [i for i in range(132, min(len(content), HEADER_BYTES)) if content[i : i + 2] in kinds]
    place = rng.choice(places) + 2
    changed[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xfe\xff\xff\x7f", b"\x01\0\0\0"))
    return bytes(changed)


def repeat_a_part(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(132, len(content))
    part = content[start : start + rng.choice((2, 16, 300))]
    return content[:start] + part * rng.choice((2, 50)) + content[start:]


def change_a_tag(content: bytes, rng: random.Random) -> bytes:
    """One element, at any depth, missing or absurd; the file stays well formed."""
    from io import BytesIO

    dataset = pydicom.dcmread(BytesIO(content))
    item = dataset
    while True:
        element = rng.choice([e for e in item if e.keyword] or [None])
        if element is None:
            return content
        if element.VR != "SQ" or not element.value or rng.random() < 0.2:
            break
        item = rng.choice(list(element.value))
    if rng.random() < 0.4 or element.VR == "SQ":
        del item[element.tag]
    elif element.VR in ("US", "SS", "UL", "SL"):
        element._value = rng.choice((0, 1, 7, 255, 65535))
    elif element.VR in ("OW", "OB", "OB or OW"):
        element._value = rng.choice((b"", element.value[: len(element.value) // 2], element.value * 2))
    else:
        text = rng.choice(ABSURD)
        element._value = text.split("\\") if element.VM > 1 else text
    out = BytesIO()
    with pydicom.config.disable_value_validation():
        try:
            dataset.save_as(out)
        except Exception:
            return cut_short(content, rng)  # not even pydicom can write that
    return out.getvalue()


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits, cut_short, change_a_length, repeat_a_part, change_a_tag, change_a_tag, change_a_tag,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What pydicom says when it makes the mutations."""
    logger = logging.getLogger("pydicom")
    logger.disabled = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.disabled = False


def run_case(folder: Path, original: Patient, seed: int) -> str:
    """Mutate, read, restore; returns how it ended."""
    rng = random.Random(seed)
    path = folder / rng.choice(FILES)
    content, files = path.read_bytes(), len(list(folder.iterdir()))
    mutation = rng.choice(MUTATIONS)
    said = f"seed {seed}: {mutation.__name__} of {path.name}"
    path.write_bytes(mutation(content, rng))
    start = time.process_time()  # what else runs on the machine does not count
    try:
        try:
            read = read_patient(folder)
        except RTDigitalTwinError as error:
            assert error.what, said
            outcome = "refused"
        else:
            outcome = "same" if not differences(read, original) else "told"
            if outcome == "told":
                assert_told(read, original, path.name, said)
        if seed % 10 == 0:
            inspect_folder(folder)  # whatever is there, this never raises
        if seed % 10 == 5:
            copy = folder.with_name("copy")
            done = anonymize_folder(folder, copy)  # nor does this
            shutil.rmtree(copy)
            assert sum(patient.files for patient in done.patients) >= files - 1, said
    except RTDigitalTwinError as error:
        pytest.fail(f"{said}: inspecting or copying raised {error}")
    finally:
        path.write_bytes(content)
    assert time.process_time() - start < SLOWEST_CASE_SECONDS, said
    return outcome


def differences(read: Patient, original: Patient) -> set[str]:
    """What of a patient is not as it was."""
    found = set()
    if not read.ct.grid.same_as(original.ct.grid):
        return {"grid"}
    if not np.array_equal(read.ct.values, original.ct.values):
        found.add("ct")
    if read.plan.prescription != original.plan.prescription:
        found.add("prescription")
    if set(read.structures) != set(original.structures):
        found.add("names")
    elif any(not np.array_equal(read.structures[n].mask, s.mask) for n, s in original.structures.items()):
        found.add("masks")
    if not np.array_equal(read.dose_mask.mask, original.dose_mask.mask):
        found.add("region")
    before, after = original.plan.dose, read.plan.dose
    if after is None or before is None or not np.allclose(after.values, before.values, equal_nan=True):
        found.add("dose")
    return found


def assert_told(read: Patient, original: Patient, name: str, said: str) -> None:
    """Differences are in what the mutated file holds, and those that a check can know of are warned of."""
    found = differences(read, original)
    allowed = {
        "CT": {"ct", "grid"},
        "RTSTRUCT": {"masks", "names", "region"},
        "RTPLAN": {"prescription", "dose", "names"},
        "RTDOSE": {"dose"},
    }[name.split(".")[0]]
    assert found <= allowed, (said, found)
    # Another plausible prescription cannot be known for wrong; a lost slice, structure or dose can.
    if {"grid", "names"} & found or read.plan.dose is None:
        assert set(read.warnings) - set(original.warnings), (said, found)
    assert np.isfinite(read.ct.values.astype(float)).all(), said
    for structure in read.structures.values():
        assert 0 <= structure.box_occupancy.min() and structure.box_occupancy.max() <= 1, said
    if read.plan.dose is not None:
        known = read.plan.dose.values[np.isfinite(read.plan.dose.values)]
        assert known.min() >= 0 and known.max() <= 300, said


def run_cases(base: tuple[Path, Patient], tmp_path: Path, seeds: range) -> dict[str, int]:
    folder = Path(shutil.copytree(base[0], tmp_path / "set"))
    outcomes = {"refused": 0, "same": 0, "told": 0}
    for seed in seeds:
        outcomes[run_case(folder, base[1], seed)] += 1
    return outcomes


def test_some_mutated_files(base: tuple[Path, Patient], tmp_path: Path) -> None:
    outcomes = run_cases(base, tmp_path, range(QUICK_CASES))
    assert outcomes["refused"] > QUICK_CASES / 10 and outcomes["same"] > 0  # the mutations do bite


@pytest.mark.slow
def test_many_mutated_files(base: tuple[Path, Patient], tmp_path: Path) -> None:
    many = int(os.environ.get(CASES_VARIABLE, "0"))
    if not many:
        pytest.skip(f"for thousands of cases set {CASES_VARIABLE} to their number; 1000 take two minutes or more")
    outcomes = run_cases(base, tmp_path, range(QUICK_CASES, QUICK_CASES + many))
    print(outcomes)
    assert outcomes["refused"] > many / 10


def test_the_rest_of_a_folder_survives_many_bad_files(base: tuple[Path, Patient], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base[0], tmp_path / "set"))
    rng = random.Random(4)
    for k in range(40):
        content = (folder / rng.choice(FILES)).read_bytes()
        place = "A first" if k % 2 else "Z last"  # before and after the intact ones
        (folder / f"{place} {k}.dcm").write_bytes(cut_short(content, rng)[:900])
    assert not differences(read_patient(folder), base[1])
