"""Patient: identity, images, structures, plans, and when each was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.plan import Plan
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Volume

if TYPE_CHECKING:
    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice


@dataclass(frozen=True)
class Image:
    """One image of a patient: modality as in DICOM (CT, PT, MR), days since treatment started."""

    modality: str
    volume: Volume
    days: float = 0.0


@dataclass(frozen=True)
class TimelineEvent:
    """Something that happened, in days since treatment started."""

    days: float
    what: str


@dataclass(frozen=True, eq=False)
class Patient:
    """All a twin starts from.

    Attributes
    ----------
    pseudonym : never a name or a hospital's number.
    images : in order of time.
    structures : by TG-263 name, on the grid of the planning CT.
    dose_mask : voxels that can receive dose; the network predicts 0 Gy elsewhere.
    plans : the first is the one in use.
    warnings : what a reader noticed and the user must see.
    """

    pseudonym: str
    images: tuple[Image, ...]
    structures: Mapping[str, Structure]
    dose_mask: Structure
    plans: tuple[Plan, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", MappingProxyType(dict(self.structures)))
        for structure in (*self.structures.values(), self.dose_mask):
            self.ct.grid.require_same(structure.grid, f"The planning CT and {structure.name}")
        for plan in self.plans:
            if plan.dose is not None:
                self.ct.grid.require_same(plan.dose.grid, f"The planning CT and the dose of {plan.label or 'the plan'}")

    def __repr__(self) -> str:
        dose = "with" if self.plans and self.plan.dose is not None else "without"
        return f"<Patient {self.pseudonym}: {', '.join(self.structures)}; {dose} a plan's dose>"

    @staticmethod
    def load(path: str | PathLike[str], choice: DicomChoice | None = None) -> Patient:
        """Read a patient from a folder whose layout is recognised by its content: OpenKBP or DICOM-RT.

        ``choice`` says of DICOM which patient is meant and what its structures' names mean. Raises PatientDataError
        where the content is not recognised, damaged or contradictory.
        """
        from RTDigitalTwinLib.patient.loading import load_patient

        return load_patient(path, choice)

    @staticmethod
    def sample(seed: int = 0) -> Patient:
        """The built-in procedurally made head-and-neck patient, without a dose: ``dosimetry.planning`` makes one."""
        from RTDigitalTwinLib.patient.sample_anatomy import sample_patient

        return sample_patient(seed)

    @cached_property
    def ct(self) -> Volume:
        """The planning CT in HU: the first CT in time."""
        for image in self.images:
            if image.modality == "CT":
                return image.volume
        raise PatientDataError("The patient has no CT.", remedy="Add the planning CT.")

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        if not self.plans:
            raise PatientDataError("The patient has no plan.", remedy="Add a prescription.")
        return self.plans[0]

    @property
    def organs(self) -> dict[str, Structure]:
        return {n: s for n, s in self.structures.items() if s.kind is StructureKind.ORGAN}

    @property
    def targets(self) -> dict[str, Structure]:
        return {n: s for n, s in self.structures.items() if s.kind is StructureKind.TARGET}

    @property
    def timeline(self) -> tuple[TimelineEvent, ...]:
        """Images and plans in order of time."""
        events = [TimelineEvent(image.days, f"{image.modality} acquired") for image in self.images]
        events += [TimelineEvent(0.0, plan.label or "plan") for plan in self.plans]
        return tuple(sorted(events, key=lambda event: event.days))

    def structure(self, name: str) -> Structure:
        """A structure by name; PatientDataError lists what there is."""
        try:
            return self.structures[name]
        except KeyError:
            raise PatientDataError(
                f"The patient has no structure of this name; there are {', '.join(self.structures)}.", where=name
            ) from None
