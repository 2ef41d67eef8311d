"""Runs that meet: two operators at once, controllers and links that die in mid-step, and what the host keeps of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callfleet import lock
from callfleet.lock import Owner
from lab import hosts
from tests.lab.background import background
from tests.lab.fleet import PYINFRA, ROOT, STACK, Fleet
from tests.lab.look import differences, journal, outside

SYSCTL = "/etc/sysctl.d/60-callfleet.conf"
SLOW = "/etc/apt/apt.conf.d/99callfleet-test-slow"
STANDS = "/run/callfleet-test-stands"
GOES = "/run/callfleet-test-goes"
ELSEWHERE = Owner("bob@elsewhere", "elsewhere/boot", 1, "plan-b", "token-of-bob")


@contextmanager
def slow_step(fleet: Fleet, host: str) -> Iterator[None]:
    """A package is missing, and its installation stands still until `let_go`."""
    fleet.ssh(
        host,
        f"rm -f {STANDS} {GOES}; apt-get -qq remove -y curl >/dev/null\n"
        f"printf 'DPkg::Pre-Invoke {{ \"touch {STANDS}; n=0; while [ ! -e {GOES} ] && [ $n -lt 3000 ]; do sleep 0.1; "
        f"n=$((n+1)); done\"; }};\\n' > {SLOW}",
    )
    try:
        yield
    finally:
        fleet.ssh(host, f"touch {GOES}; rm -f {SLOW}")


def let_go(fleet: Fleet, host: str) -> None:
    """The step goes on."""
    fleet.ssh(host, f"rm -f {SLOW}; touch {GOES}")


@contextmanager
def run(fleet: Fleet, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run of pyinfra beside the test; killed at the end if it still goes."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(PYINFRA), f"inventories/{fleet.lab.site}.py", "deploy.py", "-y", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYINFRA_PROGRESS": "off", "PYTHONUNBUFFERED": "1"},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def standing(fleet: Fleet, host: str) -> None:
    """Until the slow step stands still."""
    fleet.until(lambda: fleet.ssh(host, f"ls {STANDS} 2>/dev/null || true").strip(), 60, "the step has begun")


def installed(fleet: Fleet, host: str) -> bool:
    """Whether the package of the slow step is there."""
    return "install ok" in fleet.ssh(host, "dpkg-query -W -f '${Status}' curl 2>/dev/null || true")


def held(fleet: Fleet, host: str) -> str:
    """The lock as it lies on a host; empty without one."""
    return fleet.ssh(host, f"cat {lock.FILE} 2>/dev/null || true")


def clean(fleet: Fleet) -> None:
    """The next run finds nothing to do, and nobody holds a lock."""
    done = fleet.converge()
    assert (done.changed, done.planned) == (0, set()), done.output[-3000:]
    assert [held(fleet, host.name) for host in fleet.lab.hosts] == [""] * len(fleet.lab.hosts)


# Two at once


def test_the_second_operator_is_refused_and_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """While one run stands in a step, another one on all hosts refuses everywhere and names the first."""
    first, second = fleet.fleet_names
    with slow_step(fleet, first), run(fleet, tmp_path / "one", "--limit", first) as one:
        standing(fleet, first)
        assert '"who": ' in held(fleet, first)
        fleet.ssh(second, f"echo '# by hand' >> {SYSCTL}")
        before = outside(fleet)
        with run(fleet, tmp_path / "two") as two:
            fleet.until(lambda: b"waiting for its end" in (tmp_path / "two").read_bytes(), 60, "the second one waits")
            assert two.poll() is None
            assert differences(before, outside(fleet)) == [], "it writes nowhere while one host is not its own"
            let_go(fleet, first)
            assert one.wait(120) == 0, (tmp_path / "one").read_text()[-3000:]
            assert two.wait(120) == 0, (tmp_path / "two").read_text()[-3000:]
    assert installed(fleet, first)
    assert "# by hand" not in fleet.ssh(second, f"cat {SYSCTL}")
    clean(fleet)


def test_a_living_holder_elsewhere_is_refused_and_named(fleet: Fleet) -> None:
    """A lock that is renewed meanwhile belongs to somebody at work: no host is written to."""
    first, second = fleet.fleet_names
    for host in (first, second):
        fleet.ssh(host, f"echo '# by hand' >> {SYSCTL}")
    fleet.ssh(first, lock.take(ELSEWHERE))
    renewing = fleet.ssh(
        first,
        f"cat > /run/callfleet-test-renew <<'EOF'\nwhile :; do (\n{lock.renew(ELSEWHERE)}\n); sleep 1; done\nEOF\n"
        "systemd-run --quiet --collect --unit=callfleet-test-renew sh /run/callfleet-test-renew",
    )
    assert renewing == ""
    before = outside(fleet)
    try:
        done = fleet.pyinfra("-y")
        assert done.code == 1
        assert "bob@elsewhere" in done.output
        assert "Traceback" not in done.output
        assert differences(before, outside(fleet)) == []
    finally:
        fleet.ssh(first, "systemctl stop callfleet-test-renew")
        fleet.ssh(first, lock.release(ELSEWHERE))
    assert fleet.converge().changed > 0
    clean(fleet)


def test_a_dead_holder_elsewhere_is_taken_over_with_a_word(fleet: Fleet) -> None:
    """Nobody renews it: after its expiry the run goes on and says whose lock it was."""
    first = fleet.fleet_names[0]
    fleet.ssh(first, f"echo '# by hand' >> {SYSCTL}")
    soon = f"sed -i 's/expires\": [0-9]*/expires\": '$((now + 4))/ {lock.FILE}"
    fleet.ssh(first, f"{lock.take(ELSEWHERE)}{soon}\n")
    done = fleet.converge()
    assert "took over the lock of bob@elsewhere" in done.output
    clean(fleet)


def test_a_run_that_was_overtaken_writes_nothing_more(fleet: Fleet, tmp_path: Path) -> None:
    """Its lock goes to somebody else in mid-run: the step that is going on ends, the next one is refused."""
    host = fleet.fleet_names[0]
    fleet.ssh(host, f"echo '# by hand' >> {SYSCTL}; rm /etc/callfleet/site.json")
    with slow_step(fleet, host), run(fleet, tmp_path / "one", "--limit", host) as one:
        standing(fleet, host)
        fleet.ssh(host, f'sed -i \'s/"token": "[0-9a-f]*"/"token": "another"/\' {lock.FILE}')
        let_go(fleet, host)
        assert one.wait(120) == 1
    assert "the lock of this run is gone" in (tmp_path / "one").read_text()
    assert fleet.ssh(host, "ls /etc/callfleet/site.json 2>/dev/null || true") == ""
    fleet.ssh(host, f"rm -f {lock.FILE}")
    fleet.converge()
    clean(fleet)


# Runs that die


@pytest.mark.parametrize("what", ["controller", "link"])
def test_a_step_goes_on_without_its_controller_or_link(what: str, fleet: Fleet, tmp_path: Path) -> None:
    """apt is in the middle of an installation: it ends whole; a run at once waits for it, says so, and completes."""
    host = fleet.fleet_names[0]
    with slow_step(fleet, host):
        with run(fleet, tmp_path / "one", "--limit", host) as one:
            standing(fleet, host)
            if what == "controller":
                one.send_signal(signal.SIGKILL)
            else:
                # The server's processes of every connection but the one that says this.
                ours = 'ours="$PPID $(ps -o ppid= -p $PPID)"; '
                every = "for p in $(pgrep -f '^sshd-session: root'); do "
                fleet.ssh(host, ours + every + 'case " $ours " in *" $p "*) ;; *) kill -KILL $p ;; esac; done')
            assert one.wait(90) != 0
        assert not installed(fleet, host)
        with run(fleet, tmp_path / "two", "--limit", host) as two:
            fleet.until(lambda: b"waiting for its end" in (tmp_path / "two").read_bytes(), 60, "it waits for the step")
            let_go(fleet, host)
            assert two.wait(120) == 0, (tmp_path / "two").read_text()[-3000:]
    assert installed(fleet, host)
    clean(fleet)


def test_ctrl_c_gives_the_lock_back(fleet: Fleet, tmp_path: Path) -> None:
    """The step that was going on ends by itself; nobody has to wait for an expiry."""
    host = fleet.fleet_names[0]
    with slow_step(fleet, host):
        with run(fleet, tmp_path / "one", "--limit", host) as one:
            standing(fleet, host)
            one.send_signal(signal.SIGINT)
            let_go(fleet, host)
            one.wait(90)
        assert held(fleet, host) == ""
    fleet.converge()
    clean(fleet)


# Rules that lock us out


@pytest.mark.long
def test_rules_that_keep_us_out_are_not_what_the_host_boots_with(fleet: Fleet) -> None:
    """The run fails and says why, the old rules come back by themselves, and after a reboot too."""
    host = fleet.fleet_names[0]
    found = fleet.lab.host(host)

    def elsewhere(site: dict[str, object]) -> None:
        site.setdefault("firewall", {})["ssh_from"] = ["192.0.2.0/24"]  # type: ignore[index]

    with fleet.edited(elsewhere):
        done = fleet.pyinfra("-y", "--limit", host)
    assert done.code == 1
    assert "a fresh SSH connection failed" in done.output
    hosts.wait_for_ssh(found, 60)
    hosts.reboot(found)
    hosts.wait_for_ssh(found, 60)
    assert "192.0.2.0" not in fleet.ssh(host, "nft list ruleset; cat /etc/callfleet/firewall.nft")
    fleet.until(lambda: all(slot["state"] == "idle" for slot in fleet.slots(host)), 60, "its slots serve again")
    clean(fleet)


# What is kept


def test_every_change_is_journalled_with_who_and_which_plan(fleet: Fleet) -> None:
    """What the host notes is what was listed, under one plan, by us; a run without changes notes nothing."""
    host = fleet.fleet_names[0]
    fleet.ssh(host, f"echo '# by hand' >> {SYSCTL}; rm /etc/callfleet/site.json; apt-mark -qq unhold runc")
    before = journal(fleet, host)
    done = fleet.converge()
    fresh = journal(fleet, host)[len(before) :]
    listed = {line.split(": ")[1] for line in done.planned if line.startswith(f"{host}: ")}
    assert {f"{line['what']} {line['kind']} {line['subject']}" for line in fresh} == listed
    assert len({line["plan"] for line in fresh}) == 1
    assert all(line["who"].count("@") == 1 for line in fresh)
    clean(fleet)
    assert len(journal(fleet, host)) == len(before) + len(fresh)


def test_an_older_tool_leaves_a_newer_ones_host_alone(fleet: Fleet) -> None:
    """Its mark says so; nothing is written."""
    host = fleet.fleet_names[0]
    fleet.ssh(
        host,
        f"""sed -i 's/"callfleet": "[^"]*"/"callfleet": "999.0"/' /etc/callfleet/site.json
