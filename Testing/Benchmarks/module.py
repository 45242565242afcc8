"""The module's window in the test host: opening, switching overlays, results into the scene, memory over 50 cycles.

On the built-in sample patient; prints one JSON line, wall-clock seconds. Times are under the
stand-ins of ``Testing/host`` and without drawing, which desktop Slicer adds; opening is with the library imported
already (``Testing/test_module.py`` opens in a process of its own).
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

from RTDigitalTwinLib import background
from RTDigitalTwinLib.jobs import OUTCOME_FILE, Predict
from RTDigitalTwinLib.outcome import Outcome, save_outcome
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.scene.outcome_nodes import find_outcome, remove_outcome
from RTDigitalTwinLib.scene.scene_twin import overlays
from RTDigitalTwinLib.scene.twin_nodes import Told, TwinNodes, show_answer
from RTDigitalTwinLib.scene.twin_patient import show_loaded
from Testing.host.session import slicer_application

CYCLES, WARM_UP = 50, 5
SAMPLES = 16


def predicted(patient: Patient) -> Outcome:
    """An outcome of the sample patient: computed here, for how long it takes is another benchmark's."""
    from RTDigitalTwinLib.report.outcomes import outcome_of
    from RTDigitalTwinLib.report.tables import Findings
    from RTDigitalTwinLib.twin import Twin

    return outcome_of(Findings(Twin(patient, device="cpu").predict(SAMPLES)))


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    patient = Patient.sample()
    with slicer_application() as host:
        module = host.load_module()
        room = background.new_folder()
        save_outcome(predicted(patient), room / OUTCOME_FILE)
        nodes = show_loaded(host.scene, patient)
        module.ui.ctSelector.setCurrentNode(nodes.ct)
        module.ui.segmentationSelector.setCurrentNode(nodes.segmentation)
        told = Told(TwinNodes(nodes.ct, nodes.segmentation), Predict(SAMPLES))
        landing, memory = [], []
        for _ in range(CYCLES + WARM_UP):
            start = time.perf_counter()
            mean = show_answer(host.scene, told, room)
            landing.append(time.perf_counter() - start)
            remove_outcome(host.scene, mean)
            gc.collect()
            memory.append(resident_mb())
        count = host.scene.GetNumberOfNodes()
        module.widget.parameters.prediction = show_answer(host.scene, told, room)
        host.process_events()
        switches = switch_seconds(host, module)
        print(
            json.dumps(
                {
                    "open_s": round(module.seconds_to_open, 3),
                    "overlay_switch_median_s": round(statistics.median(switches), 4),
                    "overlay_switch_slowest_s": round(max(switches), 4),
                    "results_in_scene_median_s": round(statistics.median(landing), 3),
                    "results_in_scene_slowest_s": round(max(landing), 3),
                    "cycles": CYCLES,
                    "memory_after_warm_up_mb": round(memory[WARM_UP - 1]),
                    "memory_growth_mb": round(memory[-1] - memory[WARM_UP - 1], 1),
                    "nodes_left": count,
                }
            )
        )
        background.drop(room)


def switch_seconds(host: Any, module: Any) -> list[float]:
    """Of every overlay, several times."""
    known = overlays(find_outcome(host.scene, module.widget.parameters.prediction))
    seconds = []
    for index in [*range(len(known))] * 5:
        start = time.perf_counter()
        module.ui.overlayComboBox.setCurrentIndex(index)
        host.process_events()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
