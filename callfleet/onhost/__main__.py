"""Run as `python3 -m onhost` or `python3 -m callfleet.onhost`."""

import sys

from .cli import main

sys.exit(main())
