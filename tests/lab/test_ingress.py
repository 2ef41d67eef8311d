"""The ingress without reloads: fleet hosts leave and join, drift is mended and certificates renewed in one process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from callfleet.authority import Authority
from callfleet.secrets import write_private
from lab.ca import PUBLIC_CA
from tests.lab.fleet import WORKERS, Fleet
from tests.lab.look import ask_proxy, outside, show_stat, touched
from tests.lab.test_operator import applied, apply, plan, planned

HUB, ADMIN, MASTER = "hub", "/run/callfleet-ingress/admin.sock", "/run/haproxy-master.sock"
PROGRAM = (
    'python3 -I -B -c \'import sys; sys.path.insert(0, "/usr/local/lib/callfleet"); '
    "from onhost.native import main; sys.exit(main())' haproxy.service --config /etc/callfleet/ingress/haproxy.cfg "
    f"--admin-socket {ADMIN} --master-socket {MASTER}"
)


def processes(fleet: Fleet) -> list[list[str]]:
    """The front's worker processes: pid, and how many reloads each has outlived."""
    lines = ask_proxy(fleet, HUB, MASTER, "show proc").splitlines()
    return [line.split()[::2][:2] for line in lines if line[:1].isdigit() and line.split()[1] == "worker"]


def servers(fleet: Fleet) -> dict[str, str]:
    """The ingress's servers with their limit."""
    rows = show_stat(fleet, HUB, ADMIN)["calls"]
    return {name: row["slim"] for name, row in rows.items() if name != "BACKEND"}


def without(name: str) -> Any:
    """An edit of the site: one fleet host is no longer declared."""

    def change(site: dict[str, Any]) -> None:
        site["fleets"]["eu1"]["hosts"].pop(name)
        site["tls"]["internal"]["hosts"].pop(name)

    return change


def lands_on(fleet: Fleet, since: float) -> dict[str, int]:
    """How many calls began on each host."""
    return {name: len(fleet.started(since, 0, name)) for name in fleet.fleet_names}


@pytest.mark.parametrize("cycles", [1, pytest.param(10, marks=pytest.mark.long)])
def test_hosts_leave_and_join_under_calls_in_one_process(cycles: int, fleet: Fleet) -> None:
    """A host that leaves gets no new call and keeps those it has; it is gone when they end, and gets calls again later.

    The same process throughout; after a reload file and process still agree.
    """
    first, second = fleet.fleet_names
    before, began = processes(fleet), time.time()
    for _ in range(cycles):
        with fleet.calls() as held:
            held.start(4)
            assert held.wait_open() == 4
            assert min(lands_on(fleet, began).values()) >= 1, "some are on the host that leaves"
            with fleet.edited(without(second)):
                done = apply(fleet, code=3)
                assert [line.partition(":")[0] for one in done["hosts"] for line in one["pending"]] == [
                    f"calls/{second}"
                ]
                left = time.time()
                held.start(2)
                assert held.wait_open() == 6
                assert lands_on(fleet, left)[second] == 0
                assert plan(fleet, code=3)["changes"] == 1
                held.stop()
                assert held.report().clean, held.report().gaps[:5]
                fleet.wait_idle()
                apply(fleet, code=0)
                plan(fleet, code=0)
                assert servers(fleet) == {first: str(WORKERS)}
        with fleet.calls() as held:
            held.start(2)
            assert held.wait_open() == 2
            apply(fleet, code=0)
            joined = time.time()
            held.start(4)
            assert held.wait_open() == 6
            assert lands_on(fleet, joined)[second] >= 1
            held.stop()
            assert held.report().clean, held.report().gaps[:5]
        began = time.time()
        fleet.wait_idle()
    assert processes(fleet) == before, "no reload"
    assert fleet.doubled(began) == []
    assert ask_proxy(fleet, HUB, MASTER, "reload").startswith("Success=1")
    assert processes(fleet) != before
    plan(fleet, code=0)
    assert servers(fleet) == {first: str(WORKERS), second: str(WORKERS)}


