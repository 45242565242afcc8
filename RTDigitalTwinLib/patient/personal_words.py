"""Finding a person's name, number or date in the name of a structure, however it is written there.

Names, numbers and dates are those that the files of the patient give. Accents, case and separators do not count. What
is compared leans to the side of finding too much: a structure that loses its name can be named again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from RTDigitalTwinLib.patient.structure_matching import KNOWN_NAMES, level_of, vocabulary_words, words_of

_SHORTEST_WORD, _SHORTEST_WORD_OF_OTHER_SCRIPTS = 3, 2
_SHORTEST_NAME_PART, _SHORTEST_NUMBER_PART = 5, 3  # shorter names are in many words: Tina in retina
# Beginnings of letters' names in Unicode of scripts that put no space between words.
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI")
_TARGET_PREFIX = re.compile(r"^[pcgi]tv")
# Words in names that say nothing of a person.
_COMMON_WORDS = frozenset({"anonymous", "anonymized", "patient", "research", "unknown", "none", "sample", "test"})
_LETTERS = str.maketrans({
    "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i",
})  # fmt: skip
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_UID = re.compile(r"\d+(\.\d+){4,}")
_DATE = re.compile(r"(?<!\d)(\d{1,4})[\W_]{1,2}(\d{1,2})[\W_]{1,2}(\d{1,4})(?!\d)")
_DATE_WITH_MONTH = re.compile(r"(?<!\d)(\d{1,2})[\W_]*([a-z]{3,})[\W_]*(\d{4}|\d{2})(?!\d)")
_MONTH_FIRST = re.compile(r"([a-z]{3,})[\W_]*(\d{1,2})[\W_]+(\d{4}|\d{2})(?!\d)")
# Beginnings of months in English, German, French, Dutch and Spanish, without accents.
_MONTHS = {
    beginning: number
    for number, beginnings in enumerate(
        ("jan ene", "feb fev", "mar mae mrz maa mrt", "apr avr abr", "may mai mei", "jun juin", "jul juil",
         "aug aou ago", "sep", "oct okt", "nov", "dec dez dic"), 1)
    for beginning in beginnings.split()
}  # fmt: skip
# Dose levels of targets are no part of a number of a person: PTV54, CTV 5400.
_LEVEL = re.compile(r"(?<=[pcgi]tv)[\s_-]*(?:[2-9]\d\d0(?!\d)(?:cgy)?|[2-9]\d(?:[.,]\d{1,2})?(?!\d)(?:gy)?)")
_BARRIER = "|"  # what stood at its two sides does not become neighbours


@dataclass(frozen=True)
class PersonalWords:
    """What the files of a patient give as names, numbers and dates of persons and institutions.

    Attributes
    ----------
    names : of persons, whole and each of their words.
    numbers : identifiers and numbers of persons, studies and orders.
    dates : as YYYYMMDD.
    places : institutions, stations and addresses; they count whole only, for their words may be those of structures.
    """

    names: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    dates: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()

    def together(self, other: PersonalWords) -> PersonalWords:
        """Those of both."""
        return PersonalWords(
            self.names | other.names,
            self.numbers | other.numbers,
            self.dates | other.dates,
            self.places | other.places,
        )

    def appear_in(self, text: str) -> bool:
        """Whether a text names one of them, or holds any UID, or a date of 1900 to 2099 in a customary order.

        Names count as a word, also one put behind GTV, CTV, ITV or PTV, and in parts of five letters; numbers in parts
        of three characters with a digit. Names of the model's structures hold none.
        """
        if text in KNOWN_NAMES or level_of(text) is not None:
            return False
        if _UID.search(text):
            return True
        return any(self._in_writing(plain, text) for plain in _plain_writings(text)) or self._has_date(text)

    def _in_writing(self, plain: str, text: str) -> bool:
        tokens = {*re.split(r"[\W_]+", plain), *(word for w in words_of(text) for word in _plain_writings(w))}
        tokens |= {_TARGET_PREFIX.sub("", token) for token in tokens}
        if tokens & self._words:
            return True
        joined = _joined(plain)
        if any(word in joined for word in self._words if _is_unspaced(word)):
            return True
        if any(place in joined for place in self._places if len(place) >= _SHORTEST_NAME_PART):
            return True
        rest = _without_vocabulary(plain, text)
        return any(part in rest for part in self._name_parts) or any(
            part in _joined(_LEVEL.sub(_BARRIER, plain)) for part in self._number_parts
        )

    @cached_property
    def _words(self) -> frozenset[str]:
        """In the writings they are compared in, whole."""
        words = _joined_writings(self.names | self.numbers | self.places)
        return frozenset(
            word
            for word in words
            if len(word) >= (_SHORTEST_WORD if word.isascii() else _SHORTEST_WORD_OF_OTHER_SCRIPTS)
            and word not in _COMMON_WORDS
        )

    @cached_property
    def _places(self) -> frozenset[str]:
        return _joined_writings(self.places) - _COMMON_WORDS

    @cached_property
    def _name_parts(self) -> frozenset[str]:
        names = _joined_writings(self.names) - _COMMON_WORDS
        return frozenset(part for name in names for part in _parts(name, _SHORTEST_NAME_PART))

    @cached_property
    def _number_parts(self) -> frozenset[str]:
        return frozenset(
            part
            for number in _joined_writings(self.numbers)
            for part in _parts(number, _SHORTEST_NUMBER_PART)
            if any(c.isdigit() for c in part)
        )

    def _has_date(self, text: str) -> bool:
        plain = _plain(text)
        digits = re.sub(r"\D+", _BARRIER, plain)
        days = {(int(d[:4]), int(d[4:6]), int(d[6:])) for d in self.dates if re.fullmatch(r"\d{8}", d)}
        if any(written in digits for day in days for written in _unseparated(*day)):
            return True
        known = {tuple(sorted(day)) for day in days} | {tuple(sorted((y % 100, m, d))) for y, m, d in days}
        for match in _DATE.finditer(plain):
            a, b, c = (int(part) for part in match.groups())
            if tuple(sorted((a, b, c))) in known or _is_day(a, b, c) or _is_day(c, b, a) or _is_day(c, a, b):
                return True
        written = [(m[3], m[2], m[1]) for m in _DATE_WITH_MONTH.finditer(plain)]
        written += [(m[3], m[1], m[2]) for m in _MONTH_FIRST.finditer(plain)]
        for year, name, day in written:
            month = _MONTHS.get(name[:4]) or _MONTHS.get(name[:3])
            if month and (_is_day(int(year), month, int(day)) or tuple(sorted((int(year), month, int(day)))) in known):
                return True
        return False


def _plain(text: str) -> str:
    """Without case and accents."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c)).translate(_LETTERS)


