"""The legacy site that handovers start from behaves as production does today, its weak sides included.

Calls are judged by their own frames, by the workers' event logs and by what the API holds.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.calls import CallHolder
from lab.legacy import CONTRADICTIONS
from lab.model import Lab
from tests.lab.conftest import NAME, lab_command
from tests.lab.fleet import WORKERS, Fleet
from tests.lab.look import ask_proxy

pytestmark = pytest.mark.long
LONG = 90
"""Seconds of a background call that the test ends itself; one that failed leaves it to the next one's fixture."""
MARKED = 15
"""Seconds in which nginx has forgotten that a worker said 429 (fail_timeout is 10)."""


class Legacy(Fleet):
    """A legacy lab; `prefix` is the brand's name for workers."""

    prefix = "cxbcore"

    def events(self, host: str, since: float = 0.0) -> list[dict[str, Any]]:
        """The workers' own log, where the units write it."""
        text = self.ssh(host, f"cat /var/lib/{self.prefix}/outbox/events.jsonl 2>/dev/null || true")
        return [event for event in map(json.loads, text.splitlines()) if event["t"] >= since]

    def ask(self, name: str, path: str, method: str = "GET", **body: Any) -> httpx.Response:
        """One request at a name of the site."""
        host = f"{name}.{self.lab.domain}"
        address, port = self.resolve[host, 443]
        with httpx.Client(verify=self.ssl, timeout=30, trust_env=False) as client:
            url, sni = f"https://{address}:{port}{path}", {"sni_hostname": host}
            return client.request(method, url, headers={"Host": host}, extensions=sni, json=body or None)

    def available(self, host: str) -> int:
        """Free slots, as the host tells the ingress, the API and the Dialler."""
        answer = self.ask(host, "/health/fleet")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["fleet_available"])

    def worker(self, host: str, n: int, path: str, **body: Any) -> dict[str, Any]:
        """POST to one worker past nginx."""
        told = self.ssh(
            host,
            f"curl -sS --unix-socket /tmp/{self.prefix}_{n}.sock http://worker{path} "
            f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}",
        )
        return dict(json.loads(told))

    def occupy(self, host: str, *workers: int) -> dict[int, str]:
        """A background call on each of these workers, past nginx; their sessions."""
        return {n: self.worker(host, n, "/attach", bot_id="demo", seconds=LONG)["session_id"] for n in workers}

    def hang_up(self, host: str, sessions: dict[int, str]) -> None:
        """End background calls as their callers would."""
        for n, session in sessions.items():
            self.worker(host, n, f"/standin/hangup?session_id={session}")

    def met(self, host: str, session: str) -> list[tuple[str, str]]:
        """Which worker did what with a start, in the order of time."""
        words = ("start", "start_while_busy_refused", "dispatch_rejected")
        found = [event for event in self.events(host) if event.get("session") == session and event["event"] in words]
        return [(event["worker"], event["event"]) for event in found]

    def ingress(self) -> dict[str, str]:
        """How the ingress sees each fleet host."""
        rows = csv.DictReader(
            ask_proxy(self, "hub", "/run/haproxy/admin.sock", "show stat").removeprefix("# ").splitlines()
        )
        backend = f"{self.prefix}_fleets"
        return {
            row["svname"]: row["status"].split()[0]
            for row in rows
            if row["pxname"] == backend and row["svname"] != "BACKEND"
        }

    def see(self, **states: str) -> None:
        """Until the ingress sees the hosts in these states."""
        wanted = {name.replace("_", "-"): state for name, state in states.items()}
        self.until(lambda: self.ingress() == wanted, 20, f"the ingress sees {wanted}")


@contextmanager
def legacy_lab(suffix: str, *arguments: str) -> Iterator[Legacy]:
    """A legacy lab beside the run's own."""
    name = f"{NAME}{suffix}"
    keep = os.environ.get("CALLFLEET_KEEP_LAB") == "1"
    if not keep:
        lab_command("down", "--name", name)
    lab_command("up", "--name", name, "--legacy", *arguments)
    try:
        yield Legacy(Lab.load(name))
    finally:
        if not keep:
            lab_command("down", "--name", name)


@pytest.fixture(scope="module")
def three() -> Iterator[Legacy]:
    """A hub with ingress, API and Dialler before two fleet hosts."""
    with legacy_lab("o", "--hosts", "3") as lab:
        yield lab


@pytest.fixture
def site(three: Legacy) -> Iterator[Legacy]:
    """The same, idle and in rotation before and after each test."""
    idle = lambda: all(three.available(name) == WORKERS for name in three.fleet_names)  # noqa: E731
    three.until(idle, LONG + 30, "all slots idle")
    three.see(eu1_a="UP", eu1_b="UP")
    yield three
    three.until(idle, 60, "all slots idle")


