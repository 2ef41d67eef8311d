"""Logs elsewhere: the host's and its containers', by the distribution's own rsyslog, where the site says so."""

from __future__ import annotations

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import Command, Concern, File, Package, Unit
from callfleet.templates import render

CONFIG = "/etc/rsyslog.d/60-callfleet.conf"
# Read behind the one setting of the distribution's own file that ours leans on.
CHECK = (
    "d=$(mktemp) && trap 'rm -f \"$d\"' EXIT && "
    '{ echo "global(workDirectory=\\"/var/spool/rsyslog\\")"; cat -- {path}; } > "$d" && rsyslogd -N1 -f "$d"'
)


def concern(context: Context, actual: Actual | None) -> Concern:
    """Every host has one; without a target it only sees to it that nothing is shipped any more."""
    target = context.site.logs.ship_to
    if target is None:
        stop = Command(
            subject="log shipping",
            fact=f"file:{CONFIG}",
            wanted="",
            action="remove",
            script=f"rm -f {CONFIG} && systemctl try-restart rsyslog.service",
            reason="no longer declared",
        )
        return Concern("logs", (stop,))
    content = render(
        "logs/rsyslog.conf.j2",
        host=context.host.name,
        target=target.host,
        port=target.port,
        protocol=target.protocol,
    )
    return Concern(
        "logs",
        (
            Package("rsyslog"),
            File(CONFIG, content, check=CHECK),
            Unit("rsyslog.service", config=(CONFIG,), on_change="restart"),
        ),
    )