echo '# by hand' >> {SYSCTL}""",
    )
    before = fleet.outside(host)
    began = time.monotonic()
    done = fleet.pyinfra("-y")
    assert done.code == 1
    assert "999.0" in done.output
    assert fleet.outside(host) == before, time.monotonic() - began
    fleet.ssh(host, "rm /etc/callfleet/site.json")
    fleet.converge()
    clean(fleet)
    assert STACK in fleet.ssh(host, "ls /opt/stacks")


# Killed anywhere

OPERATIONS = [
    "Lock",
    "Host baseline",
    "Docker engine",
    "Slot program and units",
    "Firewall",
    "API, Console and stores",
    "Front proxy",
    "Workers and host proxy",
    "Register with the API",
    "Mark",
]
EVERYWHERE = (
    "for f in /etc/sysctl.d/60-callfleet.conf /etc/callfleet/firewall.nft /usr/local/lib/callfleet/onhost/journal.py "
    "/opt/stacks/*/compose.yml /etc/callfleet/ingress/haproxy.cfg; do [ ! -e $f ] || echo '# by hand' >> $f; done; "
    """sed -i 's/"live-restore": true/"live-restore": false/' /etc/docker/daemon.json; rm -f /etc/callfleet/site.json"""
)
"""Something to do for every operation, on every host."""


@pytest.mark.parametrize("points", [OPERATIONS[1::5], pytest.param(OPERATIONS, marks=pytest.mark.long)])
def test_a_controller_killed_at_any_operation_is_followed_by_one_that_completes(
    points: list[str], fleet: Fleet, tmp_path: Path
) -> None:
    """SIGKILL as soon as an operation has begun: the next run takes over, and what is left is done. Calls go on."""
    with background(fleet, fleet.fleet_names[0]), fleet.calls() as calls:
        calls.start(3)
        assert calls.wait_open() == 3
        for n, point in enumerate(points):
            for host in fleet.lab.hosts:
                fleet.ssh(host, EVERYWHERE)
            log = tmp_path / str(n)
            with run(fleet, log) as one:
                fleet.until(lambda log=log, point=point: _begun(log, point), 120, f"{point} begins")  # type: ignore[misc]
                one.kill()
            done = fleet.converge()
            assert done.pending == [], (point, done.output[-3000:])
        # One that was killed with nothing left to do leaves its lock to the next run that writes.
        for host in fleet.lab.hosts:
            fleet.ssh(host, EVERYWHERE)
        assert fleet.converge().pending == []
        calls.stop()
        assert calls.report().clean, calls.report().gaps[:5]
    fleet.wait_idle()
    clean(fleet)


def _begun(log: Path, operation: str) -> bool:
    return f"Starting operation: {operation}" in log.read_text(errors="replace")
