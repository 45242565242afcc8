"""Checks that a user may pass over, explicitly and on record."""

from __future__ import annotations

from dataclasses import dataclass, field

from RTDigitalTwinLib.errors import PatientDataError

OF_FILES = {
    "identity": "files of one patient that contradict each other, and other sources that are another patient's",
    "copies": "files of one object that differ in content, of which the first by name is taken",
    "plan": "a plan that refers to another structure set than the one used",
    "frame": "frames of reference that differ",
    "series": "structures that name another CT series than the one that is here",
    "study": "studies that differ without a reference between the files",
    "gaps": "missing CT slices, filled by interpolation",
}
OF_SUMS = {
    "fractions": "more fractions summed than prescribed, or a dose said to be of others than its plan's",
    "registration": "a registration that looks failed",
}
OVERRIDES = OF_FILES | OF_SUMS


@dataclass(frozen=True)
class Overrides:
    """Checks the user chose to pass over, each recorded in the patient's warnings.

    Attributes
    ----------
    accepted : out of ``OVERRIDES``.
    """

    accepted: frozenset[str] = field(default_factory=frozenset)

    def settle(self, check: str, what: str, where: str, warnings: list[str]) -> None:
        """Raise PatientDataError, or record that the check was overridden."""
        if check not in self.accepted:
            raise PatientDataError(what, where=where, remedy=f"If you know better, say --accept {check}.")
        warnings.append(f"Overridden by the user ({check}): {what}")
