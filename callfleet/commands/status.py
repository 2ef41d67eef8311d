"""`callfleet status` and `explain`: what the site is right now."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from callfleet import health, pages, report
from callfleet.commands.common import (
    FAILED,
    SITE,
    complete,
    console,
    echo_json,
    fleet_hosts,
    html_option,
    json_option,
    limit_option,
    now,
    open_site,
    save,
    site_option,
    table,
)
from callfleet.credentials import unusable
from callfleet.errors import CallfleetError
from callfleet.pyinfra_session import Session, limited
from callfleet.site import Site

WATCH_SECONDS = 2.0
STATES = ("idle", "on a call", "draining", "drained", "dead", "unpublished", "unknown")


@click.command()
@SITE
@limit_option
@json_option
@html_option
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
def status(site: str, limit: tuple[str, ...], as_json: bool, html: Path | None, watch: bool) -> None:
    """Show SITE's hosts: slots and calls, what runs, drift, proxies, certificates, memory and disk. Changes nothing.

    With --watch, --json prints one document a line and --html writes its file anew at each look.

    \b
    Exit codes: 0 every host was read (with --watch: at the last look), 1 not so, 64 usage.

    \b
    Examples:
      callfleet status prod
      callfleet status prod --watch
      callfleet status prod --json | jq '.slots'
      callfleet status prod --html prod.html
    """
    loaded = open_site(site)
    trouble = of_no_use(loaded, limit)
    with Session(loaded, limit, credentials=False) as session:
        found = look(session, trouble)
        if html is not None:
            save(html, pages.status_page(found, now()))
        if watch:
            found = keep_looking(session, found, trouble, html, as_json=as_json)
    if as_json and not watch:
        echo_json(found)
    elif not as_json:
        tell(console(), found)
    sys.exit(0 if all(host["reached"] and host["changes"] is not None for host in found["hosts"]) else FAILED)


def keep_looking(
    session: Session, found: dict[str, Any], trouble: list[str], html: Path | None, *, as_json: bool
) -> dict[str, Any]:
    """Show the site again and again until Ctrl-C; what was seen last."""
    shown = console()
    # The terminal's second screen, drawn over in place: nothing flickers or scrolls, and what was there comes back.
    screen = nullcontext() if as_json or not shown.is_terminal else Live(console=shown, screen=True, auto_refresh=False)
    with screen as live:
        try:
            while True:
                if as_json:
                    click.echo(json.dumps(found))
                elif live is None:
                    tell(shown, found)
                else:
                    live.update(
                        Group(whole(found), Text(f"\n{now()}, every {WATCH_SECONDS:.0f} s; Ctrl-C ends")), refresh=True
                    )
                time.sleep(WATCH_SECONDS)
                session.forget()
                found = look(session, trouble)
                if html is not None:
                    save(html, pages.status_page(found, now()))
        except KeyboardInterrupt:
            return found


@click.command()
@click.argument("host", shell_complete=complete(fleet_hosts))
@click.argument("slot", type=int, required=False)
@site_option
@json_option
def explain(host: str, slot: int | None, site: str, as_json: bool) -> None:
    """Say why HOST, or one SLOT of it, is not taking calls.

    \b
    Exit codes: 0 told, 1 not so, 64 usage.

    \b
    Examples:
      callfleet explain eu1-a
      callfleet explain eu1-a 3 --site staging
    """
    loaded = open_site(site)
    if host not in {one.name for one in loaded.fleet_hosts}:
        known = ", ".join(one.name for one in loaded.fleet_hosts)
        raise CallfleetError(f"{loaded.name} has no fleet host {host}; it has: {known}")
    trouble = of_no_use(loaded)
    with Session(loaded, credentials=False) as session:
        found = look(session, trouble)
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


def look(session: Session, trouble: list[str]) -> dict[str, Any]:
    """The state of a connected site, as a document; `trouble` is what is wrong with it on this side."""
    site = session.site
    hosts = [
        report.Looked(name, site.host(name).address, one.plan, one.error, one.actual, one.context.fingerprint)
        for name, one in session.look().items()
    ]
    found = health.document(site, hosts, session.unreached)
    found["notes"] += trouble
    return found


def of_no_use(site: Site, limit: tuple[str, ...] = ()) -> list[str]:
    """Secrets and certificates that cannot serve, a line each. They stop an apply, and nobody from looking."""
    return [" ".join(line.split()) for line in unusable(site, limited(site, limit) if limit else None)]


def tell(console: Console, found: dict[str, Any]) -> None:
    """The whole picture; remarks on one line each, however long they are."""
    console.print(draw(found))
    for line in remarks(found):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    console.print(Text(summary(found)), soft_wrap=True)


def whole(found: dict[str, Any]) -> Group:
    """The same as one thing to draw. Text from hosts is shown as it is, not as markup."""
    lines = [Text(line, style="yellow") for line in remarks(found)]
    return Group(draw(found), *lines, Text(summary(found)))


def draw(found: dict[str, Any]) -> Table:
    """One line a host."""
    made = table("host", "roles", "release", "slots", "calls", "changes", "reloads", "cert.", "memory", "disk")
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
            called(host, calls),
            changes + waiting,
            "\n".join(map(proxy, host["proxies"])) or "-",
            least(host["certificates"]),
            gigabytes(host["memory"] and host["memory"]["available"]),
            gigabytes(host["disk"] and host["disk"]["free"]),
        )
    return made


def called(host: dict[str, Any], calls: int) -> str:
    """Calls of a host, and how long the longest has been on."""
    ages = [slot["age"] for slot in host["slots"] if slot["age"] is not None]
    longest = f" (up to {max(ages) // 60}:{max(ages) % 60:02})" if ages else ""
    return f"{calls}{longest}" if host["slots"] else "-"


def proxy(one: dict[str, Any]) -> str:
    """A proxy's generations: how often it was reloaded, and what older processes still carry."""
    if not one["running"]:
        return "?" if one["running"] is None else "not running"
    said = "?" if one["reloads"] is None else str(one["reloads"])
    for former in one["old"] or ():
        carried = "?" if former["connections"] is None else former["connections"]
        said += f"\nolder: {carried} connections"
    return said


def least(certificates: list[dict[str, Any]]) -> str:
    """Days that are left of the certificate that ends first."""
    days = [one["days"] for one in certificates if one["days"] is not None]
    return f"{min(days)} d" if days else "-"


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
    return "?" if size is None else f"{size / 1024**3:.1f}G"
