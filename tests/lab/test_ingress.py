"""The ingress without reloads: fleet hosts leave and join, drift is mended and certificates renewed in one process."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pebble import pebble

from callfleet.authority import Authority
from callfleet.secrets import write_private
from lab.ca import PUBLIC_CA
from tests.lab.fleet import WORKERS, Fleet
from tests.lab.look import ask_proxy, outside, show_stat, take_out, touched
from tests.lab.test_operator import applied, apply, callfleet, plan, planned

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
        site["names"].pop(f"{name}.{site['domain']}")

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
            fleet.started(began, 4)  # a call is logged a moment after it was answered
            landed = lands_on(fleet, began)
            assert landed[second] >= 1, "some are on the host that leaves"
            room = WORKERS - landed[first]
            assert room >= 1, landed
            with fleet.edited(without(second)):
                done = apply(fleet, code=3)
                assert [line.partition(":")[0] for one in done["hosts"] for line in one["pending"]] == [
                    f"calls/{second}"
                ]
                left = time.time()
                held.start(room)
                assert held.wait_open() == 4 + room, (landed, held.report().as_json()["refused"])
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
    take_out(fleet, second)
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


def serial(fleet: Fleet, name: str, port: int = 443) -> str:
    """What the hub is shown for a name of the site."""
    return fleet.ssh(
        HUB,
        f"echo | openssl s_client -connect {name}.{fleet.lab.domain}:{port} -servername {name}.{fleet.lab.domain} "
        "2>/dev/null | openssl x509 -noout -serial",
    )


def in_file(fleet: Fleet, name: str) -> str:
    """The same of a file of the lab."""
    path = fleet.lab.tls(name)
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-in", str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_certificate_is_obtained_by_acme_and_served_in_the_same_process(fleet: Fleet, tmp_path: Path) -> None:
    """The authority asks at port 80 from outside: the ingress answers, and a fleet host sends it there. A call goes on.

    Controls: before port 80 is there, and for a name that leads elsewhere, nothing is obtained and no file changes.
    """
    lab, own = fleet.lab, fleet.fleet_names[0]
    calls, api, first = (f"{name}.{lab.domain}" for name in ("calls", "api", own))

    def content() -> dict[str, bytes]:
        return {name: lab.tls(f"{name}.pem").read_bytes() for name in (calls, api, first)}

    with pebble(tmp_path / "pebble", http_port=80, address=lab.hub.address) as authority:
        authority.lead(first, lab.host(own).address)
        authority.lead(api, lab.host(fleet.fleet_names[1]).address)

        def declared(site: dict[str, Any]) -> None:
            site["tls"]["acme"] = {
                "directory": authority.directory,
                "ca": str(authority.ca),
                "account_key": f"file:{tmp_path / 'account.pem'}",
                "names": [calls, api, first],
            }

        lent = content()
        with fleet.edited(declared):
            early = callfleet(fleet, "certificates", "obtain", lab.site, calls)
            assert (early.returncode, content()) == (1, lent)
            assert "does not answer challenges" in early.stderr
            assert f"callfleet apply {lab.site} --limit {HUB}" in early.stderr
            apply(fleet, code=0)
            before = processes(fleet)
            with fleet.calls() as held:
                held.start(1)
                assert held.wait_open() == 1
                done = callfleet(fleet, "certificates", "obtain", lab.site, "--all")
                assert done.returncode == 1, done.stderr
                obtained = [line for line in done.stdout.splitlines() if line.startswith("obtained")]
                assert [line.split()[1].strip(":") for line in obtained] == [calls, first], done.stderr
                assert f"not obtained: {api}: connection" in done.stderr
                assert content()[api] == lent[api]
                assert ask_proxy(fleet, HUB, ADMIN, "show map virt@challenges").strip() == ""
                # The other hosts trust the lab's authority alone.
                write_private(lab.tls(f"{first}.pem"), lent[first])
                apply(fleet, code=0)
                assert serial(fleet, "calls") == in_file(fleet, f"{calls}.pem")
                assert processes(fleet) == before
                held.stop()
                assert held.report().clean, held.report().gaps[:5]
            plan(fleet, code=0)
            write_private(lab.tls(f"{calls}.pem"), lent[calls])
    fleet.wait_idle()
    apply(fleet, code=0)
    plan(fleet, code=0)


def test_internal_certificates_are_renewed_under_a_call(fleet: Fleet) -> None:
    """Ingress and fleet hosts show each other new ones of the site's own authority; the call that is on goes on."""
    lab, own = fleet.lab, fleet.fleet_names[0]

    def declared(site: dict[str, Any]) -> None:
        site["tls"]["internal"]["authority"] = {"key": f"file:{lab.tls('internal-ca-key.pem')}"}

    before = processes(fleet)
    with fleet.calls() as held, fleet.edited(declared):
        held.start(1)
        assert held.wait_open() == 1
        assert callfleet(fleet, "certificates", "issue", lab.site, own, "ingress").returncode == 0
        assert serial(fleet, own, 8443) != in_file(fleet, f"internal-{own}.pem")
        apply(fleet, code=0)
        assert serial(fleet, own, 8443) == in_file(fleet, f"internal-{own}.pem")
        held.start(2 * WORKERS - 1)
        assert held.wait_open() == 2 * WORKERS, "through the new ones, on both hosts"
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    assert processes(fleet) == before
    plan(fleet, code=0)


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
