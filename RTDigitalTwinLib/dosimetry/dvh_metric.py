"""DVH metrics by name; without torch, so that a file of measurements is checked in an instant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from RTDigitalTwinLib.errors import RTDigitalTwinError


class DvhMetricKind(Enum):
    """What a DVH metric asks for."""

    DOSE_AT_PERCENT = "D%"
    DOSE_AT_CC = "Dcc"
    VOLUME_AT_DOSE = "V"
    CC_AT_DOSE = "Vcc"
    MEAN = "mean"
    MIN = "min"
    MAX = "max"


_UNITS = {DvhMetricKind.VOLUME_AT_DOSE: "%", DvhMetricKind.CC_AT_DOSE: "cc"}
_PLAIN = {kind.value: kind for kind in (DvhMetricKind.MEAN, DvhMetricKind.MIN, DvhMetricKind.MAX)}


@dataclass(frozen=True)
class DvhMetric:
    """D95 (dose to the hottest 95 % of the volume), D0.1cc, V20 (% receiving 20 Gy), V20[cc], mean, min or max."""

    kind: DvhMetricKind
    argument: float = 0.0

    @classmethod
    def parse(cls, text: str) -> DvhMetric:
        """Also takes D95%, V20Gy, V20Gy[%] and V20Gy[cc]. Raises RTDigitalTwinError where the text is no metric."""
        if text.lower() in _PLAIN:
            return cls(_PLAIN[text.lower()])
        dose = re.fullmatch(r"D(\d+(?:\.\d+)?)(cc|%)?", text)
        volume = re.fullmatch(r"V(\d+(?:\.\d+)?)(?:Gy)?(?:\[(%|cc)\])?", text)
        if volume is not None:
            kind = DvhMetricKind.CC_AT_DOSE if volume[2] == "cc" else DvhMetricKind.VOLUME_AT_DOSE
            return cls(kind, float(volume[1]))
        if dose is None:
            raise RTDigitalTwinError(
                f"{text!r} is no DVH metric.", remedy="Write D95, D0.1cc, V20 (Gy), V20[cc], mean, min or max."
            )
        if dose[2] == "cc":
            return cls(DvhMetricKind.DOSE_AT_CC, float(dose[1]))
        if float(dose[1]) > 100:
            raise RTDigitalTwinError(f"{text!r}: a volume cannot exceed 100 %.")
        return cls(DvhMetricKind.DOSE_AT_PERCENT, float(dose[1]))

    @property
    def unit(self) -> str:
        return _UNITS.get(self.kind, "Gy")

    def __str__(self) -> str:
        """The shortest way to write it, as tables and calibrations do."""
        if self.kind.value in _PLAIN:
            return self.kind.value
        letter = "V" if self.kind in _UNITS else "D"
        suffix = {DvhMetricKind.DOSE_AT_CC: "cc", DvhMetricKind.CC_AT_DOSE: "[cc]"}.get(self.kind, "")
        return f"{letter}{self.argument:g}{suffix}"