def test_calls_through_nginx_and_the_ingress(site: Legacy) -> None:
    """Each slot takes one call without a gap; full hosts refuse, and are down at the ingress until they have room."""
    began = time.time()
    with site.calls("eu1-a") as direct, site.calls(path="/exotel/demo") as carried, site.calls("eu1-a") as fifth:
        direct.start(WORKERS)
        assert direct.wait_open() == WORKERS, direct.report().as_json()
        fifth.start(1)
        assert (fifth.wait_open(), fifth.report().refused) == (0, {502: 1})
        health = site.ask("eu1-a", "/health/fleet").json()
        assert [health[key] for key in ("fleet_calls", "fleet_max", "fleet_available")] == [4, 4, 0]
        assert [(one["id"], one["calls"], one["max"]) for one in health["workers"]] == [(n, 1, 1) for n in "1234"]
        site.see(eu1_a="DOWN", eu1_b="UP")
        carried.start(WORKERS)
        assert carried.wait_open() == WORKERS, carried.report().as_json()
        site.see(eu1_a="DOWN", eu1_b="DOWN")
        with site.calls() as ninth:
            ninth.start(1)
            assert (ninth.wait_open(), ninth.report().refused) == (0, {503: 1})
        own = site.ask("eu1-b", "/health").json()
        assert (own["worker_calls"], own["total_capacity"], own["total_available"]) == (1, 4, 0)
        direct.stop()
        carried.stop()
    assert direct.report().clean, direct.report().gaps[:5]
    assert carried.report().clean, carried.report().gaps[:5]
    starts = {(host, event["worker"]) for host in site.fleet_names for event in site.started(began, WORKERS, host)}
    assert len(starts) == 2 * WORKERS


def test_names_and_paths(site: Legacy) -> None:
    """The ingress carries calls and the two web names, a host its own routes; nothing else is served."""
    assert site.ask("calls", "/haproxy-health").text == "ok"
    for path in ("/", "/attach", "/livekit/dispatch", "/health", "/health/fleet", "/recordings/x.wav", "/wsx"):
        assert site.ask("calls", path).status_code == 404, path
    for path in ("/", "/attach/", "/livekit", "/wsx", "/standin/counters"):
        assert site.ask("eu1-a", path).status_code == 404, path
    assert site.ask("eu1-a", "/ws").headers["Location"].endswith("/ws/")  # nginx's own habit
    assert site.ask("api", "/health").json()["redis"] == "ok"
    assert site.ask("console", "/some/page").text == site.ask("console", "/").text
    assert f"https://api.{site.lab.domain}" in site.ask("console", "/config.js").text
    dialler = site.ssh("hub", "curl -fsS http://127.0.0.1:8090/health; . /opt/cxb-dialler/.env; echo; echo $FLEET_URLS")
    urls = [f"https://{name}.{site.lab.domain}" for name in site.fleet_names]
    assert dialler.splitlines()[1] == ",".join(urls)
    call = site.ssh(
        "hub",
        "curl -fsS http://127.0.0.1:8080/api/v1/calls -H 'Content-Type: application/json' "
        """-d '{"bot_id": "demo", "seconds": 0}'""",
    )
    assert json.loads(call)["host"] in urls


def test_starts_walk_the_workers_but_a_dispatch_does_not(site: Legacy) -> None:
    """With one worker free every route finds it. With none, dispatch meets one worker and /attach all of them: 429."""
    first, second = site.fleet_names
    busy, free = site.occupy(first, 1, 2, 4), dict[int, str]()
    for path in ("/livekit/widget", "/livekit/dialout", "/attach"):
        site.hang_up(first, free)
        site.until(lambda: site.available(first) == 1, 10, "worker 3 is free")
        answer = site.ask(first, path, "POST", bot_id="demo", seconds=LONG)
        assert (answer.status_code, answer.json().get("worker_id")) == (200, "3"), answer.text
        free = {3: answer.json()["session_id"]}
    site.hang_up(first, busy | free)

    full = site.occupy(second, 1, 2, 3, 4)
    for path, walked in (("/livekit/dispatch", 1), ("/attach", WORKERS)):
        session = f"walk-{uuid.uuid4().hex}"
        answer = site.ask(second, path, "POST", bot_id="demo", session_id=session)
        assert (answer.status_code, answer.json()) == (429, {"detail": "at_capacity"}), answer.text
        met = site.met(second, session)
        refused = [worker for worker, word in met if word == "start_while_busy_refused"]
        assert len(refused) == len(set(refused)) == walked
        assert [word for _, word in met].count("dispatch_rejected") == (path == "/livekit/dispatch")
    site.hang_up(second, full)
    # A walk that found nobody leaves every worker out for fail_timeout: no start is taken although all are free.
    for host in site.fleet_names:
        site.until(lambda host=host: unmarked(site, host), MARKED, "nginx has every worker in rotation")  # type: ignore[misc]
    ended = set((busy | free).values())
    site.until(lambda: ended <= site.results().keys(), 15, "the results are with the API")
    assert [site.results()[session]["replays"] for session in ended] == [0] * WORKERS


