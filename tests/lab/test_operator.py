"""The operator's day with the `callfleet` command: the plan is the change, saved plans, drains under calls."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callfleet import lock
from tests.lab.background import background
from tests.lab.fleet import ROOT, STACK, WORKERS, Fleet
from tests.lab.look import differences, journal, leaks, outside

Edit = Callable[[dict[str, Any]], object]
CALLFLEET = [sys.executable, "-m", "callfleet"]


def callfleet(fleet: Fleet, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """The command, on the lab's site, without a terminal."""
    return subprocess.run(
        [*CALLFLEET, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"CALLFLEET_SITE": fleet.lab.site, "PYINFRA_PROGRESS": "off"},
        check=False,
    )


def plan(fleet: Fleet, *arguments: str, code: int) -> dict[str, Any]:
    """A plan as JSON, which must end with this code."""
    done = callfleet(fleet, "plan", fleet.lab.site, "--json", *arguments)
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def apply(fleet: Fleet, *arguments: str, code: int) -> dict[str, Any]:
    """An apply as JSON, which must end with this code."""
    done = callfleet(fleet, "apply", fleet.lab.site, "--json", "--yes", *arguments)
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def planned(made: dict[str, Any]) -> set[str]:
    """What a plan lists: host, word, kind and subject."""
    return {f"{h['name']}: {c['word']} {c['kind']} {c['subject']}" for h in made["hosts"] for c in h["changes"]}


def applied(done: dict[str, Any]) -> set[str]:
    """What an apply says it carried out, in the same words."""
    return {f"{host['name']}: {change.partition(': ')[0]}" for host in done["hosts"] for change in host["changes"]}


# Each kind of drift, by hand on a host. Two hosts at a time, so that several things differ at once.
DRIFT = {
    "a file's content": "echo '# by hand' >> /etc/sysctl.d/60-callfleet.conf",
    "a file's mode": "chmod 0600 /etc/apt/apt.conf.d/60callfleet",
    "a file's owner": "chown 1:1 /etc/needrestart/conf.d/callfleet.conf",
    "a file that is gone": "rm /etc/systemd/journald.conf.d/callfleet.conf",
    "a file that is a link": "ln -sf /dev/null /etc/needrestart/conf.d/callfleet.conf",
    "a folder's mode": f"chmod 0777 /opt/stacks/{STACK}/secrets",
    "a secret file": f"echo X=1 >> /opt/stacks/{STACK}/secrets/worker.env",
    "a package that is gone": "apt-get -qq remove -y curl >/dev/null",
    "a package that is not held": "apt-mark -qq unhold runc",
    "a unit that is disabled": f"systemctl -q disable stack@{STACK}.service",
    "a unit that is stopped": f"systemctl stop callfleet-keeper@{STACK}.service",
    "a unit file": "echo '# by hand' >> '/etc/systemd/system/stack@.service'",
    "the slot program": "echo '# by hand' >> /usr/local/lib/callfleet/onhost/keeper.py",
    "the firewall's file": "echo '# by hand' >> /etc/callfleet/firewall.nft",
    "the firewall in the kernel": "nft delete table inet callfleet",
    "a port opened by hand": "nft add rule inet callfleet input tcp dport 9999 accept",
    "daemon.json": """sed -i 's/"live-restore": true/"live-restore": false/' /etc/docker/daemon.json""",
    "the proxy's file": f"echo '# by hand' >> /opt/stacks/{STACK}/haproxy/haproxy.cfg",
    "the Compose file": f"echo '# by hand' >> /opt/stacks/{STACK}/compose.yml",
    "a worker that is gone": f"docker rm -f {STACK}-worker-4-1 >/dev/null",
    "a worker that is stopped": f"docker update --restart no {STACK}-worker-3-1 >/dev/null; "
    f"docker kill -s KILL {STACK}-worker-3-1 >/dev/null",
    "a worker's memory": f"docker update --memory 800m --memory-swap 800m {STACK}-worker-1-1 >/dev/null",
    "a worker made from an edited Compose file": f"cd /opt/stacks/{STACK}; cp -a compose.yml /root; "
    "sed -i 's/stop_grace_period: .*/stop_grace_period: 777s/' compose.yml; "
    f"docker rm -f {STACK}-worker-2-1 >/dev/null; docker compose -p {STACK} up -d --no-deps worker-2 >/dev/null 2>&1; "
    "cp -a /root/compose.yml .",
    "our mark": "rm /etc/callfleet/site.json",
}


