"""HAProxy configurations, read line by line as the configuration manual (2.1 to 2.4) says. Pure.

No maintained Python parser keeps what it does not know (pyhaproxy ended in 2019), and a configuration of any version
must be read: so every line stays a line, with its words and its place, and those who ask decide what they understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


def keywords(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SECTIONS = keywords(
    "global defaults frontend backend listen userlist peers mailers resolvers cache program ring http-errors "
    "fcgi-app log-forward log-profile crt-store crt-list traces acme healthcheck"
)
PROXIES = frozenset({"defaults", "frontend", "backend", "listen"})
_CONDITIONS = (".if", ".elif", ".else", ".endif")
_ESCAPED = {" ": " ", "\\": "\\", "#": "#", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?P<list>\[\*\])?(?:-(?P<default>[^}]*))?\}"
    r"|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))"
)

# Options of a server that take so many words; every other one stands alone.
_WITH_WORDS = dict.fromkeys(
    keywords(
        "addr agent-addr agent-inter agent-port agent-send alpn ca-file check-alpn check-proto check-sni ciphers "
        "ciphersuites client-sigalgs cookie crl-file crt curves downinter error-limit fall fastinter guid hash-key id "
        "idle-ping init-addr init-state inter log-bufsize log-proto max-reuse maxconn maxqueue minconn namespace npn "
        "observe on-error on-marked-down on-marked-up pool-conn-name pool-low-conn pool-max-conn pool-purge-delay port "
        "proto proxy-v2-options redir renegotiate resolve-net resolve-opts resolve-prefer resolvers rise "
        "set-proxy-v2-tlv-fmt shard sigalgs slowstart sni socks4 source ssl-max-ver ssl-min-ver strict-maxconn tcp-ut "
        "track verify verifyhost weight ws"
    ),
    1,
) | {"renegotiate": 0, "strict-maxconn": 0}


@dataclass(frozen=True)
class Line:
    """One line that says something. `number` counts from 1."""

    file: str
    number: int
    words: tuple[str, ...]

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.number}"

    @property
    def text(self) -> str:
        """The line's words again, one blank between them."""
        return " ".join(self.words)

    def says(self, *words: str) -> bool:
        """Whether it begins with these words."""
        return self.words[: len(words)] == words


@dataclass(frozen=True)
class Section:
    """One section: its own lines, and the `defaults` section that it inherits from."""

    kind: str
    name: str
    head: Line
    lines: tuple[Line, ...]
    defaults: Section | None = None

    def own(self, *words: str) -> list[Line]:
        """Its own lines that begin with these words."""
        return [line for line in self.lines if line.says(*words)]

    def last(self, *words: str) -> Line | None:
        """The line that holds: the last of its own, else what it inherits."""
        section: Section | None = self
        while section is not None:
            if found := section.own(*words):
                return found[-1]
            section = section.defaults
        return None

    def inherited(self) -> Iterator[Line]:
        """Every line that may hold here, the farthest defaults first."""
        if self.defaults is not None:
            yield from self.defaults.inherited()
        yield from self.lines


@dataclass(frozen=True)
class Odd:
    """A line that could not be taken as it stands, and why."""

    line: Line
    why: str


@dataclass(frozen=True)
class Config:
    """All sections in their order, and what could not be taken."""

    sections: tuple[Section, ...]
    odd: tuple[Odd, ...]

    def of(self, *kinds: str) -> list[Section]:
        """The sections of these kinds."""
        return [section for section in self.sections if section.kind in kinds]


@dataclass(frozen=True)
class Server:
    """One server of a backend, its `default-server` lines taken into account.

    `options` are by keyword, "" for those that take no word. `count` is above 1 for a server-template.
    """

    name: str
    host: str
    port: int | None
    options: Mapping[str, str]
    line: Line
    count: int = 1

    @property
    def maxconn(self) -> int | None:
        """How many calls it is given at once; None: without a limit, or not a number."""
        value = self.options.get("maxconn", "")
        return int(value) if value.isascii() and value.isdigit() and int(value) else None


