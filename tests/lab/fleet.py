"""The lab fleet as the tests see it: converge it, call it, look at it from outside.

Zeros are read from the stand-ins' own event logs, from hashes, Docker's events, unit start times and HAProxy's
processes, never from what callfleet says of itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from callfleet.plan import Word
from lab.calls import CallHolder, Started, Summary, attach_burst
from lab.hosts import ssh_command
from lab.model import Lab, LabHost
from tests.lab.occupancy import FOREVER, Rotation, Span, Start, cut_calls, published_spans, refused_while_free

ROOT = Path(__file__).resolve().parents[2]
PYINFRA = Path(sys.executable).with_name("pyinfra")
STACK = "cxb-fleet"
WORKERS = 4
WORDS = "|".join(Word)
RESULT_SECONDS = 15.0
"""In which the result of a call that has ended must be with the API."""
WATCH = f"""
import os, select, time
last = None
while not select.select([0], [], [], 0.02)[0]:
    now = sorted(name for name in os.listdir("/run/{STACK}/published") if name.endswith(".sock"))
    if now != last:
        print(time.time(), *now, flush=True)
    last = now
"""
"""Python that says which sockets are published, now and whenever that changes, until its input is closed."""


# What each HAProxy of a host says that it runs; the ingress also which servers and certificates.
RUNNING_CONFIGURATIONS = """
import csv, glob, socket
def ask(path, command):
    said = b""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
            line.sendall(command.encode() + b"\\n")
            line.shutdown(socket.SHUT_WR)
            while part := line.recv(65536):
                said += part
    except OSError:
        pass
    return said.decode().strip()
INGRESS = "/run/callfleet-ingress/admin.sock"
for path in sorted(glob.glob("/run/*/proxy/admin.sock") + glob.glob(INGRESS)):
    print(path, ask(path, "show env CALLFLEET_CONFIG"))
states = {}
for line in ask(INGRESS, "show servers state").splitlines()[2:]:
    word = line.split()
    states[word[1], word[3]] = [word[6], int(word[13]) & 4]
for row in csv.DictReader(ask(INGRESS, "show stat").removeprefix("# ").splitlines()):
    key = row["pxname"], row["svname"]
    if row["type"] == "2" and (key[0] == "calls" or key[0].startswith("fleet_")):
        print("server", "/".join(key), row["addr"], row["slim"], row["sid"], *states[key])
for path in ask(INGRESS, "show ssl cert").splitlines()[1:]:
    told = ask(INGRESS, "show ssl cert " + path)
    print("certificate", path, *[line for line in told.splitlines() if "FingerPrint" in line])
"""


@dataclass(frozen=True)
class Converge:
    """How one run of pyinfra ended."""

    code: int
    output: str
    seconds: float

    @property
    def changed(self) -> int:
        """Operations that changed a host, from pyinfra's own table."""
        found = re.search(r"Grand total\s+\d+\s+(\S+)\s+(\S+)\s+(\S+)", self.output)
        assert found, f"no result table in:\n{self.output[-3000:]}"
        return 0 if found[1] == "-" else int(found[1])

    @property
    def errors(self) -> int:
        """Operations that failed."""
        found = re.search(r"Grand total\s+\d+\s+(\S+)\s+(\S+)\s+(\S+)", self.output)
        return 0 if found is None or found[2] == "-" else int(found[2])

    @property
    def pending(self) -> list[str]:
        """What was left for a later run because a call was on."""
        return re.findall(r"pending: (.*?); finished by the next run", self.output)

    @property
    def planned(self) -> set[str]:
        """Every change it listed, with its host."""
        lines = re.findall(rf"^\s+\[(\S+)\]\s+((?:{WORDS}) .*)$", self.output, re.MULTILINE)
        return {f"{host}: {change}" for host, change in lines}


