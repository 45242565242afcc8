"""The second prediction of a session against the first: another seed of the same patient."""

from __future__ import annotations

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.twin import Twin
from Testing.Benchmarks.framework import Benchmark, Effort, Spent, Values, spent_by
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


BENCHMARKS = (second(4), second(32))
