"""Reads the machine: system, memory, disks, clock, packages, units, listening sockets."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Mapping
from typing import TypeVar

from callfleet.actual import Clock, Disk, Listener, Memory, Os, PackageState, UnitState, Unknown
from facts.frame import Part, attempt, settings

T = TypeVar("T")


def told_value(told: Mapping[str, str] | Unknown, key: str, convert: Callable[[str], T]) -> T | Unknown:
    if isinstance(told, Unknown):
        return told
    if key not in told:
        return Unknown(f"the host did not tell its {key}")
    return attempt(key, lambda: convert(told[key]))


def read_memory(told: Mapping[str, str] | Unknown) -> Memory | Unknown:
    total = told_value(told, "MemTotal", int)
    available = told_value(told, "MemAvailable", int)
    if isinstance(total, Unknown):
        return total
    if isinstance(available, Unknown):
        return available
    return Memory(total=total * 1024, available=available * 1024)


def read_os(part: Part) -> Os:
    words = {key: "".join(shlex.split(value)) for key, value in settings(part).items()}
    return Os(id=words["ID"], version_id=words.get("VERSION_ID", ""), codename=words.get("VERSION_CODENAME", ""))


def read_disks(part: Part) -> dict[str, Disk]:
    disks: dict[str, Disk] = {}
    for line in part.lines[1:]:
        path, size, free, inodes, mount = line.split(None, 4)
        disks[path] = Disk(mount, int(size), int(free), int(inodes) if inodes.isdigit() else None)
    if "/" not in disks:
        raise ValueError("there is no line about /")
    return disks


def read_clock(part: Part) -> Clock:
    told = settings(part)
    word = told.get("NTPSynchronized")
    synchronized = word == "yes" if word in ("yes", "no") else Unknown(part.reason or "timedatectl did not tell")
    return Clock(int(told["unix"]), synchronized)


def read_packages(part: Part, names: tuple[str, ...]) -> dict[str, PackageState | None]:
    packages: dict[str, PackageState | None] = dict.fromkeys(names)
    for line in part.lines:
        name, version, status, want = line.split("\t")
        if status not in ("not-installed", "config-files"):
            packages[name] = PackageState(version, status, held=want == "hold")
    return packages


def read_units(part: Part, names: tuple[str, ...]) -> dict[str, UnitState | None]:
    blocks = [block for block in part.text.split("\n\n") if block.strip()]
    return {name: _unit(block) for name, block in zip(names, blocks, strict=True)}


def _unit(block: str) -> UnitState | None:
    said = {key: value for key, _, value in (line.partition("=") for line in block.splitlines())}
    # a unit whose file was removed while it ran is not found, and runs
    if said["LoadState"] == "not-found" and said["ActiveState"] == "inactive":
        return None
    since = said.get("ActiveEnterTimestamp", "").removeprefix("@")
    return UnitState(
        id=said["Id"],
        load=said["LoadState"],
        active=said["ActiveState"],
        sub=said["SubState"],
        enabled=said.get("UnitFileState", ""),
        main_pid=int(said.get("MainPID") or 0),
        since=int(since) if since else None,
        invocation=said.get("InvocationID", ""),
        restarts=int(said.get("NRestarts") or 0),
        fragment=said.get("FragmentPath", ""),
        drop_ins=tuple(said.get("DropInPaths", "").split()),
        needs_reload=said["NeedDaemonReload"] == "yes",
    )


def read_listeners(part: Part) -> tuple[Listener, ...]:
    found = {_listener(line) for line in part.lines}
    return tuple(sorted((one for one in found if one), key=lambda one: (one.port, one.address, one.processes)))


def _listener(line: str) -> Listener | None:
    fields = line.split(None, 5)
    if fields[0] == "LISTEN":
        address, _, port = fields[3].rpartition(":")
        users = re.findall(r'\("(.*?)",pid=(\d+),fd=\d+\)', fields[5] if len(fields) > 5 else "")
        processes = tuple(sorted({(name, int(pid)) for name, pid in users}))
        return Listener(_address(address), int(port), processes)
    if fields[3] == "0A":
        address, _, port = fields[1].partition(":")
        return Listener(_kernel_address(address), int(port, 16))
    return None


def _address(text: str) -> str:
    """``*`` is how ss writes a socket that takes both families."""
    return "::" if text == "*" else text.strip("[]")


def _kernel_address(text: str) -> str:
    """/proc/net writes addresses as 32-bit words in the host's byte order, little-endian on every host we support."""
    words = [text[start : start + 8] for start in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(bytes.fromhex(word)[::-1] for word in words)))
