"""Firewall: a table of our own in which only declared ports answer. Other tables are never touched."""

from __future__ import annotations

from dataclasses import dataclass

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import Command, Concern, File, Unit, sha256, unit_check
from callfleet.templates import render, verbatim

RULES = "/etc/callfleet/firewall.nft"
UNIT = "callfleet-firewall.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"


@dataclass(frozen=True)
class Rule:
    """One accepted port; `match` limits who may use it, in nft's words, and ends in a space when not empty."""

    port: int
    comment: str
    match: str = ""
    protocol: str = "tcp"


def concern(context: Context, actual: Actual | None) -> Concern:
    """Every host has one. Applied by its own operation, which takes it back unless a fresh connection succeeds."""
    # The port that SSH uses right now stays open, whatever the site file says.
    ssh_ports = {context.host.ports.ssh}
    if actual is not None and isinstance(actual.ssh_port, int):
        ssh_ports.add(actual.ssh_port)
    content = render("firewall/callfleet.nft.j2", host=context.host.name, rules=rules(context, ssh_ports))
    return Concern(
        "firewall",
        (
            File(RULES, content, mode="0600", check="nft -c -f {path}"),
            File(UNIT_FILE, verbatim(f"units/{UNIT}"), check=unit_check(UNIT_FILE)),
            Unit(UNIT, active=False),
            Command(
                subject="nftables table inet callfleet",
                fact="firewall",
                wanted=sha256(content),
                action="load",
                script="",  # the operation does it, with its own way back
                reason="what the kernel holds is not what the file says",
            ),
        ),
    )


def rules(context: Context, ssh_ports: set[int]) -> list[Rule]:
    """Every port of this host that may be reached from outside."""
    site, host = context.site, context.host
    found: list[Rule] = []
    for port in sorted(ssh_ports):
        found += _limited(port, "ssh", site.firewall.ssh_from)
    if host.ports.front is not None:
        found.append(Rule(host.ports.front, "front"))
    if host.ports.http is not None:
        found.append(Rule(host.ports.http, "challenges of ACME"))
    if host.ports.fleet is not None:
        found += _limited(host.ports.fleet, "fleet", site.firewall.callers)
    if host.ports.mtls is not None:
        addresses = tuple(address for one in site.ingress_hosts for address in one.addresses)
        found += _limited(host.ports.mtls, "mutual TLS from the ingress", addresses)
    for port in filter(None, (host.ports.front_metrics, host.ports.fleet_metrics)):
        found += _limited(port, "metrics", site.metrics.sources)
    for extra in host.open_ports:
        found += _limited(extra.port, extra.comment, extra.sources, extra.protocol)
    return found


def _limited(port: int, comment: str, networks: tuple[str, ...], protocol: str = "tcp") -> list[Rule]:
    """The rule for each address family that `networks` allows; a family that is open to all has no address match."""
    four = [n for n in networks if ":" not in n]
    six = [n for n in networks if ":" in n]
    if "0.0.0.0/0" in four and "::/0" in six:
        return [Rule(port, comment, protocol=protocol)]
    found = []
    if four:
        match = "meta nfproto ipv4 " if "0.0.0.0/0" in four else f"ip saddr {{ {', '.join(four)} }} "
        found.append(Rule(port, comment, match, protocol))
    if six:
        match = "meta nfproto ipv6 " if "::/0" in six else f"ip6 saddr {{ {', '.join(six)} }} "
        found.append(Rule(port, comment, match, protocol))
    return found
