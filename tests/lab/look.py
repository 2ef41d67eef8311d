"""Looking at lab hosts from outside, where `Fleet` alone does not suffice: probes, Docker's events, leaked secrets."""

from __future__ import annotations

import base64
import csv
import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from callfleet.actual import Actual, ProbeRequest
from callfleet.credentials import Credentials
from callfleet.desired import Context, expected_host
from callfleet.expected import Directory, File, Package, Stack, Unit
from callfleet.site import load_site
from facts.probe import parse, script
from lab.model import Lab
from tests.lab.fleet import STACK, Converge, Fleet

WINDOW = 20
HOST_PROXY = f"/run/{STACK}/proxy/admin.sock"
INGRESS = "/run/callfleet-ingress/admin.sock"


FIGURES: list[str] = []
"""What tests measured; shown at the end of a run."""


def tell(figure: str) -> None:
    """Have a measured figure shown with the run's results."""
    FIGURES.append(figure)


def request(fleet: Fleet, host: str) -> ProbeRequest:
    """All that a converge of this host could look at."""
    site = load_site(fleet.lab.inventory)
    store = Credentials(site)
    items = expected_host(Context(site, site.host(host), store.secret, store.credential)).items()
    stacks = [item.name for item in items if isinstance(item, Stack)]
    return ProbeRequest(
        files=tuple(dict.fromkeys(item.path for item in items if isinstance(item, File | Directory))),
        contents=("/etc/docker/daemon.json", "/etc/callfleet/firewall.loaded"),
        units=tuple(dict.fromkeys(item.name for item in items if isinstance(item, Unit))),
        packages=tuple(dict.fromkeys(item.name for item in items if isinstance(item, Package))),
        stacks=tuple(stacks),
        haproxy_admin=tuple(f"/run/{name}/proxy/admin.sock" for name in stacks),
    )


def probe(fleet: Fleet, host: str) -> Actual:
    """One probe of a host, over the tests' own SSH."""
    text = shlex.quote(script(request(fleet, host)))
    return parse(fleet.ssh(host, f"sh -c {text} </dev/null").splitlines())


def outside(fleet: Fleet) -> dict[str, dict[str, str]]:
    """`Fleet.outside` of every host, all at once."""
    names = [host.name for host in fleet.lab.hosts]
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(fleet.outside, names), strict=True))


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """The lines in which two such looks differ, for a readable failure."""
    found = []
    for host, parts in before.items():
        for part, text in parts.items():
            old, new = set(text.splitlines()), set(after[host][part].splitlines())
            found += [f"{host} {part}: - {line}" for line in sorted(old - new)]
            found += [f"{host} {part}: + {line}" for line in sorted(new - old)]
    return found


@contextmanager
def docker_events(fleet: Fleet) -> Iterator[list[str]]:
    """What Docker did on all hosts that have it while the block ran; filled at its end."""
    found: list[str] = []
    since = {host.name: fleet.ssh(host, "date +%s.%N").strip() for host in fleet.lab.hosts}
    yield found
    for host in fleet.lab.hosts:
        ask = f"docker events --since {since[host.name]} --until $(date +%s.%N)"
        lines = fleet.ssh(host, f"if command -v docker >/dev/null; then {ask}; fi").splitlines()
        found += [f"{host.name}: {line}" for line in lines]