def unmarked(site: Legacy, host: str) -> bool:
    """Whether nginx sends starts to each of the idle workers; it passes over one that said 429 for 10 s."""
    taken: dict[int, str] = {}
    for _ in range(WORKERS):
        answer = site.ask(host, "/livekit/dispatch", "POST", bot_id="demo", seconds=LONG)
        if answer.status_code == 200:
            taken[int(answer.json()["worker_id"])] = answer.json()["session_id"]
    site.hang_up(host, taken)
    site.until(lambda: site.available(host) == WORKERS, 10, "the calls have ended")
    return len(taken) == WORKERS


def test_results_wait_in_the_outbox_while_the_api_is_away(site: Legacy) -> None:
    """The file is there while the API is down, over a restart too, and is delivered once. Control: with the API up."""
    host, outbox = "eu1-b", "find /var/lib/cxbcore/outbox -name '*.json' ! -name '.*'"
    sessions = site.occupy(host, 1, 2)
    site.hang_up(host, {2: sessions[2]})
    site.until(lambda: sessions[2] in site.results(), 15, "the first result is with the API")
    assert site.ssh(host, outbox) == ""
    site.ssh("hub", "systemctl stop cxb-api")
    site.hang_up(host, {1: sessions[1]})
    site.until(lambda: sessions[1] in site.ssh(host, outbox), 10, "the second one waits")
    site.ssh(host, "systemctl restart cxbcore@1")
    site.until(lambda: site.available(host) == WORKERS, 20, "its worker is back")
    assert sessions[1] in site.ssh(host, outbox)
    site.ssh("hub", "systemctl start cxb-api")
    site.until(lambda: sessions[1] in site.results(), 30, "it is with the API")
    site.until(lambda: site.ssh(host, outbox) == "", 10, "nothing waits any more")
    found = site.results()
    assert [(found[one]["worker_id"], found[one]["replays"]) for one in sessions.values()] == [("1", 0), ("2", 0)]


def test_stopping_a_unit_cuts_its_call_and_no_other(site: Legacy) -> None:
    """What makes a handover necessary: systemd's SIGTERM ends the call with 1012. The host goes on with the others."""
    host, began = "eu1-b", time.time()
    with site.calls(host) as held:
        held.start(2)
        assert held.wait_open() == 2
        first, second = site.started(began, 2, host)
        site.ssh(host, f"systemctl stop cxbcore@{first['worker']}")
        site.until(lambda: held.report().closed_early, 10, "the call is cut")
        health = site.ask(host, "/health/fleet").json()
        assert {"id": first["worker"], "status": "unreachable"} in health["workers"]
        assert (health["fleet_calls"], health["fleet_available"]) == (1, WORKERS - 2)
        held.start(WORKERS - 2)
        assert held.wait_open() == WORKERS, held.report().as_json()
        held.stop()
    site.ssh(host, f"systemctl start cxbcore@{first['worker']}")
    (cut,) = held.report().closed_early
    assert (cut.session, cut.close_code) == (first["session"], 1012)
    assert all(call.clean for call in held.report().calls if call.session != first["session"]), held.report().gaps
    site.until(lambda: {first["session"], second["session"]} <= site.results().keys(), 20, "both results are there")
    found = site.results()
    assert [found[one["session"]]["outcome"] for one in (first, second)] == ["cut", "completed"]


def test_a_second_up_leaves_everything_alone(site: Legacy) -> None:
    """Files, times and the units' start times are the same, a held call goes on. Control: one unit is restarted."""
    look = (
        "find /etc /opt /usr/local -xdev -type f ! -name '*-' -printf '%p %m %U:%G %T@\\n' | sort; "
        "systemctl show 'cxb*' nginx haproxy mongod minio redis-server -p Id -p MainPID -p UnitFileState "
        "-p ExecMainStartTimestampMonotonic"
    )

    def outside() -> dict[str, list[str]]:
        return {host.name: site.ssh(host.name, look).splitlines() for host in site.lab.hosts}

    before = outside()
    with site.calls() as held:
        held.start(1)
        assert held.wait_open() == 1
        lab_command("up", "--name", site.lab.name, "--legacy", "--hosts", "3")
        held.stop()
    assert outside() == before
    assert held.report().clean, held.report().gaps
    site.ssh("hub", "systemctl restart cxb-dialler")
    assert outside() != before


