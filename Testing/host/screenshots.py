"""Pictures of the module's panels and of the whole layout: ``python -m Testing.host.screenshots OUT``.

Each step clicks as a user does and then says which picture to save; panels add their steps to STEPS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Testing.host.session import slicer_application


def opened(host: Any, module: Any, out: Path) -> None:
    """The panel as it opens."""
    host.grab(module.parent, out / "panel_opened.png")


def predicted(host: Any, module: Any, out: Path) -> None:
    """The sample patient's prediction in the whole layout."""
    module.ui.samplesSpinBox.value = 16  # the fewest with a calibrated band
    module.ui.applyButton.click()
    host.grab_layout(module, out / "layout_predicted.png")


STEPS: tuple[Callable[[Any, Any, Path], None], ...] = (opened, predicted)


def main(out: Path) -> int:
    """Run every step; the exit code is 1 where a message of an error was shown."""
    out.mkdir(parents=True, exist_ok=True)
    with slicer_application() as host:
        module = host.load_module()
        for step in STEPS:
            step(host, module, out)
            for message in host.dialogs.errors:
                print(f"{step.__name__}: {message.text}", file=sys.stderr)
        return 1 if host.dialogs.errors or host.uncaught else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/screenshots")))
