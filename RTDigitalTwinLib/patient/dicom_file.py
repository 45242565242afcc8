"""One DICOM file, read with suspicion: typed access to its elements, every failure naming file and tag.

Nothing of a patient's identity enters an error: no value of an element is quoted but numbers, codes and UIDs of
transfer syntaxes.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings as python_warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES = 128
LARGEST_FILE_BYTES = 2**30
LARGEST_SIDE = 4096
MOST_FRAMES = 4096
MOST_VOXELS = 2**29
# Implicit and explicit little endian, explicit big endian, RLE: decoded by pydicom itself.
PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5")
# JPEG, lossless JPEG, JPEG-LS and JPEG 2000.
GDCM_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91))
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
OTHER_CODE = "OTHER"
_WHITE_IS_LOW = "MONOCHROME1"
_GREY = (_WHITE_IS_LOW, "MONOCHROME2")
_COPY_ANEW = "Export it anew."
_OPEN_LENGTH = 0xFFFFFFFF
_PIXEL_DATA = 0x7FE00010
# Retired coefficients of wavelets, signatures, padding; private groups may follow too.
_AFTER_PIXELS = (0x7FE00020, 0x7FE00030, 0x7FE00040, 0xFFFAFFFA, 0xFFFCFFFC)
_SHORTEST_ELEMENT = 8
_DELIMITERS = (b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xff\xfe\xe0\xdd\0\0\0\0")  # of either byte order


@dataclass(frozen=True, eq=False)
class DicomItem:
    """A data set, or an item of a sequence in one, and where it lies.

    Attributes
    ----------
    dataset : pydicom's.
    where : file, relative to the folder the user chose.
    """

    dataset: Dataset
    where: str

    def has(self, keyword: str) -> bool:
        """Whether the element is there with a value."""
        with decoding(self.where):
            return keyword in self.dataset and self.dataset[keyword].value not in (None, "", b"")

    def text(self, keyword: str, default: str | None = None) -> str:
        """An element as stripped text. Raises PatientDataError where it is missing and there is no default."""
        if default is not None and not self.has(keyword):
            return default
        return str(self._value(keyword)).strip(" \0")

    def code(self, keyword: str, known: Collection[str], default: str | None = None) -> str:
        """An element out of the codes that DICOM defines; any other text is OTHER, for it may be anything."""
        text = self.text(keyword, default).upper()
        return text if text in known or text == default else OTHER_CODE

    def number(self, keyword: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number within bounds. Raises PatientDataError."""
        return float(self.numbers(keyword, 1, low, high)[0])

    def whole(self, keyword: str, low: int, high: int) -> int:
        """A whole number within bounds. Raises PatientDataError."""
        value = self.number(keyword, low, high)
        if value != int(value):
            raise self.error(f"{tag_of(keyword)} is {value:g}, not a whole number.")
        return int(value)

    def numbers(
        self, keyword: str, count: int | None = None, low: float = -math.inf, high: float = math.inf
    ) -> NDArray[np.float64]:
        """So many finite numbers within bounds. Raises PatientDataError."""
        value = self._value(keyword)
        try:
            values = np.atleast_1d(np.asarray(value, dtype=float)).ravel()
        except (TypeError, ValueError) as error:
            raise self.error(f"{tag_of(keyword)} is not a number.", _COPY_ANEW) from error
        if count is not None and values.size != count:
            raise self.error(f"{tag_of(keyword)} holds {values.size} numbers instead of {count}.", _COPY_ANEW)
        if not np.isfinite(values).all() or ((values < low) | (values > high)).any():
            bounds = f", allowed are {low:g} to {high:g}" if math.isfinite(low) or math.isfinite(high) else ""
            raise self.error(f"{tag_of(keyword)} is {_listed(values)}{bounds}.", _COPY_ANEW)
        return values

    def items(self, keyword: str) -> list[DicomItem]:
        """Items of a sequence; none where it is missing.

        Raises PatientDataError where it is no sequence, or an item's elements are not in the order of their tags.
        """
        if not self.has(keyword):
            return []
        value = self._value(keyword)
        if not hasattr(value, "__iter__") or isinstance(value, (str, bytes)):
            raise self.error(f"{tag_of(keyword)} is no sequence.", _COPY_ANEW)
        found = list(value)
        if not all(hasattr(item, "get_item") for item in found):
            raise self.error(f"{tag_of(keyword)} is no sequence.", _COPY_ANEW)
        for item in found:
            tags = list(item.keys())
            if tags != sorted(tags):
                raise _damaged(f"{tag_of(keyword)} holds elements out of order", self.where)
        return [DicomItem(item, self.where) for item in found]

    def raw(self, keyword: str) -> bytes | None:
        """The element's bytes as in the file where they are still undecoded; None where they are not."""
        with decoding(self.where):
            element = self.dataset.get_item(keyword) if keyword in self.dataset else None
        value = getattr(element, "value", None)
        return value if isinstance(value, bytes) else None

    def error(self, what: str, remedy: str = "") -> PatientDataError:
        return PatientDataError(what, where=self.where, remedy=remedy)

    def _value(self, keyword: str) -> object:
        if not self.has(keyword):
            raise self.error(f"{tag_of(keyword)} is missing.", _COPY_ANEW)
        with decoding(self.where, keyword):
            return self.dataset[keyword].value


