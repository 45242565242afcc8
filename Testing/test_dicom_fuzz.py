"""Mutated DICOM files: bits, lengths, truncation, missing and absurd tags. No crash, no hang, few silent changes.

A case changes one file of a set and reads the whole. It ends in one of our own errors ("refused"), in the original's
numbers ("same"), in other numbers with a warning that the original has not ("told"), or in other numbers without one
("silent"): DICOM has no checksum, so a flipped bit within a pixel or a digit leaves a file that cannot be known for
damaged. How many of those there are is counted and bounded.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_anonymize import anonymize_folder
from RTDigitalTwinLib.patient.dicom_file import DicomItem, open_dicom
from RTDigitalTwinLib.patient.dicom_index import index_folder
from RTDigitalTwinLib.patient.dicom_inspection import inspect_folder
from RTDigitalTwinLib.patient.dicom_patient import read_patient
from RTDigitalTwinLib.patient.patient import Patient
from Testing.dicom_sets import small_set

SLOWEST_CASE_SECONDS = 5.0
QUICK_CASES = 60
CASES_VARIABLE = "RTDT_FUZZ_CASES"
MOST_SILENT_RATIO = 0.03
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


def run_case(folder: Path, original: Patient, seed: int) -> tuple[str, str]:
    """Mutate, read, restore; returns how it ended, and what was changed where and how if silently."""
    rng = random.Random(seed)
    path = folder / rng.choice(FILES)
    content, files = path.read_bytes(), len(list(folder.iterdir()))
    mutation = rng.choice(MUTATIONS)
    said, kind = f"seed {seed}: {mutation.__name__} of {path.name}", ""
    path.write_bytes(mutation(content, rng))
    start = time.process_time()  # what else runs on the machine does not count
    try:
        try:
            read = read_patient(folder)
        except RTDigitalTwinError as error:
            assert error.what, said
            outcome = "refused"
        else:
            found = differences(read, original)
            outcome = "same" if not found else "told" if set(read.warnings) - set(original.warnings) else "silent"
            if outcome == "silent":
                kind = f"{path.name}, {mutation.__name__}: {', '.join(sorted(found))}"
            if found:
                assert_plausible(read, original, path.name, said)
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
    return outcome, kind


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


def assert_plausible(read: Patient, original: Patient, name: str, said: str) -> None:
    """Differences are in what the mutated file holds, within bounds; what a check must notice is warned of."""
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


def run_cases(base: tuple[Path, Patient], tmp_path: Path, seeds: range) -> tuple[Counter[str], Counter[str]]:
    """How often each outcome came, and what changed silently."""
    folder = Path(shutil.copytree(base[0], tmp_path / "set"))
    outcomes, silent = Counter[str](), Counter[str]()
    for seed in seeds:
        outcome, kind = run_case(folder, base[1], seed)
        outcomes[outcome] += 1
        if kind:
            silent[kind] += 1
    return outcomes, silent


def test_some_mutated_files(base: tuple[Path, Patient], tmp_path: Path) -> None:
    outcomes, silent = run_cases(base, tmp_path, range(QUICK_CASES))
    assert outcomes["refused"] > QUICK_CASES / 10 and outcomes["same"] > 0  # the mutations do bite
    assert outcomes["silent"] <= 1 + MOST_SILENT_RATIO * QUICK_CASES, silent


@pytest.mark.slow
def test_many_mutated_files(base: tuple[Path, Patient], tmp_path: Path) -> None:
    many = int(os.environ.get(CASES_VARIABLE, "0"))
    if not many:
        pytest.skip(f"for thousands of cases set {CASES_VARIABLE} to their number; 1000 take two minutes or more")
    outcomes, silent = run_cases(base, tmp_path, range(QUICK_CASES, QUICK_CASES + many))
    print(dict(outcomes), dict(silent))
    assert outcomes["refused"] > many / 10
    assert outcomes["silent"] <= 1 + MOST_SILENT_RATIO * many, silent


@pytest.mark.parametrize("name", ["CT.0012.dcm", "RTDOSE.dcm"])
@pytest.mark.parametrize(("part", "times"), [(2, 1), (2, 2), (2, 50), (16, 2), (16, 50), (300, 2), (300, 50)])
def test_bytes_repeated_within_pixels_are_refused(
    base: tuple[Path, Patient], tmp_path: Path, name: str, part: int, times: int
) -> None:
    """The pixels move on, and their last ones lie behind the element, where they look like others or like nothing."""
    folder = Path(shutil.copytree(base[0], tmp_path / "set"))
    content = (folder / name).read_bytes()
    start = len(content) - len(pydicom.dcmread(folder / name).PixelData) // 2
    (folder / name).write_bytes(content[:start] + content[start : start + part] * times + content[start:])
    with pytest.raises(PatientDataError, match="after the pixels|comes after|follow the last element"):
        open_dicom(folder / name, name)
    problems = [problem.where for problem in index_folder(folder).problems]
    assert problems == [name]


def test_what_may_follow_the_pixels(base: tuple[Path, Patient], tmp_path: Path) -> None:
    path = tmp_path / "padded.dcm"
    content = (base[0] / "CT.0012.dcm").read_bytes()
    path.write_bytes(content + b"\xfc\xff\xfc\xffOB\0\0" + (6).to_bytes(4, "little") + bytes(6))
    assert len(open_dicom(path, path.name).dataset.PixelData) > 0
    path.write_bytes(content + b"\xe1\x7f\x10\0LO\x04\0ACME")  # a vendor's own
    assert len(open_dicom(path, path.name).dataset.PixelData) > 0
    path.write_bytes(content + b"\xe2\x7f\x10\0LO\x04\0ACME")
    with pytest.raises(PatientDataError, match=r"\(7FE2,0010\) comes after the pixels"):
        open_dicom(path, path.name)


def test_elements_out_of_order_are_refused(base: tuple[Path, Patient], tmp_path: Path) -> None:
    """At any depth; also the same one twice, of which a reader takes the one or the other."""
    path = tmp_path / "plan.dcm"
    content = (base[0] / "RTPLAN.dcm").read_bytes()
    for element in (b"\x10\0\x20\0LO\x04\0SOME", b"\x0e\x30\x02\0CS\x08\0APPROVED" * 2):
        path.write_bytes(content + element)
        with pytest.raises(PatientDataError, match="comes after"):
            open_dicom(path, path.name)
    path.write_bytes(content + b"\0\0\0")
    with pytest.raises(PatientDataError, match="3 bytes follow the last element"):
        open_dicom(path, path.name)
    swapped = pydicom.dcmread(base[0] / "RTPLAN.dcm")
    group = swapped.FractionGroupSequence[0]
    group._dict = dict(sorted(group._dict.items(), reverse=True))
    with pytest.raises(PatientDataError, match="FractionGroupSequence holds elements out of order"):
        DicomItem(swapped, path.name).items("FractionGroupSequence")


def test_the_rest_of_a_folder_survives_many_bad_files(base: tuple[Path, Patient], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base[0], tmp_path / "set"))
    rng = random.Random(4)
    for k in range(40):
        content = (folder / rng.choice(FILES)).read_bytes()
        place = "A first" if k % 2 else "Z last"  # before and after the intact ones
        (folder / f"{place} {k}.dcm").write_bytes(cut_short(content, rng)[:900])
    assert not differences(read_patient(folder), base[1])


@pytest.mark.parametrize("seed", [338, 455, 728])
def test_pixels_moved_on_are_not_taken_for_private_elements(
    base: tuple[Path, Patient], tmp_path: Path, seed: int
) -> None:
    """Mutations whose last pixels read as an element of an odd group that ends behind the file."""
    folder = Path(shutil.copytree(base[0], tmp_path / "set"))
    assert run_case(folder, base[1], seed)[0] in ("refused", "told")
