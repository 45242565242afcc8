"""Files and folders are whole or not there, and only errors of writing are called that."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from RTDigitalTwinLib.errors import OutputError
from RTDigitalTwinLib.files import require_apart, require_writable, whole_file, whole_folder


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_block_that_fails_leaves_nothing(whole, tmp_path: Path) -> None:
    with pytest.raises(ValueError), whole(tmp_path / "out"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_the_block_cannot_read_is_not_said_to_be_unwritable(whole, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole(tmp_path / "out"):
        (tmp_path / "absent.csv").read_text()
    with pytest.raises(OSError, match="Input/output"), whole(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error")  # a disk that fails names no file
    assert list(tmp_path.iterdir()) == []


def test_what_the_block_cannot_write_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="out.json: Cannot write here"), whole_file(tmp_path / "out.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match="out: Cannot write here"), whole_folder(tmp_path / "out") as aside:
        (aside / "absent" / "dose.csv").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with pytest.raises(OutputError, match="No space left"), whole_file(tmp_path / "out.json"):
        full.write_text("more than nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    for check in (require_writable, lambda path: whole_file(path).__enter__()):
        with pytest.raises(OutputError, match="a folder, not a file"):
            check(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write here"):
        require_writable(tmp_path / "file" / "out.json")


def test_the_present_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the folder you are in"), whole_folder(Path(".")):
        pass
    with whole_folder(Path("new/../results")) as aside:
        (aside / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_output_and_source_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for out, source in (("data", "data"), ("data/out", "data"), ("data", "data/pt_1"), ("link/out", "data")):
        with pytest.raises(OutputError):
            require_apart(tmp_path / out, tmp_path / source)
    require_apart(tmp_path / "data-out", tmp_path / "data")
