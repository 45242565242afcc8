"""The user's choices, kept in the scene: hence no folder of a patient among them."""

from enum import Enum
from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


class Device(Enum):
    """What computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"

    def label(self):
        return {"auto": _("GPU where there is one"), "cpu": _("Processor"), "cuda": _("GPU")}[self.value]


class Method(Enum):
    """How measurements are absorbed: the library's names."""

    GP = "gp"
    OFFSETS = "offsets"
    SCALE = "scale"
    KALMAN = "kalman"
    DECODER = "decoder"
    DECODER_GP = "decoder-gp"
    PERSISTENCE = "persistence"

    def label(self):
        words = {
            "gp": _("Gaussian process (default)"),
            "offsets": _("Offset of each structure"),
            "scale": _("One scale for the whole dose"),
            "kalman": _("Ensemble Kalman filter"),
            "decoder": _("Decoder of the network"),
            "decoder-gp": _("Decoder, and the rest by a Gaussian process"),
            "persistence": _("What was measured last"),
        }
        return words[self.value]


class CurvesOf(Enum):
    """Whose curves the chart shows: the library's names."""

    GOALS = "goals"
    VISIBLE = "visible"
    ALL = "all"
    CHOSEN = "chosen"

    def label(self):
        words = {
            "goals": _("Targets, and organs with goals"),
            "visible": _("Those shown in the views"),
            "all": _("All"),
            "chosen": _("Those checked below"),
        }
        return words[self.value]


class BandLevel(Enum):
    """Of the chart's dashed curves."""

    PERCENT_95 = 0.95
    PERCENT_90 = 0.9
    PERCENT_80 = 0.8
    PERCENT_50 = 0.5

    def label(self):
        return f"{100 * self.value:g} %"


class Policy(Enum):
    """When the twin looks again at what it believes, in a course."""

    TRIGGERED = "triggered"
    SCHEDULED = "scheduled"
    STATIC = "static"

    def label(self):
        words = {
            "triggered": _("When readings are not as expected"),
            "scheduled": _("After every five fractions"),
            "static": _("Never"),
        }
        return words[self.value]


@parameterNodeWrapper
class RTDigitalTwinParameterNode:
    """What the twin is of and how it is computed and shown.

    ``prediction`` is the mean dose of the prediction now; ``overlay`` its role, or ``reference``; ``shownAction`` whose
    dose is in view, "" for that of the prediction. Actions are named as the library's ``jobs.CUSTOMARY`` names them,
    those added "spare" or "boost" and a structure.
    """

    ct: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    referenceDose: vtkMRMLScalarVolumeNode
    fractions: Annotated[int, WithinRange(1, 100)] = 35
    samples: Annotated[int, WithinRange(2, 256)] = 32
    seed: Annotated[int, WithinRange(0, 2**31 - 1)] = 0
    device: Device = Device.AUTO
    prediction: vtkMRMLScalarVolumeNode
    overlay: str = "mean"
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    threshold: Annotated[float, WithinRange(0, 90)] = 10.0
    isodoses: bool = True
    legend: bool = True
    curvesOf: CurvesOf = CurvesOf.GOALS
    chosenCurves: list[str]
    bandCurves: bool = True
    beforeCurves: bool = True
    referenceCurves: bool = False
    bandLevel: BandLevel = BandLevel.PERCENT_95
    measurements: vtkMRMLTableNode
    method: Method = Method.GP
    absorbOutliers: bool = False
    uncheckedActions: list[str]
    addedActions: list[str]
    decideSamples: Annotated[int, WithinRange(2, 1024)] = 64
    riskPercent: Annotated[float, WithinRange(0.5, 50)] = 5.0
    uncertaintyWeight: Annotated[float, WithinRange(0, 10)] = 0.5
    shownAction: str = ""
    courseFractions: Annotated[int, WithinRange(2, 100)] = 35
    shiftAt: Annotated[int, WithinRange(0, 100)] = 10
    shiftLeftMm: Annotated[float, WithinRange(-20, 20)] = 0.0
    shiftPosteriorMm: Annotated[float, WithinRange(-20, 20)] = 4.0
    shiftSuperiorMm: Annotated[float, WithinRange(-20, 20)] = -3.0
    shrinkagePercent: Annotated[float, WithinRange(0, 90)] = 15.0
    policy: Policy = Policy.TRIGGERED
    courseNtcp: str = ""
