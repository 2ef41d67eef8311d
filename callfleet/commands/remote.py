"""`callfleet logs` and `callfleet exec`: read what a host says, and run a command there, over the same connection."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from callfleet import target
from callfleet.commands.common import FAILED, complete, hosts_fleets_roles, note, open_site, site_option
from callfleet.errors import CallfleetError
from callfleet.pyinfra_remote import STREAM_TOKEN, StepError
from callfleet.pyinfra_session import Session, limited
from callfleet.site import Site
from callfleet.target import Target

LINES = 100
NOT_REACHED = 255
"""As ssh ends when it cannot connect: no command of ours that ran."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WAITS_OR_CARRIES = ("on a call", "draining", "unknown")


@click.command()
@click.argument("what", shell_complete=complete(target.words))
@site_option
@click.option("--since", metavar="TIME", help="From then on: 30s, 10m, 2h, 1d ago, or 2026-11-20T09:30 (UTC).")
@click.option("--follow", "-f", is_flag=True, help="Go on as new lines come, until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(0, 1000000), help=f"The last N lines of each; {LINES}, or all with --since."
)
def logs(what: str, site: str, since: str | None, follow: bool, lines: int | None) -> None:
    """Show the log of WHAT: a host or a fleet (our units there), a slot as HOST/SLOT, or a service (HOST/SERVICE).

    Services: proxy, front, and on the app host api, dialler, console and the stores. From several hosts, each line
    begins with whose it is. --follow shows the units that are there when it begins. Ctrl-C leaves nothing running on a
    host.

    \b
    Exit codes: 0 shown, 1 not so, 64 usage, 130 ended by Ctrl-C.

    \b
    Examples:
      callfleet logs eu1-a/3 --since 10m
      callfleet logs cxb-api --follow
      callfleet logs eu1-a -n 50 --site staging
    """
    loaded = open_site(site)
    after = moment(since, time.time()) if since else None
    targets = target.named(loaded, what)
    tail = lines if lines is not None else None if after is not None else LINES
    scripts = {one: log_script(one, after, tail, follow) for one in targets}
    codes = spread(loaded, scripts)
    sys.exit(FAILED if any(codes.values()) else 0)


