"""Convergence: changes under calls, hosts edited by hand, refused configurations, broken images, stopped services."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from ruamel.yaml import YAML

from callfleet.credentials import Credentials
from callfleet.desired import Context, expected_host
from callfleet.expected import File
from callfleet.plan import Change, Word
from callfleet.script import script
from callfleet.site import load_site
from lab import hosts, registry
from lab.calls import StartStream
from lab.model import LabHost
from tests.lab.background import background, begin, came_through, hang_up, logged
from tests.lab.fleet import PYINFRA, ROOT, STACK, Converge, Fleet, starts_of
from tests.lab.look import (
    acted_on,
    differences,
    docker_events,
    failed_hosts,
    in_rotation,
    leaks,
    nothing_to_do,
    outside,
    take_out,
    tell,
    touched,
)

SLOTS = 8
FOREIGN = "https://fleet.elsewhere.example.com"
API = "http://127.0.0.1:8080/api/v1"
CURL = "curl -fsS --max-time 20 -K /opt/stacks/cxb-app/secrets/api-curl.conf"


def clean(fleet: Fleet) -> None:
    """The next run finds nothing to do."""
    done = fleet.converge()
    assert (done.changed, done.planned) == (0, set()), done.output[-3000:]


def workers(fleet: Fleet) -> set[str]:
    """Every worker container of the site: host, name, id, start time."""
    command = (
        "docker inspect -f '{{.Name}} {{.Id}} {{.State.StartedAt}}' "
        f"$(docker ps -q --filter label=callfleet.stack={STACK}) | grep worker"
    )
    return {f"{host} {line}" for host in fleet.fleet_names for line in fleet.ssh(host, command).splitlines()}


def core_fleet(fleet: Fleet) -> list[str]:
    """The API's list, as it says itself."""
    return list(json.loads(fleet.ssh("hub", f"{CURL} {API}/settings/fleet"))["core_fleet"])


def put_core_fleet(fleet: Fleet, urls: list[str]) -> None:
    """Change the API's list by hand."""
    body = json.dumps({"core_fleet": urls})
    fleet.ssh("hub", f"{CURL} -X PUT -H 'Content-Type: application/json' -d '{body}' {API}/settings/fleet")


def urls(fleet: Fleet) -> list[str]:
    """The fleet hosts' URLs in the order of the site file."""
    return [f"https://{name}.{fleet.lab.domain}" for name in fleet.fleet_names]


def ingress_servers(fleet: Fleet) -> set[str]:
    """Servers of the running ingress that may get calls."""
    said = fleet.ssh(
        "hub",
        "python3 -c \"import socket; s=socket.socket(socket.AF_UNIX); s.connect('/run/callfleet-ingress/admin.sock'); "
        "s.sendall(b'show servers state calls\\n'); print(s.makefile().read())\"",
    )
    return {line.split()[3] for line in said.splitlines() if line[:1].isdigit() and len(line.split()) > 3}


@contextmanager
def released(fleet: Fleet, image: str, tag: str) -> Iterator[None]:
    """The release with one image pinned to what the registry holds under another tag; put back at the end."""
    path = fleet.lab.inventory.with_suffix(".release.yml")
    before = path.read_text()
    yaml = YAML()
    data = yaml.load(before)
    digest = registry.remote_digest(fleet.lab, f"{image}:{tag}")
    assert digest
    data["images"][image] |= {"tag": tag, "digest": digest}
    with path.open("w") as out:
        yaml.dump(data, out)
    try:
        yield
    finally:
        path.write_text(before)


