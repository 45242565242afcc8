"""Which structure of the model a name in a planning system means: proposed with a confidence, never guessed.

Only a TG-263 name, but for case and punctuation, is taken by itself; so are a body outline by its type, and OpenKBP's
dose mask by its name. A synonym, a side, a level read from digits or a similar spelling is a proposal that the user
confirms or rejects; laterality comes from a word of the name and nothing else.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from enum import Enum
from functools import cache

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.naming import DOSE_MASK, ORGANS_AT_RISK
from RTDigitalTwinLib.resources import resource_path

EXTERNAL = "External"
KNOWN_NAMES = (*ORGANS_AT_RISK, EXTERNAL, DOSE_MASK)
SYNONYM_CONFIDENCE, MORE_WORDS_CONFIDENCE, LEVEL_CONFIDENCE = 0.95, 0.75, 0.9
SIMILAR_RATIO, SIMILAR_CONFIDENCE = 0.8, 0.6
IMPLAUSIBLE_FACTOR = 0.4
LEVEL_TOLERANCE_GY, SAME_DOSE_GY = 0.5, 0.01
SMALLEST_NAMED_GY = 1.0  # a name of less is a slip
LOWEST_LEVEL_GY, HIGHEST_LEVEL_GY = 20.0, 99.0
# A number after a stroke, as in PTV60/30, is one of fractions unless there are too many.
MOST_NAMED_FRACTIONS = 45
_NUMBER = re.compile(r"(?P<over>/\s*)?(?P<value>\d+(?:[.,]\d+)?)\s*(?P<unit>c?gy|fx|fr|#|x)?")
# What comes after these is cut away from a structure: Parotid_L-PTV is no target.
_CUT_AWAY = re.compile(r"(-|\b(minus|sub|not)\b|_(minus|sub|not)_)\s*(ptv|ctv|gtv).*$", re.DOTALL)
_HELPER_TYPES = ("AVOIDANCE", "CONTROL")
_SIDES = {"L": "left", "R": "right"}


class MatchState(Enum):
    """How sure a match is, and whether it counts."""

    EXACT = "exact"
    CONFIRMED = "confirmed"
    PROPOSED = "proposed"  # does not count until confirmed
    OPEN = "open"  # a target, or nearly one, of unclear meaning: to be named or left out by the user
    HELPER = "planning helper"
    LEFT_OUT = "left out"
    EMPTY = "without contours"  # whatever its name means
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Candidate:
    """What is known of a structure before its name is understood.

    Attributes
    ----------
    interpreted_type : RTROIInterpretedType.
    level_gy : what the plan prescribes to it; None where it does not.
    volume_cc : None where it is not known yet.
    is_empty : whether nothing of it is drawn.
    """

    source: str
    interpreted_type: str = ""
    level_gy: float | None = None
    volume_cc: float | None = None
    is_empty: bool = False


@dataclass(frozen=True)
class Match:
    """A structure of the source and what it is to the model.

    Attributes
    ----------
    name : TG-263 name; "" where there is none. Of an empty structure, what it would be.
    confidence : 0..1, how much the name alone says; 1 where exact or confirmed.
    reason : in words, for the user.
    """

    source: str
    name: str
    state: MatchState
    confidence: float
    reason: str

    @property
    def counts(self) -> bool:
        """Whether the structure is used under ``name``."""
        return bool(self.name) and self.state in (MatchState.EXACT, MatchState.CONFIRMED)

    @property
    def waits(self) -> bool:
        """Whether the user must say what the structure is before anything is read."""
        return self.state in (MatchState.PROPOSED, MatchState.OPEN)


def match_structures(candidates: Sequence[Candidate], confirmed: Mapping[str, str] | None = None) -> list[Match]:
    """Match each structure; ``confirmed`` maps names of the source to TG-263 names, or to "" for leaving one out.

    Raises PatientDataError where a confirmed name is not among the candidates or maps to no structure of the model,
    where two structures of the source have one name, and where two count as the same structure of the model.
    """
    confirmed = dict(confirmed or {})
    sources = [candidate.source for candidate in candidates]
    unknown = [source for source in confirmed if source not in sources]
    if unknown:
        raise PatientDataError(
            "The mapping names a structure that is not there.",
            where=unknown[0],
            remedy=f"There are {_listed(sources)}.",
        )
    matches = []
    for candidate in candidates:
        if candidate.source in confirmed:
            match = _confirmed(candidate.source, confirmed[candidate.source])
        else:
            match = _match(candidate)
        if candidate.is_empty and (match.name or match.waits):
            match = replace(match, state=MatchState.EMPTY, confidence=0.0, reason="nothing of it is drawn")
        matches.append(match)
    _require_distinct(matches, confirmed)
    return matches


def canonical_level(gy: float) -> str:
    """TG-263 name of a planning target volume by its dose: ``PTV_7000`` for 70 Gy."""
    return f"PTV_{round(100 * gy):04d}"


def level_of(name: str) -> float | None:
    """Dose in Gy that a name such as PTV_7000 states; None for other names, and for less than 1 Gy."""
    found = re.fullmatch(r"PTV_(\d{4})", name)
    gy = int(found[1]) / 100 if found else 0.0
    return gy if gy >= SMALLEST_NAMED_GY else None


def words_of(name: str) -> list[str]:
    """Words of a name in lower case without accents: split at punctuation, changes of case, and digits."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss").replace("œ", "oe").replace("Œ", "Oe"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    parts = re.findall(r"\d+(?:\.\d+)?|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", plain)
    return [part.casefold() for part in parts]


@cache
def vocabulary_words() -> frozenset[str]:
    """Words in lower case that names of the model's structures, sides and planning helpers are made of."""
    vocabulary = _vocabulary()
    texts = {text for synonyms in vocabulary.synonyms.values() for text in synonyms}
    texts |= {side for sides in vocabulary.sides.values() for side in sides} | vocabulary.helper_words
    return frozenset(word for text in (*texts, *KNOWN_NAMES) for word in words_of(text))


def _match(candidate: Candidate) -> Match:
    source, words = candidate.source, words_of(candidate.source)
    is_helper = _is_helper(source, words)
    if _may_be_target(candidate, is_helper):
        return _match_target(candidate, words, is_helper)
    if is_helper:
        return Match(source, "", MatchState.HELPER, 0.0, "a helper of planning by its name")
    for name in KNOWN_NAMES:
        if words == words_of(name):
            return _exact(source, name)
    if candidate.interpreted_type == "EXTERNAL":
        return Match(source, EXTERNAL, MatchState.EXACT, 1.0, "of type EXTERNAL")
    return _match_organ(candidate, words)


def _exact(source: str, name: str) -> Match:
    known = "OpenKBP's name of the region where dose is predicted" if name == DOSE_MASK else "TG-263 name"
    return Match(source, name, MatchState.EXACT, 1.0, known if source == name else f"{known}, written otherwise")


def _may_be_target(candidate: Candidate, is_helper: bool) -> bool:
    """Whether a prescribed target may be meant, so that it must not be passed over without the user."""
    if candidate.interpreted_type == "PTV" or candidate.level_gy is not None:
        return True
    if is_helper and candidate.interpreted_type in _HELPER_TYPES:
        return False
    return "ptv" in _CUT_AWAY.sub("", candidate.source.casefold())


def _match_target(candidate: Candidate, words: Sequence[str], is_helper: bool) -> Match:
    source, planned = candidate.source, candidate.level_gy
    levels = _written_levels(source)
    written = next(iter(levels)) if len(levels) == 1 else None
    level = planned if planned is not None else written
    reason = ""
    if is_helper:
        reason = "a helper of planning by its name, a target by its name or the plan"
    elif "ptv" not in source.casefold() and candidate.interpreted_type != "PTV":
        reason = f"the plan prescribes {planned:g} Gy to it, but it is no planning target volume by name or type"
    elif any(words == words_of(name) for name in KNOWN_NAMES):
        reason = "a structure of the model by its name, a planning target volume by its type"
    elif len(levels) > 1:
        reason = "several dose levels in the name"
    elif written is not None and planned is not None and abs(written - planned) > LEVEL_TOLERANCE_GY:
        reason = f"the name says {written:g} Gy, the plan {planned:g} Gy"
    elif level is None:
        reason = "a target of no known dose level"
    if reason or level is None:
        return Match(source, "", MatchState.OPEN, 0.0, reason)
    name = canonical_level(level)
    if words == words_of(name):
        return _exact(source, name)
    said = " and ".join(text for text, value in (("its digits", written), ("the plan", planned)) if value is not None)
    if written is not None and planned is not None and abs(written - planned) > SAME_DOSE_GY:
        said = f"the plan, its digits say {written:g} Gy"
    return Match(source, name, MatchState.PROPOSED, LEVEL_CONFIDENCE, f"{level:g} Gy by {said}")


def _written_levels(source: str) -> set[float]:
    """Doses in Gy that a name states: numbers in Gy or cGy where it has such, else those that can only be doses."""
    numbers = [(float(n["value"].replace(",", ".")), n) for n in _NUMBER.finditer(source.casefold())]
    with_unit = [(value, n["unit"]) for value, n in numbers if n["unit"] in ("gy", "cgy")]
    if with_unit:
        return {value / (100 if unit == "cgy" else 1) for value, unit in with_unit}
    bare = [value for value, n in numbers if not n["unit"] and not (n["over"] and value <= MOST_NAMED_FRACTIONS)]
    return {level for value in bare if (level := _level(value)) is not None}


def _level(value: float) -> float | None:
    """Dose in Gy of a number written in Gy or cGy; None where it is a mere index."""
    if LOWEST_LEVEL_GY <= value <= HIGHEST_LEVEL_GY:
        return value
    return value / 100 if 100 * LOWEST_LEVEL_GY <= value <= 100 * HIGHEST_LEVEL_GY else None


def _match_organ(candidate: Candidate, words: Sequence[str]) -> Match:
    source, vocabulary = candidate.source, _vocabulary()
    sides = {side for word in words for side in ("L", "R") if word in vocabulary.sides[side]}
    plain = " ".join(w for w in words if w not in vocabulary.sides["L"] | vocabulary.sides["R"])
    whole = " ".join(words)
    confidence, how, base = max(
        (*_likeness(plain if base in vocabulary.paired else whole, synonym), base)
        for base, synonyms in vocabulary.synonyms.items()
        for synonym in synonyms
    )
    if not confidence:
        return Match(source, "", MatchState.UNKNOWN, 0.0, "no structure of the model")
    best = Match(source, base, MatchState.PROPOSED, confidence, how)
    if base in vocabulary.paired:
        if len(sides) != 1:
            said = "both sides" if sides else "no side"
            return Match(source, "", MatchState.UNKNOWN, 0.0, f"{how} of {base}, but the name says {said}")
        side = next(iter(sides))
        best = Match(source, f"{base}_{side}", MatchState.PROPOSED, confidence, f"{how}, {_SIDES[side]} by its name")
    if best.name and candidate.volume_cc is not None:
        low, high = vocabulary.volume_cc[best.name.removesuffix("_L").removesuffix("_R")]
        if not low <= candidate.volume_cc <= high:
            reason = f"{best.reason}; a volume of {candidate.volume_cc:.1f} cc is doubtful"
            return Match(source, best.name, best.state, round(best.confidence * IMPLAUSIBLE_FACTOR, 2), reason)
    return best


def _likeness(text: str, synonym: str) -> tuple[float, str]:
    if text == synonym:
        return SYNONYM_CONFIDENCE, "synonym"
    if len(synonym) > 3 and f" {synonym} " in f" {text} ":
        return MORE_WORDS_CONFIDENCE, "synonym among other words"
    ratio = SequenceMatcher(None, text, synonym).ratio()
    if ratio >= SIMILAR_RATIO:
        return round(SIMILAR_CONFIDENCE * ratio, 2), f"spelled like {synonym!r}"
    return 0.0, ""


def _is_helper(source: str, words: Sequence[str]) -> bool:
    vocabulary = _vocabulary()
    combined = re.sub(r"ptv\s*-\s*(?=\d)", "ptv ", source.lower())  # PTV-6300 is a mere way of writing
    if any(word in vocabulary.helper_words for word in words) or re.search(r"[+\-]\s*\d|-\s*(ptv|ctv|gtv)", combined):
        return True
    lower = source.strip().lower()
    if re.match(r"z(?=[A-Z_\s])", source.strip()):
        return True
    return any(lower.startswith(b) for b in vocabulary.helper_beginnings if b != "z")


def _confirmed(source: str, name: str) -> Match:
    if name and name not in KNOWN_NAMES and level_of(name) is None:
        raise PatientDataError(
            f"The mapping leads to {name!r}, which is no structure of the model.",
            where=source,
            remedy=f"There are {_listed(KNOWN_NAMES)}, and PTV_ with four digits in cGy.",
        )
    if not name:
        return Match(source, "", MatchState.LEFT_OUT, 1.0, "by the user")
    return Match(source, name, MatchState.CONFIRMED, 1.0, "confirmed by the user")


def _require_distinct(matches: Sequence[Match], confirmed: Mapping[str, str]) -> None:
    sources = [match.source for match in matches if match.state is not MatchState.EMPTY]
    doubled = {s for s in sources if sources.count(s) > 1}
    for match in matches:
        if match.source in doubled and (match.name or match.source in confirmed):
            raise PatientDataError(
                "Two structures of the source have this name.",
                where=match.source,
                remedy="Rename or delete one in the planning system.",
            )
    taken: dict[str, str] = {}
    for match in matches:
        if match.counts and taken.setdefault(match.name, match.source) != match.source:
            raise PatientDataError(
                f"Two structures count as {match.name}: {taken[match.name]} and {match.source}.",
                remedy=f'Leave one out with --map "{match.source}=".',
            )


@dataclass(frozen=True)
class _Vocabulary:
    synonyms: Mapping[str, frozenset[str]]
    paired: frozenset[str]
    volume_cc: Mapping[str, tuple[float, float]]
    sides: Mapping[str, frozenset[str]]
    helper_words: frozenset[str]
    helper_beginnings: tuple[str, ...]


@cache
def _vocabulary() -> _Vocabulary:
    path = resource_path("Protocols", "structure_names.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        sides = table.pop("laterality")
        helpers = table.pop("helpers")
        synonyms = {
            base: frozenset(
                " ".join(words_of(text)) for value in entry.values() if _is_text_list(value) for text in value
            )
            for base, entry in table.items()
        }
        paired = frozenset(base for base, entry in table.items() if entry.get("paired"))
        return _Vocabulary(
            synonyms,
            paired,
            {base: (float(entry["volume_cc"][0]), float(entry["volume_cc"][1])) for base, entry in table.items()},
            {"L": frozenset(sides["left"]), "R": frozenset(sides["right"])},
            frozenset(helpers["words"]),
            tuple(helpers["beginnings"]),
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise RTDigitalTwinError(
            f"The structure names cannot be read ({error}).", where=path.name, remedy="Install RTDigitalTwin again."
        ) from error


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