@click.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("what", shell_complete=complete(lambda site: [*hosts_fleets_roles(site), *target.parts(site)]))
@site_option
@click.option("--slot", type=int, metavar="N", help="Inside the container of this slot.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(what: str, site: str, slot: int | None, command: tuple[str, ...]) -> None:
    """Run COMMAND on WHAT: a host, a fleet, a role, or inside a slot (--slot N, or HOST/N) or service (HOST/SERVICE).

    It is run as it stands, without a shell and without input; Ctrl-C ends it there. From several hosts, each line
    begins with whose it is. A slot that is on a call is not refused, only named. What is on the command line can be
    read by every user of the host while it runs: no secrets there.

    \b
    Exit codes: the command's own (of several hosts the highest), 255 a host was not reached, 64 usage.

    \b
    Examples:
      callfleet exec eu1-a -- uptime
      callfleet exec eu1 --site staging -- sh -c 'df -h / | tail -1'
      callfleet exec eu1-a --slot 3 -- ls /tmp
    """
    loaded = open_site(site)
    targets = chosen(loaded, what, slot)
    codes = spread(loaded, {one: exec_script(one, command) for one in targets}, warn=warn)
    sys.exit(max(codes.values()))


def chosen(site: Site, what: str, slot: int | None) -> list[Target]:
    """Where a command is to run. A host or several stand for themselves, everything else for its container."""
    if "/" in what:
        if slot is not None:
            raise CallfleetError(f"{what} names a part of a host already; leave --slot out")
        (one,) = target.named(site, what)
        if not one.service:
            raise CallfleetError(f"{what} is no container; on the host itself: callfleet exec {one.host} -- COMMAND")
        return [one]
    hosts = [host.name for host in site.hosts if host.name in limited(site, (what,))]
    if slot is None:
        return [Target(host, host) for host in hosts]
    return [target.slot(site, host, slot) for host in hosts]


def moment(text: str, now: float) -> int:
    """Unix seconds of a time: so long ago (`10m`), or ISO 8601, UTC where it has no zone. Else UsageError."""
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return int(now) - int(ago[1]) * _UNITS[ago[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"--since {text}: expected 30s, 10m, 2h, 1d or a time such as 2026-11-20T09:30"
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def log_script(one: Target, since: int | None, lines: int | None, follow: bool) -> str:
    """What shows a log on its host."""
    tail = "all" if lines is None else str(lines)
    if one.service:
        options = ["--timestamps", "--tail", tail]
        options += ["--since", str(since)] if since is not None else []
        options += ["--follow"] if follow else []
        return f'{_container(one, stopped=True)}\nexec docker logs {shlex.join(options)} "$1" 2>&1'
    command = ["journalctl", "--quiet", "--no-pager", "--output=short-iso", f"--lines={tail}"]
    command += [f"--since=@{since}"] if since is not None else []
    command += ["--follow"] if follow else []
    return f"exec {shlex.join([*command, *(f'--unit={unit}' for unit in one.units)])}"


def exec_script(one: Target, command: Sequence[str]) -> str:
    """What runs a command: on the host, or in the container."""
    if not one.service:
        return f"exec {shlex.join(command)}"
    # The mark goes in as well: the end of the client alone would leave the command running in there.
    return f'{_container(one, stopped=False)}\nexec docker exec -e {STREAM_TOKEN} "$1" {shlex.join(command)}'


def _container(one: Target, *, stopped: bool) -> str:
    """Sets $1 to its container: one that runs, else the newest. A proxy that was turned over ends by itself."""
    ours = f"--no-trunc --filter label=callfleet.stack={one.stack} --filter label=callfleet.service={one.service}"
    lines = ["docker version >/dev/null || exit 1", f"set -- $(docker ps -q {ours})"]
    if stopped:
        lines.append(f"[ $# -gt 0 ] || set -- $(docker ps -aq {ours})")
    missing = f"{one.stack}/{one.service} {'has no container' if stopped else 'does not run'} here"
    return "\n".join([*lines, f"[ $# -gt 0 ] || {{ echo {shlex.quote(missing)} >&2; exit 1; }}"])


def warn(session: Session, targets: Sequence[Target]) -> None:
    """Name the slots among the targets that carry a call, or may."""
    for one in targets:
        number = one.service.removeprefix("worker-")
        if one.stack != session.site.brand.stack or not number.isdigit() or one.host in session.unreached:
            continue
        try:
            value: dict[str, Any] = json.loads(session.ask(one.host, f"slotctl status {one.stack} --json || true"))
            state = next(slot["state"] for slot in value["slots"] if slot["slot"] == int(number))
        except (StepError, ValueError, LookupError, StopIteration):
            state = "unknown"
        if state in _WAITS_OR_CARRIES:
            note(f"{one.name} is {state}: what you do in there may disturb a live call")


def spread(
    site: Site, scripts: dict[Target, str], warn: Callable[[Session, Sequence[Target]], None] | None = None
) -> dict[Target, int]:
    """Run each script on its host, all at once, showing what they say; their exit codes."""
    with Session(site, {one.host for one in scripts}, credentials=False) as session:
        if warn is not None:
            warn(session, list(scripts))
        width = max(len(one.name) for one in scripts)
        shown = {one: _shower(f"{one.name:<{width}} | " if len(scripts) > 1 else "") for one in scripts}
        with _pipe_may_close():
            found = session.stream({one: (one.host, script, shown[one]) for one, script in scripts.items()})
    for one, said in found.items():
        if isinstance(said, StepError):
            note(f"{one.name}: {said}")
    return {one: NOT_REACHED if isinstance(said, StepError) else said for one, said in found.items()}


def _shower(prefix: str) -> Callable[[int, bytes], None]:
    """Writes what a host says to our own output (1) or error output (2): as it is, or line by line under a prefix."""
    rest = {1: b"", 2: b""}

    def show(stream: int, data: bytes) -> None:
        out = (sys.stdout if stream == 1 else sys.stderr).buffer
        if not prefix:
            out.write(data)
        else:
            *lines, rest[stream] = (rest[stream] + data).split(b"\n")
            if not data and rest[stream]:
                lines, rest[stream] = [*lines, rest[stream]], b""
            out.writelines(prefix.encode() + line + b"\n" for line in lines)
        out.flush()

    return show


@contextlib.contextmanager
def _pipe_may_close() -> Iterator[None]:
    """`| head` has seen enough: that is no failure."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
