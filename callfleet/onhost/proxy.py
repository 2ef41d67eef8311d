"""The host's HAProxy, through its admin and master sockets."""

from __future__ import annotations

import csv
import datetime
import io
import socket
import time
from pathlib import Path

from .compose import Container, Docker
from .errors import SlotError
from .stack import Proxy

ANSWER_SECONDS = 10.0
RELOAD_SECONDS = 60.0
SEEN_SECONDS = 5.0
YOUNGEST_SECONDS = 1.0
"""A reload that comes right after the start can be lost."""
QUIET_READINGS = 3
READINGS_APART_SECONDS = 0.3
VARIABLE = "CALLFLEET_CONFIG"


def say(path: Path, command: str, seconds: float = ANSWER_SECONDS) -> str:
    """Send one command, return the whole answer. SlotError when nobody answers."""
    until, answer = time.monotonic() + seconds, b""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(seconds)
            line.connect(str(path))
            line.sendall(command.encode() + b"\n")
            line.shutdown(socket.SHUT_WR)  # the master's socket stays open otherwise
            while data := line.recv(65536):
                answer += data
                line.settimeout(max(0.001, until - time.monotonic()))
    except OSError as error:
        raise SlotError(f"the proxy does not answer {command!r} on {path}: {error}") from error
    return answer.decode(errors="replace")


def running_config(proxy: Proxy) -> str | None:
    """The hash of the configuration that runs, as the configuration itself says; None when it says none."""
    for line in say(proxy.admin_socket, f"show env {VARIABLE}").splitlines():
        if line.startswith(f"{VARIABLE}="):
            return line.partition("=")[2].strip()
    return None


def is_current(proxy: Proxy) -> bool:
    """Whether it runs the wanted configuration, and was loaded after its file was written.

    A file that was edited, loaded and put back has the wanted hash in both, and something else runs.
    """
    if running_config(proxy) != proxy.config_hash:
        return False
    if proxy.config is None:
        return True
    try:
        written = proxy.config.stat().st_mtime
    except FileNotFoundError:
        return False
    # Whole seconds: a load in the second of the writing counts as after it.
    return int(written) <= _started(proxy)


def _started(proxy: Proxy) -> int:
    """Unix seconds of the start or reload by which the process that takes connections runs."""
    started = information(proxy.admin_socket).get("Start_time_sec", "")
    if not started.isdigit():
        raise SlotError(f"the proxy on {proxy.admin_socket} does not say since when it runs")
    return int(started)


def information(admin_socket: Path) -> dict[str, str]:
    """What `show info` says, by name."""
    lines = (line.partition(": ") for line in say(admin_socket, "show info").splitlines())
    return {name: value.strip() for name, _, value in lines}


def check(proxy: Proxy, docker: Docker, container: Container) -> None:
    """Have the running proxy's own program read the new file; warnings count. SlotError with its words."""
    docker.inside(container, "haproxy", "-c", "-dW", "-f", proxy.container_config)


def reload(proxy: Proxy, container: Container) -> None:
    """Turn to the new configuration; open calls stay with the old process. Success means: the new one runs."""
    time.sleep(max(0.0, YOUNGEST_SECONDS - _age(container)))
    answer = say(proxy.master_socket, "reload", RELOAD_SECONDS)
    if not answer.startswith("Success=1"):
        raise SlotError(f"the proxy refused the new file and runs on with the old one: {answer.strip()[:1000]}")
    until = time.monotonic() + SEEN_SECONDS
    while (got := _running_or_none(proxy)) != proxy.config_hash:
        if time.monotonic() > until:
            raise SlotError(f"after the reload it runs {got!r}, expected {proxy.config_hash!r}: is its file new?")
        time.sleep(0.1)


def remember(proxy: Proxy) -> None:
    """Write down which socket lies at the admin socket's path: another process that binds it puts another one there."""
    _memory(proxy).write_text(_identity(proxy))


def took_over(proxy: Proxy) -> bool:
    """Another process than the remembered one has the admin socket, and it runs the wanted configuration."""
    try:
        before = _memory(proxy).read_text()
        return _identity(proxy) != before and _running_or_none(proxy) == proxy.config_hash
    except OSError:
        return False


def _memory(proxy: Proxy) -> Path:
    return proxy.admin_socket.with_name("former-admin-socket")


def _identity(proxy: Proxy) -> str:
    found = proxy.admin_socket.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_ctime_ns}"


def sessions(proxy: Proxy) -> int:
    """Connections through the proxy now, over its present and its former processes."""
    return sum(_sessions(say(proxy.master_socket, f"@!{pid} show stat")) for pid in _workers(proxy))


def at_the_limit(proxy: Proxy, max_reloads: int) -> int:
    """Connections in processes that one more reload would end: they have outlived `max_reloads` already."""
    oldest = [pid for pid, reloads in _workers(proxy).items() if reloads >= max_reloads]
    return sum(_sessions(say(proxy.master_socket, f"@!{pid} show stat")) for pid in oldest)


def _workers(proxy: Proxy) -> dict[str, int]:
    """By pid, how many reloads each worker process has outlived."""
    found = {}
    for line in say(proxy.master_socket, "show proc").splitlines():
        part = line.split()
        if len(part) > 2 and part[0].isdigit() and part[1] == "worker":
            found[part[0]] = int(part[2])
    if not found:
        raise SlotError(f"{proxy.master_socket} names no worker process")
    return found


def _sessions(stat: str) -> int:
    if not stat.startswith("# "):
        raise SlotError(f"strange answer to show stat: {stat[:100]!r}")
    rows = csv.DictReader(io.StringIO(stat[2:]))
    return sum(int(row["scur"] or 0) for row in rows if row["svname"] == "FRONTEND")


def _running_or_none(proxy: Proxy) -> str | None:
    try:
        return running_config(proxy)
    except SlotError:
        return None


def _age(container: Container) -> float:
    """Seconds since Docker started it; 0 when its time cannot be read."""
    try:
        started = datetime.datetime.fromisoformat(container.started[:19] + "+00:00")
    except ValueError:
        return 0.0
    return (datetime.datetime.now(datetime.UTC) - started).total_seconds()
