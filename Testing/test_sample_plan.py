"""The fitted dose of a patient without a plan's."""

from __future__ import annotations

import numpy as np

from RTDigitalTwinLib.dosimetry.sample_plan import with_fitted_dose
from RTDigitalTwinLib.patient.plan import OPENKBP_GANTRY_ANGLES_DEG, Plan, Prescription
from Testing.builders import small_patient
from Testing.dicom_sets import dose_of


def test_the_fitted_dose_follows_the_prescription_and_stays_in_the_mask() -> None:
    bare = small_patient(with_dose=False)
    plan = Plan(Prescription((("PTV_7000", 70.0),), 35), OPENKBP_GANTRY_ANGLES_DEG)
    patient = with_fitted_dose(type(bare)(bare.pseudonym, bare.images, bare.structures, bare.dose_mask, (plan,)))
    gy = dose_of(patient)
    target, cord = patient.structures["PTV_7000"].mask, patient.structures["SpinalCord"].mask
    assert gy.min() >= 0 and not gy[~patient.dose_mask.mask].any()
    assert abs(gy[target].mean() - 70) < 3.5  # within a twentieth
    assert gy[cord].mean() < 0.6 * gy[target].mean()
    assert np.percentile(gy[target], 5) > 0.8 * 70
    assert patient.plan.prescription is plan.prescription
