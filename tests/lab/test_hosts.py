"""Hosts come, go and change size under calls, by command: three of five lab hosts are the site, two are spare and bare.

The tests are one story, in their order.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from callfleet import hostkeys, lock
from callfleet.site import edit, load_site
from lab import hosts
from lab.ca import ssh_key_pair
from tests.lab.background import begin, came_through, hang_up
from tests.lab.fleet import ROOT, STACK, WORKERS, Fleet
from tests.lab.look import INGRESS, ask_proxy, journal
from tests.lab.test_ingress import processes
from tests.lab.test_operator import CALLFLEET, apply, callfleet
from tests.lab.test_variants import small_lab

FIRST, SECOND, THIRD, FOURTH = "eu1-a", "eu1-b", "eu1-c", "eu1-d"
EDIT = "# edited by somebody else meanwhile\n"
SETTINGS = "http://127.0.0.1:8080/api/v1/settings/fleet"


@pytest.fixture(scope="module")
def site() -> Iterator[Fleet]:
    """Two fleet hosts, converged; two more are bare, their names and certificates there, known to nobody."""
    with small_lab("t", 5) as fleet:
        lab, pins = fleet.lab, known_hosts(fleet)
        keys, text = lab.known_hosts.read_text(), lab.inventory.read_text()
        for name in (THIRD, FOURTH):
            text = edit.remove_host(text, load_site(lab.inventory, text), name)
            one = lab.host(name)
            keys = hostkeys.unpin(keys, [one.address, one.address6, name, f"{name}.{lab.domain}"])
        pins.write_text(keys)
        lab.inventory.write_text(edit.set_value(text, ("ssh", "known_hosts"), str(pins)))
        assert fleet.converge().pending == []
        yield fleet


def known_hosts(fleet: Fleet) -> Path:
    """The site's pinned keys; the tests' own SSH has the lab's."""
    return fleet.lab.known_hosts.with_name("site_known_hosts")


def written(fleet: Fleet) -> tuple[str, str]:
    """The inventory and the pinned keys."""
    return fleet.lab.inventory.read_text(), known_hosts(fleet).read_text()


def fingerprint(fleet: Fleet, host: str) -> str:
    """As the host's own console shows it."""
    return fleet.ssh(host, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]


def places(fleet: Fleet, host: str) -> tuple[bool, bool, bool | None]:
    """Whether a host is registered with the ingress, the API and the Dialler, by what they run and list.

    None for a Dialler that is just made anew.
    """
    url = f"https://{host}.{fleet.lab.domain}"
    ingress = f",{host}," in ask_proxy(fleet, "hub", INGRESS, "show stat")
    config = "/opt/stacks/cxb-app/secrets/api-curl.conf"
    listed = json.loads(fleet.ssh("hub", f"curl -fsS -K {config} {SETTINGS}"))["core_fleet"]
    inspect = "docker ps -q --filter name=cxb-dialler | xargs -r docker inspect -f '{{.Config.Env}}' || true"
    dialler = fleet.ssh("hub", inspect)
    return ingress, url in listed, url in dialler if dialler.strip() else None


def containers(fleet: Fleet, host: str) -> str:
    """Every container of a host with its start."""
    return fleet.outside(host)["containers"]


