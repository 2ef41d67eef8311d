"""`callfleet doctor`: whether hosts can do what the site asks of them. `host add` asks the same before it adds."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from callfleet.actual import Actual
from callfleet.certificates import valid_until
from callfleet.commands.common import (
    DONE,
    FAILED,
    SITE,
    echo_json,
    json_option,
    limit_option,
    note,
    open_site,
    show,
    table,
)
from callfleet.credentials import opened, unusable
from callfleet.errors import CallfleetError
from callfleet.preflight import Check, Looked, State, judge, questions, read, resolver, script
from callfleet.pyinfra_session import Session, limited
from callfleet.site import Site

STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red", State.UNKNOWN: "yellow"}


@click.command()
@SITE
@limit_option
@json_option
def doctor(site: str, limit: tuple[str, ...], as_json: bool) -> None:
    """Look whether SITE's hosts can do what is asked of them.

    System, CPU, memory, disk, clock, names, certificates, ports, registry, package sources, the way from each ingress.

    Changes nothing and needs nothing of callfleet on them: bare hosts can be asked.

    \b
    Exit codes: 0 nothing failed, 1 something did, 64 usage.

    \b
    Examples:
      callfleet doctor prod
      callfleet doctor prod --limit eu1 --json | jq '.checks[] | select(.state != "ok")'
    """
    loaded = open_site(site)
    chosen = limited(loaded, limit) if limit else {host.name for host in loaded.hosts}
    note(f"looking at {loaded.name}")
    checks = of_no_use(loaded, chosen if limit else None)
    with Session(loaded, sorted(chosen | witnesses(loaded)), credentials=False) as session:
        checks += examine(session, chosen)
    code = FAILED if any(check.state is State.FAILED for check in checks) else DONE
    if as_json:
        echo_json({"schema": 1, "kind": "doctor", "site": loaded.name, "exit": code, "checks": as_data(checks)})
    else:
        report(checks)
    sys.exit(code)


def of_no_use(site: Site, hosts: Collection[str] | None) -> list[Check]:
    """A failed check for each secret and certificate that cannot be had or cannot serve, under the site's name."""
    lines = [" ".join(line.split()) for line in unusable(site, hosts)]
    what = "secrets and certificates"
    return [Check(site.name, what, State.FAILED, "of no use, see below", "of use to the hosts", line) for line in lines]


def witnesses(site: Site) -> set[str]:
    """Hosts that are asked about others: for their way to them, and for their names."""
    asks = resolver(site)
    return {host.name for host in site.ingress_hosts} | ({asks.name} if asks else set())


def examine(session: Session, names: Collection[str]) -> list[Check]:
    """The checks of these hosts. The session must hold them and the witnesses: two round trips each."""
    site = session.site
    chosen = [host for host in site.hosts if host.name in names]
    probed = session.probe()
    asked = {name: script(questions(site, site.host(name), chosen)) for name in probed}
    answers = session.answers(asked)
    found = {
        name: Looked(actual, read(answers[name]) if name in answers else None, error, skew)
        for name, (actual, error, skew) in probed.items()
    }
    for name, why in session.unreached.items():
        found[name] = Looked(Actual.unread(why), None, why)
    expiry = expiries(site)
    return [check for host in chosen for check in judge(site, host, found, expiry)]


def expiries(site: Site) -> Mapping[str, datetime | None]:
    """When the certificate of each public name ends; None where it cannot be had or read."""
    found: dict[str, datetime | None] = {}
    for name in {name for host in site.hosts for name in site.public_names(host)}:
        try:
            found[name] = valid_until(opened(site).credential(site.certificate_for(name)))
        except CallfleetError:
            found[name] = None
    return found


def as_data(checks: list[Check]) -> list[dict[str, Any]]:
    """Checks for `--json`."""
    return [asdict(check) | {"state": str(check.state)} for check in checks]


def report(checks: list[Check]) -> None:
    """A line a check, and what is to be done below."""
    rows = table("host", "check", "", "found", "expected")
    for check in checks:
        state = Text(check.state, style=STYLES[check.state])
        expected = "" if check.state is State.OK else check.expected
        rows.add_row(check.host, check.what, state, check.found, expected)
    show(rows)
    for check in checks:
        if check.next and check.state is not State.OK:
            click.echo(f"{check.host}, {check.what}: {check.next}")
    counts = {state: sum(check.state is state for check in checks) for state in State}
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items() if count))
