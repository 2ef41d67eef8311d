"""`callfleet host drain` and `ready`: take slots out of service while their calls go on, and back."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from callfleet.commands.common import (
    DONE,
    PENDING,
    complete,
    echo_json,
    fleet_hosts,
    fleets,
    json_option,
    note,
    on,
    open_site,
    show,
    site_option,
    table,
)
from callfleet.desired.ingress import state_script
from callfleet.errors import CallfleetError
from callfleet.pyinfra_remote import who
from callfleet.pyinfra_session import Session, limited
from callfleet.site import Site

LOOK_SECONDS = 1.0
NOT_THERE = 127
"""Exit code of a shell for a command that it does not find."""
OUT_OF_SERVICE = ("drained", "dead", "unpublished")


@dataclass(frozen=True)
class Slot:
    """One slot as its host tells it; calls None: it does not say."""

    host: str
    number: int
    state: str
    calls: int | None

    def __str__(self) -> str:
        calls = "?" if self.calls is None else self.calls
        return f"{self.host} slot {self.number}: {self.state}, calls {calls}"


slot_option = click.option("--slot", "slots", type=int, multiple=True, metavar="N", help="Only this slot; repeatable.")
TARGET = click.argument("target", shell_complete=complete(lambda site: [*fleet_hosts(site), *fleets(site)]))


@click.command()
@TARGET
@site_option
@slot_option
@click.option("--reason", default="", help="Kept with the drain, and shown by status.")
@click.option("--deadline", type=click.IntRange(0, 86400), metavar="SECONDS", help="How long to wait for calls to end.")
@json_option
def drain(target: str, site: str, slots: tuple[int, ...], reason: str, deadline: int | None, as_json: bool) -> None:
    """Take TARGET (a host or a fleet) out of service: no new call inbound or outbound, calls that are on go on.

    Waits until the last call has ended, or the deadline has passed (the site's calls.drain_deadline_seconds). The drain
    is kept on the host either way: no apply, reload or reboot ends it, only `callfleet host ready`.

    \b
    Exit codes: 0 drained, 3 calls are still on, 1 failed, 64 usage, 130 ended by Ctrl-C.

    \b
    Examples:
      callfleet host drain eu1-a --reason "new memory"
      callfleet host drain eu1-a --slot 3 --deadline 0
      callfleet host drain eu1
    """
    loaded = open_site(site)
    seconds = loaded.calls.drain_deadline_seconds if deadline is None else deadline
    back = f"callfleet host ready {target}{''.join(f' --slot {number}' for number in slots)}{on(site)}"
    with Session(loaded, (target, *ingress_role(loaded)), credentials=False) as session:
        hosts = reached(session, loaded, target)
        said = f"--reason {shlex.quote(reason)}" if reason else ""
        try:
            for name in hosts:
                declare(session, name, "drain", slots, said)
            if not slots:
                tell_ingress(session, "drain", hosts)
            found = wait(session, hosts, slots, seconds, as_json=as_json)
        except KeyboardInterrupt:
            note(
                f"\nInterrupted. What was drained stays so, calls go on. Next: the same command goes on, {back} ends it"
            )
            raise
    left = [one for one in found if one.state not in OUT_OF_SERVICE]
    code = PENDING if left else DONE
    if as_json:
        echo_json(answer("drain", loaded, found, code))
    else:
        report(found)
        if left:
            click.echo(
                f"{len(left)} slots still carry a call, or do not say; they take no new one. "
                "Next: the same command waits on."
            )
        else:
            click.echo(f"Drained. Next: {back}, when it may take calls again.")
    sys.exit(code)


@click.command()
@TARGET
@site_option
@slot_option
@json_option
def ready(target: str, site: str, slots: tuple[int, ...], as_json: bool) -> None:
    """Put TARGET (a host or a fleet) back into service, where it was drained.

    \b
    Exit codes: 0 in service, 3 a slot waits for a canary call (the next apply), 1 failed, 64 usage.

    \b
    Examples:
      callfleet host ready eu1-a
      callfleet host ready eu1-a --slot 3
    """
    loaded = open_site(site)
    with Session(loaded, (target, *ingress_role(loaded)), credentials=False) as session:
        hosts = reached(session, loaded, target)
        codes = [declare(session, name, "ready", slots, "--wait 30") for name in hosts]
        tell_ingress(session, "ready", hosts)
        found = list(seen(session, hosts, slots))
    code = PENDING if PENDING in codes else DONE
    if as_json:
        echo_json(answer("ready", loaded, found, code))
    else:
        report(found)
        if code == PENDING:
            click.echo(f"Some slots are not in service yet. Next: callfleet apply {site}")
    sys.exit(code)


def reached(session: Session, site: Site, target: str) -> list[str]:
    """The fleet hosts of the target. CallfleetError when one is not reached, or there is none."""
    wanted = limited(site, (target,))
    names = [one.name for one in site.fleet_hosts if one.name in wanted]
    if not names:
        raise CallfleetError(f"{target} carries no calls: expected a fleet host or a fleet of {site.name}")
    if away := {name: why for name, why in session.unreached.items() if name in names}:
        lines = "\n".join(f"  {name}: {why}" for name, why in away.items())
        raise CallfleetError(f"not reached; nothing was done:\n{lines}")
    return names


def declare(session: Session, host: str, verb: str, slots: tuple[int, ...], options: str) -> int:
    """Tell the host's slot program; its exit code, done or pending. CallfleetError when it failed."""
    stack = session.site.brand.stack
    numbers = " ".join(str(number) for number in slots)
    script = (
        f"export CALLFLEET_WHO={shlex.quote(who())}\n"
        f"slotctl {verb} {stack} {numbers} --json {options}; code=$?; printf '%s\\n' $code"
    )
    *lines, code = session.ask(host, script).splitlines() or [""]
    if code == str(NOT_THERE):
        raise CallfleetError(
            f"{host} has no slot program: it was never applied. Next: callfleet apply {session.site.name}"
        )
    if code not in (str(DONE), str(PENDING)):
        raise CallfleetError(f"{host}: slotctl {verb} failed: {said_of(lines) or code or 'it says nothing'}")
    return int(code)


def said_of(lines: Sequence[str]) -> str:
    """Why the slot program ended, from its JSON lines; what it said where they are none."""
    try:
        return str(json.loads(lines[-1])["result"]["error"])
    except (ValueError, LookupError, TypeError):
        return " ".join(lines)[-500:]


def ingress_role(site: Site) -> tuple[str, ...]:
    """The name of the role, for a limit; nothing where the site has no ingress."""
    return ("ingress",) if site.ingress_hosts else ()


def tell_ingress(session: Session, word: str, hosts: list[str]) -> None:
    """Have every ingress that is reached send no new calls there, or send them again: hosts refuse by themselves."""
    for name in (one.name for one in session.site.ingress_hosts):
        if name in session.unreached:
            note(f"{name}: not reached; it goes on asking {', '.join(hosts)}, which refuses by itself")
        else:
            session.ask(name, state_script(word, hosts))


def seen(session: Session, hosts: list[str], slots: tuple[int, ...]) -> Iterator[Slot]:
    """The slots of all hosts, asked at once."""
    stack = session.site.brand.stack
    chosen = [one for one in session.hosts if one.name in hosts]
    answers = session.each(lambda one: session.ask(one.name, f"slotctl status {stack} --json || true"), chosen)
    for name in hosts:
        try:
            value: dict[str, Any] = json.loads(answers[name].splitlines()[-1])
            found = [Slot(name, one["slot"], one["state"], one["calls"]) for one in value["slots"]]
        except (ValueError, LookupError, TypeError):
            text = answers[name][-200:]
            raise CallfleetError(
                f"{name} does not tell what its slots do: {text!r}. See: callfleet logs {name}"
            ) from None
        yield from (one for one in found if not slots or one.number in slots)


def wait(session: Session, hosts: list[str], slots: tuple[int, ...], seconds: float, *, as_json: bool) -> list[Slot]:
    """Until no slot carries a call, or the time is over; says what it waits for when that changes."""
    until, told = time.monotonic() + seconds, ""
    while True:
        found = list(seen(session, hosts, slots))
        left = [one for one in found if one.state not in OUT_OF_SERVICE]
        if not left or time.monotonic() >= until:
            return found
        said = f"{len(found) - len(left)} of {len(found)} slots drained; waiting for {'; '.join(map(str, left[:4]))}"
        if said != told and not as_json:
            note(said)
        told = said
        time.sleep(LOOK_SECONDS)


def answer(kind: str, site: Site, found: list[Slot], code: int) -> dict[str, Any]:
    """The document of `--json`."""
    slots = [{"host": one.host, "slot": one.number, "state": one.state, "calls": one.calls} for one in found]
    return {"schema": 1, "kind": kind, "site": site.name, "exit": code, "slots": slots}


def report(found: list[Slot]) -> None:
    """The slots as a table."""
    rows = table("host", "slot", "state", "calls")
    for one in found:
        rows.add_row(one.host, str(one.number), one.state, "?" if one.calls is None else str(one.calls))
    show(rows)