@contextmanager
def prompted(fleet: Fleet) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run of pyinfra that waits at its prompt, and what it said until then."""
    with subprocess.Popen(
        [str(PYINFRA), f"inventories/{fleet.lab.site}.py", "deploy.py"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYINFRA_PROGRESS": "off"},
    ) as run:
        assert run.stdout is not None
        yield run, _until(run.stdout, "Press enter to execute")


def _until(stream: IO[str], text: str) -> str:
    said = ""
    while text not in said:
        character = stream.read(1)
        assert character, said[-3000:]
        said += character
    return said


# Changes while calls are on


def test_a_changed_setting_waits_for_every_call(fleet: Fleet) -> None:
    """6 calls and 2 in the background on 8 slots: the run ends at once with 8 slots pending, nothing is touched or cut.

    Once the calls have ended another run finishes the slots, while starts are made: none is refused beside a free slot.
    The API then holds a result of every canary call, marked. The run after that finds nothing.
    """
    began, before = time.time(), workers(fleet)

    def change(site: dict[str, Any]) -> None:
        site["core"]["environment"]["GREETING"] = "hello"

    with fleet.edited(change):
        first, second = fleet.fleet_names
        with background(fleet, first), background(fleet, second), fleet.calls() as held:
            held.start(SLOTS - 2)
            assert held.wait_open() == SLOTS - 2
            done = fleet.converge()
            assert len(done.pending) == SLOTS, done.output[-3000:]
            assert all("on a call" in line for line in done.pending), done.pending
            assert workers(fleet) == before
            held.stop()
            assert held.report().clean, held.report().gaps[:5]
        assert fleet.doubled(began) == []
        fleet.wait_idle()
        assert fleet.cut() == []
        changed = time.time()
        with fleet.rotation() as rotation:
            with StartStream(ingress_url(fleet), 1, fleet.ssl, pause=0.1, resolve=fleet.resolve) as stream:
                finished = fleet.converge()
            starts = starts_of(stream.summary(), fleet.fleet_names)
        published = {host: {slot: len(spans) for slot, spans in slots.items()} for host, slots in rotation.items()}
        tell(f"rolling change: {len(starts)} starts, refused {stream.summary().refused}, times published {published}")
        assert len(starts) > 10
        assert fleet.refused_while_free(starts, rotation) == []
        assert fleet.doubled(changed) == []
        recreated = [line.split()[:2] for line in workers(fleet) - before]
        assert len(recreated) + len(finished.pending) == SLOTS, finished.pending
        assert all(published[host][name.split("-")[-2]] >= 2 for host, name in recreated), recreated
        if finished.pending:  # a slot that had one of these calls just then
            assert fleet.converge().pending == []
        assert not workers(fleet) & before
        canaries_are_marked(fleet, changed, SLOTS)
        assert fleet.ssh("eu1-a", f"docker exec {STACK}-worker-3-1 printenv GREETING") == "hello\n"
        clean(fleet)
    assert fleet.converge().pending == []


def ingress_url(fleet: Fleet) -> str:
    """Where carriers call."""
    return f"wss://calls.{fleet.lab.domain}/ws/demo"


def canaries_are_marked(fleet: Fleet, since: float, n: int) -> None:
    """Of n canary calls since a time, by the workers' own logs, the API holds the results, marked; no other is marked.

    What it reports as real calls is exactly the others.
    """
    fleet.wait_idle()
    fleet.until(lambda: not undelivered(fleet), 15, "every result is with the API")
    starts = [e for host in fleet.fleet_names for e in fleet.events(host) if e["event"] == "start"]
    canaries = {event["session"] for event in starts if event["bot"] == "canary"}
    fresh = {event["session"] for event in starts if event["bot"] == "canary" and event["t"] >= since}
    assert len(fresh) == n
    fleet.until(lambda: fresh <= fleet.results().keys(), 15, "the canaries' results are with the API")
    held = fleet.results()
    assert {session for session, result in held.items() if result["canary"]} == canaries & held.keys()
    real = json.loads(fleet.ssh("hub", f"{CURL} {API}/reports/calls"))["calls"]
    tell(f"canaries: {len(fresh)} fresh, {len(canaries & held.keys())} in all, all marked; {real} real calls reported")
    assert real == len(held.keys() - canaries)


def undelivered(fleet: Fleet) -> list[str]:
    """Results that lie in the outboxes."""
    outbox = f"ls /var/lib/{STACK}/outbox"
    return [file for host in fleet.fleet_names for file in fleet.ssh(host, outbox).split() if "--" in file]


def test_the_check_sees_a_canary_result_that_counts(fleet: Fleet) -> None:
    """Control: a canary call's result that lost its mark on the way to the API turns the check red."""
    began, name = time.time(), fleet.fleet_names[0]
    (answer,) = fleet.attach(name, 1, seconds=0, bot_id="canary")
    canaries_are_marked(fleet, began, 1)
    unmarked = json.dumps({**fleet.results()[answer.session], "bot_id": "demo"})
    secret = (fleet.lab.directory / "secrets/core_secret").read_text().strip()
    header = f"{fleet_header(fleet)}: {secret}"

    def put(body: str) -> None:
        send = f"curl -fsS -H @- -H 'Content-Type: application/json' -d '{body}' {API}/call-results"
        fleet.ssh("hub", f"{send} <<'END'\n{header}\nEND")

    put(unmarked)
    try:
        with pytest.raises(AssertionError):
            canaries_are_marked(fleet, began, 1)
    finally:
        put(json.dumps({**json.loads(unmarked), "bot_id": "canary"}))
    canaries_are_marked(fleet, began, 1)


