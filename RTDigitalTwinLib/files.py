"""Files and folders that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from RTDigitalTwinLib.errors import OutputError, RTDigitalTwinError


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content. Raises RTDigitalTwinError where it cannot be read."""
    digest = sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise RTDigitalTwinError(f"The file cannot be read ({error.strerror}).", where=path.name) from error
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` when the block ends well and removed when it does not.

    Raises OutputError where it cannot be written, by the block either: a full disk shows there.
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
def whole_folder(path: Path, *, replaceable: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A folder to fill, renamed to ``path`` when the block ends well and removed when it does not.

    Parameters
    ----------
    path : where the folder shall be; an empty folder there is taken.
    replaceable : says of a folder with content whether it may be replaced; none may by default.

    Raises
    ------
    OutputError : ``path`` is a file, holds what may not be replaced, or cannot be written.
    """
    path = path.absolute()
    try:
        _require_free(path, replaceable)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _not_writable(path, error) from error
    try:
        yield aside
        try:
            os.chmod(aside, 0o777 & ~_umask())
            _put_in_place(aside, path)
        except OSError as error:
            raise _not_writable(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _require_free(path: Path, replaceable: Callable[[Path], bool] | None) -> None:
    if path.exists() and not path.is_dir():
        raise OutputError("The output is a file, not a folder.", where=path.name, remedy="Choose another folder.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if replaceable is None:
        raise OutputError(
            "The output folder exists and is not empty.",
            where=path.name,
            remedy="Choose another, or pass --overwrite to replace earlier results.",
        )
    if not replaceable(path):
        raise OutputError(
            "The output folder holds more than the results of an earlier run, so it is not replaced.",
            where=path.name,
            remedy="Choose another folder.",
        )


def _put_in_place(aside: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(aside, path)
        return
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, retired / path.name)
    try:
        os.replace(aside, path)
    except BaseException:
        os.replace(retired / path.name, path)
        os.rmdir(retired)
        raise
    with suppress(OSError):
        shutil.rmtree(retired)


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
