"""Run every benchmark of this folder, each in a process of its own so that none warms up or burdens the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"Testing.Benchmarks.{name}"]).returncode:
            failed.append(name)
    print(f"{len(names)} benchmarks run" + (f", failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main())
