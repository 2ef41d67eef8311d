"""Bring a running HAProxy's servers and certificates to what is wanted, through its runtime API: no call is ended.

servers.py --admin-socket PATH --agreed FILE ORDER
servers.py --admin-socket PATH --state drain|ready SERVER...

ORDER is JSON: {"backends": {NAME: [{"name", "address", "slots", "id", "options", "drained": bool or null, "prove"}]},
"certificates": [{"path", "kind": "cert" or "ca-file", "fingerprint"}], "file_sha256": of the file that says the same}.
Prints `pending BACKEND/SERVER: why` for what waits for calls to end. A server that must be proven and is not reached
is taken out again: exit code 1. Otherwise the file FILE notes which process agrees with which configuration file.
With --state the named servers get no new calls, or get them again, in every backend that has them.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import SlotError
from .proxy import information, say

PROVEN_SECONDS = 15.0
"""Several checks long."""
LOOKS_APART_SECONDS = 0.2
MAINT, DRAIN = 1, 8
CHECKED = 4
Row = Mapping[str, str]


class Servers:
    """The backends of one running process, by its admin socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def do(self, command: str, expected: str = "") -> None:
        """One command that answers nothing, or words that contain `expected`. SlotError with what else it said."""
        answer = say(self.socket, command).strip()
        if expected not in answer if expected else answer:
            raise SlotError(f"the proxy refused {command.splitlines()[0]!r}: {answer}")

    def rows(self, backend: str) -> dict[str, dict[str, str]]:
        """Each server by name: its line of `show stat`, and that of `show servers state`."""
        stat = csv.DictReader(say(self.socket, "show stat").removeprefix("# ").splitlines())
        found = {row["svname"]: dict(row) for row in stat if row["type"] == "2" and row["pxname"] == backend}
        lines = say(self.socket, f"show servers state {backend}").splitlines()
        if len(lines) < 2:
            raise SlotError(f"the proxy does not tell the servers of {backend}: {' '.join(lines)}")
        names = lines[1].removeprefix("# ").split()
        for line in lines[2:]:
            if line.strip():
                row = dict(zip(names, line.split(), strict=False))
                found.setdefault(row["srv_name"], {}).update(row)
        return found

    def leave(self, name: str, row: Row) -> str:
        """Take a server out; why it has to stay a while, or nothing. It gets no new call either way."""
        if not int(row["srv_admin_state"]) & (MAINT | DRAIN):
            self.do(f"set server {name} state drain")
            row = self.rows(name.partition("/")[0])[name.partition("/")[2]]
        if int(row["scur"]):
            return f"{row['scur']} calls are on it"
        self.do(f"set server {name} state maint")
        say(self.socket, f"wait 5s srv-removable {name}")
        answer = say(self.socket, f"del server {name}").strip()
        return "" if "deleted" in answer else answer

    def join(self, name: str, wanted: Mapping[str, Any]) -> None:
        """Add a server with its health check running; it gets no call yet."""
        line = f"{wanted['address']} id {wanted['id']} maxconn {wanted['slots']} {wanted['options']}"
        self.do(f"add server {name} {line}", "registered")
        self.do(f"enable health {name}")

    def set(self, name: str, wanted: Mapping[str, Any], row: Row) -> None:
        """Address, limit, health check and state of a server that is there."""
        if row["addr"] != wanted["address"]:
            address, _, port = wanted["address"].rpartition(":")
            self.do(f"set server {name} addr {address.strip('[]')} port {port}", "changed")
        if row["slim"] != str(wanted["slots"]):
            self.do(f"set maxconn server {name} {wanted['slots']}")
        if not int(row["srv_check_state"]) & CHECKED:
            self.do(f"enable health {name}")
        state, admin = ("drain" if wanted["drained"] else "ready"), int(row["srv_admin_state"])
        if wanted["drained"] is None and admin == DRAIN:
            return
        if admin != (DRAIN if wanted["drained"] else 0):
            self.do(f"set server {name} state {state}")

    def bring(self, backend: str, wanted: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """All servers of one backend to what is wanted: what waits for calls, and what is not reached."""
        pending, new, rows = [], [], self.rows(backend)
        for one, row in rows.items():
            stays = one in wanted and row["sid"] == str(wanted[one]["id"])
            if not stays and (why := self.leave(f"{backend}/{one}", row)):
                pending.append(f"{backend}/{one}: {why}")
        rows = self.rows(backend)
        for one, server in wanted.items():
            name = f"{backend}/{one}"
            if one not in rows:
                self.join(name, server)
                if server["prove"]:
                    new.append(one)
                    continue
            if one not in rows or rows[one]["sid"] == str(server["id"]):
                self.set(name, server, self.rows(backend)[one])
        return pending, self.prove(backend, wanted, new)

    def prove(self, backend: str, wanted: Mapping[str, Mapping[str, Any]], new: Sequence[str]) -> list[str]:
        """Let those of the new servers have calls whose check passes; the others are taken out again and named."""
        until, left, unreached = time.monotonic() + PROVEN_SECONDS, list(new), []
        while left:
            rows = self.rows(backend)
            for one in [each for each in left if rows[each]["check_status"] == "L7OK"]:
                self.set(f"{backend}/{one}", wanted[one], rows[one])
                left.remove(one)
            if left and time.monotonic() > until:
                for one in left:
                    said = rows[one].get("last_chk") or rows[one]["check_status"]
                    unreached.append(f"{backend}/{one} ({rows[one]['check_status']}: {said})")
                    self.leave(f"{backend}/{one}", rows[one])
                break
            time.sleep(LOOKS_APART_SECONDS if left else 0)
        return unreached

    def state(self, word: str, names: Sequence[str]) -> None:
        """`drain` or `ready` for these servers, wherever they are."""
        stat = csv.DictReader(say(self.socket, "show stat").removeprefix("# ").splitlines())
        for row in stat:
            if row["type"] == "2" and row["svname"] in names:
                self.do(f"set server {row['pxname']}/{row['svname']} state {word}")

    def serve(self, path: str, kind: str, fingerprint: str) -> None:
        """Have the process use what its certificate's file says now."""
        if self._serves(path, kind) != fingerprint:
            text = "\n".join(line for line in Path(path).read_text().splitlines() if line.strip())
            try:
                self.do(f"set ssl {kind} {path} <<\n{text}\n", "ransaction")
                self.do(f"commit ssl {kind} {path}", "Success")
            except SlotError:
                say(self.socket, f"abort ssl {kind} {path}")
                raise
            if (found := self._serves(path, kind)) != fingerprint:
                raise SlotError(f"{path}: the proxy has {found}, expected {fingerprint}")

    def _serves(self, path: str, kind: str) -> str:
        return " ".join(
            re.findall(r"^SHA1 FingerPrint: ([0-9A-F]+)", say(self.socket, f"show ssl {kind} {path}"), re.M)
        )

    def identity(self) -> dict[str, int]:
        """Which process this is, and since when (unix seconds)."""
        info = information(self.socket)
        return {"pid": int(info["Pid"]), "started": int(info["Start_time_sec"])}


def bring(servers: Servers, order: Mapping[str, Any], agreed: Path) -> tuple[list[str], list[str]]:
    """All of an order: what waits for calls, and what is not reached. SlotError for what HAProxy refuses."""
    before = servers.identity()
    for one in order["certificates"]:
        servers.serve(one["path"], one["kind"], one["fingerprint"])
    pending, unreached = [], []
    for backend, wanted in order["backends"].items():
        waits, away = servers.bring(backend, {one["name"]: one for one in wanted})
        pending += waits
        unreached += away
    if servers.identity() != before:
        raise SlotError("the proxy was reloaded meanwhile; run again")
    if not unreached:
        new = agreed.with_suffix(".new")
        new.write_text(json.dumps({**before, "sha256": order["file_sha256"]}))
        new.replace(agreed)
    return pending, unreached


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("order", nargs="+")
    parser.add_argument("--admin-socket", type=Path, required=True)
    parser.add_argument("--agreed", type=Path)
    parser.add_argument("--state", choices=("drain", "ready"))
    options = parser.parse_args(arguments)
    servers = Servers(options.admin_socket)
    try:
        if options.state:
            servers.state(options.state, options.order)
            return 0
        pending, unreached = bring(servers, json.loads(options.order[0]), options.agreed)
    except SlotError as error:
        print(error, file=sys.stderr)
        return 1
    for line in pending:
        print(f"pending {line}")
    if unreached:
        hint = "look at its certificates, its firewall and /health/fleet; it is not registered"
        print(f"the ingress does not reach {', '.join(unreached)}: {hint}", file=sys.stderr)
        return 1
    return 0