def fleet_header(fleet: Fleet) -> str:
    """The name of the header that carries the core secret."""
    return load_site(fleet.lab.inventory).brand.secret_header


# Edited by hand


def listed(done: Converge) -> set[tuple[str, str, str]]:
    """What a run lists, as (host, kind, subject)."""
    found = set()
    for line in done.planned:
        host, _, change = line.partition(": ")
        _, kind, subject = change.partition(": ")[0].split(" ", 2)
        found.add((host, kind, subject))
    return found


@pytest.fixture
def listing(fleet: Fleet) -> Iterator[Fleet]:
    """Afterwards the API's list holds our hosts alone."""
    yield fleet
    put_core_fleet(fleet, urls(fleet))


def test_a_host_edited_by_hand_is_found_and_mended(listing: Fleet) -> None:
    """What `--dry` lists, having written nothing, is what the next run changes, seen from outside: no more, no less.

    A foreign URL in the API's list is kept.
    """
    fleet = listing
    fleet.ssh(
        "eu1-a",
        f"""
        echo '# a line by hand' >> /etc/sysctl.d/60-callfleet.conf
        chmod 0644 /opt/stacks/{STACK}/secrets/worker.env
        rm /etc/needrestart/conf.d/callfleet.conf
        systemctl stop callfleet-keeper@{STACK}
        systemctl disable -q stack@{STACK}
        docker rm -f {STACK}-worker-2-1
        nft add rule inet callfleet input tcp dport 9999 accept
        apt-mark -qq unhold docker.io containerd
        """,
    )
    fleet.ssh("hub", "systemctl stop haproxy; docker rm -f cxb-app-cxb-console-1; apt-mark -qq unhold haproxy")
    put_core_fleet(fleet, [FOREIGN, urls(fleet)[1]])

    before = outside(fleet)
    with docker_events(fleet) as events:
        dry = fleet.pyinfra("--dry", "--diff")
    assert dry.code == 0
    assert differences(before, outside(fleet)) == []
    assert acted_on(events) == []
    said = "\n".join(sorted(dry.planned))
    for expected in (
        "eu1-a: update file /etc/sysctl.d/60-callfleet.conf: content differs",
        f"eu1-a: update file /opt/stacks/{STACK}/secrets/worker.env: mode 0644 instead of 0600",
        "eu1-a: create file /etc/needrestart/conf.d/callfleet.conf: missing",
        f"eu1-a: start unit callfleet-keeper@{STACK}.service: is inactive",
        f"eu1-a: enable unit stack@{STACK}.service: is disabled",
        f"eu1-a: create container {STACK}/worker-2: missing",
        "eu1-a: load setting nftables table inet callfleet",
        "eu1-a: hold package docker.io",
        "eu1-a: hold package containerd",
        "hub: hold package haproxy",
        "hub: start unit haproxy.service: is inactive",
        "hub: create container cxb-app/cxb-console: missing",
        "hub: register setting core_fleet",
    ):
        assert expected in said, f"{expected}\nnot in\n{said}"
    assert "eu1-b" not in said.replace("eu1-b.", "")
    assert "-# a line by hand" in dry.output
    assert leaks(fleet.lab, dry.output) == []

    before, list_before = outside(fleet), core_fleet(fleet)
    mended = fleet.converge()
    assert mended.planned == dry.planned
    assert core_fleet(fleet) == [FOREIGN, *urls(fleet)] != list_before
    # What the ingress serves was not to be seen while it was down: its start brings all of it.
    really = {one for one in touched(before, outside(fleet)) if one[1] not in ("server", "certificate")}
    really.add(("hub", "setting", "core_fleet"))
    assert really == listed(dry), sorted(really ^ listed(dry))
    assert "9999" not in fleet.ssh("eu1-a", "nft list table inet callfleet")
    assert "docker.io" in fleet.ssh("eu1-a", "apt-mark showhold").split()
    clean(fleet)