@contextmanager
def decoding(where: str, keyword: str = "") -> Iterator[None]:
    """Whatever fails in the block becomes a PatientDataError naming file and tag; pydicom's own remarks are silenced.

    Damaged bytes make pydicom raise nearly anything, and its messages may quote values: only the kind is passed on.
    """
    from pydicom import config

    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    try:
        logger.disabled = True  # it quotes values too
        with python_warnings.catch_warnings(), config.disable_value_validation():
            python_warnings.simplefilter("ignore")
            yield
    except RTDigitalTwinError:
        raise
    except Exception as error:
        what = f"{tag_of(keyword)} cannot be decoded" if keyword else "The file cannot be decoded"
        raise PatientDataError(
            f"{what} ({type(error).__name__}): it is damaged or cut short.", where=where, remedy=_COPY_ANEW
        ) from error
    finally:
        logger.disabled = was_disabled


def tag_of(keyword: str) -> str:
    """``(0028,0030) PixelSpacing`` for ``PixelSpacing``."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    return keyword if tag is None else f"{_shown_tag(tag)} {keyword}"


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM: with a preamble, or without one by an element of group 0002 or 0008."""
    try:
        with path.open("rb") as file:
            start = file.read(PREAMBLE_BYTES + 4)
    except OSError:
        return False
    if start[PREAMBLE_BYTES:] == b"DICM":
        return True
    return start[:4] in (b"\x02\0\0\0", b"\x08\0\x05\0", b"\x08\0\0\0", b"\x08\0\x08\0", b"\x08\0\x16\0")


def open_dicom(path: Path, where: str, keywords: Sequence[str] = ()) -> DicomItem:
    """Read a file's elements, all or (quicker) only those named.

    Raises PatientDataError, also where the elements are not in the ascending order of tags that DICOM asks for, where
    something follows the pixels or the last element: then lengths and contents do not belong together, and a part of
    the values, pixels among them, is not what was written.
    """
    from pydicom.filereader import read_file_meta_info, read_partial
    from pydicom.tag import Tag

    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise PatientDataError("This is no ordinary file.", where=where)
        if status.st_size > LARGEST_FILE_BYTES:
            raise PatientDataError(f"The file has {status.st_size / 2**30:.1f} GiB; at most 1 is read.", where=where)
        with path.open("rb") as file:
            start = file.read(PREAMBLE_BYTES + 4)
    except OSError as error:
        raise PatientDataError(f"The file cannot be read ({error.strerror}).", where=where) from error
    with decoding(where):
        if start[PREAMBLE_BYTES:] == b"DICM":
            syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
            if syntax == DEFLATED_SYNTAX:
                raise PatientDataError(
                    f"The transfer syntax {DEFLATED_SYNTAX} (deflated) is not read.",
                    where=where,
                    remedy="Export it as Explicit VR Little Endian.",
                )
        with path.open("rb") as file:
            order = _Order(file, where)
            wanted = [Tag(keyword) for keyword in keywords]
            dataset = read_partial(file, order.next_element, force=True, specific_tags=wanted or None)
            if len(dataset):
                order.require_end(status.st_size)
    if not len(dataset):
        raise PatientDataError("The file holds no DICOM elements.", where=where, remedy=_COPY_ANEW)
    return DicomItem(dataset, where)


