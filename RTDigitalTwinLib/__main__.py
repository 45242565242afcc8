"""``python -m RTDigitalTwinLib``."""

import sys

from RTDigitalTwinLib.cli import main

sys.exit(main())
