"""What hosts, daemons and operators do to calls: signals, restarts, crashes, cuts of the link, reboots, stolen names.

Every test begins and ends with a converged, idle lab. Where it is cheap, a test also shows that its own check can fail.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab import hosts, lifecycle
from lab.calls import CallHolder
from lab.hosts import ssh_command
from tests.lab.background import background, begin, came_through, hang_up
from tests.lab.fleet import PYINFRA, ROOT, STACK, WORKERS, Fleet
from tests.lab.look import ask_proxy, in_rotation
from tests.lab.test_calls import down_in_proxy
from tests.lab.test_converge import API, CURL

RUN = f"/run/{STACK}"
PROJECT = f"/opt/stacks/{STACK}"
MASTER = f"{RUN}/proxy/master.sock"
KEEPER = f"callfleet-keeper@{STACK}.service"
UNIT = f"stack@{STACK}.service"
SLOTS = 2 * WORKERS
ALL = dict.fromkeys(range(1, WORKERS + 1), "idle")
REPAIR_SECONDS = 10.0
"""In which the keeper brings a slot back by itself."""
BOOT_SECONDS = 90.0


# What is seen from outside


def seen(fleet: Fleet, host: str) -> dict[int, dict[str, Any]]:
    """Each slot as the slot program sees it; empty while the host does not answer. Doubt is an answer too."""
    done = subprocess.run(
        [*ssh_command(fleet.lab.host(host)), "--", f"slotctl status {STACK} --json"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    try:
        return {slot["slot"]: slot for slot in json.loads(done.stdout)["slots"]}
    except ValueError:
        return {}


def states(fleet: Fleet, host: str) -> dict[int, str]:
    """Each slot's word."""
    return {n: slot["state"] for n, slot in seen(fleet, host).items()}


def busy(fleet: Fleet, host: str) -> set[int]:
    """Slots on a call, by what their workers say."""
    return {n for n, slot in seen(fleet, host).items() if slot["calls"]}


def containers(fleet: Fleet, host: str) -> set[str]:
    """Name, id and time of start of what runs, from Docker."""
    ask = "docker ps -q | xargs -r docker inspect -f '{{.Name}} {{.Id}} {{.State.StartedAt}}'"
    return set(fleet.ssh(host, ask).splitlines())


def pid(fleet: Fleet, host: str, service: str) -> int:
    """The first process of a container, as the host numbers it."""
    newest = f"docker ps -q --latest --filter label=callfleet.stack={STACK} --filter label=callfleet.service={service}"
    return int(fleet.ssh(host, f"docker inspect -f '{{{{.State.Pid}}}}' $({newest})"))


def unit(fleet: Fleet, host: str, name: str) -> str:
    """Whether a unit is active, and since when it has been what it is."""
    return fleet.ssh(host, f"systemctl show -p ActiveState -p StateChangeTimestampMonotonic {name}")


def socket_of(fleet: Fleet, host: str, path: str) -> str:
    """The socket behind a name below the stack's run directory."""
    return fleet.ssh(host, f"stat -c '%i %F' {RUN}/{path} 2>/dev/null || echo none").strip()


def old_proxies(fleet: Fleet, host: str) -> int:
    """Proxy processes that only carry the calls of an earlier configuration."""
    old = ask_proxy(fleet, host, MASTER, "show proc").partition("# old workers")[2].partition("# programs")[0]
    return sum(1 for line in old.splitlines() if "worker" in line)


# What is done


@contextmanager
def held(fleet: Fleet, name: str, n: int) -> Iterator[CallHolder]:
    """n calls by a name of the site that must come through the block without a gap."""
    with fleet.calls(name) as calls:
        calls.start(n)
        assert calls.wait_open() == n, calls.report().as_json()["refused"]
        yield calls
        time.sleep(1)  # a gap of a second must have had the time to show
        calls.stop()
    report = calls.report()
    assert report.clean, [*report.gaps[:10], *(f"{call.session} was closed" for call in report.closed_early)]


