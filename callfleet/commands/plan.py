"""`callfleet plan` and `callfleet apply`: what would change, and doing it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from callfleet import pages, report
from callfleet.commands.common import (
    DONE,
    FAILED,
    PENDING,
    SITE,
    confirm_site,
    echo_json,
    html_option,
    json_option,
    limit_option,
    note,
    now,
    open_site,
    save,
    show,
    table,
)
from callfleet.errors import CallfleetError
from callfleet.pyinfra_session import Ended, Session
from callfleet.site import Site

STYLES: dict[str, dict[str, Any]] = {
    "heading": {"bold": True},
    "change": {"fg": "green"},
    "waits": {"fg": "yellow"},
    "error": {"fg": "red"},
    "diff": {"dim": True},
    "quiet": {},
}


@click.command()
@SITE
@limit_option
@json_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Save it, for `apply --plan`.")
@html_option
@click.option("--no-diff", is_flag=True, help="Leave out what changes inside of files.")
def plan(site: str, limit: tuple[str, ...], as_json: bool, out: Path | None, html: Path | None, no_diff: bool) -> None:
    """Show the exact difference between SITE and its hosts, and the calls it touches. Writes nothing on any host.

    \b
    Exit codes: 0 nothing to change, 2 changes, 3 changes that wait for calls, 1 error, 64 usage.

    \b
    Examples:
      callfleet plan prod
      callfleet plan prod --limit eu1-a --no-diff
      callfleet plan prod --out monday.plan && callfleet apply prod --plan monday.plan
      callfleet plan prod --html monday.html        # one page, to attach to a review
    """
    loaded = open_site(site)
    note(f"looking at {loaded.name}")
    with Session(loaded, limit) as session:
        made = look(session)
    if out is not None:
        save(out, json.dumps(made, indent=1) + "\n")
    if html is not None:
        save(html, pages.plan_page(made, now()))
    if as_json:
        echo_json(made)
    else:
        print_plan(made, diffs=not no_diff)
        if made["exit"] in (report.CHANGES, report.WAITING):
            click.echo(f"Next: callfleet apply {again(site, limit)}" + (f" --plan {out}" if out else ""))
    sys.exit(made["exit"])


@click.command()
@SITE
@limit_option
@json_option
@click.option("--plan", "saved", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Only this plan.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def apply(site: str, limit: tuple[str, ...], as_json: bool, saved: Path | None, yes: bool) -> None:
    """Bring SITE's hosts to what is declared, without ending a call. Shows the plan and asks first.

    With --plan, nothing is done unless hosts and site are still what the saved plan was made from; calls that came or
    went since do not matter.

    \b
    Exit codes: 0 done, 3 some of it waits for calls and is left to a later run, 1 failed, 64 usage, 130 ended by
    Ctrl-C.

    \b
    Examples:
      callfleet apply prod
      callfleet apply prod --plan monday.plan --yes
    """
    loaded = open_site(site)
    wanted = read_plan(saved) if saved else None
    note(f"looking at {loaded.name}")
    with Session(loaded, limit, quiet=False) as session:
        made = look(session)
        if wanted is not None and (why := report.stale(wanted, made)):
            lines = "\n".join(f"  {line}" for line in why)
            raise CallfleetError(f"{saved} is not what would be done now; nothing was changed:\n{lines}\nPlan again.")
        asks = bool(made["changes"]) and not yes
        if asks or not as_json:
            # Whoever is asked sees the plan; standard output is left to the document.
            print_plan(made, diffs=False, err=as_json)
        if not made["changes"]:
            ended = [unchanged(host, session.unreached) for host in made["hosts"]]
        else:
            if asks:
                confirm_site(loaded, f"{made['changes']} changes on {loaded.name}.")
            session.name_plan(made["plan"])
            try:
                ended = session.apply()
            except KeyboardInterrupt:
                interrupted(f"callfleet apply {again(site, limit)}", session)
                raise
    finish(loaded, made, ended, f"callfleet apply {again(site, limit)}", as_json)


def again(site: str, limit: tuple[str, ...]) -> str:
    """The arguments by which a next command is about the same hosts."""
    return " ".join([shlex.quote(site), *(f"--limit {shlex.quote(name)}" for name in limit)])


def unchanged(host: dict[str, Any], unreached: Mapping[str, str]) -> Ended:
    """The end of a host on which there was nothing to do, or of which that cannot be told."""
    if host["name"] in unreached:
        return Ended(host["name"], "not reached", errors=(unreached[host["name"]],))
    return Ended(host["name"], "failed", errors=(host["error"],)) if host["error"] else Ended(host["name"], "unchanged")


def look(session: Session) -> dict[str, Any]:
    """The plan of a connected site, as a document."""
    found = session.look(content=True)
    site = session.site
    hosts = [
        report.Looked(
            name, site.host(name).address, one.plan, one.error, one.actual, one.context.fingerprint, one.before
        )
        for name, one in found.items()
    ]
    duties = {host.name: report.duty(host.address, host.roles, host.fleet) for host in site.hosts}
    return report.document(site.name, site.release.release, hosts, session.unreached, duties)


def print_plan(made: dict[str, Any], *, diffs: bool, err: bool = False) -> None:
    """The plan for people."""
    for style, line in report.text(made, diffs=diffs):
        click.secho(line, err=err, **STYLES[style])
    if not made["changes"] and made["exit"] == report.NOTHING:
        click.echo("Nothing to change.", err=err)
    else:
        click.echo(f"Plan {made['plan']}: {made['changes']} changes.", err=err)


def read_plan(path: Path) -> dict[str, Any]:
    """A saved plan. CallfleetError when it is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
        if value.get("schema") == report.SCHEMA:
            for host in value["hosts"]:
                _ = str(host["name"]), str(host["basis"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, LookupError | TypeError):
            error = ValueError("it was changed by hand")
        raise CallfleetError(f"{path} is no saved plan ({error}); make one: callfleet plan SITE --out FILE") from None
    return value


def interrupted(command: str, session: Session) -> None:
    """What Ctrl-C leaves, and how to go on."""
    note("")
    for one in session.ended():
        note(f"{one.host}: {len(one.changes)} changes done")
    note("Interrupted. A step that was going on ends by itself on its host; calls go on.")
    note(f"Next: {command} completes the rest.")


def finish(site: Site, made: dict[str, Any], ended: list[Ended], command: str, as_json: bool) -> None:
    """Report how it ended on each host, and end with its code."""
    outcomes = {one.outcome for one in ended}
    code = FAILED if outcomes & {"failed", "not reached"} else PENDING if "pending" in outcomes else DONE
    if as_json:
        hosts = [
            {
                "name": one.host,
                "outcome": one.outcome,
                "changes": list(one.changes),
                "pending": list(one.pending),
                "errors": list(one.errors),
            }
            for one in ended
        ]
        echo_json({"schema": 1, "kind": "apply", "site": site.name, "plan": made["plan"], "exit": code, "hosts": hosts})
    else:
        rows = table("host", "outcome", "changes", "")
        for one in ended:
            said = "\n".join([*one.errors, *(f"pending: {line}" for line in one.pending)])
            rows.add_row(one.host, one.outcome, str(len(one.changes)), said)
        show(rows)
        if code == PENDING:
            click.echo(f"Some slots are on a call and were left serving. Next: {command}, later.")
        elif code == FAILED:
            click.echo(f"Next: see docs/runbook.md for the message above, then {command}.")
    sys.exit(code)