def parse(files: Iterable[tuple[str, str]], environment: Mapping[str, str] | None = None) -> Config:
    """The configuration of these files (name, text) in their order. Never raises: odd lines are told.

    `environment` is what the process would have; `setenv` and `presetenv` in `global` add to it.
    """
    known = dict(environment or {})
    reader = _Reader(known)
    for name, text in files:
        for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
            reader.take(name, number, raw)
    return reader.done()


class _Reader:
    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.sections: list[Section] = []
        self.odd: list[Odd] = []
        self.head: Line | None = None
        self.lines: list[Line] = []
        self.depth = 0
        self.unnamed: Section | None = None

    def take(self, file: str, number: int, raw: str) -> None:
        """One line of a file."""
        words, problems = split(raw, self.environment)
        if not words:
            return
        line = Line(file, number, tuple(words))
        self.odd += [Odd(line, why) for why in problems]
        if words[0] in _CONDITIONS:
            self.depth += {".if": 1, ".endif": -1}.get(words[0], 0)
            self.depth = max(0, self.depth)
            self.odd.append(Odd(line, "a condition, which callfleet does not evaluate"))
        elif self.depth:
            self.odd.append(Odd(line, "stands under a condition, which callfleet does not evaluate"))
        elif words[0].startswith("."):
            self.odd.append(Odd(line, "a directive for the parser"))
        elif words[0] in SECTIONS:
            self.close()
            self.head = line
        elif self.head is None:
            self.odd.append(Odd(line, "stands before every section"))
        else:
            self.lines.append(line)
            is_set = self.head.words[0] == "global" and len(words) > 2
            if is_set and (words[0] == "setenv" or (words[0] == "presetenv" and words[1] not in self.environment)):
                self.environment[words[1]] = words[2]

    def close(self) -> None:
        """The section that is being read is at its end."""
        if self.head is None:
            return
        kind, rest = self.head.words[0], list(self.head.words[1:])
        parent = None
        if kind in PROXIES:
            parent = self.unnamed if kind != "defaults" else None
            if "from" in rest[:2]:
                at = rest.index("from")
                wanted = rest[at + 1] if at + 1 < len(rest) else ""
                del rest[at : at + 2]
                parent = next((s for s in self.sections if s.kind == "defaults" and s.name == wanted), None)
                if parent is None:
                    self.odd.append(Odd(self.head, f"there is no defaults section {wanted or 'without a name'}"))
        name = rest[0] if rest else ""
        lines = tuple(self.lines)
        if kind in ("frontend", "listen") and len(rest) > 1:
            # The old way to bind: `listen name 192.0.2.1:443`.
            lines = (Line(self.head.file, self.head.number, ("bind", *rest[1:])), *lines)
        section = Section(kind, name, self.head, lines, parent)
        self.sections.append(section)
        if kind == "defaults":
            self.unnamed = section
        self.head, self.lines = None, []

    def done(self) -> Config:
        """All of it."""
        self.close()
        return Config(tuple(self.sections), tuple(self.odd))


