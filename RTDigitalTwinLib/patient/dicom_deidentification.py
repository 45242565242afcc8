"""What of a DICOM-RT file is kept when it is handed on: all that is not known to be harmless is taken out.

The attributes of the Basic Application Level Confidentiality Profile (DICOM PS3.15, table E.1-1) are removed or
replaced, at any depth, and so is every other text, date, private element and unknown element, for a list of what is
harmful is never complete. Kept are measures, codes and geometry of CT, RTSTRUCT, RTPLAN and RTDOSE. Structure names are
kept, for without them a structure set says nothing, and so are makes of equipment; one that holds a name, number or
date that the files give as a person's is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.patient.dicom_file import OTHER_CODE, DicomItem, decoding
from RTDigitalTwinLib.patient.dicom_writing import DOSE_NOTICES
from RTDigitalTwinLib.patient.personal_words import PersonalWords

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

METHOD = f"RTDigitalTwin {__version__}: PS3.15 Basic Profile, structure names kept"[:64]
COVERED = (
    "Patient, physicians, operators, institution, equipment of the house: names, numbers, addresses, ages, sex.",
    "Dates and times: removed or emptied, so intervals between images are lost.",
    "UIDs but those that DICOM itself defines: replaced by random ones, alike in all files, so references still hold.",
    "Free text: descriptions, comments, labels, protocols, instructions. Plans and structure sets are numbered.",
    "Private, unknown and binary elements, overlays, curves, code sequences, signatures, preambles.",
    "All of it in nested sequences too. Pixels are written anew, uncompressed, without comments or padding.",
)
NOT_COVERED = (
    "Names of structures and makes of equipment are kept, but for those that hold a name, number or date of the files; "
    "initials, nicknames and persons whom the files do not name are not found: read the names above.",
    "Pixels are as they were: text burned into them stays, and a head CT shows a face.",
    "Numbers such as voltages, positions and monitor units are kept; somebody with the originals can recognise them.",
)

KEPT_TEXT = frozenset({"ROIName", "Manufacturer", "ManufacturerModelName", "SoftwareVersions"})
# Replaced by a word, for DICOM wants a value.
_REQUIRED_TEXT = frozenset({
    "ApplicatorID", "GeneralAccessoryID", "SourceIsotopeName", "SnoutID", "RangeModulatorID",
})  # fmt: skip
REMOVED = "removed"
# Emptied, for DICOM wants them there.
_EMPTIED = frozenset({
    "AccessionNumber", "OperatorsName", "PatientBirthDate", "PatientSex", "PositionReferenceIndicator",
    "ReferringPhysicianName", "ReviewDate", "ReviewTime", "ReviewerName", "ROIInterpreter", "RTPlanDate", "RTPlanTime",
    "StructureSetDate", "StructureSetTime", "StudyDate", "StudyID", "StudyTime", "TreatmentMachineName", "MaterialID",
    "Laterality",
})  # fmt: skip
_GENERAL_KEPT = frozenset({
    "ImageType", "Modality", "SOPClassUID", "SOPInstanceUID", "ReferencedSOPClassUID", "ReferencedSOPInstanceUID",
    "ReferencedImageSequence", "SourceImageSequence", "ReferencedSeriesSequence", "ReferencedFrameNumber",
})  # fmt: skip
_IMAGE_GROUPS, _RT_GROUPS = (0x0018, 0x0020, 0x0028), (0x3002, 0x3004, 0x3006, 0x300A, 0x300C, 0x300E)
_NAMING_GROUPS = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040)
_NUMBER_ENDS = ("ID", "IDs", "Number", "Numbers")
_NAMING_ENDS = (*_NUMBER_ENDS, "Name", "Address")
_SEQUENCES_REMOVED = frozenset({"ROICreatorSequence", "ROIInterpreterSequence", "OperatorIdentificationSequence"})
_TEXT_VRS = ("AE", "AS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT")
_NUMBER_VRS = ("AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV", "US or SS")
_CODE = re.compile(r"[A-Z0-9_ ]{0,16}")
_NUMBERS = re.compile(rb"[0-9eE+\-. \\\0]*")
_DICOM_ROOT = "1.2.840.10008."
# Codes that files are read by: they stay, even where a person is called so.
_READ_CODES = frozenset({
    "APPROVED", "AXIAL", "BEAM", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR", "CONTINUATION", "CT", "CTV", "DERIVED",
    "EFFECTIVE", "ERROR", "EXTERNAL", "FRACTION", "GTV", "GY", "LOCALIZER", "MONOCHROME2", "NONE", "ORGAN",
    "ORGAN_AT_RISK", "ORIGINAL", "OPEN_PLANAR", "PATIENT", "PHOTON", "PHYSICAL", "PLAN", "POINT", "PRIMARY", "PTV",
    "REJECTED", "RELATIVE", "RESEARCH", "RTDOSE", "RTPLAN", "RTSTRUCT", "SECONDARY", "SITE", "STATIC", "TARGET",
    "TREATMENT", "UNAPPROVED", "VOLUME",
})  # fmt: skip


def personal_words(item: DicomItem) -> PersonalWords:
    """What of a file, at any depth, may name a person, a place or a day."""
    names: set[str] = set()
    numbers: set[str] = set()
    dates: set[str] = set()
    places: set[str] = set()
    with decoding(item.where):
        for keyword, vr, value in _personal_values(item.dataset):
            text = str(value).strip(" \0")
            if vr in ("DA", "DT"):
                dates.add(text[:8])
            elif vr == "PN":
                names |= {text, *re.split(r"[\W_]+", text)}
            elif keyword.endswith(_NUMBER_ENDS):
                numbers.add(text)
            else:
                places.add(text)
    return PersonalWords(frozenset(names), frozenset(numbers), frozenset(dates), frozenset(places))


def _personal_values(dataset: Dataset) -> Iterator[tuple[str, str, object]]:
    from pydicom.datadict import keyword_for_tag

    for tag in list(dataset.keys()):
        vr = _known_vr(tag.group, tag)
        if vr == "SQ":
            value = dataset[tag].value
            for item in value if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") else ():
                if hasattr(item, "get_item"):
                    yield from _personal_values(item)
            continue
        keyword = keyword_for_tag(tag)
        named = keyword.endswith(_NAMING_ENDS) and keyword not in KEPT_TEXT
        if vr not in ("PN", "DA", "DT") and not (named and vr in ("LO", "SH") and tag.group in _NAMING_GROUPS):
            continue
        for value in _several(dataset[tag].value):
            yield keyword, vr, value


@dataclass
class FreshUids:
    """Random UIDs, the same one for the same UID."""

    _known: dict[str, str] = field(default_factory=dict)

    def of(self, uid: str) -> str:
        from pydicom.uid import UID_dictionary, generate_uid

        uid = uid.strip(" \0")
        if not uid or (uid.startswith(_DICOM_ROOT) and uid in UID_dictionary):
            return uid
        return self._known.setdefault(uid, str(generate_uid(prefix=None)))


@dataclass(frozen=True)
class Person:
    """Who a file is of, once it says so no more.

    Attributes
    ----------
    name, identifier : made up.
    labels : of plans and structure sets by keyword.
    """

    name: str
    identifier: str
    words: PersonalWords
    labels: dict[str, str]


def deidentified(item: DicomItem, person: Person, uids: FreshUids, renamed: dict[str, str]) -> Dataset:
    """A file's data set with what is harmless alone, under another name; pixels left out.

    ``renamed`` gets structure names that held a word of a person, and what they are now. Raises PatientDataError where
    an element that is to be kept cannot be decoded.
    """
    with decoding(item.where):
        cleaned = _Cleaning(person.words, uids, renamed).of(item.dataset)
        cleaned.SpecificCharacterSet = "ISO_IR 192"
        cleaned.PatientName, cleaned.PatientID = person.name, person.identifier
        cleaned.PatientBirthDate = cleaned.PatientSex = ""
        cleaned.PatientIdentityRemoved, cleaned.DeidentificationMethod = "YES", METHOD
        cleaned.LongitudinalTemporalInformationModified = "REMOVED"
        for keyword, label in person.labels.items():
            setattr(cleaned, keyword, label)
        return cleaned


@dataclass(frozen=True)
class _Cleaning:
    words: PersonalWords
    uids: FreshUids
    renamed: dict[str, str]

    def of(self, dataset: Dataset) -> Dataset:
        from pydicom import Dataset
        from pydicom.datadict import keyword_for_tag
        from pydicom.dataelem import RawDataElement

        cleaned = Dataset()
        for tag in list(dataset.keys()):
            vr = _known_vr(tag.group, tag)
            keyword = keyword_for_tag(tag)
            if not vr or not _may_stay(tag.group, vr, keyword):
                continue
            raw = dataset.get_item(tag)
            if keyword == "ContourData" and isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
                if _NUMBERS.fullmatch(raw.value):  # as it is: decoding takes most of the time
                    cleaned[tag] = raw._replace(VR="DS", is_implicit_VR=True, is_little_endian=True)
                continue
            element = dataset[tag]
            if element.VR not in vr.split(" or "):
                continue  # another one than DICOM's, or one of two that the file leaves open: of nothing that is read
            if vr == "SQ":
                cleaned.add_new(tag, vr, [self.of(item) for item in element.value])
                continue
            value = self._value(element, keyword, dataset)
            if value is not None:
                cleaned.add_new(tag, element.VR, value)
        return cleaned

    def _value(self, element: DataElement, keyword: str, dataset: Dataset) -> object:
        """What an element says in the result; None where it is taken out."""
        values = _several(element.value)
        if not values or keyword in _EMPTIED:
            return ""
        if element.VR == "UI":
            fresh = [self.uids.of(str(value)) for value in values]
            return fresh if len(fresh) > 1 else fresh[0]
        if element.VR in _NUMBER_VRS:
            return element.value if all(_is_number(value) for value in values) else None
        if element.VR == "CS":
            codes = [self._code(str(value)) for value in values]
            return codes if len(codes) > 1 else codes[0]
        if keyword == "ROIName":
            name = str(element.value)
            if self.words.appear_in(name):
                self.renamed[name] = f"Structure {dataset.get('ROINumber', '')}".strip()
            return self.renamed.get(name, name)
        if keyword in KEPT_TEXT:
            return REMOVED if any(self.words.appear_in(str(value)) for value in values) else element.value
        if keyword == "DoseComment" and str(element.value).strip() in DOSE_NOTICES:
            return element.value  # that a dose is predicted, or no dose, must not get lost
        return REMOVED if keyword in _REQUIRED_TEXT else ""

    def _code(self, code: str) -> str:
        if code in _READ_CODES:
            return code
        return code if _CODE.fullmatch(code) and not self.words.appear_in(code) else OTHER_CODE


def _known_vr(group: int, tag: int) -> str:
    """VR by DICOM's dictionary; "" of private, repeating and unknown elements, which are not kept."""
    from pydicom.datadict import dictionary_VR

    if group % 2 or group & 0xFF00 in (0x5000, 0x6000) or not tag & 0xFFFF:
        return ""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def _may_stay(group: int, vr: str, keyword: str) -> bool:
    """Whether anything of an element may be in the result, if only its being there."""
    if keyword in KEPT_TEXT or keyword in _EMPTIED or keyword in _REQUIRED_TEXT or keyword in _GENERAL_KEPT:
        return True
    if vr == "SQ":
        return group in _RT_GROUPS and not keyword.endswith("CodeSequence") and keyword not in _SEQUENCES_REMOVED
    if vr in _TEXT_VRS:
        return group in _RT_GROUPS and vr in ("LO", "SH")  # emptied: some are required to be there
    if vr == "CS":
        return group in (*_IMAGE_GROUPS, *_RT_GROUPS)
    return (vr in _NUMBER_VRS or vr == "UI") and group in (*_IMAGE_GROUPS, *_RT_GROUPS)


def _several(value: object) -> Sequence[object]:
    if value is None or value == "":
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else (value,)


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