@contextmanager
def answering(fleet: Fleet, host: str) -> Iterator[list[str]]:
    """Ask the host's `/health/fleet` from the hub all the time; the answers' codes, complete after the block."""
    name, address = f"{host}.{fleet.lab.domain}", fleet.lab.host(host).address
    ask = (
        f"curl -sk -m 5 -o /dev/null -w '%{{http_code}}\\n' --resolve {name}:443:{address} https://{name}/health/fleet"
    )
    script = f"touch /run/asking; while [ -e /run/asking ]; do {ask}; sleep 0.1; done"
    codes: list[str] = []
    with subprocess.Popen([*ssh_command(fleet.lab.hub), "--", script], stdout=subprocess.PIPE, text=True) as asking:
        try:
            yield codes
        finally:
            fleet.ssh("hub", "rm -f /run/asking")
            codes += asking.communicate(timeout=30)[0].split()


def drain(fleet: Fleet, host: str, n: int) -> None:
    """Declare an idle slot drained; a health check that is connected just then is waited for."""
    fleet.ssh(host, f"slotctl drain {STACK} {n} --reason test --wait 30")


def ready(fleet: Fleet, host: str, n: int) -> None:
    """End a declared drain; the keeper, which may be about to publish the slot as well, is waited for."""
    fleet.ssh(host, f"slotctl ready {STACK} {n} --wait 30")


@contextmanager
def without_keeper(fleet: Fleet, host: str) -> Iterator[None]:
    """Nobody repairs names meanwhile."""
    fleet.ssh(host, f"systemctl stop {KEEPER}")
    try:
        yield
    finally:
        fleet.ssh(host, f"systemctl start {KEEPER}")