@pytest.mark.parametrize("offset", [0, pytest.param(1, marks=pytest.mark.long)])
def test_what_is_planned_is_what_is_applied(offset: int, fleet: Fleet) -> None:
    """Each kind of drift: the plan writes nothing and lists exactly what the apply does; then there is nothing left."""
    kinds = list(DRIFT)[offset::2]
    first, second = fleet.fleet_names
    half = (len(kinds) + 1) // 2
    for one, other in zip(kinds[:half], [*kinds[half:], None], strict=False):
        fleet.ssh(first, DRIFT[one])
        if other:
            fleet.ssh(second, DRIFT[other])
        before = outside(fleet)
        made = plan(fleet, code=2)
        assert differences(before, outside(fleet)) == [], (one, other)
        assert {host["name"] for host in made["hosts"] if host["changes"]} == {first, *([second] if other else [])}
        assert applied(apply(fleet, code=0)) == planned(made), (one, other)
    plan(fleet, code=0)
    before = outside(fleet)
    assert applied(apply(fleet, code=0)) == set()
    assert differences(before, outside(fleet)) == []


METRICS = 9101
CHANGES: dict[str, Edit] = {
    "a setting": lambda site: site["core"]["environment"].update(GREETING="plan"),
    "who may call": lambda site: site.setdefault("firewall", {}).update(callers=["10.0.0.0/8", "fd00::/8"]),
    "metrics for one host": lambda site: site.update(
        ports={"metrics": METRICS}, metrics={"from": [list(site["fleets"]["eu1"]["hosts"].values())[1]["address"]]}
    ),
    "silence before a call is given up": lambda site: site.setdefault("calls", {}).update(tunnel_timeout_seconds=91),
}


def test_what_changes_in_the_site_file_is_planned_with_its_reason(fleet: Fleet, tmp_path: Path) -> None:
    """Several changes at once under calls: reasons name old and new, busy slots wait, the rest is done; then all.

    The page of the plan says the same; metrics are there afterwards for the declared source, and for nobody else.
    """

    def change(site: dict[str, Any]) -> None:
        for one in CHANGES.values():
            one(site)

    first = fleet.fleet_names[0]
    with fleet.edited(change):
        with background(fleet, first), fleet.calls(name=first) as held:
            held.start(1)
            assert held.wait_open() == 1
            made = plan(fleet, "--html", str(tmp_path / "plan.html"), code=3)
            page = (tmp_path / "plan.html").read_text()
            assert page.count("<td>recreate when its call has ended</td>") == 2
            assert "environment GREETING: none -&gt; plan" in page
            assert leaks(fleet.lab, page) == []
            host = next(one for one in made["hosts"] if one["name"] == first)
            waits = [c["subject"] for c in host["changes"] if c["waits"]]
            assert len(waits) == 2
            because = {reason for c in host["changes"] for reason in c.get("because", [])}
            assert "environment GREETING: none -> plan" in because
            busy = [slot for slot in host["slots"] if slot["state"] == "on a call"]
            assert {slot["will"] for slot in busy} == {"recreate when its call has ended"}
            done = apply(fleet, code=3)
            pending = [line for one in done["hosts"] for line in one["pending"]]
            assert {line.partition(": ")[0] for line in pending} == set(waits)
            held.stop()
            assert held.report().clean, held.report().gaps[:5]
        fleet.wait_idle()
        assert {line.partition(": ")[2].split(" ")[-1] for line in planned(plan(fleet, code=2))} == set(waits)
        apply(fleet, code=0)
        plan(fleet, code=0)
        metrics_are_for_one_host(fleet)
    apply(fleet, code=0)


