"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from RTDigitalTwinLib.errors import OutputError


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` when the block ends well and removed when it does not.

    Raises OutputError where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, renamed to ``path`` when the block ends well and removed when it does not.

    Raises OutputError where ``path`` exists and ``overwrite`` is false, is a file, or cannot be written.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise OutputError("The output is a file, not a folder.", where=path.name, remedy="Choose another folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(
            "The output folder exists and is not empty.",
            where=path.name,
            remedy="Choose another, or pass --overwrite to replace it.",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    try:
        yield aside
        os.chmod(aside, 0o777 & ~_umask())
        if path.is_dir():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, retired / path.name)
            os.replace(aside, path)
            shutil.rmtree(retired)
        else:
            os.replace(aside, path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write here ({error.strerror or error}).",
        where=path.name or str(path),
        remedy="Check permissions and free space, or choose another folder.",
    )
