"""Host baseline: the packages everything else leans on, log and kernel limits, no surprise restarts."""

from __future__ import annotations

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import Concern, Directory, File, Package, Requirement, Unit
from callfleet.site import Host, Site
from callfleet.templates import verbatim

PACKAGES = ("ca-certificates", "curl", "iproute2", "nftables", "procps", "python3")
SYSCTL = "/etc/sysctl.d/60-callfleet.conf"
JOURNALD = "/etc/systemd/journald.conf.d/callfleet.conf"


def concern(context: Context, actual: Actual | None) -> Concern:
    """Every host has one."""
    return Concern(
        "baseline",
        (
            _system(context),
            *(Package(name) for name in PACKAGES),
            Directory("/etc/callfleet"),
            Directory("/etc/systemd/journald.conf.d"),
            Directory("/etc/needrestart/conf.d"),
            File(JOURNALD, verbatim("baseline/journald.conf")),
            # Neither unattended upgrades nor needrestart may stop what carries calls.
            File("/etc/apt/apt.conf.d/60callfleet", verbatim("baseline/apt.conf")),
            File("/etc/needrestart/conf.d/callfleet.conf", verbatim("baseline/needrestart.conf")),
            File(SYSCTL, verbatim("baseline/sysctl.conf")),
            Unit("systemd-sysctl.service", enabled=False, active=False, config=(SYSCTL,), on_change="restart"),
            Unit("systemd-journald.service", enabled=False, config=(JOURNALD,), on_change="restart"),
        ),
    )


def _system(context: Context) -> Requirement:
    """Only systems that are known to bring what callfleet builds on."""
    native_proxy = bool(context.host.roles & {"ingress", "app"})
    hint = "" if native_proxy else "Older ones have no Compose 2: set docker.source to docker."
    known = systems(context.site, context.host)
    return Requirement("system", "os", known, hint if len(known) == 1 else "")


def systems(site: Site, host: Host) -> tuple[str, ...]:
    """Which systems a host may run. The proxies need HAProxy 3.0 and the stacks Compose 2: Debian 13 brings both.

    A host that only carries calls may get Docker from Docker's own repository, and its proxy comes in a container; that
    is written from the distributions' documentation, and untested.
    """
    if site.docker.source == "docker" and not host.roles & {"ingress", "app"}:
        return ("debian 13", "debian 12", "ubuntu 24.04", "ubuntu 22.04")
    return ("debian 13",)