def metrics_are_for_one_host(fleet: Fleet) -> None:
    """The second fleet host reads the slots of the first and both kinds of proxy; the hub is let in nowhere."""
    first, second = fleet.fleet_names
    curl = f"curl -sS -m 5 http://{fleet.lab.host(first).address}:{METRICS}"
    slots = fleet.ssh(second, f"{curl}/metrics/slots")
    assert slots.count('state="idle"} 1\n') == WORKERS
    assert f'callfleet_slots{{stack="{STACK}",state="idle"}} {WORKERS}' in slots
    for host in (first, fleet.lab.hub.name):
        said = fleet.ssh(second, f"curl -sS -m 5 http://{fleet.lab.host(host).address}:{METRICS}/metrics")
        assert "haproxy_server_current_sessions{" in said
    assert fleet.ssh(fleet.lab.hub.name, f"{curl}/metrics >/dev/null 2>&1; echo $?").strip() == "28"


def test_a_saved_plan_is_done_or_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Calls that came meanwhile do not matter; a host or a site that changed does, and then nothing is touched."""
    first, second = fleet.fleet_names
    saved = str(tmp_path / "plan.json")
    fleet.ssh(first, "rm /etc/callfleet/site.json")
    made = plan(fleet, "--out", saved, code=2)
    assert Path(saved).stat().st_mode & 0o077 == 0
    assert leaks(fleet.lab, Path(saved).read_text()) == []
    fleet.ssh(second, DRIFT["a file's mode"])
    before = outside(fleet)
    refused = callfleet(fleet, "apply", fleet.lab.site, "--plan", saved, "--yes")
    assert refused.returncode == 1
    assert f"{second}: the host or the site changed since the plan was made" in refused.stderr
    assert differences(before, outside(fleet)) == []
    fleet.ssh(second, "chmod 0644 /etc/apt/apt.conf.d/60callfleet")
    with fleet.calls() as held:
        held.start(3)
        assert held.wait_open() == 3
        assert applied(apply(fleet, "--plan", saved, code=0)) == planned(made)
        held.stop()
        assert held.report().clean
    assert {line["plan"] for line in journal(fleet, first)[-1:]} == {made["plan"]}
    history = callfleet(fleet, "history", fleet.lab.site, "--plan", made["plan"], "--json")
    assert [entry["subject"] for entry in json.loads(history.stdout)["entries"]] == ["/etc/callfleet/site.json"]


def test_a_secret_that_changes_is_shown_nowhere(fleet: Fleet, tmp_path: Path) -> None:
    """Neither its old nor its new value: plan, apply, saved plan, journal, and every process list meanwhile."""
    first = fleet.fleet_names[0]
    secret = fleet.lab.directory / "secrets" / "core_secret"
    old, new = secret.read_text().strip(), "correct-horse-battery-staple-7"
    secret.write_text(f"{new}\n")
    watch = "while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; done > /run/callfleet-test-seen"
    fleet.ssh(first, f"systemd-run --quiet --collect --unit=callfleet-test-watch sh -c {json.dumps(watch)}")
    try:
        said = callfleet(fleet, "plan", fleet.lab.site, "--out", str(tmp_path / "plan"))
        assert said.returncode == 2, said.stderr
        assert "(secret, changed: " in said.stdout
        done = callfleet(fleet, "apply", fleet.lab.site, "--yes", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        log = fleet.ssh(
            first, "cat /run/callfleet-test-seen /etc/callfleet/journal.jsonl; journalctl -b --no-pager | cat"
        )
        assert "slotctl" in log or "onhost" in log, "the watch saw what ran; otherwise this proves nothing"
        for text in (said.stdout, said.stderr, done.stdout, done.stderr, (tmp_path / "plan").read_text(), log):
            assert old not in text
            assert new not in text
    finally:
        fleet.ssh(first, "systemctl stop callfleet-test-watch; rm -f /run/callfleet-test-seen")
        secret.write_text(f"{old}\n")
    apply(fleet, code=0)


# Drains


def test_a_drained_host_takes_no_new_call_and_loses_none(fleet: Fleet) -> None:
    """Its calls go on with 0 gaps, new ones land elsewhere; no apply ends the drain, `ready` does."""
    first, second = fleet.fleet_names
    began = time.time()
    with background(fleet, first), fleet.calls(name=first) as held:
        held.start(WORKERS - 1)
        assert held.wait_open() == WORKERS - 1
        waiting = callfleet(fleet, "host", "drain", first, "--deadline", "1", "--reason", "new memory")
        assert waiting.returncode == 3, waiting.stderr
        assert {slot["state"] for slot in fleet.slots(first)} == {"draining"}
        with fleet.calls() as others:
            others.start(WORKERS)
            assert others.wait_open() == WORKERS
            assert len(fleet.started(began, WORKERS, second)) == WORKERS
            apply(fleet, code=0)
            assert {slot["state"] for slot in fleet.slots(first)} == {"draining"}
            others.stop()
            assert others.report().clean
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    drained = callfleet(fleet, "host", "drain", first, "--json")
    assert drained.returncode == 0, drained.stderr
    assert {slot["state"] for slot in json.loads(drained.stdout)["slots"]} == {"drained"}
    why = callfleet(fleet, "explain", first, "2").stdout
    assert "drained by" in why
    assert "new memory" in why
    apply(fleet, code=0)
    assert {slot["state"] for slot in fleet.slots(first)} == {"drained"}
    assert callfleet(fleet, "host", "ready", first).returncode == 0
    assert {slot["state"] for slot in fleet.slots(first)} == {"idle"}
    assert fleet.doubled(began) == []


def test_one_slot_is_drained_and_the_others_serve(fleet: Fleet) -> None:
    """By its number; a slot that does not exist is refused in words."""
    first = fleet.fleet_names[0]
    assert callfleet(fleet, "host", "drain", first, "--slot", "2").returncode == 0
    assert [slot["slot"] for slot in fleet.slots(first) if slot["state"] != "idle"] == [2]
    wrong = callfleet(fleet, "host", "drain", first, "--slot", "9")
    assert wrong.returncode == 1
    assert "no slot 9" in wrong.stderr
    assert callfleet(fleet, "host", "ready", first, "--slot", "2").returncode == 0
    assert {slot["state"] for slot in fleet.slots(first)} == {"idle"}


# Looking


def test_status_says_what_the_workers_say(fleet: Fleet, tmp_path: Path) -> None:
    """Calls held and slots idle are those of the workers' own answers; looking changes nothing."""
    first = fleet.fleet_names[0]
    before = outside(fleet)
    with fleet.calls() as held:
        held.start(3)
        assert held.wait_open() == 3
        fleet.until(lambda: sum(s["calls"] or 0 for h in fleet.fleet_names for s in fleet.slots(h)) == 3, 20, "3 calls")
        done = callfleet(fleet, "status", fleet.lab.site, "--json", "--html", str(tmp_path / "status.html"))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["calls"], found["slots"]) == (3, {"idle": 5, "on a call": 3})
        slots = [slot for host in found["hosts"] for slot in host["slots"]]
        assert [slot["calls"] for slot in slots if slot["age"] is not None] == [1, 1, 1]
        for host in found["hosts"]:
            assert all(proxy["running"] and proxy["old"] is not None for proxy in host["proxies"])
            assert {one["released"] for one in host["services"]} == {True}
            assert min(one["days"] for one in host["certificates"]) > 0
        page = (tmp_path / "status.html").read_text()
        assert len(re.findall("<title>[^<]* slot [0-9]+: on a call;", page)) == 3
        assert leaks(fleet.lab, page) == []
        busy = next(
            f"{host['name']}/{slot['slot']}" for host in found["hosts"] for slot in host["slots"] if slot["calls"]
        )
        inside = callfleet(fleet, "exec", busy, "--", "sh", "-c", "ls /tmp; exit 7")
        assert (inside.returncode, "may disturb a live call" in inside.stderr) == (7, True)
        assert ".sock" in inside.stdout
    assert differences(before, outside(fleet)) == []
    everywhere = callfleet(fleet, "exec", "eu1", "--", "uname", "-n")
    assert sorted(line.split() for line in everywhere.stdout.splitlines()) == [[n, "|", n] for n in fleet.fleet_names]
    for arguments in (["status", fleet.lab.site], ["explain", first], ["history", fleet.lab.site], ["logs", first]):
        text = callfleet(fleet, *arguments)
        assert text.returncode == 0, text.stderr
        assert "\x1b" not in text.stdout, "colours only on a terminal"