@contextmanager
def converging(fleet: Fleet, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A converge that is under way."""
    with subprocess.Popen(
        [PYINFRA, f"inventories/{fleet.lab.site}.py", "deploy.py", "-y", *arguments],
        cwd=ROOT, env=os.environ | {"PYINFRA_PROGRESS": "off"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def set_environment(value: str) -> Callable[[dict[str, Any]], None]:
    """A change of the site that recreates every worker."""

    def change(site: dict[str, Any]) -> None:
        site["core"]["environment"]["SCRATCH"] = value

    return change


def wait_states(fleet: Fleet, host: str, expected: dict[int, str], seconds: float = REPAIR_SECONDS) -> None:
    """Until every slot of a host has its expected word."""
    last: dict[int, str] = {}

    def so() -> bool:
        nonlocal last
        last = states(fleet, host)
        return last == expected

    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, f"{host}: {last} after {seconds:.0f} s, expected {expected}"
        time.sleep(0.2)


@pytest.fixture
def calm(converged: Fleet, repair: Callable[[], None]) -> Iterator[Fleet]:
    """The converged hosts; each test leaves every slot published and idle. What a failed test left is repaired."""
    if any(states(converged, host) != ALL for host in converged.fleet_names):
        for host in converged.fleet_names:
            converged.ssh(host, f"slotctl ready {STACK} --wait 30", check=False)
        converged.converge()
    converged.until(lambda: in_rotation(converged), 30, "the proxies have seen every slot")
    yield converged
    repair()
    for host in converged.fleet_names:
        wait_states(converged, host, ALL, 30)
    assert converged.cut() == []


# Signals and crashes of workers


def test_a_stop_by_hand_does_not_cut_a_call(calm: Fleet) -> None:
    """`docker compose stop` on a busy worker: its call goes on, background or not. Controls: SIGTERM cuts one of each.

    The worker that SIGTERM ended comes back and is published without any run. The one that was stopped by hand, which
    Docker does not restart once its process is gone, is started by the next run.
    """
    host = calm.fleet_names[0]
    with calm.calls(host) as control, held(calm, host, 1):
        (kept,) = busy(calm, host)
        control.start(1)
        assert control.wait_open() == 1
        (cut,) = busy(calm, host) - {kept}
        with background(calm, host):
            (silent,) = busy(calm, host) - {kept, cut}
            (short,) = begin(calm, host)
            (last,) = busy(calm, host) - {kept, cut, silent}
            before = socket_of(calm, host, f"published/cxbcore_{cut}.sock")
            calm.ssh(host, f"cd {PROJECT} && timeout 6 docker compose stop worker-{kept} worker-{silent} || true")
            calm.ssh(host, f"kill -TERM {pid(calm, host, f'worker-{cut}')} {pid(calm, host, f'worker-{last}')}")
            calm.until(lambda: control.report().closed_early, 15, "the check sees a call that SIGTERM cut")
            with pytest.raises(AssertionError, match="'event': 'cut'"):
                came_through(calm, host, short)
            back = {cut: "idle", last: "idle"}
            calm.until(lambda: back.items() <= states(calm, host).items(), REPAIR_SECONDS, "both came back")
            assert socket_of(calm, host, f"published/cxbcore_{cut}.sock") != before
            assert busy(calm, host) == {kept, silent}
    pids = [str(pid(calm, host, f"worker-{n}")) for n in (kept, silent)]
    calm.ssh(host, f"kill -KILL {' '.join(pids)}")
    gone = {kept: "dead", silent: "dead"}
    calm.until(lambda: gone.items() <= states(calm, host).items(), REPAIR_SECONDS, "Docker leaves them stopped")
    assert calm.converge().pending == []
    wait_states(calm, host, ALL)


def test_a_crashed_worker_is_published_again_and_a_drained_one_is_not(calm: Fleet) -> None:
    """kill -9 of two workers beside a call: the keeper publishes one within 10 s, the drained one stays withdrawn."""
    host = calm.fleet_names[0]
    with held(calm, host, 1):
        (talking,) = busy(calm, host)
        drained, crashed = [n for n in ALL if n != talking][:2]
        name = socket_of(calm, host, f"published/cxbcore_{talking}.sock")
        drain(calm, host, drained)
        calm.ssh(host, f"kill -KILL {pid(calm, host, f'worker-{crashed}')} {pid(calm, host, f'worker-{drained}')}")
        expected = ALL | {talking: "on a call", drained: "drained"}
        wait_states(calm, host, expected)
        time.sleep(3)  # six rounds of the keeper
        assert states(calm, host) == expected
        assert seen(calm, host)[crashed]["restarts"] >= 1
        assert socket_of(calm, host, f"published/cxbcore_{drained}.sock") == "none"
        assert socket_of(calm, host, f"published/cxbcore_{talking}.sock") == name
    ready(calm, host, drained)


# Docker and Compose


def test_a_restart_of_docker_leaves_calls_and_the_stack_alone(calm: Fleet) -> None:
    """`systemctl restart docker` under 4 calls, two in the background: no gap, none cut.

    No container is started anew, and the stack's unit was not stopped.
    """
    host = calm.fleet_names[0]
    assert calm.ssh(host, "docker info -f '{{.LiveRestoreEnabled}}'").strip() == "true"
    before, stack = containers(calm, host), unit(calm, host, UNIT)
    daemon = unit(calm, host, "docker.service")
    with held(calm, host, WORKERS - 2), background(calm, host, 2):
        calm.ssh(host, "systemctl restart docker")
    assert unit(calm, host, "docker.service") != daemon
    assert containers(calm, host) == before
    assert "ActiveState=active" in stack
    assert unit(calm, host, UNIT) == stack


def test_calls_go_on_and_begin_while_docker_is_down(calm: Fleet) -> None:
    """No daemon for 20 s: no gap, none cut, a new call finds the free slot, nothing counts as free to be stopped."""
    host = calm.fleet_names[0]
    before = containers(calm, host)
    with held(calm, host, WORKERS - 2), background(calm, host):
        calm.ssh(host, "systemctl stop docker.socket docker.service")
        began = time.monotonic()
        try:
            with held(calm, host, 1):
                assert set(states(calm, host).values()) == {"unknown"}
                time.sleep(max(0.0, 20 - (time.monotonic() - began)))
        finally:
            calm.ssh(host, "systemctl start docker.socket docker.service")
    assert containers(calm, host) == before


def test_up_replaces_nothing(calm: Fleet) -> None:
    """Every service's definition differs on disk: `slotctl up` leaves all containers as they are, under calls.

    Control: plain `docker compose up` recreates. The next run puts file and slot back.
    """
    host, file = calm.fleet_names[0], f"{PROJECT}/compose.yml"
    before = containers(calm, host)
    edit = "s/callfleet.config: .*/callfleet.config: scratch/"
    calm.ssh(host, f"sed -i '{edit}' {file} && grep -q 'config: scratch' {file}")
    with held(calm, host, 2):
        calm.ssh(host, f"slotctl up {STACK}")
        assert containers(calm, host) == before
        idle = max(ALL.keys() - busy(calm, host))
        # With its own stop signal and grace it would wait until the longest call must have ended.
        calm.ssh(host, f"cd {PROJECT} && docker compose up -d --no-deps --timeout 1 worker-{idle}")
        assert len(before - containers(calm, host)) == 1
        # One that has just been started is unknown, which counts as busy, until it answers.
        calm.until(lambda: seen(calm, host).get(idle, {}).get("calls") == 0, 30, "the recreated worker answers")
        assert calm.converge("--limit", host).pending == []
        wait_states(calm, host, ALL | dict.fromkeys(busy(calm, host), "on a call"))
    assert len(before - containers(calm, host)) == 1


def test_stopping_the_stack_waits_for_its_calls(calm: Fleet) -> None:
    """`systemctl stop` of the stack under a call and a background call: no gap, new calls go to the other host.

    It ends with its last call, the background one, whose result arrives although its worker is stopped right after it.
    """
    host, other = calm.fleet_names
    with held(calm, host, 1) as last:
        (silent,) = begin(calm, host)
        calm.ssh(host, f"systemctl stop --no-block {UNIT}")
        idle = WORKERS - 2
        calm.until(lambda: list(states(calm, host).values()).count("dead") == idle, 30, "idle workers are stopped")
        with held(calm, "calls", WORKERS):
            assert len(busy(calm, other)) == WORKERS
        assert last.report().closed_early == []
    assert "ActiveState=deactivating" in unit(calm, host, UNIT)
    assert hang_up(calm, host, silent)
    calm.until(lambda: "ActiveState=inactive" in unit(calm, host, UNIT), 30, "the stack stops after its calls")
    assert containers(calm, host) == set()
    calm.ssh(host, f"systemctl start {UNIT}")
    came_through(calm, host, silent)
    wait_states(calm, host, ALL)
    calm.until(lambda: open_now(calm) == SLOTS, 15, "the ingress finds both hosts again")


def open_now(fleet: Fleet) -> int:
    """How many of as many calls as there are slots are accepted by the ingress at once."""
    with fleet.calls() as calls:
        calls.start(SLOTS)
        opened = calls.wait_open()
        calls.stop()
    fleet.wait_idle()
    return opened


# Files and names


def test_tmpfiles_leave_live_sockets_alone(calm: Fleet) -> None:
    """`systemd-tmpfiles --clean` and `--create` under calls: every name stays, no gap, calls still find the slots.

    Control: a live socket of another network namespace in a directory that ages is deleted by the same command.
    """
    host = calm.fleet_names[0]
    names = f"find {RUN} -name '*.sock' -printf '%p %i %U %m\\n' | sort"
    before = calm.ssh(host, names)
    with held(calm, host, 2):
        calm.ssh(
            host,
            "mkdir -p /run/aging; echo 'd /run/aging 0755 - - 0' > /etc/tmpfiles.d/aging.conf\n"
            f'unshare -n python3 -c "{thief("/run/aging/w.sock")}" >/dev/null 2>&1 &\n'
            "for _ in $(seq 100); do test -S /run/aging/w.sock && break; sleep 0.1; done\n"
            "sleep 1; test -S /run/aging/w.sock || exit 1\n"
            "systemd-tmpfiles --clean; systemd-tmpfiles --create; r=0; test -e /run/aging/w.sock && r=1\n"
            "kill $!; rm -rf /run/aging /etc/tmpfiles.d/aging.conf; exit $r",
        )
        assert calm.ssh(host, names) == before
        with held(calm, host, WORKERS - 2):
            pass


def thief(path: str, listen: bool = True) -> str:
    """Python that takes a socket's name over, and accepts there for a while."""
    lines = ["import os, socket, time", f"os.path.lexists('{path}') and os.unlink('{path}')"]
    lines += ["s = socket.socket(socket.AF_UNIX)", f"s.bind('{path}')"]
    return "; ".join([*lines, "s.listen(); time.sleep(15)"] if listen else lines)


def test_a_worker_cannot_take_over_the_name_of_another(calm: Fleet) -> None:
    """A process in one worker's container binds another's socket path: only its own view changes, for seconds."""
    host = calm.fleet_names[0]
    with held(calm, host, 2):
        victim = min(busy(calm, host))
        attacker = next(n for n in ALL if n not in busy(calm, host))
        name = f"cxbcore_{victim}.sock"
        places = [f"slots/{victim}/{name}", f"published/{name}"]
        before = [socket_of(calm, host, place) for place in places]
        with without_keeper(calm, host):
            calm.ssh(host, f'docker exec -d {STACK}-worker-{attacker}-1 python3 -c "{thief(f"/tmp/{name}")}"')
            stolen = f"slots/{attacker}/{name}"
            calm.until(lambda: socket_of(calm, host, stolen) != before[0], 15, "the name is stolen there")
            assert [socket_of(calm, host, place) for place in places] == before
            assert states(calm, host)[victim] == "on a call"
        calm.until(lambda: socket_of(calm, host, stolen) == before[0], REPAIR_SECONDS, "the keeper repairs it")
        assert [socket_of(calm, host, place) for place in places] == before


def test_a_stolen_public_name_is_not_idle_and_is_repaired(calm: Fleet) -> None:
    """Somebody else listens on a slot's public name: unknown. Nobody does: not idle. The keeper repairs both."""
    host = calm.fleet_names[0]
    name, own = "published/cxbcore_3.sock", socket_of(calm, host, "slots/3/cxbcore_3.sock")
    for listen in (True, False):
        with without_keeper(calm, host):
            script = f'timeout 15 python3 -c "{thief(f"{RUN}/{name}", listen)}"'
            word = "unknown" if listen else "drained"
            calm.ssh(host, f"{script} >/dev/null 2>&1 &" if listen else script)
            calm.until(lambda word=word: states(calm, host).get(3) == word, 10, f"the slot is {word}")
            assert socket_of(calm, host, name) != own
            found = seen(calm, host)[3]
            assert found["state"] == word
            assert listen is False or "another process listens" in found["problem"]
            assert found["published"] is listen
        calm.until(lambda: socket_of(calm, host, name) == own, REPAIR_SECONDS, "the name leads to its worker again")
        wait_states(calm, host, ALL)


# Proxies


def test_a_reload_and_a_crash_of_the_host_proxy(calm: Fleet) -> None:
    """Every proxy reloaded under a full fleet: no gap, none cut, nothing doubled. Then one crashes: drained stays so.

    The calls through a process that is killed are lost with it, so here those of the other host are held, and at the
    host of the crash a background call, which needs no proxy.
    """
    host, other = calm.fleet_names
    began = time.time()
    before = containers(calm, host) | containers(calm, other)

    def slower(site: dict[str, Any]) -> None:
        site.setdefault("calls", {})["tunnel_timeout_seconds"] = 120

    with background(calm, host), background(calm, other), held(calm, "calls", SLOTS - 2):
        with calm.edited(slower):
            assert calm.converge().pending == []
        assert old_proxies(calm, host) == 1
        for name in ("calls", host):
            with calm.calls(name) as burst:
                burst.start(20)
                assert burst.wait_open() == 0
                assert set(burst.report().refused) <= {429, 503}
        assert calm.converge().pending == []
        calm.until(lambda: old_proxies(calm, host) == 1, 15, "those of the second configuration had no call, and go")
    assert calm.doubled(began) == []
    assert containers(calm, host) | containers(calm, other) == before
    calm.wait_idle()
    drain(calm, host, 2)
    with held(calm, other, 2), background(calm, host):
        (silent,) = busy(calm, host)
        began, master = time.time(), pid(calm, host, "proxy")
        calm.ssh(host, f"kill -KILL $(pgrep -P {master} | tail -1)")
        calm.until(lambda: pid(calm, host, "proxy") not in (0, master), REPAIR_SECONDS, "Docker restarts the proxy")
        calm.until(lambda: health_answers(calm, host), REPAIR_SECONDS, "the port answers again")
        calm.until(lambda: down_in_proxy(calm, host, "w2"), REPAIR_SECONDS, "the drained slot is down")
        codes = sorted(answer.status for answer in calm.attach(host, 6, seconds=4))
        assert codes == [200] * (WORKERS - 2) + [429] * 4
        assert states(calm, host)[2] == "drained"
        started = {int(event["worker"]) for event in calm.events(host, began) if event["event"] == "start"}
        assert started == set(ALL) - {2, silent}
    ready(calm, host, 2)
    calm.until(lambda: not down_in_proxy(calm, host, "w2"), REPAIR_SECONDS, "the proxy sees the slot again")


def test_a_killed_master_of_the_host_proxy_costs_its_own_calls_alone(calm: Fleet) -> None:
    """SIGKILL of the container's first process: its calls end, their workers are free, their results arrive.

    Calls of the other host have no gap; a background call, which the new proxy knows nothing of, goes on and is not
    doubled. Workers and published sockets are what they were, and no run is needed.
    """
    host, other = calm.fleet_names
    began, master, running = time.time(), pid(calm, host, "proxy"), proxies(calm, host)
    workers = {line for line in containers(calm, host) if "-worker-" in line}
    names = [socket_of(calm, host, f"published/cxbcore_{n}.sock") for n in ALL]
    with held(calm, other, 2), background(calm, host), calm.calls(host) as lost:
        (talking,) = busy(calm, host)
        lost.start(2)
        assert lost.wait_open() == 2
        sessions = {call.session for call in lost.report().calls}
        assert delivered(calm, sessions) == set(), "their results come with their end"
        calm.ssh(host, f"kill -KILL {master}")
        calm.until(lambda: len(lost.report().closed_early) == 2, 15, "the calls through the dead proxy ended")
        calm.until(lambda: pid(calm, host, "proxy") not in (0, master), REPAIR_SECONDS, "Docker restarts the proxy")
        calm.until(lambda: health_answers(calm, host), REPAIR_SECONDS, "the port answers again")
        wait_states(calm, host, ALL | {talking: "on a call"})
        assert proxies(calm, host) == running, "the same container, started again"
        assert {line for line in containers(calm, host) if "-worker-" in line} == workers
        assert [socket_of(calm, host, f"published/cxbcore_{n}.sock") for n in ALL] == names
        again = time.time()
        with calm.calls(host) as new:
            new.start(20)
            assert new.wait_open() == WORKERS - 1
            assert set(new.report().refused) <= {429, 503}
            new.stop()
            assert [call for call in new.report().calls if call.opened and not call.clean] == []
        starts = [event["worker"] for event in calm.started(again, WORKERS - 1, host)]
        assert sorted(starts) == sorted(str(n) for n in ALL if n != talking)
    assert calm.doubled(began) == []
    calm.until(lambda: delivered(calm, sessions) == sessions, 30, "the results of the lost calls are with the API")
    calm.wait_idle()
    calm.until(lambda: open_now(calm) == SLOTS, 15, "the ingress finds every slot")
    assert calm.converge("--limit", host).changed == 0


def delivered(fleet: Fleet, sessions: set[str]) -> set[str]:
    """Those of these calls whose results the API has."""
    return sessions & {
        one["session_id"] for one in json.loads(fleet.ssh("hub", f"{CURL} {API}/call-results"))["results"]
    }


def test_a_new_proxy_definition_takes_over_beside_the_old_one(calm: Fleet) -> None:
    """A full fleet, another definition of the proxies: a second one takes the port, the first ends with its calls.

    The port answers all the time, no call has a gap or is cut, and nobody is sent to a busy worker. systemd's limit for
    stopping the stack follows the longest call.
    """
    host, began = calm.fleet_names[0], time.time()
    first = proxies(calm, host)

    def longer(site: dict[str, Any]) -> None:
        site.setdefault("calls", {})["max_seconds"] = 700

    with answering(calm, host) as codes:
        with background(calm, host), held(calm, "calls", SLOTS - 1), calm.edited(longer):
            assert len(calm.converge().pending) == SLOTS
            assert len(proxies(calm, host)) == 2
            assert calm.ssh(host, f"systemctl show -P TimeoutStopUSec {UNIT}").strip() == "21min 40s"
            with calm.calls(host) as burst:
                burst.start(10)
                assert burst.wait_open() == 0
        calm.until(lambda: len(proxies(calm, host)) == 1, 30, "the first proxy ended with its last call")
        assert proxies(calm, host).isdisjoint(first)
        calm.wait_idle()
        assert calm.converge().pending == []
    assert set(codes) == {"200"}
    assert calm.doubled(began) == []
    calm.until(lambda: len(proxies(calm, host)) == 1, 30, "one proxy")
    assert calm.converge().changed == 0


def proxies(fleet: Fleet, host: str) -> set[str]:
    """Ids of the proxy containers that run."""
    ask = f"docker ps -q --filter label=callfleet.stack={STACK} --filter label=callfleet.service=proxy"
    return set(fleet.ssh(host, ask).split())


def health_answers(fleet: Fleet, host: str) -> bool:
    """Whether the host's public port answers from the hub."""
    name, address = f"{host}.{fleet.lab.domain}", fleet.lab.host(host).address
    ask = f"curl -sk -m 2 -o /dev/null -w '%{{http_code}}' --resolve {name}:443:{address} https://{name}/health/fleet"
    return fleet.ssh("hub", ask, check=False).strip() == "200"


@contextmanager
def kept_alive(fleet: Fleet, host: str) -> Iterator[Callable[[], str]]:
    """A client that posts short background starts over one connection; each post returns the worker's id."""
    name, address = f"{host}.{fleet.lab.domain}", fleet.lab.host(host).address
    with fleet.ssl.wrap_socket(socket.create_connection((address, 443), 10), server_hostname=name) as link:
        client = http.client.HTTPConnection(name)
        client.sock, client.auto_open = link, 0  # never a second connection

        def post() -> str:
            body = json.dumps({"bot_id": "demo", "seconds": 0.01})
            client.request("POST", "/attach", body, {"Content-Type": "application/json"})
            answer = client.getresponse()
            said = json.loads(answer.read())
            assert answer.status == 200, said
            assert client.sock is link, "the connection was closed"
            return str(said["worker_id"])

        yield post


def starts_of_a_drained_worker(fleet: Fleet, host: str) -> int:
    """How many calls a worker logs that begin on a kept-alive connection after the worker's slot was drained."""
    with kept_alive(fleet, host) as post:
        used = {post() for _ in range(3 * WORKERS)}
        assert used == set(map(str, ALL)), "every worker was reached by this connection"
        command = [*ssh_command(fleet.lab.host(host)), "--", f"slotctl drain {STACK} 2 --reason test"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as draining:
            while draining.poll() is None:
                post()  # so that no idle connection to a worker gets old
        gone, began = socket_of(fleet, host, "published/cxbcore_2.sock"), time.time()
        assert gone == "none"
        for _ in range(3 * WORKERS):
            post()
    started = [event for event in fleet.events(host, began) if event["event"] == "start"]
    assert len(started) == 3 * WORKERS
    ready(fleet, host, 2)
    wait_states(fleet, host, ALL)
    fleet.until(lambda: not down_in_proxy(fleet, host, "w2"), REPAIR_SECONDS, "the proxy sees the slot again")
    return sum(event["worker"] == "2" for event in started)


def test_a_kept_connection_does_not_reach_a_drained_worker(calm: Fleet) -> None:
    """A client posts, a slot is drained, the client posts on: nothing starts there.

    Control: where the proxy keeps idle connections to workers and uses them again, calls do start there. That proxy was
    edited and loaded by hand under its old hash; a converge finds it and loads what it puts back.
    """
    host, config = calm.fleet_names[0], f"{PROJECT}/haproxy/haproxy.cfg"
    assert starts_of_a_drained_worker(calm, host) == 0
    reuse = "-e 's/http-reuse never/http-reuse always/' -e '/option http-server-close/d'"
    calm.ssh(host, f"sed -i {reuse} {config}")
    try:
        assert ask_proxy(calm, host, MASTER, "reload").startswith("Success=1")
        calm.until(lambda: not down_in_proxy(calm, host, "w2"), REPAIR_SECONDS, "the slot is seen again")
        # Which idle connection is used again is the proxy's choice.
        calm.until(lambda: starts_of_a_drained_worker(calm, host), 60, "a start reaches the drained worker")
    finally:
        done = calm.converge("--limit", host)
    assert f"{host}: update file {config}: content differs" in done.planned
    assert any(line.startswith(f"{host}: reload proxy {STACK}/proxy") for line in done.planned)
    assert starts_of_a_drained_worker(calm, host) == 0
    assert calm.converge("--limit", host).changed == 0


def test_stopping_the_ingress_waits_for_its_calls(calm: Fleet) -> None:
    """`systemctl stop haproxy` under a call: no gap, no new call, and it ends when the call does."""
    assert calm.ssh("hub", "systemctl show -P KillSignal haproxy.service").strip() == "10", "SIGUSR1"
    try:
        with held(calm, "calls", 1):
            calm.ssh("hub", "systemctl stop --no-block haproxy.service")
            time.sleep(3)
            assert "ActiveState=deactivating" in unit(calm, "hub", "haproxy.service")
            with calm.calls() as refused:
                refused.start(1)
                assert refused.wait_open() == 0
        calm.until(lambda: "=inactive" in unit(calm, "hub", "haproxy.service"), 15, "it stops after the call")
    finally:
        calm.ssh("hub", "systemctl start haproxy.service")
    calm.until(lambda: open_now(calm) == SLOTS, 15, "calls come through again")


# Runs that die


def test_a_run_goes_on_when_its_controller_dies(calm: Fleet) -> None:
    """pyinfra is killed while slots are swapped: the host finishes by itself, its port answers all the time.

    On the way back the slot program itself is killed in the middle of a swap: the other slots serve on, a re-run
    completes.
    """
    host = calm.fleet_names[0]
    before = containers(calm, host)
    with answering(calm, host) as codes:
        with calm.edited(set_environment("a")):
            with converging(calm, "--limit", host) as run:
                calm.until(lambda: swapping(calm, host), 60, "a slot is being swapped")
            assert run.wait() == -9
            assert step(calm, host), "the host works on without its controller"
            calm.until(lambda: not step(calm, host), 90, "the host has finished")
            wait_states(calm, host, ALL)
            assert all(slot["up_to_date"] for slot in seen(calm, host).values())
            again = calm.converge("--limit", host)
            assert again.pending == []
            assert [change for change in again.planned if "container" in change] == []
        swapped = containers(calm, host)
        assert len(swapped - before) == WORKERS
        with converging(calm, "--limit", host) as run:
            calm.until(lambda: swapping(calm, host), 60, "a slot is being swapped back")
            calm.ssh(host, f"systemctl kill --signal=KILL {step(calm, host)}")
            assert run.wait(60) != 0, "the controller says that it did not work"
        left = seen(calm, host)
        assert sum(slot["published"] for slot in left.values()) >= WORKERS - 1
        assert not all(slot["up_to_date"] for slot in left.values())
        assert calm.converge("--limit", host).pending == []
    wait_states(calm, host, ALL)
    assert all(slot["up_to_date"] for slot in seen(calm, host).values())
    assert set(codes) == {"200"}, codes


def step(fleet: Fleet, host: str) -> str:
    """The unit of the step that a run has going on a host; empty without one."""
    return fleet.ssh(host, "systemctl list-units --plain --no-legend 'callfleet-????????????????-*.service'").split(
        " "
    )[0]


def swapping(fleet: Fleet, host: str) -> bool:
    """Whether a worker is being stopped or replaced right now."""
    return fleet.ssh(host, f"grep -qs stopping {RUN}/swap/* && echo yes || true").strip() == "yes"


# Power


def test_hosts_come_back_by_themselves(calm: Fleet) -> None:
    """One host reboots, the other loses its power: both serve again, what was drained stays drained until `ready`."""
    first, second = calm.fleet_names
    drained = {first: 2, second: 3}
    for host, n in drained.items():
        drain(calm, host, n)
    hosts.power_off(calm.lab.host(second))
    hosts.reboot(calm.lab.host(first))
    lifecycle.power_on(calm.lab.host(second))
    for host, n in drained.items():
        wait_states(calm, host, ALL | {n: "drained"}, BOOT_SECONDS)
    calm.until(lambda: open_now(calm) == SLOTS - 2, 20, "every slot that is not drained takes a call")
    again = calm.converge()
    assert again.changed == 0, again.planned
    for host, n in drained.items():
        calm.ssh(host, f"kill -KILL {pid(calm, host, f'worker-{n}')}")
    time.sleep(3)
    for host, n in drained.items():
        wait_states(calm, host, ALL | {n: "drained"})
        ready(calm, host, n)
        wait_states(calm, host, ALL)
