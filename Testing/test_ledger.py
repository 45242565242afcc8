"""The ledger: its chain broken in every way, writes cut short, writers at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.errors import LedgerError, OutputError
from RTDigitalTwinLib.ledger import Ledger, read_ledger, stored_array, verify
from RTDigitalTwinLib.patient.fingerprint import array_sha256


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of five entries."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        for k in range(5):
            ledger.append("predicted", {"seed": k, "mean_gy": 0.1 * k})
    return path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_entries_are_chained_and_read_back(path: Path) -> None:
    entries = read_ledger(path)
    assert [e.number for e in entries] == [1, 2, 3, 4, 5]
    assert entries[0].previous == "0" * 64
    assert all(b.previous == a.sha256 for a, b in zip(entries[:-1], entries[1:], strict=True))
    assert entries[3].content == {"seed": 3, "mean_gy": 0.1 * 3}  # to the last bit
    with Ledger(path) as ledger:
        assert ledger.entries == entries and not ledger.verify()
        ledger.append("predicted", {"seed": 5})
    assert read_ledger(path)[:5] == entries and not verify(path)


def rewritten(lines: list[bytes], k: int) -> list[bytes]:
    """A line changed with its own hash made to fit, as only a careful hand does."""
    from hashlib import sha256

    from RTDigitalTwinLib.ledger import canonical

    body = json.loads(lines[k])
    body["content"]["seed"] = 99
    del body["sha256"]
    changed = canonical(body | {"sha256": sha256(canonical(body)).hexdigest()}) + b"\n"
    return [*lines[:k], changed, *lines[k + 1 :]]


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'"seed":2', b'"seed":7'), *lines[3:]], [3]),
        (lambda lines: [*lines[:4], lines[4].replace(b'"seed":4', b'"seed":7')], [5]),
        (lambda lines: [*lines[:2], lines[2].replace(b'"kind":', b'"kind": '), *lines[3:]], [3]),
        (lambda lines: [*lines[:2], lines[2][:40] + b"\n", *lines[3:]], [3]),
        (lambda lines: [*lines[:2], *lines[3:]], [3]),
        (lambda lines: [lines[0], *lines[3:]], [2]),
        (lambda lines: lines[1:], [1]),
        (lambda lines: lines[:3], [4, 5]),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], [2, 2]),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], [3]),
        (lambda lines: [], [1, 2, 3, 4, 5]),
        (lambda lines: rewritten(lines, 1), [3]),
        (lambda lines: rewritten(lines, 4), [5]),
        (lambda lines: [*lines, b"{}\n"], [6]),
        (lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[3:]], [3]),
    ],
)  # fmt: skip
def test_any_change_is_named_by_number(
    path: Path, change: Callable[[list[bytes]], list[bytes]], numbers: list[int]
) -> None:
    path.write_bytes(b"".join(change(lines_of(path))))
    assert [p.number for p in verify(path)] == numbers
    with pytest.raises(LedgerError, match=f"ledger.jsonl: .*Entry {numbers[0]}: "):
        read_ledger(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=f"Entry {numbers[0]}: "):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_lost_or_damaged_head_is_told(path: Path) -> None:
    head = path.with_name("ledger.jsonl.head")
    head.write_text("{")
    assert "damaged" in str(verify(path)[0])
    head.unlink()
    assert "missing" in str(verify(path)[0])


@pytest.mark.parametrize("kept", [1, 50, -1])
def test_a_write_cut_short_loses_one_line_and_says_so(path: Path, kept: int) -> None:
    lines = lines_of(path)
    torn = lines[4][:kept]
    path.write_bytes(b"".join(lines[:4]) + torn)
    path.with_name("ledger.jsonl.head").write_bytes(
        json.dumps({"entries": 4, "sha256": json.loads(lines[3])["sha256"]}).encode()
    )
    (problem,) = verify(path)
    assert problem.number == 5 and f"incomplete ({len(torn)} bytes" in problem.what
    assert len(read_ledger(path)) == 4
    with Ledger(path) as ledger:
        assert ledger.entries[-1].kind == "repaired"
        assert ledger.entries[-1].content["lost_bytes"] == len(torn)
    assert not verify(path) and [e.number for e in read_ledger(path)] == [1, 2, 3, 4, 5]


def test_a_crash_between_line_and_head_loses_nothing(path: Path) -> None:
    head = path.with_name("ledger.jsonl.head")
    before = head.read_bytes()
    with Ledger(path) as ledger:
        ledger.append("predicted", {"seed": 5})
    head.write_bytes(before)
    assert not verify(path) and len(read_ledger(path)) == 6
    with Ledger(path) as ledger:
        ledger.append("predicted", {"seed": 6})
    assert not verify(path) and len(read_ledger(path)) == 7


def test_a_full_disk_leaves_the_ledger_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = path.read_bytes(), os.write
    with Ledger(path) as ledger:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
            with pytest.raises(OutputError, match="cannot be written"):
                ledger.append("predicted", {"seed": 5})
        assert path.read_bytes() == before and not ledger.verify()
        ledger.append("predicted", {"seed": 5})
    assert len(read_ledger(path)) == 6 and not verify(path)


def test_a_second_writer_is_refused(path: Path) -> None:
    code = f"from RTDigitalTwinLib.ledger import Ledger\nLedger({str(path)!r})"
    with Ledger(path) as ledger:
        with pytest.raises(LedgerError, match="Another process writes"):
            Ledger(path)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode == 1 and "Another process writes" in other.stderr
        ledger.append("predicted", {"seed": 5})
    subprocess.run([sys.executable, "-c", code], check=True)  # and let in when the first has ended


def test_a_killed_writer_leaves_no_lock(path: Path) -> None:
    code = f"import os\nfrom RTDigitalTwinLib.ledger import Ledger\nx = Ledger({str(path)!r})\nos._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    Ledger(path).close()


def test_what_was_changed_meanwhile_is_not_written_over(path: Path) -> None:
    with Ledger(path) as ledger:
        with path.open("ab") as other:
            other.write(b"x")
        with pytest.raises(LedgerError, match="by someone else"):
            ledger.append("predicted", {})


def test_what_was_removed_meanwhile_is_told(path: Path) -> None:
    with Ledger(path) as ledger:
        path.unlink()
        with pytest.raises(LedgerError, match="removed by someone else"):
            ledger.append("predicted", {}, {"mean": np.zeros(3)})
    assert not path.exists() and not path.with_name("ledger.jsonl.arrays").exists()


@pytest.mark.parametrize("text", ["/home/jane/pt_1", "read from /data/pt_1/ct.csv", "C:\\patients", "~/x/y"])
def test_no_path_gets_in(path: Path, text: str) -> None:
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="would name a path"):
        ledger.append("predicted", {"deep": [{"source": text}]})
    assert len(read_ledger(path)) == 5 and not verify(path)


def test_arrays_stand_beside_under_their_hash(path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    with Ledger(path) as ledger:
        entry = ledger.append("predicted", {}, {"mean": values})
    digest = entry.content["arrays"]["mean"]
    assert digest == array_sha256(values) == array_sha256(values.copy(order="F"))
    assert digest != array_sha256(values.reshape(4, 3)) and digest != array_sha256(values.astype(float))
    found = stored_array(path, digest)
    assert found.dtype == np.float32 and np.array_equal(found, values)
    stored = path.with_name("ledger.jsonl.arrays") / f"{digest}.npz"
    np.savez_compressed(stored, values=values + 1)
    with pytest.raises(LedgerError, match="not the one"):
        stored_array(path, digest)
    stored.write_bytes(b"no zip")
    with pytest.raises(LedgerError, match="cannot be read"):
        stored_array(path, digest)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(tmp_path / "absent.jsonl")
    with pytest.raises(OutputError, match="cannot be written"):
        Ledger(tmp_path)