class _Order:
    """Follows the elements of a file as they are read."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self._where = file, where
        self._tag, self._start, self._length = -1, 0, 0

    def next_element(self, tag: int, vr: str | None, length: int) -> bool:
        """Told of each element before its value is read; never stops the reading but by PatientDataError."""
        start = self._file.tell()
        # The first one is told twice where its VR is not of the kind that the transfer syntax says.
        same = tag == self._tag and start - self._start < _SHORTEST_ELEMENT
        if tag <= self._tag and not same:
            raise _damaged(f"{_shown_tag(tag)} comes after {_shown_tag(self._tag)}", self._where)
        is_private = bool(tag >> 16 & 1)
        if self._tag >= _PIXEL_DATA and tag not in _AFTER_PIXELS and not is_private:
            raise _damaged(f"{_shown_tag(tag)} comes after the pixels", self._where)
        self._tag, self._start, self._length = tag, start, length
        return False

    def require_end(self, size: int) -> None:
        """That nothing follows the last element. One that is cut short is for those who read it.

        But none reads what comes after the pixels: there an element that the file cannot hold is pixels moved on, taken
        for a private one.
        """
        if self._length != _OPEN_LENGTH:
            left = size - self._start - self._length
            if left > 0:
                raise _damaged(f"{left} bytes follow the last element, {_shown_tag(self._tag)}", self._where)
            if left < 0 and self._tag > _PIXEL_DATA:
                raise _damaged(f"{_shown_tag(self._tag)} comes after the pixels, cut short", self._where)
            return
        self._file.seek(-min(size, len(_DELIMITERS[0])), os.SEEK_END)
        if self._file.read() not in _DELIMITERS:
            raise _damaged(f"{_shown_tag(self._tag)} does not end where the file does", self._where)


def _damaged(what: str, where: str) -> PatientDataError:
    return PatientDataError(f"{what}: the file is damaged.", where=where, remedy=_COPY_ANEW)


def _shown_tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def is_whole(path: Path, where: str) -> bool:
    """Whether every element of a file can be read to the end that its length announces."""
    from pydicom.dataelem import RawDataElement

    try:
        dataset = open_dicom(path, where).dataset
    except PatientDataError:
        return False
    with decoding(where):
        return not any(
            isinstance(element, RawDataElement) and element.length != _OPEN_LENGTH
            and len(element.value or b"") < element.length
            for element in dataset.values()
        )  # fmt: skip


def transfer_syntax(item: DicomItem) -> str:
    """UID of the transfer syntax; implicit little endian where the file says nothing, as DICOM has it."""
    with decoding(item.where):
        meta = getattr(item.dataset, "file_meta", None)
        stated = "" if meta is None else str(meta.get("TransferSyntaxUID", "") or "")
        return stated or PLAIN_SYNTAXES[0]


def shown_syntax(syntax: str) -> str:
    """A transfer syntax with its name where DICOM gives it one."""
    from pydicom.uid import UID

    return f"{syntax} ({UID(syntax).name})" if UID(syntax).name != syntax else syntax


def stored_pixels(item: DicomItem, path: Path) -> tuple[NDArray, bool]:
    """Pixels (frames, rows, columns), and whether the rescale slope and intercept were applied in decoding.

    Raises PatientDataError where sizes are absurd, pixels are missing or fewer than the sizes say, or the transfer
    syntax cannot be decoded: it is named.
    """
    rows, columns = (item.whole(key, 1, LARGEST_SIDE) for key in ("Rows", "Columns"))
    frames = item.whole("NumberOfFrames", 1, MOST_FRAMES) if item.has("NumberOfFrames") else 1
    shown_as = item.code("PhotometricInterpretation", _GREY, "")
    if item.whole("SamplesPerPixel", 1, 4) != 1 or shown_as == OTHER_CODE:
        raise item.error("The image is in colour; one value a pixel is expected.")
    bits = item.whole("BitsAllocated", 1, 64)
    if bits not in (8, 16, 32) or rows * columns * frames > MOST_VOXELS:
        raise item.error(f"{frames} frames of {rows} x {columns} pixels of {bits} bits cannot be read.")
    stored = item.whole("BitsStored", 1, bits)
    if item.has("HighBit") and item.whole("HighBit", 0, 63) != stored - 1:
        raise item.error(
            f"(0028,0102) HighBit is {item.whole('HighBit', 0, 63)} with {stored} bits stored: where in a pixel its "
            "value lies is not known.",
            _COPY_ANEW,
        )
    if not item.has("PixelData"):
        raise item.error(f"{tag_of('PixelData')} is missing.", _COPY_ANEW)
    syntax = transfer_syntax(item)
    if syntax in PLAIN_SYNTAXES:
        expected = rows * columns * frames * bits // 8
        if syntax != PLAIN_SYNTAXES[-1]:
            with decoding(item.where, "PixelData"):
                held = len(item.dataset.PixelData)
            if held < expected:
                raise item.error(
                    f"{tag_of('PixelData')} is cut short: {held} bytes instead of {expected}.", "Copy it anew."
                )
            if held > expected + 1:  # one byte may pad to an even length
                raise item.error(
                    f"{tag_of('PixelData')} holds {held} bytes, but {frames} frames of {rows} x {columns} pixels need "
                    f"{expected}.",
                    _COPY_ANEW,
                )
        with decoding(item.where, "PixelData"):
            return item.dataset.pixel_array.reshape(frames, rows, columns), False
    if shown_as == _WHITE_IS_LOW:  # SimpleITK would turn the values over, as for showing
        raise item.error(
            f"Pixels in the transfer syntax {shown_syntax(syntax)} with low values shown white cannot be decoded.",
            "Export it uncompressed.",
        )
    return _by_gdcm(item, path, syntax).reshape(frames, rows, columns), True


def _by_gdcm(item: DicomItem, path: Path, syntax: str) -> NDArray:
    """JPEG and other compressed pixels, rescaled, by the GDCM within SimpleITK."""
    import SimpleITK as sitk

    shown = shown_syntax(syntax)
    if syntax not in GDCM_SYNTAXES:
        raise item.error(f"Pixels in the transfer syntax {shown} cannot be decoded.", "Export it uncompressed.")
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise item.error(
            f"Pixels in the transfer syntax {shown} cannot be decoded.", "Export it uncompressed."
        ) from error
    pixels = sitk.GetArrayFromImage(image)
    wanted = item.whole("Rows", 1, LARGEST_SIDE) * item.whole("Columns", 1, LARGEST_SIDE)
    frames = item.whole("NumberOfFrames", 1, MOST_FRAMES) if item.has("NumberOfFrames") else 1
    if pixels.size != wanted * frames:
        raise item.error(f"Pixels in the transfer syntax {shown} do not fit the image's size.", _COPY_ANEW)
    return pixels


def _listed(values: NDArray[np.float64]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:6])
    return f"{shown}, ..." if values.size > 6 else shown
