"""Files and folders that are either whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from RTDigitalTwinLib.errors import OutputError, RTDigitalTwinError

# What only writing can run into; the file is not always named then.
WRITING_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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

    Raises OutputError where it cannot be written, by the block either: a full disk shows there. Other errors of the
    block, such as of a file it reads, pass through.
    """
    require_writable(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    os.close(handle)
    aside = Path(name)
    try:
        with _writing_to(aside, path):
            yield aside
        try:
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
    OutputError : ``path`` is a file, holds what may not be replaced, or cannot be written, by the block either.
    """
    path = Path(os.path.abspath(path))
    try:
        _require_free(path, replaceable)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _not_writable(path, error) from error
    try:
        with _writing_to(aside, path):
            yield aside
        try:
            os.chmod(aside, 0o777 & ~_umask())
            _put_in_place(aside, path)
        except OSError as error:
            raise _not_writable(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Rename a folder within its parent, so that another can take its place; one set aside before is deleted.

    ``put_back`` undoes this, ``drop_aside`` ends it. Raises OutputError where it cannot be renamed.
    """
    try:
        if path.samefile(Path.cwd()):
            raise OutputError(
                "The output is the folder you are in, which cannot be replaced from here.",
                where=path.name,
                remedy="Go to another folder.",
            )
        drop_aside(path)
        os.replace(path, _aside_of(path))
    except OSError as error:
        raise _not_writable(path, error) from error


def put_back(path: Path) -> None:
    """What was set aside, if anything, in its place again; what is there meanwhile is deleted. Raises OutputError."""
    if not _aside_of(path).is_dir():
        return
    try:
        if path.exists():
            shutil.rmtree(path)
        os.replace(_aside_of(path), path)
    except OSError as error:
        raise _not_writable(path, error) from error


def drop_aside(path: Path) -> None:
    """Delete what was set aside, if anything."""
    shutil.rmtree(_aside_of(path), ignore_errors=True)


def _aside_of(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    return path.with_name(f".{path.name}.replaced")


def require_writable(path: Path) -> None:
    """Raises OutputError where ``whole_file`` could not write; nothing is left behind but the folders around it."""
    if path.is_dir():
        raise OutputError("The output is a folder, not a file.", where=str(path), remedy="Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _not_writable(path.parent, error) from error


def require_apart(out: Path, source: Path) -> None:
    """Raises OutputError where one of two paths is or holds the other: results would mix with what they are made of."""
    there, here = out.resolve(), source.resolve()
    if there == here:
        what = f"This is the {'file' if here.is_file() else 'folder'} the data are read from."
    elif there.is_relative_to(here):
        what = "The output lies inside the folder the data are read from."
    elif here.is_relative_to(there):
        what = "The output is a folder around the data that are read."
    else:
        return
    raise OutputError(what, where=str(out), remedy="Choose another place for the results.")


@contextmanager
def _writing_to(aside: Path, path: Path) -> Iterator[None]:
    """Turns the errors of writing ``aside`` into OutputErrors on ``path``."""
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        if error.errno in WRITING_ERRORS or (named is not None and named.is_relative_to(aside)):
            raise _not_writable(path, error) from error
        raise


def _require_free(path: Path, replaceable: Callable[[Path], bool] | None) -> None:
    if path.exists() and not path.is_dir():
        raise OutputError("The output is a file, not a folder.", where=path.name, remedy="Choose another folder.")
    if path.is_dir() and path.samefile(Path.cwd()):
        raise OutputError(
            "The output is the folder you are in, which cannot be replaced from here.",
            where=path.name,
            remedy="Name a new folder inside it.",
        )
    if not path.is_dir() or not any(path.iterdir()):
        return
    if replaceable is None:
        raise OutputError(
            "The output folder exists and is not empty.",
            where=path.name,
            remedy="Choose another folder.",
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
