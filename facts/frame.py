"""The frame around the parts of a probe's answer; the format is written at the top of ``probe.sh``.

A part that is missing, damaged or failed becomes ``Unknown`` here, with its reason, and never an exception.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from callfleet.actual import ApiRequest, ProbeRequest, Unknown

T = TypeVar("T")

HEADER = "@callfleet "
FIRST = "@callfleet probe 1"
LAST = "@callfleet end"
ABSENT = 100
REASON_LENGTH = 300


class ProbeError(ValueError):
    """The output is not an answer of the probe at all; nothing is known about the host."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a function of ``probe.sh`` printed, its exit status, and why in words."""

    data: bytes
    status: int
    reason: str

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "surrogateescape")

    @property
    def lines(self) -> list[str]:
        """Lines that say something, ended by a newline only: names may hold what str.splitlines takes for one."""
        return [line for line in self.text.split("\n") if line.strip()]


class Answer:
    """The framed parts by name, and how to read one: value, absent or unknown, without ever raising."""

    def __init__(self, stdout: list[str]) -> None:
        lines = [line.rstrip("\r\n") for line in stdout]
        if FIRST not in lines:
            raise ProbeError("there is no answer of the probe in the output")
        lines = lines[lines.index(FIRST) + 1 :]
        self._bodies: dict[str, str] = {}
        name: str | None = None
        body: list[str] = []
        for line in lines:
            if line.startswith(HEADER):
                if name is not None:
                    self._bodies[name] = "".join(body)
                name, body = line.removeprefix(HEADER), []
                if line == LAST:
                    break
            else:
                body.append(line.strip())
        try:
            self.request = decode_request(base64.b64decode(self._bodies["request"], validate=True))
        except Exception as error:
            raise ProbeError("the answer of the probe does not carry what was asked") from error

    def part(self, name: str) -> Part | Unknown:
        """The decoded part, whatever its status; unknown when it is missing or damaged."""
        if name not in self._bodies:
            return Unknown(f"the answer ends before its part {name}")
        try:
            data, status, reason = base64.b64decode(self._bodies[name], validate=True).rsplit(b"\0", 2)
            return Part(data, int(status), reason.decode("utf-8", "replace").strip()[:REASON_LENGTH])
        except (ValueError, binascii.Error):
            return Unknown(f"the part {name} of the answer is damaged")

    def read(self, name: str, reader: Callable[[Part], T], ok: tuple[int, ...] = (0,)) -> T | Unknown:
        """What ``reader`` makes of a part that ended with a status in ``ok``."""
        part = self.part(name)
        if isinstance(part, Unknown):
            return part
        if part.status not in ok:
            return Unknown(part.reason or f"reading {name} ended with status {part.status}")
        return attempt(name, lambda: reader(part))

    def read_or_absent(self, name: str, reader: Callable[[Part], T]) -> T | Unknown | None:
        part = self.part(name)
        if isinstance(part, Part) and part.status == ABSENT:
            return None
        return self.read(name, reader)


def attempt(name: str, reader: Callable[[], T]) -> T | Unknown:
    """Whatever a strange host makes a reader raise, that one part is unknown and the rest is read."""
    try:
        return reader()
    except Exception as error:
        return Unknown(f"{name} could not be understood: {type(error).__name__}: {error}"[:REASON_LENGTH])


def records(data: bytes, width: int) -> Iterator[list[str]]:
    """Records of ``width`` NUL-ended fields; an unfinished last one is left out."""
    fields = data.decode("utf-8", "surrogateescape").split("\0")[:-1]
    for start in range(0, len(fields) - width + 1, width):
        yield fields[start : start + width]


def settings(part: Part) -> dict[str, str]:
    """Lines ``key=value``; an empty value was not told."""
    return {key: value for key, _, value in (line.partition("=") for line in part.lines) if value}


def read_presence(part: Part) -> dict[str, str]:
    """By path: "0" it is there, "1" it is not, "2" cannot tell."""
    return {path: word for word, path in records(part.data, 2)}


def encode_request(request: ProbeRequest) -> str:
    """The request travels there and back, so that an answer says by itself what was asked."""
    return base64.b64encode(json.dumps(dataclasses.asdict(request)).encode()).decode()


def decode_request(data: bytes) -> ProbeRequest:
    said = json.loads(data)
    api = said.pop("api")
    nft_table = said.pop("nft_table")
    lists = {key: tuple(value) for key, value in said.items()}
    return ProbeRequest(**lists, nft_table=nft_table, api=ApiRequest(**api) if api else None)
