"""Names of the structures the dose network knows, in TG-263."""

ORGANS_AT_RISK = (
    "Brainstem",
    "SpinalCord",
    "Parotid_R",
    "Parotid_L",
    "Esophagus",
    "Larynx",
    "Bone_Mandible",
)
TARGETS = ("PTV_5600", "PTV_6300", "PTV_7000")
TARGET_DOSE_GY = (("PTV_5600", 56.0), ("PTV_6300", 63.0), ("PTV_7000", 70.0))
DOSE_MASK = "FeasibleDose"

RIGHT_LEFT_PAIRS = (("Parotid_R", "Parotid_L"),)


def mirrored_name(name: str) -> str:
    """The name of the organ on the other side; of a structure that has none, its own."""
    for right, left in RIGHT_LEFT_PAIRS:
        if name in (right, left):
            return left if name == right else right
    return name