class Fleet:
    """One converged lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.background: list[Started] = []
        """Background calls that nobody has judged yet."""

    # Hosts

    def ssh(self, host: str | LabHost, command: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a command as root on a host; its output."""
        found = self.lab.host(host) if isinstance(host, str) else host
        done = subprocess.run(
            [*ssh_command(found), "sh -s"], input=command, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{found.name}: {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @property
    def fleet_names(self) -> list[str]:
        """Names of the fleet hosts."""
        return [host.name for host in self.lab.fleet_hosts]

    # callfleet

    def pyinfra(self, *arguments: str, answer: str | None = None, timeout: float = 600) -> Converge:
        """`pyinfra inventories/<site>.py deploy.py ARGUMENTS` from the checkout, without a terminal."""
        began = time.monotonic()
        done = subprocess.run(
            [str(PYINFRA), f"inventories/{self.lab.site}.py", "deploy.py", *arguments],
            cwd=ROOT,
            input=answer or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"PYINFRA_PROGRESS": "off"},
            check=False,
        )
        return Converge(done.returncode, done.stdout + done.stderr, time.monotonic() - began)

    def converge(self, *arguments: str) -> Converge:
        """Apply without asking; fails the test when an operation failed."""
        done = self.pyinfra("-y", *arguments)
        assert done.code == 0, done.output[-6000:]
        assert done.errors == 0, done.output[-6000:]
        return done

    @contextmanager
    def edited(self, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """The site file with `change` made to it; put back at the end (the hosts are not)."""
        before = self.lab.inventory.read_text()
        yaml = YAML()
        data = yaml.load(before)
        change(data)
        with self.lab.inventory.open("w") as out:
            yaml.dump(data, out)
        try:
            yield
        finally:
            self.lab.inventory.write_text(before)

    # Calls

    @property
    def ssl(self) -> ssl.SSLContext:
        """Trust in the lab's authority."""
        return ssl.create_default_context(cafile=str(self.lab.tls("ca.pem")))

    @property
    def resolve(self) -> dict[tuple[str, int], tuple[str, int]]:
        """What DNS would say."""
        names = {"calls": self.lab.hub, "api": self.lab.hub, "console": self.lab.hub}
        names |= {host.name: host for host in self.lab.hosts}
        return {(f"{name}.{self.lab.domain}", 443): (host.address, 443) for name, host in names.items()}

    def calls(self, name: str = "calls", path: str = "/ws/demo", *, at: str = "") -> CallHolder:
        """Calls at a name of the site, through the ingress unless a host is named; `at` is the host that answers."""
        host = f"{name}.{self.lab.domain}"
        found = {(host, 443): (self.lab.host(at).address, 443)} if at else {}
        return CallHolder(f"wss://{host}{path}", self.ssl, resolve=self.resolve | found)

    def attach(self, host: str, n: int, seconds: float, path: str = "/attach", **body: Any) -> list[Started]:
        """n simultaneous background starts at a host's own proxy."""
        url = f"https://{host}.{self.lab.domain}{path}"
        answers = asyncio.run(attach_burst(url, n, seconds, self.ssl, body=body, resolve=self.resolve))
        self.background += answers
        return answers

    # From outside

    def events(self, host: str, since: float = 0.0) -> list[dict[str, Any]]:
        """The workers' own log on one host, oldest first."""
        text = self.ssh(host, f"cat /var/lib/{STACK}/outbox/events.jsonl 2>/dev/null || true")
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [event for event in found if event["t"] >= since]

    def doubled(self, since: float) -> list[dict[str, Any]]:
        """Starts that a worker accepted while it was on a call."""
        every = [event for host in self.fleet_names for event in self.events(host, since)]
        return [event for event in every if event["event"] == "start_while_busy_accepted"]

    def started(self, since: float, n: int, *hosts: str) -> list[dict[str, Any]]:
        """The starts that the workers of these hosts (of all without any) logged since, once there are n.

        A worker answers a WebSocket before it has fetched the bot's configuration, and logs the start after that.
        """
        found: list[dict[str, Any]] = []

        def logged() -> bool:
            every = [event for host in hosts or self.fleet_names for event in self.events(host, since)]
            found[:] = [event for event in every if event["event"] == "start"]
            return len(found) >= n

        self.until(logged, 20, f"{n} starts are logged")
        return found

    @contextmanager
    def rotation(self) -> Iterator[dict[str, dict[str, list[Span]]]]:
        """When each slot was published while the block ran, by host and worker, from the directory that proxies read.

        Filled at its end. What is published when it begins counts as having been so before.
        """
        found: dict[str, dict[str, list[Span]]] = {}
        watchers = {}
        for name in self.fleet_names:
            command = [*ssh_command(self.lab.host(name)), "--", f"exec python3 -c {shlex.quote(WATCH)}"]
            watchers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = {name: _line(watcher) for name, watcher in watchers.items()}
        try:
            yield found
        finally:
            for name, watcher in watchers.items():
                rest, _ = watcher.communicate(timeout=30)
                found[name] = published_spans([first[name], *rest.splitlines()])

    def refused_while_free(self, starts: list[Start], rotation: Rotation | None = None) -> list[str]:
        """Starts that were refused beside a slot in rotation that was idle by its own log for the second before.

        Without `rotation` every slot counts as having been published all the time.
        """
        logs = {host: self.events(host) for host in self.fleet_names}
        every = {str(n): [(0.0, FOREVER)] for n in range(1, WORKERS + 1)}
        return refused_while_free(
            starts, logs, dict.fromkeys(self.fleet_names, every) if rotation is None else rotation
        )

    def results(self) -> dict[str, dict[str, Any]]:
        """Every call result that the API holds, by session."""
        # One that was just started does not listen yet.
        ask = "curl -fsS --max-time 20 --retry 30 --retry-delay 1 --retry-connrefused"
        text = self.ssh("hub", f"{ask} http://127.0.0.1:8080/api/v1/call-results")
        return {one["session_id"]: one for one in json.loads(text)["results"]}

    def cut(self, within: float = RESULT_SECONDS) -> list[str]:
        """Background calls started since it was asked last that ended early, or left no result within a time."""
        started, self.background = [call for call in self.background if call.status == 200], []
        if not started:
            return []
        over = max(call.answered_at + call.planned for call in started) + within
        while not (found := self.results()).keys() >= {call.session for call in started} and time.time() < over:
            time.sleep(0.2)
        return cut_calls(started, found)

    def slots(self, host: str) -> list[dict[str, Any]]:
        """What the slot program says of each slot. Code 1 is doubt, which is an answer too: Docker may just start."""
        return list(json.loads(self.ssh(host, f"slotctl status {STACK} --json || [ $? = 1 ]"))["slots"])

    def wait_idle(self, seconds: float = 60) -> None:
        """Until every worker says 0 calls."""
        self.until(
            lambda: all(s["calls"] == 0 for h in self.fleet_names for s in self.slots(h)), seconds, "all slots idle"
        )

    def until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Await a condition; fails the test when it does not come true in time."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.2)

    def outside(self, host: str) -> dict[str, str]:
        """All that a run could have changed, read without callfleet: content, times, containers, units, rules.

        Without the records of what was done.
        """
        records = "! -path /etc/callfleet/journal.jsonl ! -path '/etc/callfleet/stacks/*/made.json'"
        return {
            "files": self.ssh(
                host,
                "find /etc /opt /usr/local /var/lib/systemd/deb-systemd-helper-enabled -xdev -type f "
                f"! -name '*-' {records} -printf '%p %m %U:%G %T@ %s\\n' 2>/dev/null | sort; "
                f"find /etc/callfleet /opt/stacks /etc/systemd /usr/local -xdev -type f {records} "
                "-exec sha256sum {} + 2>/dev/null | sort",
            ),
            "containers": self.ssh(
                host,
                "command -v docker >/dev/null && docker inspect -f '"
                '{{index .Config.Labels "callfleet.stack"}}/{{index .Config.Labels "callfleet.service"}} '
                "{{.Name}} {{.Id}} {{.State.StartedAt}}' "
                "$(docker ps -aq) 2>/dev/null | sort || true",
            ),
            "units": self.ssh(
                host,
                "systemctl show docker containerd nftables haproxy systemd-sysctl systemd-journald callfleet-firewall "
                "'stack@*' 'callfleet-keeper@*' "
                "-p Id -p ActiveState -p ExecMainStartTimestampMonotonic -p MainPID -p UnitFileState 2>/dev/null",
            ),
            "packages": self.ssh(host, "dpkg-query -W; apt-mark showhold"),
            "proxies": self.ssh(host, f"python3 - <<'END'\n{RUNNING_CONFIGURATIONS}\nEND"),
            "rules": self.ssh(host, "command -v nft >/dev/null && nft list table inet callfleet 2>/dev/null || true"),
        }


def starts_of(answered: Summary | list[Started], hosts: list[str]) -> list[Start]:
    """Starts as their callers saw them, with the hosts that could have taken them; no sensible answer is a refusal."""
    calls = answered.calls if isinstance(answered, Summary) else answered
    return [
        Start(
            one.session,
            one.began_at,
            one.answered_at,
            one.status == 200 if isinstance(one, Started) else one.opened,
            tuple(hosts),
        )
        for one in calls
    ]


def _line(watcher: subprocess.Popen[str]) -> str:
    assert watcher.stdout is not None
    return watcher.stdout.readline()
