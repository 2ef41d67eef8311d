"""What a HAProxy configuration says of an ingress: which backends carry calls, to which hosts, by which names. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from callfleet.adopt.haproxy import Config, Line, Section, Server, keywords, seconds, servers

CALL_PATHS = ("/ws", "/exotel")
HEALTH = "/health/fleet"
NO_CALLS = "a backend that carries no calls"

# What callfleet writes itself or has no need of: understood, and not carried over.
_TAKEN = keywords(
    "acl bind server server-template default-server use_backend default_backend balance mode retries retry-on "
    "maxconn timeout http-check setenv presetenv errorfile errorfiles log log-tag log-format log-format-sd user "
    "group daemon chroot pidfile nbthread nbproc cpu-map stats hard-stop-after master-worker ulimit-n crt-base "
    "ca-base ssl-default-bind-options ssl-default-bind-ciphers ssl-default-bind-ciphersuites "
    "ssl-default-server-options ssl-default-server-ciphers ssl-default-server-ciphersuites ssl-dh-param-file "
    "unique-id-format unique-id-header description fullconn hash-type load-server-state-from-file "
    "server-state-base server-state-file mworker-max-reloads no monitor-uri zero-warning"
)
_TAKEN_OPTIONS = keywords(
    "httplog dontlognull dontlog-normal forwardfor http-server-close http-keep-alive redispatch httpchk tcplog "
    "log-health-checks logasap contstats splice-auto tcpka clitcpka srvtcpka abortonclose prefer-last-server "
    "http-buffer-request"
)
_TAKEN_TIMEOUTS = keywords(
    "connect client server tunnel check queue http-request http-keep-alive client-fin server-fin"
)
_TAKEN_TUNE = keywords("bufsize maxrewrite")
# Sections that say nothing about who gets calls; with their lines they are told as a whole.
_ASIDE = frozenset({"userlist", "peers", "mailers", "cache", "program", "ring", "traces", "crt-store", "resolvers"})


@dataclass(frozen=True)
class Backend:
    """A backend that carries calls. `why` says by what it was recognised."""

    section: Section
    servers: tuple[Server, ...]
    why: str

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.section.name

    @property
    def place(self) -> str:
        """`file:line`."""
        return self.section.head.place


@dataclass(frozen=True)
class Ingress:
    """One HAProxy. `where`: the host or file it was read from; `unknown` are its lines that say something else."""

    where: str
    config: Config
    backends: tuple[Backend, ...]
    names: tuple[str, ...]
    certificates: tuple[str, ...]
    unknown: tuple[tuple[Line, str], ...]

    def place(self, line: Line) -> str:
        """Where a line of it stands: host, file, number."""
        return line.place if line.file == self.where else f"{self.where}: {line.place}"

    @property
    def lines(self) -> int:
        """How many lines of it say something."""
        return sum(1 + len(section.lines) for section in self.config.sections)


def understand(where: str, config: Config, texts: Mapping[str, str]) -> Ingress:
    """What a configuration says. `texts` are the files beside it (maps, lists of patterns), by path."""
    proxies = {section.name: section for section in config.of("backend", "listen")}
    reached: dict[str, list[tuple[str, Section]]] = {}
    for frontend in config.of("frontend", "listen"):
        for name, condition in _targets(frontend, texts):
            reached.setdefault(name, []).append((condition, frontend))
    backends = []
    for name, section in proxies.items():
        held = servers(section)
        if not held:
            continue
        why = _carries(section, reached.get(name, []), texts)
        if why:
            backends.append(Backend(section, tuple(held), why))
    named = {each.name for each in backends}
    fronts = [front for front in config.of("frontend") if any(name in named for name, _ in _targets(front, texts))]
    fronts += [each.section for each in backends if each.section.kind == "listen"]
    names = tuple(dict.fromkeys(name for front in fronts for name in _names(front, texts)))
    certificates = tuple(
        dict.fromkeys(
            line.words[at + 1]
            for front in config.of("frontend", "listen")
            for line in front.own("bind")
            for at, word in enumerate(line.words[:-1])
            if word == "crt"
        )
    )
    unknown = (*_unknown(config, named), *_unread(config, texts))
    return Ingress(where, config, tuple(backends), names, certificates, unknown)


def check_path(section: Section) -> str:
    """The path that its health check asks for; empty for a check that asks for none."""
    found = ""
    if (line := section.last("option", "httpchk")) is not None:
        found = next((word for word in line.words[2:] if word.startswith("/")), "")
    for line in _checks(section, "send"):
        words = line.words[2:]
        found = next((words[at + 1] for at, word in enumerate(words[:-1]) if word == "uri"), found)
    return found


def _checks(section: Section, what: str) -> list[Line]:
    """The http-check lines that hold: its own, or else those it inherits."""
    level: Section | None = section
    while level is not None:
        if level.own("http-check"):
            return level.own("http-check", what)
        level = level.defaults
    return []


@dataclass(frozen=True)
class Expectation:
    """What a health check wants to read. `pattern` is a regular expression where `regular`, else a plain string."""

    line: Line
    pattern: str
    regular: bool
    negated: bool

    def takes(self, body: str) -> bool | None:
        """Whether a body satisfies it; None for a pattern that cannot be tried here."""
        if not self.regular:
            return (self.pattern in body) is not self.negated
        try:
            return bool(re.search(self.pattern, body)) is not self.negated
        except re.error:
            return None


def expectation(section: Section) -> Expectation | None:
    """What its check wants of the body, if anything."""
    found = None
    for line in _checks(section, "expect"):
        words = list(line.words[2:])
        for kind in ("rstring", "string"):
            if kind in words and words.index(kind) + 1 < len(words):
                at = words.index(kind)
                found = Expectation(line, " ".join(words[at + 1 :]), kind == "rstring", "!" in words[:at])
    return found


def fleet_health(available: int, workers: int, *, spaced: bool = False, first: bool = False) -> str:
    """What `/health/fleet` of a host says with so many free workers: compact or with blanks, in another order."""
    body: dict[str, object] = {
        "status": "ok", "fleet_calls": workers - available, "fleet_max": workers, "fleet_available": available,
        "workers": [],
    }  # fmt: skip
    if first:
        body = {"fleet_available": available} | body
    return json.dumps(body) if spaced else json.dumps(body, separators=(",", ":"))


def timeout(section: Section, *names: str) -> tuple[float, Line] | None:
    """The first of these timeouts that is set, in seconds, and where."""
    for name in names:
        line = section.last("timeout", name)
        if line is not None and len(line.words) > 2 and (value := seconds(line.words[2])) is not None:
            return value, line
    return None


def frontends_of(ingress: Ingress, backend: Backend) -> list[Section]:
    """Where its calls come in."""
    if backend.section.kind == "listen":
        return [backend.section]
    return [
        front for front in ingress.config.of("frontend", "listen")
        if any(line.words[1:2] == (backend.name,) for line in front.lines if line.words[0] in _ROUTING)
    ] or ingress.config.of("frontend")  # fmt: skip


_ROUTING = ("use_backend", "default_backend")
_MAP = re.compile(r"map(?:_[a-z]+)*\(([^,)]+)(?:,([^)]*))?\)")


def _targets(frontend: Section, texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The backends that it may choose, each with the condition in words."""
    for line in frontend.inherited():
        if line.words[0] not in _ROUTING or len(line.words) < 2:
            continue
        target, condition = line.words[1], _condition(frontend, line.words[2:], texts)
        if match := _MAP.search(target):
            kind = " (by default)" if line.words[0] == "default_backend" else ""
            for key, value in entries(texts, match[1]):
                yield value, f"{condition} {target} {key}{kind}"
            if match[2]:
                yield match[2].strip(), f"{condition} (by default)"
        else:
            yield target, condition if line.words[0] == "use_backend" else "(by default)"


