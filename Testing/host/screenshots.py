"""Pictures of the module's panels and of the whole layout: ``python -m Testing.host.screenshots OUT``.

Each step clicks as a user does and then says which picture to save; panels add their steps to STEPS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Testing.host.session import slicer_application

PATIENCE_S = 600.0
FEWEST_CALIBRATED = 16
WIDEST_PIXELS = 1400
PANELS = ("patient", "dose", "dvh", "recalibrate", "decide", "course", "report")


def finish(host: Any, module: Any) -> None:
    """Wait until the work beside the window has landed."""
    host.wait_until(lambda: not module.widget.task.isRunning, PATIENCE_S, "for the task")
    host.process_events()


def only(module: Any, *names: str) -> None:
    """Open these panels and fold the others."""
    for name in PANELS:
        getattr(module.ui, f"{name}CollapsibleButton").collapsed = name not in names


def shrink(path: Path) -> None:
    """A smaller file: colours from a table of 256, at most 1400 pixels wide."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    if image.width > WIDEST_PIXELS:
        height = round(image.height * WIDEST_PIXELS / image.width)
        image = image.resize((WIDEST_PIXELS, height), Image.Resampling.LANCZOS)
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def patient(host: Any, module: Any, out: Path) -> None:
    """The sample patient, loaded."""
    module.ui.loadSampleButton.click()
    finish(host, module)
    only(module, "patient")
    host.grab(module.parent, out / "module_patient.png")


def dose(host: Any, module: Any, out: Path) -> None:
    """Its prediction: the Dose panel beside the whole layout."""
    module.ui.samplesSpinBox.value = FEWEST_CALIBRATED
    module.ui.predictButton.click()
    finish(host, module)
    only(module, "dose")
    host.grab_layout(module, out / "module_layout.png")


def dvh(host: Any, module: Any, out: Path) -> None:
    """Some curves and the goals."""
    only(module, "dvh")
    host.grab(module.parent, out / "module_dvh.png")


def recalibrate(host: Any, module: Any, out: Path) -> None:
    """Two measurements, absorbed; the change of the dose."""
    for structure, value in (("Larynx", 1.16), ("Parotid_R", 0.62)):
        module.logic.addMeasurement(structure, value)
    only(module, "recalibrate")
    host.process_events()
    module.ui.observeButton.click()
    finish(host, module)
    module.ui.showChangeButton.click()
    host.process_events()
    host.grab(module.parent, out / "module_recalibrate.png")


def decide(host: Any, module: Any, out: Path) -> None:
    """Actions ranked by what the panel starts with; what is recommended, or why nothing is."""
    only(module, "decide")
    module.ui.rankButton.click()
    finish(host, module)
    host.grab(module.parent, out / "module_decide.png")


def course(host: Any, module: Any, out: Path) -> None:
    """The simulated course the panel starts with: its change is noticed; its doses to play."""
    only(module, "course")
    module.ui.runCourseButton.click()
    finish(host, module)
    host.grab(module.parent, out / "module_course.png")


def report(host: Any, module: Any, out: Path) -> None:
    """What can be kept."""
    only(module, "report")
    module.ui.outputFolderLineEdit.setCurrentPath(str(out))
    module.ui.saveSceneButton.click()
    host.process_events()
    module.ui.outputFolderLineEdit.setCurrentPath("")
    host.grab(module.parent, out / "module_report.png")


STEPS: tuple[Callable[[Any, Any, Path], None], ...] = (patient, dose, dvh, recalibrate, decide, course, report)


def main(out: Path) -> int:
    """Run every step; the exit code is 1 where a message of an error was shown."""
    out.mkdir(parents=True, exist_ok=True)
    with slicer_application() as host:
        module = host.load_module()
        for step in STEPS:
            step(host, module, out)
            for message in host.dialogs.errors:
                print(f"{step.__name__}: {message.text}", file=sys.stderr)
        for path in out.glob("module_*.png"):
            shrink(path)
        return 1 if host.dialogs.errors or host.uncaught else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/screenshots")))
