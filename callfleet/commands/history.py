"""`callfleet history`: what was changed, by whom, under which plan, from the hosts' own journals."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

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
from callfleet.pyinfra_session import Session

JOURNAL = "/etc/callfleet/journal.jsonl"


@click.command()
@SITE
@limit_option
@json_option
@click.option("--last", "-n", default=20, show_default=True, type=click.IntRange(1, 10000), help="Lines of each host.")
@click.option("--plan", "word", help="Only what was done under this plan.")
def history(site: str, limit: tuple[str, ...], as_json: bool, last: int, word: str | None) -> None:
    """Show what was changed on SITE's hosts: when, by whom, under which plan.

    \b
    Exit codes: 0 every host was read, 1 not so, 64 usage.

    \b
    Examples:
      callfleet history prod
      callfleet history prod --limit eu1-a -n 100
      callfleet history prod --plan 3f9a0c21d7be
    """
    loaded = open_site(site)
    with Session(loaded, limit, credentials=False) as session:
        read = f"tail -n {10000 if word else last} {JOURNAL} 2>/dev/null || true"
        answers = session.each(lambda host: session.ask(host.name, read))
        unreached = session.unreached
    entries = [entry for host, answer in answers.items() for entry in parse(host, answer)]
    entries.sort(key=lambda entry: str(entry.get("at", "")))
    if word:
        entries = [entry for entry in entries if entry.get("plan") == word]
    if as_json:
        echo_json({"schema": 1, "kind": "history", "site": loaded.name, "entries": entries, "unreached": unreached})
    else:
        rows = table("when", "host", "who", "plan", "what", "subject")
        for entry in entries:
            what = " ".join(filter(None, [str(entry.get("what", "")), str(entry.get("kind", ""))]))
            rows.add_row(*(str(entry.get(key) or "") for key in ("at", "host", "who", "plan")), what, subject(entry))
        show(rows)
    for host, why in unreached.items():
        note(f"{host}: not reached: {why}")
    sys.exit(FAILED if unreached else DONE)


def parse(host: str, answer: str) -> list[dict[str, Any]]:
    """The entries of one journal; a line that was cut by a power loss is shown as it is."""
    entries = []
    for line in answer.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = {"what": "unreadable", "subject": line[:200]}
        entries.append({"host": host, **(value if isinstance(value, dict) else {"what": "unreadable"})})
    return entries


def subject(entry: dict[str, Any]) -> str:
    """What was changed, with its stack where the slot program wrote the entry."""
    return "/".join(filter(None, [str(entry.get("stack") or ""), str(entry.get("subject") or "")]))
