"""Whether a host can do what the site asks of it: what to ask it, and what its answers mean. Pure.

A host is asked twice at most: by the probe (`callfleet.actual`), and by one script that only reads.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit

from callfleet.actual import Actual, Unknown
from callfleet.desired.baseline import systems
from callfleet.plan import fact
from callfleet.site import Host, Site

ARCHITECTURES = ("x86_64", "aarch64")
WORKERS_PER_CPU = 8
"""A rule of thumb: a call takes a few per cent of a CPU, and all of them may start at once."""
LEAST_DISK, GOOD_DISK = 2 * 1024**3, 5 * 1024**3
SKEW_SECONDS, GOOD_SKEW_SECONDS = 30.0, 2.0
EXPIRES_SOON = timedelta(days=14)
REACH_SECONDS = 5


class State(StrEnum):
    """What became of one check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """One check of one host. `next` is what to do, empty where nothing is to be done."""

    host: str
    what: str
    state: State
    found: str
    expected: str = ""
    next: str = ""


@dataclass(frozen=True)
class Questions:
    """What the script asks: names to resolve, (host, port) to connect to, and whether package sources are reached."""

    names: tuple[str, ...] = ()
    reach: tuple[tuple[str, int], ...] = ()
    sources: bool = False


@dataclass(frozen=True)
class Answers:
    """What a host said. Words for reached: open, refused, no answer, unknown name, no route."""

    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reached: Mapping[tuple[str, int], str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """One host as it was found. `error`: why it could not be looked at; `skew`: seconds its clock is off ours."""

    actual: Actual
    answers: Answers | None
    error: str = ""
    skew: float = 0.0


# Asking


def questions(site: Site, host: Host, targets: Iterable[Host] = ()) -> Questions:
    """What to ask one host; `targets` are the fleet hosts that are looked at.

    An ingress host is asked for its way to them, the host that resolves names for calls (`resolver`) for their names.
    """
    every = list(targets)
    names, reach = [], []
    asks = resolver(site)
    if asks is not None and asks.name == host.name:
        names += [name for one in every for name in site.public_names(one)]
    if host.workers:
        names.append(site.api_name)
    if "ingress" in host.roles:
        reach += [(one.address, one.ports.mtls) for one in every if one.name != host.name and one.ports.mtls]
    if host.roles & {"fleet", "app"}:
        reach += _registries(site)
    wanted = tuple(dict.fromkeys(name for name in names if name not in site.names))
    return Questions(wanted, tuple(dict.fromkeys(reach)), sources=True)


def resolver(site: Site) -> Host | None:
    """The host whose view of DNS counts: the API's and the Dialler's, else the first ingress host's."""
    return site.app_host or next(iter(site.ingress_hosts), None)


def _registries(site: Site) -> list[tuple[str, int]]:
    found = []
    if site.registry:
        name, _, port = site.registry.address.partition(":")
        found.append((name, int(port or 443)))
    if site.docker.source == "docker":
        found.append(("download.docker.com", 443))
    return found


SCRIPT = f"""\
set -u
export LC_ALL=C
resolve() {{ printf 'name %s %s\\n' "$1" "$(getent ahosts "$1" | awk '{{ print $1 }}' | sort -u | tr '\\n' ' ')"; }}
word() {{
  said=$(timeout {REACH_SECONDS} bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1 </dev/null)
  case $? in
    0) echo open; return ;;
    124) echo 'no answer'; return ;;
  esac
  case $said in
    *refused*) echo refused ;;
    *'not known'*|*resolution*|*'No address'*) echo 'unknown name' ;;
    *) echo 'no route' ;;
  esac
}}
reach() {{ printf 'reach %s %s %s\\n' "$1" "$2" "$(word "$1" "$2")"; }}
packages() {{ printf 'source %s %s %s %s\\n' "$1" "$2" "$3" "$(word "$2" "$3")"; }}
sources() {{
  apt-get update --print-uris 2>/dev/null </dev/null |
    sed -n "s|^'\\([a-z]*\\)://\\([^/@]*@\\)\\{{0,1\\}}\\([^/']*\\).*|\\1 \\3|p" |
    sort -u | while read -r scheme place; do
      case $scheme in http) port=80 ;; https) port=443 ;; *) continue ;; esac
      proxy=$(apt-config shell p "Acquire::$scheme::Proxy" | sed "s/^p='\\(.*\\)'$/\\1/")
      at=$place
      case $proxy in *://*) at=${{proxy#*://}}; at=${{at%%/*}}; at=${{at##*@}} ;; esac
      case $at in *:*) port=${{at##*:}}; at=${{at%:*}} ;; esac
      packages "$scheme://$place" "$at" "$port" &
      wait
    done
}}
"""


def script(asked: Questions) -> str:
    """The script that asks; all at the same time. Read its answer with `read`."""
    lines = [f"resolve {shlex.quote(name)} &" for name in asked.names]
    lines += [f"reach {shlex.quote(name)} {port} &" for name, port in asked.reach]
    lines += ["sources &"] if asked.sources else []
    return SCRIPT + "\n".join([*lines, "wait", "exit 0", ""])


def read(text: str) -> Answers:
    """What a script's output says; lines of no known form are left out."""
    names: dict[str, tuple[str, ...]] = {}
    reached: dict[tuple[str, int], str] = {}
    sources: dict[str, str] = {}
    for line in text.splitlines():
        match line.split(maxsplit=4):
            case ["name", name, *addresses]:
                names[name] = tuple(" ".join(addresses).split())
            case ["reach", host, port, *word] if port.isdigit():
                reached[host, int(port)] = " ".join(word)
            case ["source", url, host, port, word]:
                sources[f"{url} by {host}:{port}" if urlsplit(url).hostname != host else url] = word
    return Answers(names, reached, sources)


# Judging


def judge(site: Site, host: Host, found: Mapping[str, Looked], expiry: Mapping[str, datetime | None]) -> list[Check]:
    """Every check of one host. `found` holds all hosts that were looked at, `expiry` when each name's certificate ends.

    `host` must be among them.
    """
    mine = found[host.name]
    if mine.error and isinstance(mine.actual.os, Unknown):
        return [
            Check(
                host.name, "reached", State.FAILED, mine.error, f"SSH at {host.ssh.hostname} port {host.ssh.port}",
                "see to its network, its SSH server and the keys that it accepts",
            )
        ]  # fmt: skip
    checks = [
        Check(host.name, "reached", State.OK, f"{host.ssh.user}@{host.ssh.hostname}"),
        _system(site, host, mine.actual),
        _architecture(host, mine.actual, found),
        _cpus(host, mine.actual),
        memory(site, host, mine.actual, host.workers),
        _disk(host, mine.actual),
        _clock(host, mine),
        *_ports(host, mine.actual),
        *_names(site, host, found),
        *_certificates(site, host, expiry),
    ]
    checks += _registry(site, host, mine)
    checks += _routes(site, host, found)
    checks += _sources(host, mine)
    return [check for check in checks if check is not None]


def _unknown(host: Host, what: str, unknown: Unknown, expected: str) -> Check:
    return Check(host.name, what, State.UNKNOWN, unknown.reason, expected, f"look at it on {host.name}, run again")


def _system(site: Site, host: Host, actual: Actual) -> Check:
    known, expected = fact("os", actual), " or ".join(systems(site, host))
    if isinstance(known, Unknown):
        return _unknown(host, "system", known, expected)
    if known in systems(site, host):
        return Check(host.name, "system", State.OK, known)
    return Check(host.name, "system", State.FAILED, known, expected, "install that system on it")


def _architecture(host: Host, actual: Actual, found: Mapping[str, Looked]) -> Check:
    expected = " or ".join(ARCHITECTURES)
    if isinstance(actual.arch, Unknown):
        return _unknown(host, "architecture", actual.arch, expected)
    if actual.arch not in ARCHITECTURES:
        return Check(host.name, "architecture", State.FAILED, actual.arch, expected, "use another machine")
    others = {str(one.actual.arch) for one in found.values() if isinstance(one.actual.arch, str)}
    if len(others) > 1:
        text = "the same on all hosts, or images for each"
        return Check(
            host.name, "architecture", State.WARNING, actual.arch, text, "see that the release's images run on it"
        )
    return Check(host.name, "architecture", State.OK, actual.arch)


def _cpus(host: Host, actual: Actual) -> Check | None:
    if not host.workers:
        return None
    expected = f"one CPU for at most {WORKERS_PER_CPU} workers"
    if isinstance(actual.cpus, Unknown):
        return _unknown(host, "CPU", actual.cpus, expected)
    found = f"{actual.cpus} for {host.workers} workers"
    if host.workers > WORKERS_PER_CPU * actual.cpus:
        return Check(host.name, "CPU", State.WARNING, found, expected, f"callfleet host resize {host.name} --workers N")
    return Check(host.name, "CPU", State.OK, found)


def memory(site: Site, host: Host, actual: Actual, workers: int) -> Check | None:
    """Whether a host really has the memory that so many workers need."""
    if not workers:
        return None
    core = site.core
    need = workers * core.worker_memory_mb + core.reserve_memory_mb
    expected = (
        f"{need} MiB for {workers} workers of {core.worker_memory_mb} MiB and {core.reserve_memory_mb} MiB beside"
    )
    if isinstance(actual.memory, Unknown):
        return _unknown(host, "memory", actual.memory, expected)
    have = actual.memory.total // 1024**2
    if have >= need:
        return Check(host.name, "memory", State.OK, f"{have} MiB", expected)
    # Machines have a little less than they are sold with.
    most = max(0, (have - core.reserve_memory_mb) // core.worker_memory_mb)
    state = State.WARNING if have >= need * 0.95 else State.FAILED
    return Check(host.name, "memory", state, f"{have} MiB", expected, f"give it at most {most} workers, or more memory")


def _disk(host: Host, actual: Actual) -> Check:
    expected = f"{GOOD_DISK // 1024**3} GiB free"
    if isinstance(actual.disks, Unknown) or not actual.disks:
        reason = actual.disks if isinstance(actual.disks, Unknown) else Unknown("no file system was found")
        return _unknown(host, "disk", reason, expected)
    least = min(actual.disks.values(), key=lambda disk: disk.free)
    found = f"{least.free / 1024**3:.1f} GiB free on {least.mount}"
    state = State.OK if least.free >= GOOD_DISK else State.WARNING if least.free >= LEAST_DISK else State.FAILED
    return Check(host.name, "disk", state, found, expected, "" if state is State.OK else "make room on it")


def _clock(host: Host, mine: Looked) -> Check:
    expected = f"at most {GOOD_SKEW_SECONDS:.0f} s off, kept by a time service"
    clock = mine.actual.clock
    if isinstance(clock, Unknown):
        return _unknown(host, "clock", clock, expected)
    found = f"{mine.skew:.0f} s off" if mine.skew >= 1 else "right"
    todo = "set it, and start a time service (systemd-timesyncd, chrony)"
    if mine.skew > SKEW_SECONDS:
        return Check(host.name, "clock", State.FAILED, found, expected, todo)
    if mine.skew > GOOD_SKEW_SECONDS or clock.synchronized is False:
        kept = "" if clock.synchronized is not False else ", kept by nothing"
        return Check(host.name, "clock", State.WARNING, found + kept, expected, todo)
    return Check(host.name, "clock", State.OK, found)


def _ports(host: Host, actual: Actual) -> Iterator[Check]:
    """Free, or in the hands of a proxy of ours."""
    wanted = {host.ports.front: "front", host.ports.fleet: "calls", host.ports.mtls: "calls from the ingress"}
    for port, what in wanted.items():
        if port is None:
            continue
        name = f"port {port}"
        if isinstance(actual.listeners, Unknown):
            yield _unknown(host, name, actual.listeners, f"free, for {what}")
            continue
        holders = [each for each in actual.listeners if each.port == port]
        owners = sorted({process for each in holders for process, _ in each.processes})
        if not holders:
            yield Check(host.name, name, State.OK, "free", f"for {what}")
        elif owners and set(owners) <= {"haproxy"}:
            yield Check(host.name, name, State.OK, "haproxy", f"for {what}")
        elif not owners:
            text = "somebody listens, and the host does not say who"
            yield Check(host.name, name, State.UNKNOWN, text, f"free, for {what}", f"ss -ltnp there: port {port}")
        else:
            todo = f"stop it there, or give {host.name} another port under `ports`"
            yield Check(host.name, name, State.FAILED, f"taken by {', '.join(owners)}", f"free, for {what}", todo)


def _names(site: Site, host: Host, found: Mapping[str, Looked]) -> Iterator[Check]:
    """Its public names lead to where they are served, and a worker finds the API."""
    asks = resolver(site) or host
    for name in site.public_names(host):
        served = [one for one in site.hosts if name in site.public_names(one)]
        yield _name(site, host, name, served, found.get(asks.name), asks.name)
    if host.workers and site.app_host and "app" not in host.roles:
        yield _name(site, host, site.api_name, [site.app_host], found[host.name], host.name)


def _name(site: Site, host: Host, name: str, served: list[Host], asked: Looked | None, by: str) -> Check:
    wanted = {_address(each) for one in served for each in one.addresses}
    expected = f"{' or '.join(sorted(wanted))}, asked on {by}"
    what = f"name {name}"
    if name in site.names:
        addresses: tuple[str, ...] = (site.names[name],)
    elif asked is None or asked.answers is None or name not in asked.answers.names:
        return Check(host.name, what, State.UNKNOWN, f"{by} was not asked", expected, "run again without --limit")
    else:
        addresses = asked.answers.names[name]
    seen = {_address(each) for each in addresses}
    if not seen:
        todo = f"a DNS record {name} -> {served[0].address if served else host.address}"
        return Check(host.name, what, State.FAILED, "no address", expected, todo)
    if all(ipaddress.ip_address(each).is_loopback for each in seen):
        # A host's own name in its own /etc/hosts; what others see is not known from there.
        return Check(
            host.name, what, State.UNKNOWN, ", ".join(sorted(seen)), expected, f"look it up elsewhere than {by}"
        )
    if seen & wanted:
        return Check(host.name, what, State.OK, ", ".join(sorted(seen)))
    todo = "right the DNS record, unless something in front of the host passes calls on"
    return Check(host.name, what, State.WARNING, ", ".join(sorted(seen)), expected, todo)


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text.partition("%")[0]))


