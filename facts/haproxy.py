"""Reads the running proxies through their admin and master sockets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from typing import TypeVar

from callfleet.actual import Proxy, ProxyProcess, ProxyServer, Unknown
from facts.frame import REASON_LENGTH, Answer, attempt, read_presence, records

T = TypeVar("T")


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
        servers=_servers(texts["show stat"], _admin_states(texts["show servers state"])),
    )


def _servers(stat: str, admin: Mapping[tuple[str, str], int]) -> tuple[ProxyServer, ...]:
    """Rows of ``show stat`` whose type is 2: servers, not frontends, backends or listeners."""
    servers = []
    for row in csv.DictReader(stat.removeprefix("# ").splitlines()):
        if row["type"] != "2":
            continue
        key = row["pxname"], row["svname"]
        weight, address = row.get("weight") or "", row.get("addr") or ""
        servers.append(
            ProxyServer(
                backend=key[0],
                name=key[1],
                address=address,
                status=row["status"],
                weight=int(weight) if weight.isdigit() else None,
                sessions=int(row["scur"] or 0),
                admin=admin.get(key),
            )
        )
    return tuple(sorted(servers, key=lambda server: (server.backend, server.name)))


def _admin_states(state: str) -> dict[tuple[str, str], int]:
    lines = [line for line in state.splitlines() if line.strip()]
    names = lines[1].removeprefix("# ").split()
    rows = [dict(zip(names, line.split(), strict=False)) for line in lines[2:]]
    return {(row["be_name"], row["srv_name"]): int(row["srv_admin_state"]) for row in rows}


def read_processes(texts: dict[str, str]) -> tuple[ProxyProcess, ...]:
    processes: list[ProxyProcess] = []
    old = False
    for line in texts["show proc"].splitlines():
        if line.startswith("#"):
            old = "old" in line
        elif line.strip():
            pid, role, reloads = line.split()[:3]
            processes.append(ProxyProcess(int(pid), role, int(reloads), old))
    if not processes:
        raise ValueError("the master names no process")
    return tuple(processes)
