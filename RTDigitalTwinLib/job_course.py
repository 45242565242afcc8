"""What the job of a course does: the built-in simulator delivers fractions with a change, and the twin watches them."""

from __future__ import annotations

from pathlib import Path

from RTDigitalTwinLib.calibration.belief import prior_of
from RTDigitalTwinLib.course import Course, prepared
from RTDigitalTwinLib.course_outcome import save_course
from RTDigitalTwinLib.course_projection import require_ntcp
from RTDigitalTwinLib.course_record import CourseSettings
from RTDigitalTwinLib.decision.policies import policy_named
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.job_twins import TwinOf
from RTDigitalTwinLib.jobs import COURSE_FILE, LiveCourse
from RTDigitalTwinLib.progress import Progress, part
from RTDigitalTwinLib.report.course_outcomes import course_outcome_of


def live(job: LiveCourse, folder: Path, twin_of: TwinOf, notes: tuple[str, ...], progress: Progress) -> None:
    """Do the job, from the network's own belief; the answer lies in the folder. Raises as ``Course`` does."""
    left, posterior, superior = job.shift_mm
    settings = CourseSettings(
        fractions=job.fractions,
        shift_at=job.shift_at or None,
        change=Change((left, posterior, superior), job.shrinkage_ratio),
        policy=policy_named(job.policy, 0.0, job.every),
        seed=job.seed,
        samples=job.samples,
    )
    prior = prior_of(twin_of(progress).dose_belief)
    require_ntcp(prior.patient, job.ntcp or None)
    drawn = prior.sample(settings.samples, 0, part(progress, 0.05, 0.35))
    progress(0.35, "how fractions are read")
    given, known = prepared(drawn, settings)
    course = Course(prior, given, settings, known)
    records = []
    for record in course.fractions():
        progress(0.4 + 0.55 * record.fraction / settings.fractions, f"simulated fraction {record.fraction}")
        records.append(record)
    save_course(course_outcome_of(course.result(records), job.ntcp or None), folder / COURSE_FILE)
    progress(1.0, "done")