def test_another_version_than_the_declared_one_is_a_blocked_change(fleet: Fleet) -> None:
    """Each held package may be pinned; one that differs is named with both versions, and nothing is done about it."""
    installed = fleet.ssh("hub", "dpkg-query -W -f '${Version}' containerd").strip()

    def pins(site: dict[str, Any]) -> None:
        site["versions"] = {"docker.io": "1.0", "runc": "2.0", "haproxy": "3.0", "containerd": installed}

    before = outside(fleet)
    with fleet.edited(pins):
        dry = fleet.pyinfra("--dry")
        real = fleet.pyinfra("-y")
    expected = {(host.name, name) for host in fleet.lab.hosts for name in ("docker.io", "runc")} | {("hub", "haproxy")}
    blocked = {(line.partition(":")[0], line.split()[3].rstrip(":")) for line in dry.planned if ": blocked " in line}
    assert blocked == expected, dry.planned
    assert any("is installed, 1.0 is declared" in line for line in dry.planned)
    assert failed_hosts(real) == {host.name for host in fleet.lab.hosts}
    assert differences(before, outside(fleet)) == []


# Refused configurations


def weak_certificate(name: str) -> bytes:
    """A well-formed certificate with its key, too short for today's OpenSSL."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - that is the point
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """A file of the controller with other content; put back at the end."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_certificate_that_only_the_host_refuses_leaves_the_old_one_in_place(fleet: Fleet) -> None:
    """Too weak for the host's OpenSSL: the run fails there and says why; files, proxy and calls are what they were."""
    name = f"calls.{fleet.lab.domain}"
    before, pid = fleet.outside("hub"), fleet.ssh("hub", "systemctl show -p MainPID haproxy")
    with fleet.calls() as held:
        held.start(2)
        assert held.wait_open() == 2
        with replaced(fleet.lab.tls(f"{name}.pem"), weak_certificate(name)):
            done = fleet.pyinfra("-y")
        held.stop()
        assert held.report().clean
    assert (done.code, failed_hosts(done)) == (1, {"hub"}), done.output[-3000:]
    assert "(the old file stays in place)" in done.output
    assert "key too small" in done.output.lower().replace("_", " "), done.output[-3000:]
    assert differences({"hub": before}, {"hub": fleet.outside("hub")}) == []
    assert fleet.ssh("hub", "systemctl show -p MainPID haproxy") == pid
    clean(fleet)


def test_a_certificate_of_no_use_is_refused_before_anything_connects(fleet: Fleet) -> None:
    """No host is reached, so nothing can have changed."""
    name = f"calls.{fleet.lab.domain}"
    with replaced(fleet.lab.tls(f"{name}.pem"), fleet.lab.tls(f"api.{fleet.lab.domain}.pem").read_bytes()):
        done = fleet.pyinfra("-y")
    assert (done.code, failed_hosts(done)) == (1, set()), done.output[-3000:]
    assert f"one that covers {name}" in done.output
    assert "nothing was connected to" in done.output