def test_a_log_that_is_followed_leaves_nothing_behind(fleet: Fleet) -> None:
    """New lines come as they are written; after Ctrl-C no reader is left on the host."""
    first = fleet.fleet_names[0]
    reader = "pgrep -fx 'journalctl .*--follow.*' || true"
    with subprocess.Popen(
        [*CALLFLEET, "logs", first, "--follow", "--lines", "0", "--site", fleet.lab.site],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as following:  # fmt: skip
        watch = threading.Timer(180, following.kill)
        watch.start()
        fleet.until(lambda: fleet.ssh(first, reader).strip(), 60, "the log is followed")
        fleet.ssh(first, f"systemctl restart callfleet-keeper@{STACK}.service")
        assert following.stdout is not None
        while "Started callfleet-keeper" not in (line := following.stdout.readline()):
            assert line, "it ended, or nothing came"
        following.send_signal(signal.SIGINT)
        assert following.wait(timeout=60) == 130
        watch.cancel()
        assert following.stderr is not None
        assert "Traceback" not in following.stderr.read()
    fleet.until(lambda: not fleet.ssh(first, reader).strip(), 30, "nothing follows it any more")


def test_nobody_to_ask_means_no(fleet: Fleet) -> None:
    """Without a terminal and without --yes, nothing is done; without changes nothing is asked."""
    first = fleet.fleet_names[0]
    assert callfleet(fleet, "apply", fleet.lab.site).returncode == 0
    fleet.ssh(first, DRIFT["our mark"])
    done = callfleet(fleet, "apply", fleet.lab.site)
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert fleet.ssh(first, "ls /etc/callfleet/site.json 2>/dev/null || true") == ""
    apply(fleet, code=0)


@contextmanager
def applying(fleet: Fleet, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """An apply beside the test; killed at the end if it still goes."""
    with subprocess.Popen(
        [*CALLFLEET, "apply", fleet.lab.site, "--yes", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYINFRA_PROGRESS": "off"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_says_what_was_done_and_how_to_go_on(fleet: Fleet) -> None:
    """In the middle of an apply: exit code 130, the lock is free, the next apply completes."""
    first = fleet.fleet_names[0]
    for kind in ("a file's content", "a package that is gone", "our mark"):
        fleet.ssh(first, DRIFT[kind])
    with applying(fleet, "--limit", first) as run:
        fleet.until(lambda: fleet.ssh(first, f"cat {lock.FILE} 2>/dev/null || true"), 60, "the host is locked")
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=90)
    assert run.returncode == 130, said[-3000:]
    assert f"callfleet apply {fleet.lab.site}" in said
    assert "Traceback" not in said
    assert fleet.ssh(first, f"cat {lock.FILE} 2>/dev/null || true") == ""
    apply(fleet, code=0)
    plan(fleet, code=0)