def split(raw: str, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The words of one line, and what is wrong with it.

    Backslashes escape blanks, `#`, quotes and themselves, `'...'` takes all as it stands, `"..."` keeps blanks and puts
    in environment variables, and `#` begins a comment outside of quotes.
    """
    words: list[str] = []
    problems: list[str] = []
    word, begun, quote, at = "", False, "", 0

    def end() -> None:
        nonlocal word, begun
        if begun:
            words.append(word)
        word, begun = "", False

    while at < len(raw):
        char = raw[at]
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                word += char
        elif char == "\\" and at + 1 < len(raw):
            taken, size = _escape(raw, at, bool(quote))
            word, begun = word + taken, True
            at += size - 1
        elif char == "'" and not quote:
            quote, begun = "'", True
        elif char == '"':
            quote, begun = ("" if quote else '"'), True
        elif quote and char == "$" and (match := _VARIABLE.match(raw, at)):
            name = match["braced"] or match["bare"]
            value = environment.get(name)
            if value is None:
                value = match["default"] or ""
                if match["default"] is None:
                    problems.append(f"the environment variable {name} is not known here")
            if match["list"]:
                *full, value = value.split() or [""]
                for each in full:
                    word, begun = word + each, True
                    end()
                begun = True
            word += value
            at = match.end() - 1
        elif not quote and char == "#":
            break
        elif not quote and char.isspace():
            end()
        else:
            word, begun = word + char, True
        at += 1
    if quote:
        problems.append("a quote is not closed")
    end()
    return words, problems


def _escape(raw: str, at: int, quoted: bool) -> tuple[str, int]:
    """What an escape stands for, and how long it is; one of no known form stays as it is."""
    char = raw[at + 1]
    if char == "x" and re.fullmatch(r"[0-9A-Fa-f]{2}", raw[at + 2 : at + 4]):
        return chr(int(raw[at + 2 : at + 4], 16)), 4
    if char in _ESCAPED:
        return _ESCAPED[char], 2
    if char == "$" and quoted:
        return "$", 2
    return "\\" + char, 2


# Servers


def servers(section: Section) -> list[Server]:
    """The servers of a backend or listen section."""
    base: dict[str, str] = {}
    found: list[Server] = []
    for line in section.defaults.inherited() if section.defaults else ():
        if line.says("default-server"):
            base |= options(line.words[1:])
    for line in section.lines:
        if line.says("default-server"):
            base |= options(line.words[1:])
        elif line.says("server") and len(line.words) > 2:
            host, port = address(line.words[2])
            found.append(Server(line.words[1], host, port, base | options(line.words[3:]), line))
        elif line.says("server-template") and len(line.words) > 3:
            host, port = address(line.words[3])
            low, high = _range(line.words[2])
            given = base | options(line.words[4:])
            found.append(Server(line.words[1], host, port, given, line, max(1, high - low + 1)))
    return found


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:([0-9]{1,4})-)?([0-9]{1,4})", text)
    return (int(match[1] or 1), int(match[2])) if match else (1, 1)


def options(words: Sequence[str]) -> dict[str, str]:
    """Options of a server by keyword; `no-` takes one back."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        key = rest.pop(0)
        taken = [rest.pop(0) for _ in range(min(_WITH_WORDS.get(key, 0), len(rest)))]
        if key.startswith("no-"):
            found.pop(key.removeprefix("no-"), None)
        found[key] = " ".join(taken)
    return found


def address(text: str) -> tuple[str, int | None]:
    """Host and port of an address; a Unix socket keeps its form (`unix@/path`, `/path`) and has no port."""
    text = re.sub(r"^(ipv4|ipv6|quic4|quic6|mptcp|tcp|stream\+?i?p?v?[46]?)@", "", text)
    if text.startswith(("/", "unix@", "abns@", "fd@", "sockpair@", "rhttp@", "rev@")):
        return text, None
    if match := re.fullmatch(r"\[([^]]*)\](?::\+?([0-9]{1,5}))?", text):
        return match[1], int(match[2]) if match[2] else None
    if text.count(":") > 1:
        host, _, port = text.rpartition(":")
        return (host, int(port)) if port.isascii() and port.isdigit() and len(port) < 6 else (text, None)
    host, _, port = text.partition(":")
    port = port.lstrip("+")
    return host, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else None


_UNITS = {"us": 0.000001, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float | None:
    """A time of HAProxy (`1s`, `500ms`, `2000`: milliseconds without a unit)."""
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|s|m|h|d)?", text)
    return int(match[1]) * _UNITS[match[2] or "ms"] if match else None
