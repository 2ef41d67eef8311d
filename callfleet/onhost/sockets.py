"""Socket names as the slot's switch, and who is connected.

A slot is published by hard-linking its own socket into published/ and into the other slots' directories, and
withdrawn by removing those names; its own name stays.

Who is connected: the kernel keeps the server's end of a connection in the network namespace of whoever
*connected*, not of the worker, and shows it under the path used at bind(), so one `ss` sees only a part. We
therefore ask in every network namespace of the host and compare inode numbers, which survive links and renames.
A connection that waits to be accepted shows only as the listener's queue, so that is counted too.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import SlotError
from .stack import Stack

SS_SECONDS = 10
CONNECT_SECONDS = 1.0
INODE = re.compile(r"\bino:(\d+)")
Identity = tuple[int, int, int]


def identity(path: Path) -> Identity | None:
    """Device, inode and time of bind of the socket at `path`; None when there is no socket."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns) if stat.S_ISSOCK(found.st_mode) else None


def link_dirs(stack: Stack, n: int) -> Iterator[Path]:
    """Where other names of slot n belong: the siblings' directories first, what the proxy reads last."""
    for directory in sorted((stack.run_dir / "slots").glob("[0-9]*")):
        if directory.name != str(n):
            yield directory
    yield stack.published_dir


def is_published(stack: Stack, n: int) -> bool:
    """A name exists where the proxy looks and leads to the slot's present socket."""
    own = identity(stack.own_socket(n))
    return own is not None and identity(stack.published_socket(n)) == own


def is_linked(stack: Stack, n: int) -> bool:
    """Every name of a published slot is there and leads to its present socket."""
    own = identity(stack.own_socket(n))
    name = stack.socket_name(n)
    return own is not None and all(identity(directory / name) == own for directory in link_dirs(stack, n))


def link(stack: Stack, n: int) -> None:
    """Give slot n its public names, each in one step; a name that leads elsewhere is replaced. Idempotent."""
    own, name = stack.own_socket(n), stack.socket_name(n)
    wanted = identity(own)
    if wanted is None:
        raise SlotError(f"slot {n} has no socket at {own}")
    for directory in link_dirs(stack, n):
        if identity(directory / name) == wanted:
            continue
        fresh = directory / f".{name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        os.link(own, fresh, follow_symlinks=False)
        fresh.replace(directory / name)
        fresh.unlink(missing_ok=True)  # rename() leaves both names when they already are the same file


def unlink(stack: Stack, n: int) -> bool:
    """Remove every public name of slot n, the proxy's first. True when there was one."""
    removed = False
    for directory in reversed(list(link_dirs(stack, n))):
        try:
            (directory / stack.socket_name(n)).unlink()
            removed = True
        except FileNotFoundError:
            continue
    return removed


def remove_dead(stack: Stack, n: int) -> None:
    """Remove the slot's own name, so that a worker without root's rights can bind it. Its listener must be gone."""
    if listening(stack.own_socket(n)) is not False:
        raise SlotError(f"something still listens on {stack.own_socket(n)}; look at `slotctl status {stack.name}`")
    stack.own_socket(n).unlink(missing_ok=True)


def listening(path: Path) -> bool | None:
    """Whether something accepts connections at `path`. None when that could not be told; a full queue is True."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (BlockingIOError, TimeoutError):
            return True
        except OSError:
            return None
        return True


@dataclass(frozen=True)
class Row:
    """One line of `ss`: a Unix socket with a path."""

    state: str
    queue: int
    name: str
    inode: int


def rows() -> list[Row]:
    """The named Unix stream sockets of every network namespace. SlotError when one could not be read."""
    result: list[Row] = []
    for space, pids in _namespaces().items():
        result += _parse(_ss(space, pids))
    return result


def connections(stack: Stack, n: int, seen: list[Row]) -> int | None:
    """How many connections slot n's socket has. None when its listener is not among the rows: then we are blind."""
    own = identity(stack.own_socket(n))
    if own is None:
        return None
    mine = [row for row in seen if row.inode == own[1] and row.name == stack.socket_name(n)]
    listeners = [row for row in mine if row.state == "LISTEN"]
    if not listeners:
        return None
    return sum(row.queue for row in listeners) + sum(1 for row in mine if row.state != "LISTEN")


def _namespaces() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pid in (entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            found.setdefault(str(Path(f"/proc/{pid}/ns/net").readlink()), []).append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile, or a zombie
        except PermissionError as error:
            if pid == "1":
                continue  # it may hold rights that we lack; init calls no worker, and others share its namespace
            raise SlotError("connections can be counted by root only") from error
    return found


def _ss(space: str, pids: list[str]) -> str:
    ours = str(Path("/proc/self/ns/net").readlink()) == space
    for pid in ["self"] if ours else pids:
        enter = [] if ours else ["nsenter", f"--net=/proc/{pid}/ns/net"]
        try:
            done = subprocess.run(
                [*enter, "ss", "-xaHe"], capture_output=True, text=True, timeout=SS_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SlotError(f"ss: {error}") from error
        if done.returncode == 0:
            return done.stdout
        if Path(f"/proc/{pid}").exists():
            raise SlotError(f"ss in {space}: {done.stderr.strip()}")
    return ""  # every process of that namespace has ended


def _parse(text: str) -> list[Row]:
    result = []
    for line in text.splitlines():
        part = line.split()
        inode = INODE.search(line)
        if len(part) > 4 and part[0] == "u_str" and inode and part[4].startswith("/"):
            result.append(Row(part[1], int(part[2]), part[4].rsplit("/", 1)[1], int(inode[1])))
    return result
