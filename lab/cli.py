"""`callfleet lab`: throwaway hosts for tests, demos and manual work."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from callfleet.errors import CallfleetError
from lab import hosts, lifecycle, requirements
from lab.errors import LabError
from lab.legacy import CONTRADICTIONS
from lab.model import DEFAULT_BRAND, DEFAULT_NAME, DEFAULT_SUITE, MAX_HOSTS, SUITES, Lab, LabHost

INTERRUPTED = 130

name_option = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, help="Which lab; several can run at once."
)


class LabGroup(click.Group):
    """Prints an operator's error as its text, and ends cleanly on Ctrl-C: 1 and 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CallfleetError as error:
            click.echo(f"callfleet lab: {error}", err=True)
            ctx.exit(1)
        except (KeyboardInterrupt, click.Abort):
            click.echo(
                "\ninterrupted. `callfleet lab up` completes the lab, `callfleet lab down` removes it.", err=True
            )
            ctx.exit(INTERRUPTED)


@click.group(cls=LabGroup)
def lab() -> None:
    """Throwaway hosts: real systemd, sshd and apt, on addresses of their own."""


@lab.command()
@name_option
@click.option("--hosts", "count", type=click.IntRange(1, MAX_HOSTS), default=3, show_default=True, help="With the hub.")
@click.option(
    "--suite", type=click.Choice(SUITES), default=DEFAULT_SUITE, show_default=True, help="Of the fleet hosts."
)
@click.option("--brand", metavar="BRAND", help=f"Of a new lab, from group_data.  [default: {DEFAULT_BRAND}]")
@click.option(
    "--legacy", is_flag=True, help="Hosts as production was before callfleet: units, nginx, a hand-made ingress."
)
@click.option(
    "--contradict",
    "contradictions",
    multiple=True,
    type=click.Choice(list(CONTRADICTIONS)),
    metavar="NAME",
    help="Let the legacy files disagree; can be repeated. `lab contradictions` lists them.",
)
def up(name: str, count: int, suite: str, brand: str | None, legacy: bool, contradictions: tuple[str, ...]) -> None:
    """Boot a lab, or add what is missing to one that runs.

    \b
    Exit codes: 0 done, 1 failed, 64 usage, 130 ended by Ctrl-C.

    \b
    Examples:
      callfleet lab up                                 the hub and two fleet hosts, bare
      callfleet lab up --name old --legacy             the same as production is before callfleet: ingress, API and
                                                       Dialler on the hub, nginx and workers on the others
      callfleet lab up --name one --legacy --hosts 1   all of it on one host, without an ingress
      callfleet lab up --name old --legacy --contradict maxconn --contradict units
                                                       what an import must notice; without them it is put right again
    """
    if contradictions and not legacy:
        raise LabError("--contradict is about the files of legacy hosts", "callfleet lab up --legacy --contradict ...")
    begun = time.monotonic()
    made = lifecycle.up(name, count, suite, progress(), brand=brand, legacy=legacy, contradictions=contradictions)
    console().print(f"lab {name} is up: {len(made.hosts)} hosts in {time.monotonic() - begun:.1f} s")
    print_hosts(made)
    console().print(f"site file: {made.inventory}", soft_wrap=True)


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def contradictions(as_json: bool) -> None:
    """What `up --legacy --contradict NAME` can make legacy files disagree about.

    \b
    Exit codes: 0 shown, 64 usage.

    \b
    Examples:
      callfleet lab contradictions
      callfleet lab contradictions --json
    """
    if as_json:
        found = {name: {"says": one.says, "hosts": one.hosts} for name, one in CONTRADICTIONS.items()}
        click.echo(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "hosts", "what is wrong"):
        table.add_column(column)
    for name, one in CONTRADICTIONS.items():
        table.add_row(name, str(one.hosts), one.says)
    console().print(table)


@lab.command()
@name_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status(name: str, as_json: bool) -> None:
    """Show the lab's hosts.

    \b
    Exit codes: 0 done, 1 failed, 64 usage.

    \b
    Examples:
      callfleet lab status
      callfleet lab status --name mine --json
    """
    requirements.check_machine()
    found = Lab.load(name)
    if as_json:
        click.echo(json.dumps(describe(found), indent=2))
    else:
        print_hosts(found)


