"""The second prediction of a session against the first: another seed of the same patient, in Python and in Slicer."""

from __future__ import annotations

from RTDigitalTwinLib import background
from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.twin import Twin
from Testing.Benchmarks.framework import Benchmark, Effort, Skipped, Spent, Values, spent_by
from Testing.Benchmarks.patients import chosen_patient


def second(samples: int) -> Benchmark:
    def setup(effort: Effort) -> Values:
        keep_freed_memory()
        patient = chosen_patient()
        firsts: list[Spent] = []
        seconds: list[Spent] = []
        for _ in range(effort.of(3, 1)):
            twins: list[Twin] = []

            def first(twins: list[Twin] = twins) -> None:
                twins.append(Twin(patient, device="cpu"))
                twins[0].predict(samples, 0)

            firsts.append(spent_by(first))
            seconds.append(spent_by(lambda t=twins: t[0].predict(samples, 1)))  # type: ignore[misc]
        return Values.of_seconds(seconds, firsts, {"patient": patient.pseudonym, "samples": samples})

    return Benchmark(
        f"second prediction, {samples} samples",
        "the second of a session",
        "the first: weights, features and encoding too",
        setup,
    )


def second_in_slicer(samples: int) -> Benchmark:
    """From asking to the dose in the scene, as the module and its verbs ask: the first begins a process."""

    def setup(effort: Effort) -> Values:
        try:
            from RTDigitalTwinLib.scene.scene_twin import SceneTwin
            from RTDigitalTwinLib.scene.session import headless_session
            from RTDigitalTwinLib.scene.twin_patient import show_loaded
        except ImportError as missing:
            raise Skipped(f"{missing.name} is not here") from missing
        firsts: list[Spent] = []
        seconds: list[Spent] = []
        patient = chosen_patient()
        with headless_session() as session:
            nodes = show_loaded(session.scene, patient)
            twin = SceneTwin(session.scene)
            twin.use(nodes.ct, nodes.segmentation, nodes.reference_dose)
            for _ in range(effort.of(3, 1)):
                background.end_process()
                firsts.append(spent_by(lambda: twin.predict(samples, 0, "cpu")))
                seconds.append(spent_by(lambda: twin.predict(samples, 1, "cpu")))
        background.end_process()
        return Values.of_seconds(seconds, firsts, {"patient": patient.pseudonym, "samples": samples})

    return Benchmark(
        f"second prediction in Slicer, {samples} samples",
        "the second of a session, until it is in the scene",
        "the first: a process, its imports, weights, features and encoding too",
        setup,
    )


BENCHMARKS = (second(4), second(32), second_in_slicer(4), second_in_slicer(32))