def touched(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> set[tuple[str, str, str]]:
    """What differs between two looks, as (host, kind, subject) in a plan's own words."""
    found = set()
    for host, parts in before.items():
        for part, text in parts.items():
            separator = SEPARATORS.get(part, "\n")
            differing = set(text.strip().split(separator)) ^ set(after[host][part].strip().split(separator))
            found |= {(host, *subject) for line in differing if line and (subject := _subject(part, line))}
    return found


SEPARATORS = {"units": "\n\n", "rules": "\0"}
# Our own notes of what was done: which rules were loaded, which slots passed their canary call.
RECORDS = re.compile(r"/etc/callfleet/(fence|firewall\.loaded|stacks/[^/]+/canary\.json)")


def _subject(part: str, line: str) -> tuple[str, str] | None:
    if part == "files":
        words = line.split()
        path = words[1] if re.fullmatch("[0-9a-f]{64}", words[0]) else words[0]
        return None if RECORDS.fullmatch(path) else ("file", path)
    if part == "proxies":
        if line.startswith(("server ", "certificate ")):
            kind, subject = line.split()[:2]
            return kind, subject
        stack = re.match("/run/([^/]+)/proxy/", line)
        return ("proxy", f"{stack[1]}/proxy") if stack else ("setting", "haproxy configuration")
    if part == "containers":
        return "container", line.split()[0]
    if part == "units":
        return "unit", dict(pair.split("=", 1) for pair in line.splitlines() if "=" in pair)["Id"]
    if part == "packages":
        return "package", line.split()[0]
    return "setting", "nftables table inet callfleet"


def acted_on(events: list[str]) -> list[str]:
    """What was done to a container; health checks and a look inside are not."""
    return [line for line in events if " container " in line and "exec_" not in line]


def nothing_to_do(fleet: Fleet, *arguments: str) -> Converge:
    """A run finds nothing, and from outside: the same files, times, containers, units and rules; Docker did nothing."""
    before = outside(fleet)
    with docker_events(fleet) as events:
        done = fleet.converge(*arguments)
    assert (done.changed, done.planned) == (0, set()), done.output[-3000:]
    assert differences(before, outside(fleet)) == []
    assert acted_on(events) == []
    return done


def journal(fleet: Fleet, host: str) -> list[dict[str, str]]:
    """What a host has noted of its changes."""
    return [json.loads(line) for line in fleet.ssh(host, "cat /etc/callfleet/journal.jsonl").splitlines()]


def ask_proxy(fleet: Fleet, host: str, socket: str, command: str) -> str:
    """The answer of a proxy's admin or master socket."""
    return fleet.ssh(
        host,
        f"python3 - <<'END'\nimport socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('{socket}')\n"
        f"s.sendall(b'{command}\\n')\ns.shutdown(1)\n"
        "print(b''.join(iter(lambda: s.recv(65536), b'')).decode())\nEND",
    )


def take_out(fleet: Fleet, host: str) -> None:
    """By hand, take a host out of the running ingress, whose file still has it."""
    for command in ("set server calls/{} state maint", "wait 5s srv-removable calls/{}", "del server calls/{}"):
        ask_proxy(fleet, "hub", INGRESS, command.format(host))


def show_stat(fleet: Fleet, host: str, socket: str) -> dict[str, dict[str, dict[str, str]]]:
    """What a proxy counts, by backend and server."""
    rows = csv.DictReader(ask_proxy(fleet, host, socket, "show stat").removeprefix("# ").splitlines())
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["pxname"], {})[row["svname"]] = row
    return found


def in_rotation(fleet: Fleet) -> bool:
    """Every host's proxy has seen each of its workers, and the ingress each host: all slots can be found."""
    asked = [(name, HOST_PROXY, "health") for name in fleet.fleet_names] + [("hub", INGRESS, "calls")]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda one: show_stat(fleet, one[0], one[1])[one[2]], asked))
    rows = [row for servers in found for name, row in servers.items() if name != "BACKEND"]
    return all(row["status"].startswith("UP") for row in rows)


def failed_hosts(done: Converge) -> set[str]:
    """Hosts on which an operation of a run failed; pyinfra's table counts the operations skipped after it too."""
    return set(re.findall(r"^\s+\[(\S+)\]\s+Error: executed", done.output, re.MULTILINE))


def leaks(lab: Lab, text: str) -> list[str]:
    """Names of the lab's secrets that stand in a text: as they are, or as base64 wherever it begins and is wrapped."""
    return sorted(name for name, value in _secrets(lab) if any(form in text for form in _forms(value)))


def _secrets(lab: Lab) -> Iterator[tuple[str, str]]:
    for path in sorted((lab.directory / "secrets").iterdir()):
        yield path.name, path.read_text().strip()
    for path in sorted((lab.directory / "tls").glob("*.pem")):
        text = path.read_text()
        if "PRIVATE KEY" in text:
            # The line after the first holds key bytes only; the first is the same for all keys of a kind.
            yield path.name, text[text.index("PRIVATE KEY-----") :].splitlines()[2]


def _forms(value: str) -> Iterator[str]:
    yield value
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + value.encode()).decode()[4:-4]
        for start in range(0, max(len(encoded) - WINDOW, 0) + 1, WINDOW // 2):
            yield encoded[start : start + WINDOW]
