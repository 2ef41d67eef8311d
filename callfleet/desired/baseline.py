"""Host baseline: the packages everything else leans on, log and kernel limits, no surprise restarts."""

from __future__ import annotations

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import Concern, Directory, File, Package, Unit
from callfleet.templates import verbatim

PACKAGES = ("ca-certificates", "curl", "iproute2", "nftables", "procps", "python3")
JOURNALD = "/etc/systemd/journald.conf.d/callfleet.conf"


def concern(context: Context, actual: Actual | None) -> Concern:
    """Every host has one."""
    return Concern(
        "baseline",
        (
            *(Package(name) for name in PACKAGES),
            Directory("/etc/callfleet"),
            Directory("/etc/systemd/journald.conf.d"),
            Directory("/etc/needrestart/conf.d"),
            File(JOURNALD, verbatim("baseline/journald.conf")),
            # Neither unattended upgrades nor needrestart may stop what carries calls.
            File("/etc/apt/apt.conf.d/60callfleet", verbatim("baseline/apt.conf")),
            File("/etc/needrestart/conf.d/callfleet.conf", verbatim("baseline/needrestart.conf")),
            File("/etc/sysctl.d/60-callfleet.conf", verbatim("baseline/sysctl.conf")),
            Unit("systemd-journald.service", enabled=False, config=(JOURNALD,), on_change="restart"),
        ),
    )
