"""Reads the running proxies through their admin and master sockets."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from callfleet.actual import Proxy, ProxyProcess, ProxyServer, Unknown
from facts.frame import REASON_LENGTH, Answer, attempt, read_presence, records

T = TypeVar("T")

CHECK_ENABLED = 4
"""The bit of `srv_check_state` (management guide, 9.3) that says that a health check runs."""


def read_ask(answer: Answer, path: str, reader: Callable[[dict[str, str]], T]) -> T | Unknown | None:
    """What the process behind one socket says; absent when the name is not there or nobody listens at it.

    A dead process leaves its socket's name behind; a refused connection is the kernel's word that none has it open.
    """
    presence = answer.read("socket-presence", read_presence)
    if isinstance(presence, Unknown):
        return presence
    if presence.get(path) == "1":
        return None
    told = answer.read("sockets", lambda part: list(records(part.data, 4)))
    if isinstance(told, Unknown):
        return told
    texts: dict[str, str] = {}
    for socket, command, word, text in told:
        if socket == path and word == "refused":
            return None
        if socket == path and word != "ok":
            return Unknown(f"{path} did not answer {command}: {text}"[:REASON_LENGTH])
        if socket == path:
            texts[command] = text
    return attempt(path, lambda: reader(texts))


def read_proxy(texts: dict[str, str]) -> Proxy:
    info = {key: value.strip() for key, _, value in (line.partition(":") for line in texts["show info"].splitlines())}
    name, _, config = texts["show env CALLFLEET_CONFIG"].strip().partition("=")
    return Proxy(
        version=info["Version"],
        pid=int(info["Pid"]),
        started=int(info["Start_time_sec"]) if "Start_time_sec" in info else None,
        sessions=int(info["CurrConns"]),
        stopping=info.get("Stopping", "0") != "0",
        config=config if name == "CALLFLEET_CONFIG" and config else None,
        servers=_servers(texts["show stat"], _states(texts["show servers state"])),
        certificates=dict(_certificates(texts)),
    )


def _certificates(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Path and fingerprints from each answer to ``show ssl``; a file that the process has not loaded has none."""
    for command, text in texts.items():
        words = command.split()
        if words[:2] == ["show", "ssl"] and (found := re.findall(r"^SHA1 FingerPrint: ([0-9A-F]+)", text, re.M)):
            yield words[3], " ".join(found)


def _servers(stat: str, states: Mapping[tuple[str, str], Mapping[str, str]]) -> tuple[ProxyServer, ...]:
    """Rows of ``show stat`` whose type is 2: servers, not frontends, backends or listeners."""
    servers = []
    for row in csv.DictReader(stat.removeprefix("# ").splitlines()):
        if row["type"] != "2":
            continue
        key = row["pxname"], row["svname"]
        weight, limit, state = row.get("weight") or "", row.get("slim") or "", states.get(key, {})
        servers.append(
            ProxyServer(
                backend=key[0],
                name=key[1],
                address=row.get("addr") or "",
                status=row["status"],
                weight=int(weight) if weight.isdigit() else None,
                sessions=int(row["scur"] or 0),
                admin=int(state["srv_admin_state"]) if state else None,
                id=int(row.get("sid") or 0),
                limit=int(limit) if limit.isdigit() else None,
                checked=bool(int(state["srv_check_state"]) & CHECK_ENABLED) if "srv_check_state" in state else None,
            )
        )
    return tuple(sorted(servers, key=lambda server: (server.backend, server.name)))


def _states(state: str) -> dict[tuple[str, str], dict[str, str]]:
    lines = [line for line in state.splitlines() if line.strip()]
    names = lines[1].removeprefix("# ").split()
    rows = [dict(zip(names, line.split(), strict=False)) for line in lines[2:]]
    return {(row["be_name"], row["srv_name"]): row for row in rows}


def read_processes(texts: dict[str, str]) -> tuple[ProxyProcess, ...]:
    processes: list[ProxyProcess] = []
    old = False
    for line in texts["show proc"].splitlines():
        if line.startswith("#"):
            old = "old" in line
        elif line.strip():
            pid, role, reloads = line.split()[:3]
            stat, sessions = texts.get(f"@!{pid} show stat -1 1 -1"), texts.get(f"@!{pid} show sess")
            processes.append(
                ProxyProcess(
                    int(pid),
                    role,
                    int(reloads),
                    old,
                    connections=None if stat is None else _connections(stat),
                    ages={} if sessions is None else _ages(sessions),
                )
            )
    if not processes:
        raise ValueError("the master names no process")
    return tuple(processes)


def _connections(stat: str) -> int | None:
    """What the frontends carry now. None where the process said something else."""
    if not stat.startswith("# "):
        return None
    rows = csv.DictReader(stat.removeprefix("# ").splitlines())
    return sum(int(row["scur"] or 0) for row in rows if row["svname"] == "FRONTEND" and row["pxname"] != "metrics")


_AGE = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86400, 3600, 60, 1)


def _ages(sessions: str) -> dict[tuple[str, str], int]:
    """Backend and server -> seconds of its oldest session. Ages read `45s`, `3m12s`, `1d2h`."""
    ages: dict[tuple[str, str], int] = {}
    for line in sessions.splitlines():
        said = dict(word.partition("=")[::2] for word in line.split())
        found = _AGE.fullmatch(said.get("age", ""))
        if found and any(found.groups()) and said.get("srv", "<none>") != "<none>":
            seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True))
            key = said.get("be", ""), said["srv"]
            ages[key] = max(seconds, ages.get(key, 0))
    return ages
