"""`python -m lab` is `callfleet lab`."""

from lab.cli import lab

lab(prog_name="lab")