def _condition(frontend: Section, words: Iterable[str], texts: Mapping[str, str]) -> str:
    """A condition with the named ACLs spelt out, and the files of patterns they name read."""
    told = list(words)
    for line in frontend.inherited():
        if line.words[0] == "acl" and len(line.words) > 2 and any(word.lstrip("!") == line.words[1] for word in told):
            told += line.words[2:]
            files = [line.words[at + 1] for at, word in enumerate(line.words[:-1]) if word == "-f"]
            told += [key for file in files for key, _ in entries(texts, file)]
    return " ".join(told)


def entries(texts: Mapping[str, str], path: str) -> list[tuple[str, str]]:
    """The entries of a map or a list of patterns: key, value. A path that was not read as such is tried by its name."""
    found = []
    for line in _text(texts, path).splitlines():
        words = line.split(None, 1)
        if words and not words[0].startswith("#"):
            found.append((words[0], words[1].strip() if len(words) > 1 else ""))
    return found


def _text(texts: Mapping[str, str], path: str) -> str:
    path = path.strip()
    if path in texts:
        return texts[path]
    by_name = [one for name, one in texts.items() if name.rpartition("/")[2] == path.rpartition("/")[2]]
    return by_name[0] if len(by_name) == 1 else ""


def _carries(section: Section, reached: list[tuple[str, Section]], texts: Mapping[str, str]) -> str:
    """By what a backend is one that carries calls; empty when it is none."""
    path = check_path(section)
    if path.startswith(HEALTH):
        return f"its check asks for {path}"
    for condition, _ in reached:
        if any(each in condition for each in CALL_PATHS):
            return "calls are routed to it by their path"
    for condition, front in reached:
        whole = " ".join(word for line in front.inherited() for word in line.words)
        others = [text for _, text in _targets(front, texts) if any(path in text for path in CALL_PATHS)]
        if not others and any(each in whole for each in CALL_PATHS) and ("default" in condition or "map" in condition):
            return "its frontend lets calls in and sends them there"
    text = " ".join(word for line in section.lines for word in line.words)
    if section.kind == "listen" and any(each in text for each in CALL_PATHS):
        return "it lets calls in by their path"
    return ""


