"""Acting on one host over pyinfra's connection: scripts, steps that outlive the link, and the lock that guards writes.

One of the modules that know pyinfra's internals.
"""

from __future__ import annotations

import atexit
import base64
import getpass
import os
import secrets
import shlex
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from paramiko.ssh_exception import SSHException
from pyinfra import logger
from pyinfra.api import StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.connectors.util import make_unix_command_for_host

from callfleet import lock
from callfleet.errors import CallfleetError
from callfleet.site import SshSettings

STEP_SECONDS = 1800.0
LOOK_SECONDS = 60.0


class StepError(CallfleetError):
    """A step on a host failed; the message is for the operator."""


class LockedError(StepError):
    """Another run is at work on the host."""


# Scripts


def run_script(host: PyinfraHost, text: str, *, seconds: float = STEP_SECONDS) -> list[str]:
    """Run a shell script that writes, under the lock of this run; its output lines.

    It runs as a transient unit of the host: when the link or this process dies, it goes on to its end. Raises StepError
    with what it said when it fails.
    """
    held = ensure_locked(host)
    held.steps += 1
    step = lock.Step(f"{held.owner.token}-{held.steps}")
    # The guard travels with the step: a link that dies before all has arrived has started nothing.
    answer = ask(host, step.start(lock.guarded(held.owner, held.fence, text)))
    lines: list[str] = []
    deadline = time.monotonic() + seconds
    while True:
        fresh, ended = step.read(answer)
        lines += fresh
        if ended is not None:
            break
        if time.monotonic() > deadline:
            raise StepError(f"no end within {seconds:.0f} s; it goes on by itself, run again to see its end")
        answer = ask(host, step.look(len(lines)))
    if ended != 0:
        raise StepError("\n".join([line for line in lines if line.strip()][-8:]) or "the step failed without a word")
    return lines


def ask(host: PyinfraHost, text: str, *, seconds: float = LOOK_SECONDS) -> str:
    """Run a shell script that only reads, or that sees to the lock itself. It travels on standard input."""
    arguments, _ = pop_global_arguments(host.state, host, {})
    connector = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS}
    connector["_stdin"] = text
    try:
        with gevent.Timeout(seconds, exception=TimeoutError):
            good, output = host.run_shell_command(StringCommand("sh", "-s"), **connector)
    except TimeoutError:
        raise StepError(f"no end within {seconds:.0f} s; what was started goes on, run again to see") from None
    except Exception as error:  # the link died, or the server refused the channel
        raise StepError(f"the connection failed: {error}") from error
    if not good:
        said = [line for line in output.stderr_lines if line.strip()][-8:] or output.stdout_lines[-8:]
        raise StepError("\n".join(said) or "the step failed without a word")
    return "\n".join(output.stdout_lines)


def stream(host: PyinfraHost, text: str, heard: Callable[[int, bytes], None]) -> int:
    """Run a shell script that changes nothing of ours, and pass on what it says as it says it; its exit code.

    `heard` gets 1 or 2 (output or error output) and the bytes, at the end of each none. It shows in the host's process
    list, so it must hold no secret. When this process or the link ends, all that it started is ended on the host.
    StepError when the link dies.
    """
    script = attached(text, secrets.token_hex(8))
    arguments, _ = pop_global_arguments(host.state, host, {})
    own = ("_get_pty", "_timeout", "_stdin", "_success_exit_codes")
    connector = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS and key not in own}
    # One line of input is the script; the rest of it stays open for as long as somebody listens.
    command = StringCommand("sh", "-c", '\'read -r text && eval "$(echo "$text" | base64 -d)"\'')
    whole = make_unix_command_for_host(host.state, host, command, **connector).get_raw_value()
    client = host.connector.client  # type: ignore[attr-defined]
    try:
        transport = client.get_transport()
        transport.set_keepalive(15)
        channel = transport.open_session(timeout=LOOK_SECONDS)
        channel.exec_command(whole)
        channel.sendall(base64.b64encode(script.encode()) + b"\n")
        readers = [
            gevent.spawn(_pass_on, read, kind, heard) for kind, read in ((1, channel.recv), (2, channel.recv_stderr))
        ]
        try:
            gevent.joinall(readers, raise_error=True)
        except BaseException:
            gevent.killall(readers)
            channel.close()
            raise
        code = int(channel.recv_exit_status())
    except (OSError, EOFError, SSHException) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise StepError(f"the connection failed: {error}") from error
    if code < 0:
        raise StepError("the connection was lost before the end")
    return code