def test_silence_of_a_minute_ends_a_call(site: Legacy) -> None:
    """nginx cuts a silent call whose worker hangs. Controls: one whose worker pings, and one with frames, go on."""
    host, began = "eu1-a", time.time()
    url = f"wss://{host}.{site.lab.domain}/ws/demo"
    with CallHolder(url, site.ssl, rate=0, resolve=site.resolve) as silent, site.calls(host) as speaking:
        silent.start(2)
        assert silent.wait_open() == 2
        hung, _ = site.started(began, 2, host)
        speaking.start(1)
        assert speaking.wait_open() == 1
        site.ssh(host, f"kill -STOP {hung['pid']}")
        site.until(lambda: silent.report().closed_early, 120, "the silent call is cut")
        site.ssh(host, f"kill -CONT {hung['pid']}")
        silent.stop()
        speaking.stop()
    assert [(call.session, call.close_code) for call in silent.report().closed_early] == [(hung["session"], 1006)]
    assert speaking.report().clean, speaking.report().gaps


def imported(site: Legacy, folder: Path, *arguments: str) -> tuple[int, dict[str, Any], Path]:
    """The whole site read by `callfleet import`: exit code, document, site file."""
    ssh, path = site.lab.ssh_key.parent, folder / "inventories" / "old.yml"
    path.parent.mkdir(exist_ok=True)
    known = ("--key", str(site.lab.ssh_key), "--known-hosts", str(ssh / "known_hosts"), "--stage", "lab")
    release = ("--release", str(site.lab.inventory.with_suffix(".release.yml")))
    hosts = ("--from", *(host.address for host in site.lab.hosts))
    done = callfleet("import", str(path), *known, *release, *hosts, "--json", "--force", *arguments)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode, json.loads(done.stdout), path


def callfleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, without a terminal."""
    command = [sys.executable, "-m", "callfleet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_an_import_describes_the_site_and_touches_nothing(site: Legacy, tmp_path: Path) -> None:
    """Everything is understood and nothing contradicts; the plan of what it wrote is what would change.

    A call is held meanwhile; files, processes and logs of the hosts are as before.
    """
    look = (
        "find /etc /opt /var/lib/cxbcore /var/log/nginx -xdev -type f -newer /run/import-mark ! -name events.jsonl "
        "! -name access.log; systemctl show -p MainPID,NRestarts 'cxb*' nginx haproxy"
    )
    for host in site.lab.hosts:
        site.ssh(host, "touch /run/import-mark")
    before = {host.name: site.ssh(host, look) for host in site.lab.hosts}
    with site.calls() as held:
        held.start(1)
        assert held.wait_open() == 1
        code, told, path = imported(site, tmp_path, "--secrets-to", str(tmp_path / "secrets"))
        assert {host.name: site.ssh(host, look) for host in site.lab.hosts} == before
        held.stop()
    assert [call.opened for call in held.report().calls] == [True]
    assert held.report().closed_early == []
    assert (code, told["contradictions"], told["not_understood"], told["unknown"], told["problems"]) == (
        0,
        [],
        [],
        [],
        [],
    )
    assert {(one["name"], one["workers"], one["at_ingress"]) for one in told["hosts"]} == {
        ("eu1-a", WORKERS, True), ("eu1-b", WORKERS, True)
    }  # fmt: skip
    assert [one["core_fleet"] for one in told["hosts"]] == [one["fleet_urls"] for one in told["hosts"]]
    secret = site.lab.secret("core_secret").read_text().strip()
    assert (tmp_path / "secrets" / "core_secret").read_text().strip() == secret
    assert secret not in path.read_text() + json.dumps(told)
    for verb in ("authority", "issue"):
        done = callfleet("certificates", verb, str(path))
        assert done.returncode == 0, done.stderr
    done = callfleet("plan", str(path), "--json")
    assert done.returncode == 2, done.stderr
    plan = done.stdout
    for change in ("/opt/stacks/cxb-fleet/compose.yml", "/etc/haproxy/haproxy.cfg", "worker-1", "docker.io"):
        assert change in plan


def test_an_import_misses_no_contradiction(site: Legacy, tmp_path: Path) -> None:
    """A dozen at once, each told by its kind and at its host. The clean site above is the control."""
    expected = {
        "declared-workers": ("worker-count", "eu1-b"), "maxconn": ("ingress-maxconn", "eu1-b"),
        "outbound-only": ("outbound-only", "eu1-a"), "fleet-urls": ("fleet-lists", "eu1-b"),
        "core-secret": ("shared-value", "eu1-b"), "config-url": ("shared-value", ""),
        "mongodb-db": ("shared-value", "eu1-b"), "calls-per-worker": ("calls-per-worker", "eu1-b"),
        "retry-tries": ("retry-tries", "eu1-b"), "retry-dispatch": ("dispatch-retry", "eu1-b"),
        "keepalive": ("upstream-keepalive", "eu1-b"), "connection-header": ("connection-header", "eu1-b"),
        "check-cap": ("check-cap", ""),
    }  # fmt: skip
    up = ("up", "--name", site.lab.name, "--legacy", "--hosts", "3")
    try:
        lab_command(*up, *(word for name in expected for word in ("--contradict", name)))
        code, told, _ = imported(site, tmp_path)
        assert code == 3
        assert {(one["kind"], one["host"]) for one in told["contradictions"]} == set(expected.values())
        shared = [one["what"].split()[1] for one in told["contradictions"] if one["kind"] == "shared-value"]
        assert sorted(shared) == ["CONFIG_URL", "MONGODB_DB", "core"]
        assert "of-another-day" not in json.dumps(told)
    finally:
        lab_command(*up)
    site.until(lambda: site.available("eu1-b") == WORKERS, 30, "all slots idle")
    site.see(eu1_a="UP", eu1_b="UP")


def test_contradictions_are_laid_down_and_put_right(site: Legacy) -> None:
    """nginx and HAProxy take files with nearly all of them at once; a plain `up` brings back the files from before.

    Two of them are shown by use, which is the control of the walk above.
    """
    read = "cat /opt/*/.env /etc/nginx/sites-available/* /etc/haproxy/haproxy.cfg 2>/dev/null"
    look = f"{read}; systemctl is-enabled cxbcore@4"

    def files() -> dict[str, str]:
        return {host.name: site.ssh(host.name, look, check=False) for host in site.lab.hosts}

    up, before = ("up", "--name", site.lab.name, "--legacy", "--hosts", "3"), files()
    names = [name for name in CONTRADICTIONS if name not in ("fleet-urls", "retry-tries")]
    lab_command(*up, *(word for name in names for word in ("--contradict", name)))
    wrong = files()
    assert "of-another-day" in wrong["eu1-b"]
    assert wrong["eu1-b"].endswith("disabled\n")
    site.see(eu1_b="DOWN")  # its check ends below what it has free, and the other one is not there
    lab_command(*up, "--contradict", "no-retry", "--contradict", "retry-dispatch")
    full = site.occupy("eu1-b", 1, 2, 3, 4)
    for path, walked in (("/attach", 1), ("/livekit/dispatch", WORKERS)):
        session = f"walk-{uuid.uuid4().hex}"
        assert site.ask("eu1-b", path, "POST", bot_id="demo", session_id=session).status_code == 429
        refused = [worker for worker, word in site.met("eu1-b", session) if word == "start_while_busy_refused"]
        assert len(refused) == walked
    site.hang_up("eu1-b", full)
    lab_command(*up)
    assert files() == before
    site.until(lambda: site.available("eu1-b") == WORKERS, 30, "all slots idle")
    site.until(lambda: unmarked(site, "eu1-b"), MARKED, "nginx has every worker in rotation")
    assert site.ask("eu1-b", "/attach", "POST", bot_id="demo", seconds=0).status_code == 200


def test_one_host_of_another_brand() -> None:
    """Everything on one box under other names: calls on every slot, API and Console by theirs, results delivered."""
    with legacy_lab("p", "--hosts", "1", "--brand", "voxbridge") as one:
        one.prefix = "voxcore"
        with one.calls("hub") as held:
            held.start(WORKERS)
            assert held.wait_open() == WORKERS, held.report().as_json()
            assert one.available("hub") == 0
            held.stop()
        assert held.report().clean, held.report().gaps
        one.until(
            lambda: {call.session for call in held.report().calls} <= one.results().keys(), 15, "results are there"
        )
        assert one.ask("api", "/health").json()["status"] == "ok"
        assert one.ask("console", "/").status_code == 200
        units = one.ssh("hub", "systemctl list-units --plain --no-legend 'vox*' 'cxb*' haproxy.service").split("\n")
        assert sorted(line.split()[0] for line in units if line) == [
            "vox-api.service",
            "vox-dialler.service",
            *(f"voxcore@{n}.service" for n in range(1, WORKERS + 1)),
        ]
