"""A bridge and two subnets a lab. IPv4 is masqueraded towards the outside for apt; IPv6 stays between the hosts.

Every rule carries the lab's label as a comment and every interface as its alias: that is how `down` finds them.
"""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path

from lab import paths
from lab.errors import LabError
from lab.model import Lab, label
from lab.tool import succeeds, tool

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
TABLES = ("nat", "mangle", "filter")


def ensure(lab: Lab) -> None:
    """Make bridge, addresses and rules as they must be; what is there already stays as it is."""
    bridge = lab.bridge
    _refuse_taken_subnet(lab)
    if not succeeds("ip", "link", "show", bridge):
        tool("ip", "link", "add", bridge, "type", "bridge")
    tool("ip", "link", "set", bridge, "alias", label(lab.name))
    tool("ip", "address", "replace", f"{lab.gateway}/24", "dev", bridge)
    if has_ipv6():
        tool("ip", "-6", "address", "replace", f"{lab.gateway6}/64", "dev", bridge, "nodad")
    tool("ip", "link", "set", bridge, "up")
    _forward()
    for table, rule in _rules(lab):
        if not succeeds("iptables", "-w", "-t", table, "-C", *rule):
            tool("iptables", "-w", "-t", table, "-A", *rule)


def remove(name: str) -> None:
    """Remove the bridges and rules that carry the lab's label."""
    for table in TABLES:
        for line in tool("iptables", "-w", "-t", table, "-S").splitlines():
            rule = shlex.split(line)
            if rule[0] == "-A" and label(name) in rule:
                tool("iptables", "-w", "-t", table, "-D", *rule[1:])
    for link in json.loads(tool("ip", "-json", "link", "show") or "[]"):
        if link.get("ifalias") == label(name):
            succeeds("ip", "link", "delete", link["ifname"])


def labelled() -> set[str]:
    """Names of labs that have a bridge."""
    links = json.loads(tool("ip", "-json", "link", "show") or "[]")
    prefix = label("")
    aliases = (str(link.get("ifalias", "")) for link in links)
    return {alias.removeprefix(prefix) for alias in aliases if alias.startswith(prefix)}


def restore_forwarding() -> None:
    """Turn IPv4 forwarding off again if a lab turned it on; call it when no lab is left."""
    mark = paths.state() / "forwarding-was-off"
    if mark.exists():
        FORWARD.write_text("0\n")
        mark.unlink()


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 and it is not disabled."""
    with suppress(FileNotFoundError):
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "0"
    return False


def _forward() -> None:
    if FORWARD.read_text().strip() == "0":
        (paths.state() / "forwarding-was-off").touch()
        FORWARD.write_text("1\n")


def _refuse_taken_subnet(lab: Lab) -> None:
    """Something else on this machine may use the subnet; a lab over it would take its traffic."""
    for route in json.loads(tool("ip", "-json", "route", "show", "exact", lab.subnet) or "[]"):
        if route.get("dev") != lab.bridge:
            raise LabError(f"{lab.subnet} is already routed to {route.get('dev')}", "use another --name")


def _rules(lab: Lab) -> list[tuple[str, list[str]]]:
    mark = ["-m", "comment", "--comment", label(lab.name)]
    outside = ["POSTROUTING", "-s", lab.subnet, "!", "-d", lab.subnet]
    # The way out may have a smaller MTU than the bridge; without this, large answers would be lost.
    clamp = ["FORWARD", "-s", lab.subnet, "-p", "tcp", "--tcp-flags", "SYN,RST", "SYN"]
    answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    return [
        ("nat", [*outside, *mark, "-j", "MASQUERADE"]),
        ("mangle", [*clamp, *mark, "-j", "TCPMSS", "--clamp-mss-to-pmtu"]),
        ("filter", ["FORWARD", "-i", lab.bridge, *mark, "-j", "ACCEPT"]),
        ("filter", ["FORWARD", "-o", lab.bridge, *answers, *mark, "-j", "ACCEPT"]),
    ]