@lab.command(context_settings={"ignore_unknown_options": True})
@name_option
@click.option("--user", default="root", show_default=True, help="root, or ops, which has sudo.")
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, user: str, host: str, command: tuple[str, ...]) -> None:
    """Open a shell on HOST, or run COMMAND there; ends with its exit code.

    \b
    Exit codes: the command's own, 255 it was not reached, 64 usage.

    \b
    Examples:
      callfleet lab ssh eu1-a
      callfleet lab ssh hub -- systemctl status haproxy
    """
    words = hosts.ssh_command(Lab.load(name).host(host), user)
    os.execvp(words[0], [*words, *(["--", *command] if command else [])])  # noqa: S606


@lab.command()
@name_option
@click.argument("host")
def reboot(name: str, host: str) -> None:
    """Reboot HOST and wait until it is back.

    \b
    Exit codes: 0 done, 1 failed, 64 usage.

    \b
    Examples:
      callfleet lab reboot eu1-a
    """
    hosts.reboot(Lab.load(name).host(host))


@lab.command()
@name_option
@click.argument("host")
def kill(name: str, host: str) -> None:
    """Take HOST's power away: no process gets a signal that it could handle. `start` brings it back.

    \b
    Exit codes: 0 done, 1 failed, 64 usage.

    \b
    Examples:
      callfleet lab kill eu1-a
    """
    requirements.check_machine()
    hosts.power_off(Lab.load(name).host(host))


@lab.command()
@name_option
@click.argument("host")
def start(name: str, host: str) -> None:
    """Boot HOST if it is off, and wait until it answers.

    \b
    Exit codes: 0 done, 1 failed, 64 usage.

    \b
    Examples:
      callfleet lab start eu1-a
    """
    requirements.check_machine()
    lifecycle.power_on(Lab.load(name).host(host))


@lab.command()
@name_option
@click.option("--all", "every", is_flag=True, help="Every lab on this machine.")
@click.option("--cache", is_flag=True, help="The cached root filesystems, packages and images too.")
def down(name: str, every: bool, cache: bool) -> None:
    """Remove a lab and everything that it left on this machine.

    \b
    Exit codes: 0 done, 1 failed, 64 usage.

    \b
    Examples:
      callfleet lab down
      callfleet lab down --name mine
    """
    begun = time.monotonic()
    requirements.check_machine()
    names = lifecycle.known() if every else [name]
    if not every and name not in lifecycle.known():
        console().print(f"there is no lab {name}")
    for each in names:
        lifecycle.down(each, progress())
    if cache:
        lifecycle.drop_cache()
    console().print(f"down in {time.monotonic() - begun:.1f} s")


def describe(found: Lab) -> dict[str, Any]:
    """The lab as plain data."""
    return {
        "name": found.name,
        "site": found.site,
        "suite": found.suite,
        "legacy": found.legacy,
        "brand": found.brand,
        "bridge": found.bridge,
        "subnet": found.subnet,
        "subnet6": found.subnet6,
        "registry": found.registry,
        "inventory": str(found.inventory),
        "ssh_key": str(found.ssh_key),
        "known_hosts": str(found.known_hosts),
        "hosts": [describe_host(host) for host in found.hosts],
    }


def describe_host(host: LabHost) -> dict[str, Any]:
    """One host as plain data; `ssh` says whether sshd greets."""
    return {
        "name": host.name,
        "address": host.address,
        "address6": host.address6,
        "suite": host.suite,
        "state": hosts.state(host),
        "ssh": hosts.answers(host),
    }


def print_hosts(found: Lab) -> None:
    """A table of the hosts."""
    table = Table(box=None, pad_edge=False)
    for column in ("host", "state", "ssh", "address", "address6", "suite"):
        table.add_column(column)
    for host in map(describe_host, found.hosts):
        ssh_word = "answers" if host["ssh"] else "silent"
        table.add_row(host["name"], host["state"], ssh_word, host["address"], host["address6"], host["suite"])
    console().print(table)


def progress() -> Callable[[str], None]:
    """Says each step with the seconds since the first."""
    begun = time.monotonic()
    out = Console(stderr=True, highlight=False)
    return lambda step: out.print(f"[dim]{time.monotonic() - begun:5.1f}s[/] {step}", soft_wrap=True)


def console() -> Console:
    """Standard output; colours only on a terminal."""
    return Console(file=sys.stdout, highlight=False)