def expected_file(fleet: Fleet, host: str, path: str) -> File:
    """One declared file of a host."""
    site = load_site(fleet.lab.inventory)
    store = Credentials(site)
    items = expected_host(Context(site, site.host(host), store.secret, store.credential)).items()
    return next(item for item in items if isinstance(item, File) and item.path == path)


@pytest.mark.parametrize(
    ("host", "path", "broken", "why"),
    [
        ("hub", "/etc/callfleet/ingress/haproxy.cfg", (b"balance roundrobin", b"balance by-feeling"), "balance"),
        ("eu1-a", f"/opt/stacks/{STACK}/haproxy/haproxy.cfg", (b"mode http", b"mode telepathy"), "telepathy"),
        ("eu1-a", f"/opt/stacks/{STACK}/compose.yml", (b"restart: always", b"restarts: always"), "restarts"),
        ("eu1-a", "/etc/callfleet/firewall.nft", (b"policy drop", b"policy perhaps"), "syntax error"),
        ("eu1-a", "/etc/systemd/system/stack@.service", (b"Type=oneshot", b"Type=onceshot"), "onceshot"),
        ("hub", "/etc/systemd/system/haproxy.service.d/callfleet.conf", (b"SIGUSR1", b"SIGNONE"), "SIGNONE"),
    ],
)
def test_a_file_that_its_own_reader_refuses_never_replaces_the_old_one(
    fleet: Fleet, host: str, path: str, broken: tuple[bytes, bytes], why: str
) -> None:
    """HAProxy on both kinds of host, Compose, nft and systemd each read the candidate; nothing is changed or left."""
    item = expected_file(fleet, host, path)
    assert broken[0] in item.content
    candidate = File(path, item.content.replace(*broken), item.mode, item.owner, item.group, check=item.check)
    before = fleet.ssh(host, f"sha256sum {path}; ls -A {Path(path).parent}")
    text = script([Change("file", path, Word.UPDATE, "for a test", candidate)])
    done = hosts.run(fleet.lab.host(host), "sh -s", stdin=text, check=False)
    assert done.returncode != 0
    assert why in done.stderr
    assert f"failed: check of {path} (the old file stays in place)" in done.stderr
    assert fleet.ssh(host, f"sha256sum {path}; ls -A {Path(path).parent}") == before


# A broken image


def test_a_broken_worker_image_stops_at_the_first_slot(fleet: Fleet) -> None:
    """Each host tries one slot, says which, why and its last lines; the other slots serve on.

    A host that was not registered before is not registered; one that was stays so. The old pin repairs everything.
    """
    # For the hub, eu1-b is a host that it never had.
    fleet.ssh("hub", 'sed -i \'s/"eu1-a",/"eu1-a"/; /"eu1-b"/d\' /etc/callfleet/site.json')
    take_out(fleet, "eu1-b")
    with released(fleet, "cxb-core-worker", "broken"):
        failed = fleet.pyinfra("-y")
    assert failed_hosts(failed) == set(fleet.fleet_names), failed.output[-3000:]
    for name in fleet.fleet_names:
        told = "\n".join(line for line in failed.output.splitlines() if f"[{name}]" in line)
        assert "worker-1: " in told, told[-2000:]
        assert "left unpublished" in told
        states = [slot["state"] for slot in fleet.slots(name)]
        assert states.count("idle") == 3, states
    assert core_fleet(fleet) == urls(fleet)[:1]
    assert ingress_servers(fleet) == {"eu1-a"}
    with fleet.calls() as held:
        held.start(3)
        assert held.wait_open() == 3, held.report().as_json()["refused"]
        held.stop()
    fleet.wait_idle(60)
    repaired = fleet.converge()
    assert repaired.pending == []
    assert core_fleet(fleet) == urls(fleet)
    assert ingress_servers(fleet) == {"eu1-a", "eu1-b"}
    clean(fleet)