def _pass_on(read: Callable[[int], bytes], kind: int, heard: Callable[[int, bytes], None]) -> None:
    while data := read(65536):
        heard(kind, data)
    heard(kind, b"")


STREAM_TOKEN = "CALLFLEET_STREAM"  # noqa: S105 - the name of a variable


def attached(text: str, token: str) -> str:
    """A script around `text`: runs it without input, and ends all of it once nobody holds our own input open any more.

    Everything that it starts carries the token in its environment; found by that, also inside of a container.
    """
    return f"""
exec 3<&0
{STREAM_TOKEN}={token} setsid sh -c {shlex.quote(text)} </dev/null 3<&- &
child=$!
{{
  cat <&3
  trap "" TERM # from here on to the end, also when the first signal ends the command
  for signal in TERM KILL; do
    for process in /proc/[0-9]*; do
      grep -qsxz {STREAM_TOKEN}={token} "$process/environ" && kill -s "$signal" "${{process#/proc/}}"
    done
    sleep 1
  done
}} >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$child"
code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"""


def read_files(host: PyinfraHost, paths: list[str]) -> dict[str, bytes]:
    """Content of text files, for diffs; a file that cannot be read is left out."""
    quoted = " ".join(shlex.quote(path) for path in paths)
    listing = ask(host, f'for f in {quoted}; do printf "%s " "$f"; base64 -w0 < "$f" 2>/dev/null; echo; done')
    found = {}
    for line in listing.splitlines():
        path, _, encoded = line.rpartition(" ")
        found[path] = base64.b64decode(encoded)
    return found


def connect_afresh(host: PyinfraHost) -> str:
    """Open a second SSH connection by the same settings and run nothing; why it failed, empty if it did not."""
    connector = host.connector
    kwargs = connector.make_paramiko_kwargs()  # type: ignore[attr-defined]
    client = type(connector.client)()  # type: ignore[attr-defined]
    try:
        with gevent.Timeout(15, exception=TimeoutError):
            client.connect(kwargs.pop("hostname"), **kwargs)
    except Exception as error:  # whatever it is, it means that nobody else gets in either
        return f"{type(error).__name__}: {error}"
    finally:
        client.close()
    return ""


def route(ssh: SshSettings) -> tuple[str, Any]:
    """Where a host's SSH server is by the SSH configuration, and a channel there where a jump host or proxy leads.

    Nobody has logged in to the host itself.
    """
    from pyinfra.connectors.sshuserclient import SSHClient

    settings = {"port": ssh.port, "timeout": ssh.connect_timeout_seconds}
    hostname, found, *_ = SSHClient().parse_config(  # type: ignore[no-untyped-call]
        ssh.hostname,
        settings,
        ssh_config_file=str(ssh.config) if ssh.config else None,
        strict_host_key_checking="yes",
    )
    return str(hostname), found.get("sock")


def tell(host: PyinfraHost, log: Callable[[str], Any], text: str, colour: str) -> None:
    """Lines for the operator, under the host's name."""
    for line in text.splitlines() or [""]:
        host.log_styled(line, fg=colour, log_func=log)


def say(host: PyinfraHost, text: str, colour: str = "yellow") -> None:
    """A line for the operator, under the host's name."""
    tell(host, logger.info, text, colour)


# The lock


@dataclass
class Held:
    """The lock of this run on one host, and what keeps it alive."""

    owner: lock.Owner
    fence: int
    heartbeat: gevent.Greenlet
    steps: int = 0


@dataclass
class Run:
    """What all hosts of one run share: its word in lock and journal, its plan, and who refused to be locked."""

    token: str
    plan: str
    refused: dict[str, str]


_held: WeakKeyDictionary[PyinfraHost, Held] = WeakKeyDictionary()
_runs: WeakKeyDictionary[State, Run] = WeakKeyDictionary()


def run_record(state: State) -> Run:
    """What the hosts of a run share; made at its first use."""
    if state not in _runs:
        _runs[state] = Run(secrets.token_hex(8), secrets.token_hex(4), {})
        state.add_callback_handler(_ReleaseFailed())  # type: ignore[no-untyped-call]
    return _runs[state]


