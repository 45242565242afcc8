"""Stand-ins for the annotations of ``slicer.parameterNodeWrapper``: what a parameter's value may be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Validator(ABC):
    """Refuses a value with a ValueError."""

    def validate(self, value: Any) -> None:
        if not self.allows(value):
            raise ValueError(f"{value!r} is not allowed by {self!r}")

    @abstractmethod
    def allows(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class WithinRange(Validator):
    minimum: float
    maximum: float

    def allows(self, value: Any) -> bool:
        return bool(self.minimum <= value <= self.maximum)


@dataclass(frozen=True)
class Minimum(Validator):
    minimum: float

    def allows(self, value: Any) -> bool:
        return bool(value >= self.minimum)


@dataclass(frozen=True)
class Maximum(Validator):
    maximum: float

    def allows(self, value: Any) -> bool:
        return bool(value <= self.maximum)


@dataclass(frozen=True)
class Choice(Validator):
    choices: Sequence[Any]

    def allows(self, value: Any) -> bool:
        return value in self.choices


@dataclass(frozen=True)
class Exclude(Validator):
    excludedValues: Sequence[Any]

    def allows(self, value: Any) -> bool:
        return value not in self.excludedValues


@dataclass(frozen=True)
class RangeBounds(Validator):
    """Of a FloatRange: both ends lie within."""

    minimum: float
    maximum: float

    def allows(self, value: Any) -> bool:
        return bool(self.minimum <= value.minimum and value.maximum <= self.maximum)


@dataclass(frozen=True)
class NotNone(Validator):
    def allows(self, value: Any) -> bool:
        return value is not None


@dataclass(frozen=True)
class Default:
    """The value where the node has none."""

    value: Any


@dataclass(frozen=True)
class Decimals:
    value: int


@dataclass(frozen=True)
class SingleStep:
    value: float


@dataclass(frozen=True)
class FloatRange:
    """Two numbers, the first not above the second."""

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ValueError(f"The minimum {self.minimum} is above the maximum {self.maximum}")