DRIFT = {
    "calls/eu1-a": "set maxconn server calls/eu1-a 9",
    "calls/eu1-b": "set server calls/eu1-b state maint; disable health calls/eu1-b",
    "calls/stray": "add server calls/stray 192.0.2.1:1 check",
}


def test_drift_of_the_running_proxy_is_planned_and_mended_without_a_reload(fleet: Fleet) -> None:
    """Limits, states, checks and servers changed by hand in the process, then one deleted: exactly that is mended."""
    second = fleet.fleet_names[1]
    before = processes(fleet)
    declared = outside(fleet)
    with fleet.calls() as held:
        held.start(2)
        assert held.wait_open() == 2
        for commands in DRIFT.values():
            for command in commands.split("; "):
                ask_proxy(fleet, HUB, ADMIN, command)
        drifted = outside(fleet)
        assert {subject for _, kind, subject in touched(declared, drifted)} == set(DRIFT)
        made = plan(fleet, code=2)
        assert {line.split()[-1] for line in planned(made)} == set(DRIFT)
        assert applied(apply(fleet, code=0)) == planned(made)
        assert touched(declared, outside(fleet)) == set()
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    fleet.wait_idle()
    for command in ("set server calls/{} state maint", "wait 5s srv-removable calls/{}", "del server calls/{}"):
        ask_proxy(fleet, HUB, ADMIN, command.format(second))
    assert second not in servers(fleet)
    assert planned(plan(fleet, code=2)) == {f"{HUB}: register server calls/{second}"}
    apply(fleet, code=0)
    plan(fleet, code=0)
    assert processes(fleet) == before


def test_a_renewed_certificate_is_served_without_a_reload(fleet: Fleet) -> None:
    """The next connection gets it, in the same process, and the call that is on does not notice."""
    before, lab = processes(fleet), fleet.lab
    name = f"calls.{lab.domain}"
    client = f"openssl s_client -connect 127.0.0.1:443 -servername {name} 2>/dev/null"
    serial = f"echo | {client} | openssl x509 -noout -serial"
    old = fleet.ssh(HUB, serial)
    public = Authority.load(lab.tls(f"{PUBLIC_CA}-key.pem").read_bytes())
    with fleet.calls() as held:
        held.start(1)
        assert held.wait_open() == 1
        write_private(lab.tls(f"{name}.pem"), public.issue(name))
        made = plan(fleet, code=2)
        assert {" ".join(line.split()[1:3]) for line in planned(made)} == {"update file", "load certificate"}
        apply(fleet, code=0)
        assert fleet.ssh(HUB, serial) != old
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    plan(fleet, code=0)
    assert processes(fleet) == before


def test_a_reload_that_would_end_a_call_is_refused(fleet: Fleet) -> None:
    """HAProxy ends a process that has outlived more reloads than it may: a call in one keeps the next from happening.

    Control: with room for one more the same reload is made.
    """
    wanted = ask_proxy(fleet, HUB, ADMIN, "show env CALLFLEET_CONFIG").partition("=")[2].strip()
    with fleet.calls() as held:
        held.start(1)
        assert held.wait_open() == 1
        for _ in range(2):
            assert fleet.ssh(HUB, f"{PROGRAM} --wanted {wanted} --max-reloads 50") == "reloaded\n"
        many = processes(fleet)
        assert [reloads for _, reloads in many if reloads != "0"] == ["2"]
        said = fleet.ssh(HUB, f"{PROGRAM} --wanted {wanted} --max-reloads 2 2>&1", check=False)
        assert "one more reload would end 1 connections" in said
        assert processes(fleet) == many
        assert fleet.ssh(HUB, f"{PROGRAM} --wanted {wanted} --max-reloads 3") == "reloaded\n"
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    fleet.until(lambda: len(processes(fleet)) == 1, 30, "the old process has left with its call")
    plan(fleet, code=0)