# Part of the site


def test_a_limited_run_touches_that_host_alone(fleet: Fleet) -> None:
    """A difference on two hosts, a run for one of them; a limit that matches nothing says so and does nothing."""
    path = "/etc/sysctl.d/60-callfleet.conf"
    for name in ("hub", "eu1-a"):
        fleet.ssh(name, f"chmod 0600 {path}")
    before = outside(fleet)
    nothing = fleet.pyinfra("-y", "--limit", "eu9-z")
    assert "No host matches found for --limit pattern: eu9-z" in nothing.output
    assert differences(before, outside(fleet)) == []
    first = fleet.converge("--limit", "eu1-a")
    assert {line.partition(":")[0] for line in first.planned} == {"eu1-a"}
    assert fleet.ssh("hub", f"stat -c %a {path}") == "600\n"
    second = fleet.converge("--limit", "hub")
    assert {line.partition(":")[0] for line in second.planned} == {"hub"}
    assert core_fleet(fleet) == urls(fleet)
    assert ingress_servers(fleet) == {"eu1-a", "eu1-b"}
    clean(fleet)


# The Dialler

DIALLER = "http://127.0.0.1:8090"


def dialler(fleet: Fleet) -> tuple[str, str]:
    """The Dialler's container, with its time of start, and the fleet list that it runs with."""
    ask = "docker inspect -f '{{.Id}} {{.State.StartedAt}}' cxb-dialler-cxb-dialler-1; "
    one, urls = fleet.ssh("hub", ask + "docker exec cxb-dialler-cxb-dialler-1 printenv FLEET_URLS").splitlines()
    return one, urls


def in_setup(fleet: Fleet) -> int:
    """How many calls the Dialler sets up, by its own word."""
    return int(json.loads(fleet.ssh("hub", f"curl -fsS {DIALLER}/health"))["calls_in_setup"])


def dial(fleet: Fleet) -> tuple[str, str]:
    """Let the Dialler place a call, which rings until it is answered: the session, and its host's URL."""
    # One that was just restarted does not listen yet.
    fleet.until(lambda: fleet.ssh("hub", f"curl -s {DIALLER}/health", check=False), 30, "the Dialler answers")
    said = json.loads(fleet.ssh("hub", f"curl -fsS -X POST {DIALLER}/standin/dial"))
    assert in_setup(fleet) == 1
    return said["session_id"], said["host"]


def answer(fleet: Fleet, session: str, url: str) -> None:
    """The callee answers: the call starts on a worker of that host, and its result reaches the API."""
    fleet.ssh("hub", f"curl -fsS -X POST {DIALLER}/standin/answer")
    reaches_a_worker(fleet, session, url)
    assert in_setup(fleet) == 0


def reaches_a_worker(fleet: Fleet, session: str, url: str) -> None:
    """A call is on a worker of the host with this URL, by that worker's log; it is then ended by its caller."""
    host = url.removeprefix("https://").partition(".")[0]
    fleet.until(lambda: logged(fleet, host, session), 20, f"{session} starts on {host}")
    assert hang_up(fleet, host, session)
    came_through(fleet, host, session)


