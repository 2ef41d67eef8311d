"""`callfleet status` and `explain`: what the site is right now."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from callfleet import health, report
from callfleet.commands.common import FAILED, SITE, echo_json, json_option, limit_option, open_site, site_option, table
from callfleet.errors import CallfleetError
from callfleet.pyinfra_session import Session

WATCH_SECONDS = 2.0
STATES = ("idle", "on a call", "draining", "drained", "dead", "unpublished", "unknown")


@click.command()
@SITE
@limit_option
@json_option
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
def status(site: str, limit: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """Show SITE's hosts, slots and calls, releases and drift. Changes nothing.

    \b
    Exit codes: 0 every host was read, 1 not so, 64 usage.

    \b
    Examples:
      callfleet status prod
      callfleet status prod --watch
      callfleet status prod --json | jq '.slots'
    """
    loaded = open_site(site)
    with Session(loaded, limit) as session:
        found = look(session)
        if watch and not as_json:
            with Live(draw(found), console=Console(highlight=False), auto_refresh=False) as live:
                while True:
                    time.sleep(WATCH_SECONDS)
                    session.forget()
                    found = look(session)
                    live.update(draw(found), refresh=True)
    if as_json:
        echo_json(found)
    else:
        console = Console(highlight=False)
        console.print(draw(found))
        for line in remarks(found):
            console.print(line, style="yellow", soft_wrap=True)
        console.print(summary(found))
    sys.exit(0 if all(host["reached"] and host["changes"] is not None for host in found["hosts"]) else FAILED)


@click.command()
@click.argument("host")
@click.argument("slot", type=int, required=False)
@site_option
@json_option
def explain(host: str, slot: int | None, site: str, as_json: bool) -> None:
    """Say why HOST, or one SLOT of it, is not taking calls.

    \b
    Examples:
      callfleet explain eu1-a
      callfleet explain eu1-a 3 --site staging
    """
    loaded = open_site(site)
    if host not in {one.name for one in loaded.fleet_hosts}:
        known = ", ".join(one.name for one in loaded.fleet_hosts)
        raise CallfleetError(f"{loaded.name} has no fleet host {host}; it has: {known}")
    with Session(loaded) as session:
        found = look(session)
    mine: dict[str, Any] = next(one for one in found["hosts"] if one["name"] == host)
    if slot is not None and slot not in [one["slot"] for one in mine["slots"]]:
        raise CallfleetError(f"{host} has no slot {slot}; it has {len(mine['slots'])}")
    lines = [line for line in found["notes"] if f"{host} " in line] + mine["notes"] + mine["blocked"]
    for one in mine["slots"]:
        if slot in (None, one["slot"]):
            lines.append(f"slot {one['slot']}: {one['why'] or 'takes calls'}")
    if as_json:
        echo_json({"schema": 1, "kind": "explain", "site": loaded.name, "host": host, "slot": slot, "because": lines})
    else:
        for line in lines:
            click.echo(line)


def look(session: Session) -> dict[str, Any]:
    """The state of a connected site, as a document."""
    site = session.site
    hosts = [
        report.Looked(name, site.host(name).address, one.plan, one.error, one.actual, one.context.fingerprint)
        for name, one in session.look().items()
    ]
    return health.document(site, hosts, session.unreached)


def draw(found: dict[str, Any]) -> Table:
    """One line a host."""
    made = table("host", "roles", "release", "slots", "calls", "changes", "memory free", "disk free")
    for host in found["hosts"]:
        counts = {state: sum(slot["state"] == state for slot in host["slots"]) for state in STATES}
        slots = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        calls = sum(slot["calls"] or 0 for slot in host["slots"])
        changes = "?" if host["changes"] is None else str(host["changes"] or "")
        waiting = f" ({host['waiting']} wait)" if host["waiting"] else ""
        made.add_row(
            host["name"],
            ", ".join(host["roles"]),
            host["release"] or "-",
            slots or "-",
            str(calls) if host["slots"] else "-",
            changes + waiting,
            gigabytes(host["memory"] and host["memory"]["available"]),
            gigabytes(host["disk"] and host["disk"]["free"]),
        )
    return made


def remarks(found: dict[str, Any]) -> list[str]:
    """What an operator should know beside the table, a line each."""
    own = [f"{host['name']}: {line}" for host in found["hosts"] for line in [*host["notes"], *host["blocked"]]]
    return [*own, *found["notes"]]


def summary(found: dict[str, Any]) -> str:
    """One line for the site."""
    total = sum(found["slots"].values())
    free = found["slots"].get("idle", 0)
    return f"{found['site']}: {total} slots, {free} idle, {found['calls']} calls, release {found['release']}"


def gigabytes(size: int | None) -> str:
    """Bytes for people."""
    return "?" if size is None else f"{size / 1024**3:.1f} GiB"