def add(fleet: Fleet, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Add a spare host."""
    address = fleet.lab.host(host).address
    return callfleet(fleet, "host", "add", host, address, "--fleet", "eu1", "--workers", "4", "--yes", *arguments)


@contextmanager
def running(fleet: Fleet, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command beside the test."""
    with subprocess.Popen(
        [*CALLFLEET, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CALLFLEET_SITE": fleet.lab.site, "PYINFRA_PROGRESS": "off"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def typed(fleet: Fleet, *arguments: str, answers: list[tuple[str, str]]) -> tuple[int, str]:
    """The command at a terminal: each answer is typed once its question is there. Its exit code, and all it showed.

    Ctrl-C is typed again until it has ended: one that comes between the question and Python's read is lost to it.
    """
    ours, its = pty.openpty()
    with subprocess.Popen(
        [*CALLFLEET, *arguments], cwd=ROOT, stdin=its, stdout=its, stderr=its, start_new_session=True,
        env=os.environ | {"CALLFLEET_SITE": fleet.lab.site, "PYINFRA_PROGRESS": "off"},
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(its)
        watch = threading.Timer(300, process.kill)
        watch.start()
        over = threading.Event()
        said, seen, left = "", 0, list(answers)
        with suppress(OSError):  # the terminal is gone with its last user
            while data := os.read(ours, 65536):
                said += data.decode(errors="replace")
                if left and (at := said.find(left[0][0], seen)) >= 0:
                    seen = at + len(left[0][0])
                    answer = left.pop(0)[1].encode()
                    os.write(ours, answer)
                    if answer == b"\x03":
                        threading.Thread(target=press_again, args=(ours, over), daemon=True).start()
        over.set()
        code = process.wait()
        watch.cancel()
    os.close(ours)
    assert not left, f"never asked: {left}\n{said}"
    return code, said


def press_again(terminal: int, over: threading.Event) -> None:
    """Ctrl-C every few seconds until it is over."""
    while not over.wait(5):
        os.write(terminal, b"\x03")


def hosts_file(fleet: Fleet, path: Path, fingerprints: dict[str, str]) -> str:
    """A file of spare hosts for `host add --file`."""
    entries = {
        name: {"address": fleet.lab.host(name).address, "fleet": "eu1", "workers": WORKERS, "fingerprint": given}
        for name, given in fingerprints.items()
    }
    path.write_text(json.dumps({"hosts": entries}))
    return str(path)


def started_on(fleet: Fleet, host: str, since: float) -> int:
    """Calls that a host's workers took, its canary calls left out."""
    return sum(e["event"] == "start" and e.get("bot") != "canary" for e in fleet.events(host, since))


def doubled(fleet: Fleet, since: float, *names: str) -> list[dict[str, Any]]:
    """Calls that a busy worker took."""
    found = [event for name in names for event in fleet.events(name, since)]
    return [event for event in found if event["event"] == "start_while_busy_accepted"]


def test_a_host_that_will_not_do_leaves_nothing_behind(site: Fleet, tmp_path: Path) -> None:
    """A key that is another, none that is confirmed, a port that is taken: neither key nor entry is written.

    Of several, none if one will not do. At the question for the key, another word than yes ends it, and so does Ctrl-C.
    """
    before = written(site)
    both = hosts_file(site, tmp_path / "h.yml", {THIRD: fingerprint(site, THIRD), FOURTH: "SHA256:" + "A" * 43})
    refused = callfleet(site, "host", "add", "--file", both, "--yes")
    assert (refused.returncode, fingerprint(site, FOURTH) in refused.stderr) == (1, True)
    arguments = ("host", "add", THIRD, site.lab.host(THIRD).address, "--fleet", "eu1")
    code, said = typed(site, *arguments, answers=[("Type yes", "n\n")])
    assert (code, "was not confirmed; nothing was written" in said) == (1, True), said
    code, said = typed(site, *arguments, answers=[("Type yes", "\x03")])
    assert (code, "Traceback" in said) == (130, False), said
    wrong = add(site, THIRD, "--fingerprint", "SHA256:" + "A" * 43)
    assert wrong.returncode == 1
    assert fingerprint(site, THIRD) in wrong.stderr
    unseen = add(site, THIRD)
    assert unseen.returncode == 1
    assert f"--fingerprint {fingerprint(site, THIRD)}" in unseen.stderr
    site.ssh(THIRD, "systemd-run --quiet --collect --unit=squatter perl -MIO::Socket::INET -e "
             "'@held = IO::Socket::INET->new(Listen=>5, LocalPort=>443) or die; sleep'")  # fmt: skip
    site.until(lambda: site.ssh(THIRD, "ss -Hltn sport = :443"), 10, "somebody listens on 443")
    taken = add(site, THIRD, "--fingerprint", fingerprint(site, THIRD))
    site.ssh(THIRD, "systemctl stop squatter")
    assert taken.returncode == 1
    assert f"{THIRD}, port 443: found taken by perl" in taken.stderr
    assert written(site) == before


def test_a_third_host_joins_under_calls(site: Fleet, tmp_path: Path) -> None:
    """8 calls go on; the entry is written, the apply registers it in all three places, new calls land on it.

    It comes with another one in a file, which leaves again before it was ever applied.
    """
    began, front = time.time(), processes(site)
    same = {name: containers(site, name) for name in (FIRST, SECOND)}
    with site.calls() as held:
        held.start(2 * WORKERS)
        assert held.wait_open() == 2 * WORKERS
        both = hosts_file(site, tmp_path / "h.yml", {name: fingerprint(site, name) for name in (THIRD, FOURTH)})
        done = callfleet(site, "host", "add", "--file", both, "--yes", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        answer = json.loads(done.stdout)
        assert answer["hosts"] == {name: fingerprint(site, name) for name in (THIRD, FOURTH)}
        gone = callfleet(site, "host", "remove", FOURTH, "--yes")
        assert (gone.returncode, "no workers were laid down" in gone.stderr) == (0, True), gone.stderr[-3000:]
        assert FOURTH not in "".join(written(site))
        assert {check["state"] for check in answer["checks"]} <= {"ok", "warning"}
        assert any(change["subject"].endswith("worker-4") for change in answer["plan"]["hosts"][0]["changes"])
        assert places(site, THIRD) == (False, False, False)
        apply(site, code=0)
        assert places(site, THIRD) == (True, True, True)
        held.start(WORKERS)
        assert held.wait_open() == 3 * WORKERS, held.report().refused
        assert started_on(site, THIRD, began) == WORKERS
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    assert {name: containers(site, name) for name in (FIRST, SECOND)} == same
    assert processes(site) == front, "the ingress was not reloaded"
    assert doubled(site, began, FIRST, SECOND, THIRD) == []
    assert callfleet(site, "plan", site.lab.site).returncode == 0


def test_a_host_whose_workers_are_broken_is_not_registered(site: Fleet) -> None:
    """The message says why and what next; the others are as they were; `host remove --wipe` leaves nothing of ours.

    Another key was pinned for it: that is refused where nobody can be asked, and shown and pinned anew at a terminal.
    """
    before = written(site)
    address, other = site.lab.host(FOURTH).address, hostkeys.Key(*ssh_key_pair("x")[1].split()[:2])
    known_hosts(site).write_text(hostkeys.pin(before[1], address, other))
    changed = add(site, FOURTH)
    assert changed.returncode == 1
    assert f"ITS KEY CHANGED: {other}" in changed.stderr
    assert hostkeys.pinned(written(site)[1], address) == [other]
    # Its workers cannot fetch their configuration from the API.
    rule = f"to {site.lab.hub.address} ipproto 6 dport 443 prohibit"  # TCP; /etc/protocols need not be there
    site.ssh(FOURTH, f"ip rule add {rule}")
    same, front = {name: containers(site, name) for name in (FIRST, SECOND, THIRD)}, processes(site)
    with site.calls() as held:
        held.start(WORKERS)
        assert held.wait_open() == WORKERS
        code, said = typed(
            site, "host", "add", FOURTH, address, "--fleet", "eu1", "--workers", "4",
            answers=[("Type yes", "yes\n"), ("Type the site's name", f"{site.lab.site}\n")],
        )  # fmt: skip
        assert (code, "ITS KEY CHANGED" in said) == (0, True), said
        assert [one.fingerprint for one in hostkeys.pinned(written(site)[1], address)] == [fingerprint(site, FOURTH)]
        failed = callfleet(site, "apply", site.lab.site, "--yes")
        assert failed.returncode == 1
        assert "canary call" in failed.stdout, failed.stdout[-3000:]
        assert "left unpublished" in failed.stdout
        assert "Next:" in failed.stdout
        assert places(site, FOURTH) == (False, False, False)
        gone = callfleet(site, "host", "remove", FOURTH, "--wipe", "--yes")
        assert gone.returncode == 0, gone.stderr[-3000:]
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    assert {name: containers(site, name) for name in (FIRST, SECOND, THIRD)} == same
    assert processes(site) == front
    assert written(site) == before
    left = f"ls -d /etc/callfleet /opt/stacks /var/lib/{STACK} /run/{STACK} /usr/local/lib/callfleet 2>/dev/null; true"
    assert site.ssh(FOURTH, left) == ""
    site.ssh(FOURTH, f"ip rule del {rule}")
    assert site.ssh(FOURTH, "docker ps -aq; nft list tables | grep callfleet; true") == ""


@pytest.mark.long
def test_a_host_grows_and_shrinks_under_calls(site: Fleet) -> None:
    """4 to 6: two more calls fit at once. 6 to 3: what is on a call stays until it ends, then there are three."""
    began, front = time.time(), processes(site)
    with site.calls(name=FIRST) as held:
        held.start(WORKERS)
        assert held.wait_open() == WORKERS
        assert callfleet(site, "host", "resize", FIRST, "--workers", "6", "--yes").returncode == 0
        apply(site, code=3)
        held.start(2)
        assert held.wait_open() == 6, held.report().refused
        assert callfleet(site, "host", "resize", FIRST, "--workers", "3", "--yes").returncode == 0
        done = apply(site, code=3)
        pending = {line.partition(":")[0] for one in done["hosts"] for line in one["pending"]}
        assert {f"{STACK}/worker-{n}" for n in (4, 5, 6)} <= pending
        assert [slot["state"] for slot in site.slots(FIRST)] == ["on a call"] * 6
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    site.until(lambda: all(slot["calls"] == 0 for slot in site.slots(FIRST)), 30, "all slots idle")
    apply(site, code=0)
    assert [(slot["slot"], slot["state"]) for slot in site.slots(FIRST)] == [(n, "idle") for n in (1, 2, 3)]
    assert processes(site) == front
    assert "maxconn 3 " in site.ssh("hub", f"grep 'server {FIRST} ' /etc/callfleet/ingress/haproxy.cfg")
    with site.calls(name=FIRST) as held:
        held.start(4)
        assert held.wait_open() == 3
        held.stop()
    assert doubled(site, began, FIRST) == []
    assert callfleet(site, "plan", site.lab.site).returncode == 0
    refused = callfleet(site, "host", "resize", FIRST, "--workers", "500", "--yes")
    assert (refused.returncode, "memory" in refused.stderr) == (1, True)


def test_a_host_leaves_once_its_calls_have_ended(site: Fleet) -> None:
    """New calls stop at once; its four end by themselves, their results arrive; then it is gone from all places.

    On the way Ctrl-C says how to go on, the site file is edited, and the controller is killed before the host's
    workers are stopped: the same command completes, and the edit stays.
    """
    began, front = time.time(), processes(site)
    count = int(site.ssh(THIRD, f"find /var/lib/{STACK}/recordings -type f | wc -l"))
    assert count > 0
    refused = callfleet(site, "host", "remove", THIRD, "--yes")
    assert refused.returncode == 1
    assert f"{count} recordings (" in refused.stderr
    assert {slot["state"] for slot in site.slots(THIRD)} == {"idle"}
    sessions = begin(site, THIRD, 2)
    with site.calls(name=THIRD) as held, site.calls() as others:
        held.start(2)
        assert held.wait_open() == 2
        command = ("host", "remove", THIRD, "--recordings-moved", "--yes")
        with running(site, *command) as leaving:
            site.until(lambda: {s["state"] for s in site.slots(THIRD)} == {"draining"}, 60, "it takes no new call")
            leaving.send_signal(signal.SIGINT)
            said, _ = leaving.communicate(timeout=60)
        assert leaving.returncode == 130
        assert f"Next: callfleet host remove {THIRD} --recordings-moved goes on from there" in said, said
        assert "Traceback" not in said
        site.lab.inventory.write_text(f"{site.lab.inventory.read_text()}{EDIT}")
        guard = f"systemd-run --quiet --collect --unit=callfleet-test-guard flock {lock.GUARD} sleep 600"
        site.ssh(THIRD, guard)
        with running(site, *command) as leaving:
            others.start(WORKERS)
            assert others.wait_open() == WORKERS, others.report().refused
            assert started_on(site, THIRD, began) == 4
            assert places(site, THIRD) == (True, True, True)
            held.stop()
            assert held.report().clean, held.report().gaps[:5]
            assert [hang_up(site, THIRD, session) for session in sessions] == [True, True]
            site.until(lambda: places(site, THIRD) == (False, False, False), 120, "it is deregistered")
            leaving.kill()
        assert THIRD in site.lab.inventory.read_text()
        assert site.ssh(THIRD, "docker ps -q") != "", "its workers were not stopped yet"
        site.ssh(THIRD, "systemctl stop callfleet-test-guard")
        done = callfleet(site, *command)
        assert done.returncode == 0, done.stderr[-3000:]
        assert journal(site, THIRD)[-1]["what"] == "stop"
        others.stop()
        assert others.report().clean, others.report().gaps[:5]
    for session in sessions:
        came_through(site, THIRD, session)
    assert places(site, THIRD) == (False, False, False)
    assert processes(site) == front
    assert THIRD not in "".join(written(site))
    assert EDIT in written(site)[0]
    assert site.ssh(THIRD, "docker ps -q") == ""
    assert doubled(site, began, FIRST, SECOND, THIRD) == []
    assert callfleet(site, "plan", site.lab.site).returncode == 0


@pytest.mark.long
def test_a_dead_host_is_replaced(site: Fleet) -> None:
    """Its power is off: nothing without --lost. With it another machine takes its place, and its calls."""
    hosts.power_off(site.lab.host(SECOND))
    before, fresh = written(site), site.lab.host(FOURTH)
    replacing = ("host", "replace", SECOND, fresh.address, "--address6", fresh.address6, "--yes")
    assert "is never taken unseen" in callfleet(site, *replacing).stderr
    known = ("--fingerprint", fingerprint(site, FOURTH))
    refused = callfleet(site, *replacing, *known)
    assert (refused.returncode, " --lost" in refused.stderr) == (1, True), refused.stderr
    assert written(site) == before
    with site.calls() as held:
        held.start(3)
        assert held.wait_open() == 3
        done = callfleet(site, *replacing, *known, "--lost", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(json.loads(done.stdout)["may_be_lost"]) == 3
        assert places(site, SECOND) == (False, False, False)
        assert site.lab.host(SECOND).address not in written(site)[1]
        apply(site, code=0)
        assert places(site, SECOND) == (True, True, True)
        moved = time.time()
        held.start(WORKERS)
        assert held.wait_open() == 3 + WORKERS, held.report().refused
        site.until(lambda: started_on(site, FOURTH, moved), 20, "the new machine takes calls")
        held.stop()
        assert held.report().clean, held.report().gaps[:5]


def test_a_dead_host_is_taken_out_unreached(site: Fleet) -> None:
    """Its power is off: refused without --lost; with it, gone from all three places, and what may be lost is listed."""
    address = load_site(site.lab.inventory).host(SECOND).address
    hosts.power_off(next(one for one in site.lab.hosts if one.address == address))
    before = written(site)
    refused = callfleet(site, "host", "remove", SECOND, "--yes")
    assert refused.returncode == 1
    assert f"callfleet host remove {SECOND} --lost" in refused.stderr
    assert written(site) == before
    with site.calls() as held:
        held.start(3)
        assert held.wait_open() == 3
        done = callfleet(site, "host", "remove", SECOND, "--lost", "--yes", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(json.loads(done.stdout)["may_be_lost"]) == 3
        assert places(site, SECOND) == (False, False, False)
        held.stop()
        assert held.report().clean, held.report().gaps[:5]
    assert SECOND not in "".join(written(site))
    assert callfleet(site, "plan", site.lab.site).returncode == 0