def ensure_locked(host: PyinfraHost) -> Held:
    """The lock of this run on `host`, taken if it is not held yet. StepError says who has it, and what to do."""
    run = run_record(host.state)
    if run.refused:
        names = ", ".join(sorted(run.refused))
        raise LockedError(f"{names}: another run is at work there, so nothing is done here either; run again after it")
    if host in _held:
        return _held[host]
    try:
        owner, fence = _take(host, run)
    except LockedError as error:
        run.refused[host.name] = str(error)
        raise
    _held[host] = Held(owner, fence, gevent.spawn(_keep_alive, host, owner))
    return _held[host]


def is_locked(host: PyinfraHost) -> bool:
    """Whether this run holds the host's lock."""
    return host in _held


def release(host: PyinfraHost) -> None:
    """Give the lock of this run back, if it is held. A host that does not answer frees it by its expiry."""
    held = _held.pop(host, None)
    if held is None:
        return
    held.heartbeat.kill(block=False)
    try:
        ask(host, lock.release(held.owner), seconds=15)
    except StepError as error:
        logger.debug(f"{host.name}: the lock was not given back: {error}")


def _take(host: PyinfraHost, run: Run) -> tuple[lock.Owner, int]:
    """Take the lock. A holder is watched for one lifetime of a lock: one that renews it is alive, and left alone."""
    owner = lock.Owner(who(), _controller(), os.getpid(), run.plan, run.token)
    dead, seen, told = "", None, False
    until = time.monotonic() + 2 * lock.TTL_SECONDS
    busy_until = time.monotonic() + STEP_SECONDS
    while True:
        try:
            mine, other, busy = lock.read(ask(host, lock.take(owner, dead)))
        except ValueError as error:
            raise StepError(str(error)) from None
        if busy and time.monotonic() < busy_until:
            if not told:
                say(host, "a step of an earlier run is still going on here; waiting for its end")
            told = True
            gevent.sleep(1)
            continue
        if mine is not None:
            if other is not None and other.owner.token != owner.token:
                say(host, f"took over the lock of {other}, which ended without giving it back")
            return owner, mine.fence
        if other is None:
            raise LockedError("a step of an earlier run is still going on here; wait for its end, then run again")
        if _is_dead(other.owner):
            dead = other.owner.token
            continue
        renewed = seen is not None and (other.owner.token != seen.owner.token or other.expires > seen.expires)
        if renewed or time.monotonic() > until:
            raise LockedError(f"{other} is at work on this host; nothing was done here. Wait for it, then run again")
        if seen is None:
            say(host, f"locked by {other}; waiting up to {other.expires - other.now} s to see if it is alive")
        seen = seen or other
        gevent.sleep(1)


def who() -> str:
    """Who acts, for lock and journal: plain characters only, as shell scripts read them back."""
    text = f"{os.environ.get('CALLFLEET_WHO') or _login()}@{socket.gethostname()}"
    return "".join(one if one.isalnum() or one in "@._+- " else "_" for one in text)[:100]


def _login() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return str(os.getuid())


def _controller() -> str:
    """This machine in this boot: process numbers mean something only there."""
    for path in ("/proc/sys/kernel/random/boot_id", "/var/run/utmp"):
        try:
            return f"{socket.gethostname()}/{Path(path).read_text().strip()}"
        except (OSError, UnicodeDecodeError):
            continue
    return f"{socket.gethostname()}/{secrets.token_hex(8)}"


def _is_dead(owner: lock.Owner) -> bool:
    """Whether a holder on this very machine is surely gone. One elsewhere is never told dead by this."""
    if owner.controller != _controller():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _keep_alive(host: PyinfraHost, owner: lock.Owner) -> None:
    """Renew the lock until it is given back. A failure is left to the next step: it checks the lock itself."""
    while True:
        gevent.sleep(lock.RENEW_SECONDS)
        try:
            ask(host, lock.renew(owner), seconds=lock.RENEW_SECONDS)
        except StepError as error:
            logger.debug(f"{host.name}: the lock was not renewed: {error}")


class _ReleaseFailed(BaseStateCallback):
    """A host that failed gets no further operation of its run: its lock is given back at once."""

    @staticmethod
    def operation_host_error(
        state: State, host: PyinfraHost, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        release(host)


def release_all() -> None:
    """Give back every lock that this process holds; also when it ends early, by Ctrl-C."""
    jobs = [gevent.spawn(release, host) for host in list(_held)]
    gevent.joinall(jobs, timeout=20)


atexit.register(release_all)
