"""Whose data these are, and whether two sources are of one person."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from RTDigitalTwinLib.patient.overrides import Overrides


@dataclass(frozen=True)
class Identity:
    """Whose a file says it is. Shown to nobody by itself."""

    patient_id: str
    name: str
    birth_date: str

    @property
    def key(self) -> str:
        """What tells patients apart: the identifier; without one, name and birth date are all there is."""
        return self.patient_id or f"\0{self._plain_name}\0{self.birth_date}"

    @property
    def is_empty(self) -> bool:
        """Whether it names nobody."""
        return not (self.patient_id or self._plain_name or self.birth_date)

    def contradicts(self, other: Identity) -> bool:
        """Whether names or birth dates that both files give differ."""
        pairs = zip(self._writings, other._writings, strict=False)
        if any(mine and others and mine != others for mine, others in pairs):
            return True
        return bool(self.birth_date and other.birth_date and self.birth_date != other.birth_date)

    @property
    def _writings(self) -> list[str]:
        """The name in Latin letters, ideographs and phonetic signs, as far as each is given; many systems drop some."""
        name = unicodedata.normalize("NFC", self.name)
        return [" ".join(part.replace("^", " ").casefold().split()) for part in name.split("=")]

    @property
    def _plain_name(self) -> str:
        return " ".join(" ".join(self._writings).split())


@dataclass(frozen=True)
class Belonging:
    """Whose a folder's data are, and of which plan.

    Attributes
    ----------
    plan_uid : SOP instance UID of the plan in use; "" where there is none.
    """

    identity: Identity
    plan_uid: str = ""


def require_same_person(one: Identity, other: Identity, overrides: Overrides, where: str, warnings: list[str]) -> None:
    """Raise PatientDataError where two sources are not known to be of one person, unless that is overridden.

    Parameters
    ----------
    where : the other source, as the error names it; neither name nor identifier is told.
    warnings : gets what was overridden, and that neither source names anybody.
    """
    if one.is_empty and other.is_empty:
        warnings.append("Whether both are of one patient could not be checked: neither names its patient.")
    elif one.key != other.key:
        overrides.settle("identity", "The data are of another patient, by identifier.", where, warnings)
    elif one.contradicts(other):
        overrides.settle("identity", "The data are of another patient, by name or birth date.", where, warnings)
