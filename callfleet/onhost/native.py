"""Load a configuration into a HAProxy that systemd runs, without ending a call: the ingress, not the host proxy.

native.py UNIT --config FILE --admin-socket PATH --master-socket PATH --wanted HASH
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .errors import SlotError
from .proxy import (
    QUIET_READINGS,
    READINGS_APART_SECONDS,
    RELOAD_SECONDS,
    SEEN_SECONDS,
    YOUNGEST_SECONDS,
    at_the_limit,
    running_config,
    say,
    sessions,
)
from .stack import Proxy

START_SECONDS = 15.0


def load(unit: str, config: Path, proxy: Proxy, max_reloads: int) -> str:
    """Make the unit run `config`; returns what was done. SlotError says why not, and what runs on.

    HAProxy ends a process, calls and all, that has seen more than `max_reloads` (its mworker-max-reloads).
    """
    if _show(unit, "ActiveState") != "active":
        _systemctl("start", unit)
        done = "started"
    elif str(config) in _command_line(unit):
        if calls := at_the_limit(proxy, max_reloads):
            raise SlotError(
                f"one more reload would end {calls} connections in a process that has seen {max_reloads}; the old "
                "configuration runs on. Run again when they have ended"
            )
        time.sleep(max(0.0, YOUNGEST_SECONDS - _age(unit)))
        answer = say(proxy.master_socket, "reload", RELOAD_SECONDS)
        if not answer.startswith("Success=1"):
            raise SlotError(f"{unit} refused the new file and runs on with the old one: {answer.strip()[:1000]}")
        done = "reloaded"
    else:
        # It runs somebody else's configuration (the package's own, right after its installation).
        if not _is_quiet(proxy):
            raise SlotError(f"{unit} carries connections under a configuration that is not ours; it is not restarted")
        _systemctl("restart", unit)
        done = "restarted"
    _wait_for(proxy)
    return done


def _is_quiet(proxy: Proxy) -> bool:
    """Nobody is connected, several times in a row; one that is just starting is asked again until it answers."""
    until = time.monotonic() + START_SECONDS
    quiet = 0
    while quiet < QUIET_READINGS:
        try:
            if sessions(proxy):
                return False
            quiet += 1
        except SlotError:
            if time.monotonic() > until:
                raise
            quiet = 0
        time.sleep(READINGS_APART_SECONDS)
    return True


def _wait_for(proxy: Proxy) -> None:
    until = time.monotonic() + SEEN_SECONDS + START_SECONDS
    while True:
        try:
            found = running_config(proxy)
        except SlotError as error:
            found = str(error)
        if found == proxy.config_hash:
            return
        if time.monotonic() > until:
            raise SlotError(f"it runs {found!r}, expected {proxy.config_hash!r}")
        time.sleep(0.1)


def _show(unit: str, name: str) -> str:
    done = subprocess.run(["systemctl", "show", "-P", name, unit], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _systemctl(verb: str, unit: str) -> None:
    done = subprocess.run(["systemctl", verb, unit], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlotError(f"systemctl {verb} {unit}: {done.stderr.strip()}")


def _command_line(unit: str) -> str:
    pid = _show(unit, "MainPID")
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError as error:
        raise SlotError(f"{unit} has no process to ask: {error}") from error


def _age(unit: str) -> float:
    started = _show(unit, "ExecMainStartTimestampMonotonic")
    return time.clock_gettime(time.CLOCK_MONOTONIC) - int(started or 0) / 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unit")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--admin-socket", type=Path, required=True)
    parser.add_argument("--master-socket", type=Path, required=True)
    parser.add_argument("--wanted", required=True)
    parser.add_argument("--max-reloads", type=int, required=True)
    options = parser.parse_args(arguments)
    proxy = Proxy(options.wanted, options.admin_socket, options.master_socket, str(options.config))
    try:
        print(load(options.unit, options.config, proxy, options.max_reloads))
    except SlotError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
