"""Reads paths: what they are, who owns them, what they hold, and what lies in folders of ours."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping

from callfleet.actual import FileState, Unknown
from facts.frame import Answer, Part, read_presence, records

LARGEST_CONTENT = 65536  # bytes; probe.sh sends one more, so that a larger file shows

_KINDS = {"f": "file", "d": "directory", "l": "link", "s": "socket", "p": "fifo", "b": "block", "c": "char"}


def _file_state(fields: list[str]) -> FileState:
    kind, mode, owner, group, uid, gid, size, mtime, target = fields[:9]
    return FileState(
        kind=_KINDS.get(kind, "other"),
        mode=int(mode, 8),
        owner=owner,
        group=group,
        uid=int(uid),
        gid=int(gid),
        size=int(size),
        mtime=float(mtime),
        target=target if kind == "l" else None,
    )


def read_files(answer: Answer) -> dict[str, FileState | Unknown | None] | Unknown:
    if not answer.request.files:
        return {}
    presence = answer.read("presence", read_presence)
    if isinstance(presence, Unknown):
        return presence
    found = answer.read("files", _file_states, ok=(0, 1, 124, 137))
    hashes = answer.read("hashes", _hashes, ok=(0, 1, 124, 137))
    states: dict[str, FileState | Unknown | None] = {}
    for path in answer.request.files:
        state = found if isinstance(found, Unknown) else found.get(path)
        if isinstance(state, FileState):
            states[path] = dataclasses.replace(state, sha256=_hash_of(path, state, hashes))
        elif presence.get(path) == "1":
            states[path] = None
        elif presence.get(path) == "0":
            states[path] = state if isinstance(state, Unknown) else Unknown("it is there but could not be read")
        else:
            states[path] = Unknown("a folder above it may not be searched")
    return states


def _file_states(part: Part) -> dict[str, FileState]:
    return {fields[9]: _file_state(fields) for fields in records(part.data, 10)}


def _hashes(part: Part) -> dict[str, str]:
    """Lines of ``sha256sum -z``: 64 hexadecimal digits, a space, space or star, the path as it is."""
    lines = part.data.decode("utf-8", "surrogateescape").split("\0")[:-1]
    return {line[66:]: line[:64] for line in lines if re.match(r"[0-9a-f]{64} [ *]", line)}


def _hash_of(path: str, state: FileState, hashes: Mapping[str, str] | Unknown) -> str | Unknown | None:
    if state.kind != "file":
        return None
    if isinstance(hashes, Unknown):
        return hashes
    return hashes[path] if path in hashes else Unknown("its content could not be read")


def read_listings(answer: Answer) -> dict[str, dict[str, FileState] | Unknown | None] | Unknown:
    if not answer.request.listed:
        return {}
    presence = answer.read("presence", read_presence)
    if isinstance(presence, Unknown):
        return presence
    found = answer.read("listings", _listed)
    listings: dict[str, dict[str, FileState] | Unknown | None] = {}
    for directory in answer.request.listed:
        if presence.get(directory) == "1":
            listings[directory] = None
        elif presence.get(directory) != "0":
            listings[directory] = Unknown("a folder above it may not be searched")
        else:
            nothing = Unknown("it is not a directory that can be listed")
            listings[directory] = found if isinstance(found, Unknown) else found.get(directory, nothing)
    return listings


def _listed(part: Part) -> dict[str, dict[str, FileState]]:
    listed: dict[str, dict[str, FileState]] = {}
    for fields in records(part.data, 11):
        directory, path = fields[9:]
        entries = listed.setdefault(directory, {})
        if path:  # the directory itself has none
            entries[path] = _file_state(fields)
    return listed


def read_contents(answer: Answer) -> dict[str, bytes | Unknown | None] | Unknown:
    return answer.read("contents", _contents) if answer.request.contents else {}


def read_certificates(answer: Answer) -> dict[str, bytes | Unknown | None] | Unknown:
    """The first certificate of each file as PEM; empty where there is none in it."""
    return answer.read("certificates", _contents) if answer.request.certificates else {}


def _contents(part: Part) -> dict[str, bytes | Unknown | None]:
    return {path: _content(there, text) for there, path, text in records(part.data, 3)}


def _content(there: str, text: str) -> bytes | Unknown | None:
    if there == "1":
        return None
    if there != "0":
        return Unknown("its content could not be read")
    content = base64.b64decode(text)
    if len(content) > LARGEST_CONTENT:
        return Unknown(f"it is larger than {LARGEST_CONTENT} bytes")
    return content