def _certificates(site: Site, host: Host, expiry: Mapping[str, datetime | None]) -> Iterator[Check]:
    """What covers a name was checked with the site; here is told how long it does."""
    now = datetime.now(UTC)
    for name in site.public_names(host):
        until = expiry.get(name)
        if until is None:
            yield Check(host.name, f"certificate {name}", State.UNKNOWN, "could not be read", "a valid one")
            continue
        soon = until - now < EXPIRES_SOON
        state = State.FAILED if until < now else State.WARNING if soon else State.OK
        todo = "" if state is State.OK else f"renew it, then callfleet apply {site.name}"
        expected = f"more than {EXPIRES_SOON.days} days" if todo else ""
        yield Check(host.name, f"certificate {name}", state, f"until {until:%Y-%m-%d}", expected, todo)


def _registry(site: Site, host: Host, mine: Looked) -> Iterator[Check]:
    if not host.roles & {"fleet", "app"}:
        return
    for name, port in _registries(site):
        word = "" if mine.answers is None else mine.answers.reached.get((name, port), "")
        yield _reached(host, f"registry {name}:{port}", word, {"open"}, "let it out to there, or right `registry`")


def _routes(site: Site, host: Host, found: Mapping[str, Looked]) -> Iterator[Check]:
    """From every ingress host. A refusal is a way too: before the first apply nobody listens."""
    if not host.workers or not host.ports.mtls:
        return
    for ingress in site.ingress_hosts:
        if ingress.name == host.name:
            continue
        looked = found.get(ingress.name)
        word = ""
        if looked is not None and looked.answers is not None:
            word = looked.answers.reached.get((host.address, host.ports.mtls), "")
        todo = f"let {ingress.address} in to port {host.ports.mtls}, in every firewall between them"
        yield _reached(host, f"route from {ingress.name}", word, {"open", "refused"}, todo)


def _sources(host: Host, mine: Looked) -> Iterator[Check]:
    if mine.answers is None or not mine.answers.sources:
        todo = "see `apt-get update` there"
        yield Check(host.name, "package sources", State.UNKNOWN, "none was told", "sources of packages", todo)
        return
    for source, word in mine.answers.sources.items():
        yield _reached(host, f"packages {source}", word, {"open"}, "let it out to there, or right its apt sources")


def _reached(host: Host, what: str, word: str, good: set[str], todo: str) -> Check:
    if not word:
        return Check(host.name, what, State.UNKNOWN, "was not asked", "a connection", "run again without --limit")
    if word in good:
        return Check(host.name, what, State.OK, "nobody listens yet" if word == "refused" else "reached")
    return Check(host.name, what, State.FAILED, word, "a connection", todo)