def _plain_writings(text: str) -> set[str]:
    """Müller as muller and as mueller."""
    composed = unicodedata.normalize("NFC", text.casefold())
    return {_plain(text), _plain(composed.translate(_UMLAUTS))}


def _joined(plain: str) -> str:
    """Without separators."""
    return "".join(c for c in plain if c.isalnum() or c == _BARRIER)


def _joined_writings(words: Iterable[str]) -> frozenset[str]:
    return frozenset(_joined(plain) for word in words for plain in _plain_writings(word))


def _is_unspaced(word: str) -> bool:
    """Whether it is of a script without spaces, where a word has no bounds to be found by."""
    return any(unicodedata.name(c, "").startswith(_UNSPACED_SCRIPTS) for c in word)


def _without_vocabulary(plain: str, text: str) -> str:
    """Joined, but for words that name structures: a Mr Wright is not in every right parotid."""
    known = vocabulary_words()
    kept = plain
    for word in sorted({*re.findall(r"[^\W\d_]+", plain), *words_of(text)} & known, key=len, reverse=True):
        kept = kept.replace(word, _BARRIER)
    return _joined(kept)


def _parts(word: str, length: int) -> Iterable[str]:
    return (word[i : i + length] for i in range(len(word) - length + 1))


def _unseparated(year: int, month: int, day: int) -> set[str]:
    """Customary orders without separators, with the century and without."""
    m, d = f"{month:02d}", f"{day:02d}"
    return {
        order for y in (f"{year:04d}", f"{year % 100:02d}") for order in (y + m + d, d + m + y, m + d + y, y + d + m)
    }


def _is_day(year: int, month: int, day: int) -> bool:
    return 1900 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31
