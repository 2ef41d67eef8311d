"""`make demo`: bare hosts become a call fleet, and a second converge runs while calls are on every slot."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from callfleet.site import Host, Site, load_site
from lab import hosts, lifecycle, paths
from lab.calls import CallHolder, Summary
from lab.cli import LabGroup, progress
from lab.errors import LabError
from lab.model import Lab

HOSTS = 3
CONVERGE_SECONDS = 900
STEP = re.compile(r"--> Starting operation: (.*)")
TOTAL = re.compile(r"Grand total\s+(\S+)\s+(\S+)\s+(\S+)")


@dataclass(frozen=True)
class Converge:
    """One run of pyinfra: how many operations changed a host, and how long it took in seconds."""

    changed: int
    seconds: float


@click.group(cls=LabGroup, invoke_without_command=True)
@click.option("--name", default="demo", show_default=True, help="The lab to use.")
@click.option(
    "--seconds", default=10.0, show_default=True, help="How long the calls are held after the second converge."
)
def main(name: str, seconds: float) -> None:
    """Bring up three bare hosts, converge them, hold a call on every slot, converge again."""
    began = time.monotonic()
    console = Console(stderr=False, highlight=False)
    console.rule("1  Bare hosts")
    lab = lifecycle.up(name, HOSTS, "trixie", progress())
    site = load_site(lab.inventory)
    slots = sum(host.workers for host in site.hosts)
    for host in lab.hosts:
        console.print(f"  {host.name:<6} {host.address:<12} Debian 13, nothing but sshd")

    console.rule("2  pyinfra converges them")
    first = converge(lab, console)
    console.print(f"  done in {first.seconds:.0f} s, {first.changed} operations changed something")

    console.rule(f"3  A call on each of {slots} slots, through the ingress")
    with calls(lab) as held, calls(lab) as extra:
        held.start(slots)
        opened = held.wait_open()
        console.print(f"  {opened} of {slots} calls opened, 50 numbered frames a second each")
        extra.start(1)
        extra.wait_open()
        refused = extra.report().calls[0]
        console.print(
            f"  call {slots + 1}: refused with {refused.refused} after {refused.answer_seconds * 1000:.0f} ms"
        )

        console.rule("4  The same converge again, while the calls go on")
        second = converge(lab, console)
        console.print(f"  done in {second.seconds:.0f} s, {second.changed} operations changed something")
        time.sleep(seconds)
        rows = [row(lab, site, host) for host in site.hosts]
        held.stop()
        report = held.report()

    console.rule("What happened")
    console.print(table(rows, report))
    good = report.clean and opened == slots and second.changed == 0 and refused.refused in (429, 503)
    console.print(
        f"{opened} calls, {len(report.gaps)} gaps, longest round trip {report.worst_round_trip * 1000:.0f} ms, "
        f"second converge {second.changed} changes. {time.monotonic() - began:.0f} s in all.",
        style="green" if good else "red",
    )
    inventory = lab.inventory.with_suffix(".py").relative_to(paths.INVENTORIES.parent)
    certificate, name_ = lab.tls("ca.pem"), f"calls.{lab.domain}"
    console.print("\nThe hosts are still up. Try:")
    for line in (
        f".venv/bin/pyinfra {inventory} deploy.py --dry --diff",
        f".venv/bin/callfleet lab ssh --name {lab.name} eu1-a slotctl status {site.brand.stack}",
        f".venv/bin/python -m lab.calls hold wss://{name_}/ws/demo --calls 4 --seconds 30 --ca {certificate} "
        f"--resolve {name_}:443:{lab.hub.address}",
        f".venv/bin/callfleet lab down --name {lab.name}",
    ):
        console.print(f"  {line}", soft_wrap=True)
    if not good:
        raise LabError("the demo did not end as it should")


def converge(lab: Lab, console: Console) -> Converge:
    """Run pyinfra as an operator would, a line for each operation that does something."""
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("pyinfra")), str(lab.inventory.with_suffix(".py")), "deploy.py", "-y"]
    console.print("  $ pyinfra " + " ".join(command[1:]).replace(f"{paths.INVENTORIES.parent}/", ""), style="bold")
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=paths.INVENTORIES.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYINFRA_PROGRESS": "off"},
    ) as run:
        assert run.stdout is not None  # noqa: S101 - it is a pipe
        for line in run.stdout:
            lines.append(line.rstrip())
            if found := STEP.search(line):
                console.print(f"  {time.monotonic() - began:5.1f} s  {found[1].strip()}")
        code = run.wait(CONVERGE_SECONDS)
    text = "\n".join(lines)
    log = lab.directory / "converge.log"
    log.write_text(text + "\n")
    total = TOTAL.search(text)
    if code or total is None or total[3] != "-":
        said = [
            line for line in lines if "] " in line and not re.search(r"\]\s+(create|pull|enable|start|update) ", line)
        ]
        raise LabError("the converge failed:\n" + "\n".join(said[-15:]), f"less {log}")
    return Converge(0 if total[2] == "-" else int(total[2]), time.monotonic() - began)


def calls(lab: Lab) -> CallHolder:
    """Calls at the carrier-facing name."""
    name = f"calls.{lab.domain}"
    trust = ssl.create_default_context(cafile=str(lab.tls("ca.pem")))
    return CallHolder(f"wss://{name}/ws/demo", trust, resolve={(name, 443): (lab.hub.address, 443)})


@dataclass(frozen=True)
class Row:
    """What one host said while the calls were on; `sessions` are those that its workers took."""

    host: str
    slots: str
    calls: str
    sessions: str
    docker: str
    haproxy: str


def row(lab: Lab, site: Site, host: Host) -> Row:
    """Ask one host."""
    docker = said(lab, host.name, "docker version -f '{{.Server.Version}}' 2>/dev/null")
    if "fleet" not in host.roles:
        return Row(host.name, "-", "-", "", docker, short(said(lab, host.name, "haproxy -v 2>/dev/null | head -1")))
    stack = site.brand.stack
    on = said(lab, host.name, f'slotctl status {stack} --json | grep -o \'"state": "on a call"\' | wc -l')
    version = said(lab, host.name, "docker exec $(docker ps -q -f label=callfleet.service=proxy | head -1) haproxy -v")
    sessions = said(lab, host.name, f'grep \'"event": "start"\' /var/lib/{stack}/outbox/events.jsonl')
    return Row(host.name, str(host.workers), on, sessions, docker, short(version))


def table(rows: list[Row], report: Summary) -> Table:
    """Slots, calls, gaps and versions, host by host."""
    found = Table(box=None, pad_edge=False)
    for heading in ("host", "slots", "calls", "gaps", "docker", "haproxy"):
        found.add_column(heading)
    for one in rows:
        own = [call for call in report.calls if call.session in one.sessions]
        gaps = "-" if one.slots == "-" else str(sum(len(call.gaps) for call in own))
        found.add_row(one.host, one.slots, one.calls, gaps, one.docker, one.haproxy)
    return found


def said(lab: Lab, host: str, command: str) -> str:
    """One line from a host."""
    return hosts.run(lab.host(host), command, check=False).stdout.strip()


def short(version: str) -> str:
    """`3.0.11-1+deb13u5` out of HAProxy's first line."""
    words = version.split()
    return words[2] if len(words) > 2 else version


if __name__ == "__main__":
    main()
