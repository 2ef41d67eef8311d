"""Two ingress hosts before two fleets, one of which has a name of its own; then one ingress host is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from callfleet.authority import Authority
from callfleet.secrets import write_private
from lab import hosts, lifecycle
from lab.ca import PUBLIC_CA
from tests.lab.fleet import STACK, WORKERS, Fleet
from tests.lab.test_variants import nothing_to_do, rewrite, slot_states, small_lab

FIRST, SECOND = "hub", "eu1-c"
"""The ingress hosts; the first is the app host too."""
SHARED, OWN = "eu1-a", "eu1-b"
"""The fleet hosts; the second one's fleet has a name of its own beside the shared one."""
OWN_NAME = "in1.calls"
FULL, IDLE = ["on a call"] * WORKERS, ["idle"] * WORKERS
SYSCTL = "/etc/sysctl.d/60-callfleet.conf"


@pytest.fixture(scope="module")
def site() -> Iterator[Fleet]:
    """Two ingress hosts and two fleets of one host each, converged."""
    with small_lab("i", 4) as fleet:
        lab = fleet.lab
        name = f"{OWN_NAME}.{lab.domain}"
        public = Authority.load(lab.tls(f"{PUBLIC_CA}-key.pem").read_bytes())
        write_private(lab.tls(f"{name}.pem"), public.issue(name))

        def two_of_each(site: dict[str, Any]) -> None:
            machines = site["fleets"]["eu1"]["hosts"]
            site["hosts"][SECOND] = machines.pop(SECOND) | {"roles": ["ingress"]}
            site["fleets"]["in1"] = {"public_name": name, "hosts": {OWN: machines.pop(OWN)}}
            site["tls"]["internal"]["hosts"].pop(SECOND)
            site["tls"]["certificates"][name] = f"file:{lab.tls(f'{name}.pem')}"
            # What a caller who vanished with an ingress host leaves behind is given up soon.
            site["calls"] = {"tunnel_timeout_seconds": 5}

        rewrite(lab.inventory, two_of_each)
        assert fleet.converge().pending == []
        yield fleet


@pytest.fixture
def both(site: Fleet) -> Fleet:
    """The same hosts, idle before each test."""
    site.until(lambda: on_calls(site) == [IDLE, IDLE], 30, "all slots idle")
    return site


@contextmanager
def held(fleet: Fleet, n: int, at: str, name: str = "calls") -> Iterator[None]:
    """n calls to a name through one ingress host that must come through the block without a gap."""
    with fleet.calls(name, at=at) as calls:
        calls.start(n)
        assert calls.wait_open() == n, calls.report().as_json()["refused"]
        yield
        calls.stop()
    assert calls.report().clean, calls.report().gaps[:5]


def refused(fleet: Fleet, at: str, name: str = "calls") -> bool:
    """Whether one more call is told that everything is full."""
    with fleet.calls(name, at=at) as calls:
        calls.start(1)
        return calls.wait_open() == 0 and set(calls.report().refused) <= {429, 503}


def on_calls(fleet: Fleet) -> list[list[str]]:
    """The slots of the fleet with the shared name alone, and of the one with its own."""
    return [slot_states(fleet, host, STACK) for host in (SHARED, OWN)]


def test_both_ingress_hosts_fill_the_same_fleets(both: Fleet) -> None:
    """Half of the slots through each, at the same time: a call on every slot, none doubled, nothing for a run to do."""
    began = time.time()
    with held(both, WORKERS, FIRST), held(both, WORKERS, SECOND):
        assert on_calls(both) == [FULL, FULL]
        assert refused(both, FIRST)
        assert refused(both, SECOND)
        nothing_to_do(both)
    assert both.doubled(began) == []


def test_a_fleet_with_its_own_name_takes_that_name_s_calls_alone(both: Fleet) -> None:
    """Through both ingress hosts: one call more than it has slots is refused, with the other fleet idle.

    Control: the shared name's calls then find that other fleet.
    """
    half = WORKERS // 2
    with held(both, half, FIRST, OWN_NAME), held(both, half, SECOND, OWN_NAME):
        assert on_calls(both) == [IDLE, FULL]
        assert refused(both, FIRST, OWN_NAME)
        assert refused(both, SECOND, OWN_NAME)
        with held(both, half, FIRST), held(both, half, SECOND):
            assert on_calls(both) == [FULL, FULL]


def test_one_ingress_host_is_lost_and_comes_back(both: Fleet) -> None:
    """Its power is cut: calls through the other have no gap while a run names the lost host and mends the others.

    Once it is back a run brings it what it missed, and nothing elsewhere. Control: calls through it were cut.
    """
    lab = both.lab

    def patient(site: dict[str, Any]) -> None:
        site["calls"]["tunnel_timeout_seconds"] = 6

    with held(both, 2, FIRST), both.calls(at=SECOND) as lost:
        lost.start(2)
        assert lost.wait_open() == 2
        hosts.power_off(lab.host(SECOND))
        lost.stop()
        assert not any(call.clean for call in lost.report().calls), "the check sees calls that were cut"
        rewrite(lab.inventory, patient)
        both.ssh(SHARED, f"chmod 0600 {SYSCTL}")
        done = both.pyinfra("-y")
        assert done.code != 0
        said = [line for line in done.output.splitlines() if f"[{SECOND}]" in line]
        assert any("Could not connect" in line for line in said), done.output[-3000:]
        assert "Traceback" not in done.output
        assert {change.partition(":")[0] for change in done.planned} == {FIRST, SHARED, OWN}
        assert both.ssh(SHARED, f"stat -c %a {SYSCTL}") == "644\n"
        with held(both, 2, FIRST):
            pass
    both.until(lambda: on_calls(both) == [IDLE, IDLE], 30, "the lost calls' slots are free")
    lifecycle.power_on(lab.host(SECOND))
    back = both.converge()
    assert {change.partition(":")[0] for change in back.planned} == {SECOND}, back.planned
    with held(both, WORKERS, FIRST), held(both, WORKERS, SECOND):
        assert on_calls(both) == [FULL, FULL]
    assert both.converge().changed == 0
