"""The ledger of a twin: what was observed, believed, recommended and predicted, by what; lines are only ever added.

A file of JSON lines. Each holds its number, kind, time, content, the SHA-256 of the line before (``previous``) and its
own (``sha256``, of all else in it). Beside the file stand ``NAME.head``, with the number of lines and the hash of the
last, so that lines missing at the end show too, and ``NAME.arrays``, arrays under their own hash.

The chain tells of damage and of careless change. Who rewrites file and head together is not found out, unless the hash
of the head was kept elsewhere: ``summary.json`` names it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import LedgerError, OutputError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.fingerprint import array_sha256

LEDGER_FILE = "ledger.jsonl"
FIRST = "0" * 64
REPAIRED = "repaired"
KEYS = {"number", "kind", "time_utc", "previous", "content", "sha256"}
# What a path looks like; a slash alone is also in "Gy/fraction".
PATH = re.compile(r"(^|[\s\"'(=:])(~?/[^\s/]+/|[A-Za-z]:\\|\\\\|file:)")


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes
    ----------
    number : from 1.
    kind : what it tells of.
    time_utc : ISO 8601, to the second.
    content : plain JSON values.
    previous, sha256 : of the line before, and its own.
    """

    number: int
    kind: str
    time_utc: str
    content: Mapping[str, Any]
    previous: str
    sha256: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with a ledger, and in which line or entry; ``number`` is that of the entry concerned."""

    number: int
    what: str

    def __str__(self) -> str:
        return f"Entry {self.number}: {self.what}"


def canonical(value: Any) -> bytes:
    """JSON in one way only: sorted keys, no blanks, ASCII; numbers by their shortest exact form, none infinite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


class Ledger:
    """A ledger held open to be written to, by one process at a time. Use it in a ``with`` block, or ``close`` it.

    Opening makes the file where there is none. An incomplete last line, as a crash leaves it, is taken off and told by
    an entry of the kind ``repaired``.

    Raises LedgerError where another process holds it or its chain is broken, OutputError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise _not_written(self.path, error) from error
        try:
            _lock(self._file, self.path)
            entries, problems, torn = _read(self.path)
            _require_whole(self.path, problems)
            self._entries = entries
            if torn:
                os.ftruncate(self._file.fileno(), self._size - len(torn))
            self._end = self._size
            if torn:
                self.append(REPAIRED, {"lost_bytes": len(torn), "lost_sha256": sha256(torn).hexdigest()})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def head_sha256(self) -> str:
        """Of the last entry: who keeps it elsewhere can tell any change."""
        return self._entries[-1].sha256 if self._entries else FIRST

    def append(self, kind: str, content: Mapping[str, Any], arrays: Mapping[str, NDArray] | None = None) -> Entry:
        """Add an entry; on the disk when this returns.

        ``arrays`` are stored beside the ledger and stand in the entry, under the same names, as ``arrays``: hashes.
        Raises LedgerError for content that names a path, or where the file was changed meanwhile; OutputError where it
        cannot be written: then nothing of the entry is.
        """
        if self._size != self._end or not self._is_in_place():
            raise LedgerError("The ledger was changed, moved or removed by someone else.", where=self.path.name)
        stored = {name: self._store(values) for name, values in (arrays or {}).items()}
        body = {
            "number": len(self._entries) + 1,
            "kind": kind,
            "time_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "previous": self.head_sha256,
            "content": dict(content) | ({"arrays": stored} if stored else {}),
        }
        _require_anonymous(body["content"], kind)
        line = canonical(body | {"sha256": sha256(canonical(body)).hexdigest()}) + b"\n"
        try:
            written = os.write(self._file.fileno(), line)
            if written < len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._end)
            raise _not_written(self.path, error) from error
        self._end += len(line)
        entry = Entry(**json.loads(line))
        self._entries.append(entry)
        with whole_file(_head(self.path)) as aside:
            aside.write_bytes(canonical({"entries": entry.number, "sha256": entry.sha256}) + b"\n")
        return entry

    def verify(self) -> tuple[Problem, ...]:
        """What is wrong with the file as it is on the disk; nothing where all is well."""
        return verify(self.path)

    @property
    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return False

    def _store(self, values: NDArray) -> str:
        digest = array_sha256(values)
        path = arrays_folder(self.path) / f"{digest}.npz"
        if not path.is_file():
            with whole_file(path) as aside, aside.open("wb") as out:
                np.savez_compressed(out, values=values)
        return digest


def verify(path: Path) -> tuple[Problem, ...]:
    """What is wrong with a ledger: lines changed, missing, out of order or incomplete, each by its number.

    Raises LedgerError where there is none to read.
    """
    _, problems, torn = _read(path)
    if torn:
        number = 1 + path.read_bytes().count(b"\n")
        problems = [*problems, Problem(number, f"The line is incomplete ({len(torn)} bytes of it are there).")]
    return tuple(problems)


def read_ledger(path: Path) -> tuple[Entry, ...]:
    """The entries of a ledger that is whole but for an incomplete last line, which no reader counts on.

    Raises LedgerError where there is none, or naming by number what is changed, missing or out of order.
    """
    entries, problems, _ = _read(path)
    _require_whole(path, problems)
    return tuple(entries)


def stored_array(path: Path, digest: str) -> NDArray:
    """An array that a ledger refers to. Raises LedgerError where it is not there or not the same."""
    name = f"{digest}.npz"
    try:
        with np.load(arrays_folder(path) / name, allow_pickle=False) as stored:
            values = stored["values"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise LedgerError("An array that the ledger refers to cannot be read.", where=name) from error
    if array_sha256(values) != digest:
        raise LedgerError("The array is not the one that the ledger refers to.", where=name)
    return values


def arrays_folder(path: Path) -> Path:
    """Where the arrays of a ledger lie."""
    return path.with_name(path.name + ".arrays")


def _head(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def ledger_files(path: Path) -> tuple[Path, ...]:
    """The file and what stands beside it, as far as it is there."""
    return tuple(p for p in (path, _head(path), arrays_folder(path)) if p.exists())


def _read(path: Path) -> tuple[list[Entry], list[Problem], bytes]:
    """Entries that are well in themselves, what is wrong, and the incomplete last line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise LedgerError(f"The ledger cannot be read ({error.strerror}).", where=path.name) from error
    torn = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
    entries: list[Entry] = []
    problems: list[Problem] = []
    expected, before, sure = 1, FIRST, True
    for place, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            problems.append(Problem(expected, f"Line {place} was changed or damaged."))
            expected, sure = expected + 1, False
            continue
        if entry.number < expected:
            problems.append(Problem(entry.number, f"Line {place} stands out of order or twice."))
            continue
        if entry.number > expected:
            absent = f"Entries {expected} to {entry.number - 1} are" if entry.number - 1 > expected else "It is"
            problems.append(Problem(expected, f"{absent} missing before line {place}."))
        elif sure and entry.previous != before:
            problems.append(Problem(entry.number, f"Line {place} does not follow from the one before it."))
        entries.append(entry)
        expected, before, sure = entry.number + 1, entry.sha256, True
    return entries, problems + _missing_at_end(path, entries, expected - 1), torn


