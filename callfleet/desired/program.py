"""The host-side slot program and the units that use it, laid down verbatim on every host."""

from __future__ import annotations

from pathlib import Path

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import Concern, Directory, File, unit_check
from callfleet.templates import verbatim

SOURCE = Path(__file__).resolve().parent.parent / "onhost"
TARGET = "/usr/local/lib/callfleet/onhost"
SLOTCTL = "/usr/local/sbin/slotctl"


def concern(context: Context, actual: Actual | None) -> Concern:
    """Every host has it: an ingress host needs its proxy part."""
    return Concern(
        "program",
        (
            Directory("/usr/local/lib/callfleet"),
            Directory(TARGET),
            *(File(f"{TARGET}/{path.name}", path.read_bytes()) for path in sorted(SOURCE.glob("*.py"))),
            File(SLOTCTL, verbatim("program/slotctl"), mode="0755"),
            File("/etc/tmpfiles.d/callfleet.conf", verbatim("program/tmpfiles.conf")),
            Directory("/run/callfleet"),
            # After the program that they name: a unit whose command is not there is refused.
            _unit("stack@.service"),
            _unit("callfleet-keeper@.service"),
        ),
    )


def _unit(name: str) -> File:
    path = f"/etc/systemd/system/{name}"
    return File(path, verbatim(f"units/{name}"), check=unit_check(path))