def test_the_dialler_is_restarted_only_with_no_call_in_set_up(fleet: Fleet) -> None:
    """Its fleet list changes while it sets up a call: it stays, is reported, and the call reaches its worker.

    A run after that gives it the new list. Calls placed by the Dialler and by the API's choice of a host reach workers.
    """
    before = dialler(fleet)
    assert before[1] == ",".join(urls(fleet))
    fleet.ssh("hub", f"curl -fsS -X POST {DIALLER}/standin/answer")  # what a failed test may have left
    fleet.until(lambda: in_setup(fleet) == 0, 30, "no call is in set-up")
    session, url = dial(fleet)

    def smaller(site: dict[str, Any]) -> None:
        site["fleets"]["eu1"]["hosts"].pop("eu1-b")
        site["tls"]["internal"]["hosts"].pop("eu1-b")
        site["names"].pop(f"eu1-b.{site['domain']}")

    with fleet.edited(smaller):
        waits = fleet.converge()
        assert waits.pending == ["cxb-dialler/cxb-dialler: left running: calls_in_setup is 1, to be 0"]
        assert dialler(fleet) == before
        answer(fleet, session, url)
        assert fleet.converge().pending == []
        assert dialler(fleet)[0] != before[0]
        assert dialler(fleet)[1] == urls(fleet)[0]
        session, url = dial(fleet)
        assert url == urls(fleet)[0]
        answer(fleet, session, url)
    assert fleet.converge().pending == []
    assert dialler(fleet)[1] == before[1]
    assert core_fleet(fleet) == urls(fleet)
    body = json.dumps({"bot_id": "demo", "seconds": 300})
    chosen = json.loads(fleet.ssh("hub", f"{CURL} -H 'Content-Type: application/json' -d '{body}' {API}/calls"))
    assert chosen["host"] in urls(fleet)
    reaches_a_worker(fleet, chosen["session_id"], chosen["host"])
    clean(fleet)


# A service that is down


def test_results_of_calls_wait_while_the_api_is_down(fleet: Fleet) -> None:
    """The plan shows the stopped API, a run starts it; calls that ended meanwhile arrive from the outbox, each once."""
    name = fleet.fleet_names[0]
    sessions = begin(fleet, name, 2)
    fleet.ssh("hub", "docker stop -t 2 cxb-app-cxb-api-1")
    assert [hang_up(fleet, name, session) for session in sessions] == [True, True]
    assert {json.loads(line)["session_id"] for line in _waiting(fleet, name, 2)} == set(sessions)
    dry = fleet.pyinfra("--dry")
    assert "hub: start container cxb-app/cxb-api: is exited" in dry.planned, dry.output[-3000:]
    fleet.converge()
    for session in sessions:
        came_through(fleet, name, session)
    fleet.until(lambda: not undelivered(fleet), 10, "nothing is left in an outbox")
    clean(fleet)


def _waiting(fleet: Fleet, host: str, n: int) -> list[str]:
    """The results in a host's outbox, once there are n."""
    found: list[str] = []

    def there() -> bool:
        each = f"for f in /var/lib/{STACK}/outbox/*--*.json"
        text = fleet.ssh(host, f"{each}; do [ -e $f ] && cat $f && echo; done; true")
        found[:] = [line for line in text.splitlines() if line.strip()]
        return len(found) == n

    fleet.until(there, 30, f"{n} results wait in the outbox of {host}")
    return found


# Logs


def test_logs_of_every_container_rotate(fleet: Fleet) -> None:
    """By Docker's own word, and for real: a worker that writes 12 MB has a second file, none above the limit.

    Calls by themselves make no worker and no proxy write a line: while dockerd is down nobody reads them, and a full
    pipe would hang whoever writes. Control: the same look sees the lines of the worker.
    """
    wanted = {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}
    for host in fleet.lab.hosts:
        said = fleet.ssh(host.name, "docker inspect -f '{{json .HostConfig.LogConfig}}' $(docker ps -aq)")
        assert [json.loads(line) for line in said.splitlines()] == [wanted] * len(said.splitlines()), host.name
    name = fleet.fleet_names[0]
    sizes = "stat -Lc '%n %s' $(docker inspect -f '{{.LogPath}}' $(docker ps -q))"
    quiet = fleet.ssh(name, sizes)
    with fleet.calls(name) as held:
        held.start(5)
        assert held.wait_open() == 4
        held.stop()
    fleet.wait_idle()
    assert {a.status for a in fleet.attach(name, 4, seconds=1)} == {200}
    fleet.wait_idle()
    assert fleet.ssh(name, sizes) == quiet
    log = fleet.ssh(name, f"docker inspect -f '{{{{.LogPath}}}}' {STACK}-worker-4-1").strip()
    pid = f"$(docker inspect -f '{{{{.State.Pid}}}}' {STACK}-worker-4-1)"
    fleet.ssh(name, f"head -c 12000000 /dev/zero | tr '\\0' x | fold -w 1000 > /proc/{pid}/fd/1")
    fleet.until(lambda: fleet.ssh(name, f"ls {log}.1 2>/dev/null || true"), 20, "the log was rotated")
    assert fleet.ssh(name, sizes) != quiet
    assert all(int(size) < 11_000_000 for size in fleet.ssh(name, f"stat -c %s {log} {log}.1").split())