_HOST = re.compile(r"(?:hdr|req\.hdr|hdr_dom|hdr_end|req\.fhdr|ssl_fc_sni|req\.ssl_sni|hdr_beg)\b.*", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z][a-z0-9-]+")


def _names(front: Section, texts: Mapping[str, str]) -> Iterator[str]:
    """The host names that it asks requests for."""
    for line in front.inherited():
        text = " ".join(line.words)
        if not (_HOST.search(text) and re.search(r"host|sni", text, re.IGNORECASE)):
            continue
        words = list(line.words)
        words += [word for each in line.words for match in _MAP.finditer(each) for word, _ in entries(texts, match[1])]
        words += [key for at, word in enumerate(words[:-1]) if word == "-f" for key, _ in entries(texts, words[at + 1])]
        for word in words:
            name = word.lower().split("/")[0].rsplit(":", 1)[0]
            if _NAME.fullmatch(name) and not name.startswith(("req.", "ssl_", "hdr", "res.", "txn.", "var.")):
                yield name


def _unknown(config: Config, calls: set[str]) -> Iterator[tuple[Line, str]]:
    """The lines that are not understood, each with why."""
    for odd in config.odd:
        yield odd.line, odd.why
    for section in config.sections:
        if section.kind in _ASIDE:
            for line in (section.head, *section.lines):
                yield line, f"a section {section.kind}: callfleet writes none"
        elif section.kind not in ("global", "defaults", "frontend", "backend", "listen"):
            for line in (section.head, *section.lines):
                yield line, f"a section {section.kind}"
        elif section.kind == "backend" and section.name not in calls and section.own("server"):
            for line in (section.head, *section.lines):
                yield line, NO_CALLS
        else:
            yield from ((line, "no counterpart") for line in section.lines if not _taken(section, line))


def _unread(config: Config, texts: Mapping[str, str]) -> Iterator[tuple[Line, str]]:
    """The lines that name a map or a list of patterns that was not read."""
    for section in config.of("frontend", "backend", "listen"):
        for line in section.lines:
            files = [match[1] for word in line.words for match in _MAP.finditer(word)]
            files += [line.words[at + 1] for at, word in enumerate(line.words[:-1]) if word == "-f"]
            for file in files:
                if not _text(texts, file):
                    yield line, f"{file.strip()} was not read, or is empty"


def _taken(section: Section, line: Line) -> bool:
    word = line.words[0]
    if word == "option":
        return line.words[1:2] != () and line.words[1] in _TAKEN_OPTIONS
    if word.startswith("tune."):
        return word.removeprefix("tune.") in _TAKEN_TUNE
    if word == "no":
        return line.words[1:2] == ("option",) and len(line.words) > 2 and line.words[2] in _TAKEN_OPTIONS
    if word in ("http-request", "http-response"):
        return _local_answer(line)
    if word == "timeout":
        return line.words[1:2] != () and line.words[1] in _TAKEN_TIMEOUTS
    return word in _TAKEN


def _local_answer(line: Line) -> bool:
    """What the ingress does by itself: its own health path, 404 for all else, what it tells hosts of the caller."""
    text = line.text
    if line.says("http-request", "deny") or line.says("http-request", "return"):
        return True
    return "X-Forwarded-" in text and ("set-header" in text or "del-header" in text or "add-header" in text)