def _missing_at_end(path: Path, entries: list[Entry], count: int) -> list[Problem]:
    try:
        head = json.loads(_head(path).read_bytes())
        number, digest = int(head["entries"]), str(head["sha256"])
    except FileNotFoundError:
        # A crash between the first line and the first head leaves one entry without.
        return [] if count <= 1 else [Problem(count, "The head that belongs to the ledger is missing.")]
    except (OSError, ValueError, KeyError, TypeError):
        return [Problem(count, "The head that belongs to the ledger is damaged.")]
    if number > count:
        return [Problem(n, "It is missing at the end.") for n in range(count + 1, number + 1)]
    # A crash between a line and its head leaves the head one behind.
    if count - number > 1:
        return [Problem(number + 1, "It was added without the ledger's head.")]
    at = next((entry for entry in entries if entry.number == number), None)
    if at is not None and at.sha256 != digest:
        return [Problem(number, "It is not the one that the ledger's head names.")]
    return []


def _entry(line: bytes) -> Entry | None:
    """None where a line is not exactly as it was written."""
    try:
        found = json.loads(line)
        if not isinstance(found, dict) or found.keys() != KEYS or canonical(found) + b"\n" != line:
            return None
        body = {key: value for key, value in found.items() if key != "sha256"}
        return Entry(**found) if sha256(canonical(body)).hexdigest() == found["sha256"] else None
    except ValueError:
        return None


def _require_whole(path: Path, problems: list[Problem]) -> None:
    if problems:
        said = " ".join(str(problem) for problem in problems[:5])
        more = f" And {len(problems) - 5} more." if len(problems) > 5 else ""
        raise LedgerError(
            f"The ledger is not as it was written. {said}{more}",
            where=path.name,
            remedy="Take the copy that was kept; do not mend it by hand.",
        )


def _require_anonymous(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_anonymous(key, where)
            _require_anonymous(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_anonymous(inner, where)
    elif isinstance(value, str) and PATH.search(value):
        raise LedgerError("An entry of the ledger would name a path.", where=where, remedy="Leave it out.")


def _lock(file: IO[bytes], path: Path) -> None:
    """For this process alone, until the file is closed or the process ends, however it does."""
    try:
        try:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: one byte far beyond the end, since a locked byte could not be read
            import msvcrt

            file.seek(1 << 40)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        raise LedgerError(
            "Another process writes to the ledger.", where=path.name, remedy="Wait until it has ended."
        ) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"The ledger cannot be written ({error.strerror or error}).",
        where=path.name,
        remedy="Check permissions and free space.",
    )