# Asked before it applies


def test_without_an_answer_nothing_is_done(fleet: Fleet) -> None:
    """Standard input closed and no -y: the plan, a sentence that says what to do, exit code 1, no traceback."""
    path = "/etc/sysctl.d/60-callfleet.conf"
    fleet.ssh("hub", f"chmod 0600 {path}")
    done = fleet.pyinfra()
    assert done.code == 1
    assert f"hub: update file {path}: mode 0600 instead of 0644" in done.planned
    assert "nobody can be asked here and -y was not given; nothing was changed" in done.output
    assert "Traceback" not in done.output
    assert "traceback" not in done.output
    assert fleet.ssh("hub", f"stat -c %a {path}") == "600\n"


def test_a_host_that_changed_after_its_plan_was_shown_is_refused(fleet: Fleet) -> None:
    """Edited while the prompt waits: that host is left as it is with a clear message, the others are carried out."""
    path, other = "/etc/sysctl.d/60-callfleet.conf", "/etc/systemd/journald.conf.d/callfleet.conf"
    for name in ("hub", "eu1-a"):
        fleet.ssh(name, f"chmod 0600 {path}")
    with prompted(fleet) as (run, said):
        fleet.ssh("eu1-a", f"chmod 0640 {other}")
        rest, _ = run.communicate("\n\n", timeout=300)  # the plan, and to go on without the host that failed
    done = Converge(run.returncode, said + rest, 0)
    assert "[eu1-a]" in (refused := next(line for line in rest.splitlines() if "changed since the plan" in line))
    assert "nothing was done here, run again" in refused
    assert failed_hosts(done) == {"eu1-a"}
    assert fleet.ssh("hub", f"stat -c %a {path}") == "644\n"
    assert fleet.ssh("eu1-a", f"stat -c %a {path} {other}") == "600\n640\n"
    again = fleet.converge()
    assert {line.partition(":")[0] for line in again.planned} == {"eu1-a"}
    clean(fleet)


# Power


def test_a_reboot_of_every_host_changes_nothing(fleet: Fleet) -> None:
    """All hosts reboot at once: everything serves again by itself, and a run finds nothing to do."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(hosts.reboot, fleet.lab.hosts))

    def serving() -> bool:
        states = [slot["state"] for name in fleet.fleet_names for slot in fleet.slots(name)]
        services = len(re.findall("running", _app_states(fleet)))
        return states == ["idle"] * SLOTS and services == 6 and not any(map(booting, fleet.lab.hosts))

    def booting(host: LabHost) -> str:
        return fleet.ssh(host, "systemctl list-units --plain --no-legend --state=activating 'stack@*' 'callfleet*'")

    fleet.until(serving, 120, "all slots idle and all services of the app host up")
    fleet.results()  # once the API answers
    fleet.until(lambda: in_rotation(fleet), 30, "the proxies have seen every slot")
    nothing_to_do(fleet)
    with fleet.calls() as held:
        held.start(SLOTS)
        assert held.wait_open() == SLOTS, held.report().as_json()["refused"]
        held.stop()


def _app_states(fleet: Fleet) -> str:
    return fleet.ssh("hub", "docker ps -a --format '{{.State}}' || true", check=False)
