"""The probe, by running its real script in real shells, and its parser against strange answers."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import FactProcessError

from callfleet.actual import Actual, ApiRequest, Container, FileState, Listener, ProbeRequest, SlotWord, Unknown
from facts import probe
from facts.frame import ProbeError, encode_request
from facts.probe import Probe, parse, script

SHELLS = [["dash"], ["bash", "--posix"], ["busybox", "sh"]]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
PATH_LINE = "PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BARE_DEBIAN = [
    "timeout",
    "base64",
    "cat",
    "date",
    "df",
    "dpkg-query",
    "find",
    "grep",
    "head",
    "id",
    "nproc",
    "sed",
    "sha256sum",
    "sleep",
    "tr",
    "uname",
]


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> list[str]:
    if not shutil.which(request.param[0]):
        pytest.skip(f"{request.param[0]} is not installed")
    return request.param


def ask(text: str, shell: list[str] | None = None, **options: object) -> list[str]:
    done = subprocess.run([*(shell or ["sh"]), "-c", text], capture_output=True, timeout=60, check=True, **options)
    assert not done.stderr, "the probe is silent but for its answer"
    return done.stdout.decode("ascii").splitlines()


class Bare:
    """A made-up host: only the tools of a bare Debian on PATH, the mark and the programs in a folder of ours."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.mark = folder / "mark"
        self.slotctl = folder / "slotctl"
        self.bin.mkdir()
        monkeypatch.setattr(probe, "MARK", str(self.mark))
        for tool in BARE_DEBIAN:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def tool(self, name: str, text: str) -> None:
        path = self.slotctl if name == "slotctl" else self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def text(self, request: ProbeRequest) -> str:
        text = script(request)
        for old, new in (
            (PATH_LINE, f"PATH={self.bin}"),
            ("MARK=/etc/callfleet", f"MARK={self.mark}"),
            ("SLOTCTL=/usr/local/sbin/slotctl", f"SLOTCTL={self.slotctl}"),
            ("/var/run/docker.sock", f"{self.folder}/docker.sock"),
        ):
            assert old in text
            text = text.replace(old, new)
        return text

    def probe(self, request: ProbeRequest) -> Actual:
        return parse(ask(self.text(request)))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bare:
    return Bare(tmp_path, monkeypatch)


# ---- the machine


def test_this_machine_tells_about_itself_in_every_shell(shell: list[str]) -> None:
    """The parts that need nothing but a Debian are read, and agree with what Python sees."""
    actual = parse(ask(script(ProbeRequest()), shell))
    assert actual.hostname == socket.gethostname()
    assert actual.arch == os.uname().machine
    assert actual.kernel == os.uname().release
    assert actual.cpus == len(os.sched_getaffinity(0))
    assert actual.uid == os.geteuid()
    assert not isinstance(actual.os, Unknown)
    assert actual.os.id
    assert not isinstance(actual.memory, Unknown)
    assert 0 < actual.memory.available <= actual.memory.total
    assert not isinstance(actual.disks, Unknown)
    assert actual.disks["/"].size > actual.disks["/"].free > 0
    assert not isinstance(actual.clock, Unknown)
    assert abs(actual.clock.unix - time.time()) < 30


@needs_root
def test_the_ssh_port_is_seen_through_sudo() -> None:
    """sudo hides SSH_CONNECTION from the script; the port in use must still be known before a firewall closes it."""
    text = script(ProbeRequest())
    direct = parse(ask(text, env={**os.environ, "SSH_CONNECTION": "192.0.2.9 50000 192.0.2.1 2222"}))
    assert direct.ssh_port == 2222
    outer = ["sh", "-c", 'env -u SSH_CONNECTION sh -c "$0"; :', text]
    environment = {**os.environ, "SSH_CONNECTION": "192.0.2.9 50000 192.0.2.1 2200"}
    done = subprocess.run(outer, capture_output=True, env=environment, timeout=60, check=True)
    assert parse(done.stdout.decode().splitlines()).ssh_port == 2200


def test_listening_sockets_are_seen_with_and_without_ss(bare: Bare) -> None:
    """Without iproute2 the kernel's own table answers."""
    with socket.socket() as server, socket.socket(socket.AF_INET6) as six:
        server.bind(("127.0.0.1", 0))
        server.listen()
        six.bind(("::1", 0))
        six.listen()
        ports = {("127.0.0.1", server.getsockname()[1]), ("::1", six.getsockname()[1])}
        for actual in (parse(ask(script(ProbeRequest()))), bare.probe(ProbeRequest())):
            assert not isinstance(actual.listeners, Unknown)
            assert ports <= {(one.address, one.port) for one in actual.listeners}


# ---- files


AWKWARD = ["plain", "with space", "new\nline", "quote'd", 'double"d', "dollar$(id)", "back\\slash", "-dash", "*", "ünï"]


def test_any_file_name_is_read_exactly(shell: list[str], tmp_path: Path) -> None:
    """Neither framing nor quoting is broken by what a name holds."""
    paths = []
    for name in AWKWARD:
        path = tmp_path / name
        path.write_bytes(name.encode() + b"\0@callfleet end\n")
        path.chmod(0o640)
        paths.append(str(path))
    request = ProbeRequest(files=tuple(paths), contents=tuple(paths), listed=(str(tmp_path),))
    actual = parse(ask(script(request), shell))
    listing = actual.listing(str(tmp_path))
    assert isinstance(listing, dict)
    assert set(listing) == set(AWKWARD)
    for path in paths:
        state = actual.file(path)
        content = Path(path).read_bytes()
        assert state is not None
        assert not isinstance(state, Unknown)
        assert (state.kind, state.mode, state.uid) == ("file", 0o640, os.geteuid())
        assert (state.size, state.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert actual.content(path) == content


CERTIFICATE = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN EC PRIVATE KEY-----\nnobody's business\n-----END EC PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (CERTIFICATE.format("leaf") + CERTIFICATE.format("chain") + KEY, CERTIFICATE.format("leaf")),
        (KEY + CERTIFICATE.format("leaf"), CERTIFICATE.format("leaf")),
        (KEY, ""),
        ("-----BEGIN CERTIFICATE-----\ncut off\n" + KEY, "-----BEGIN CERTIFICATE-----\ncut off\n"),
    ],
)
def test_of_a_certificate_file_only_the_first_certificate_is_read(
    text: str, wanted: str, shell: list[str], tmp_path: Path
) -> None:
    """Never a line of a key, also where the certificate before it is damaged."""
    path = tmp_path / "public.pem"
    path.write_text(text)
    answer = ask(script(ProbeRequest(certificates=(str(path), f"{tmp_path}/gone"))), shell)
    assert parse(answer).certificates == {str(path): wanted.encode(), f"{tmp_path}/gone": None}
    sent = b"".join(base64.b64decode(line) for line in answer if line[0] != "@")
    assert b"business" not in sent
    assert base64.b64encode(KEY.encode())[4:-4] not in sent


def test_kinds_of_files_are_told_apart_and_nothing_blocks(tmp_path: Path) -> None:
    """A fifo is named, not opened; a link is itself, also when it leads nowhere; a folder that is none is not empty."""
    (tmp_path / "fifo").touch()
    (tmp_path / "fifo").unlink()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("no where")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    names = ("fifo", "link", "folder", "file", "gone", "gone/deeper", "file/below")
    request = ProbeRequest(
        files=tuple(f"{tmp_path}/{name}" for name in names),
        contents=(f"{tmp_path}/fifo", f"{tmp_path}/gone"),
        listed=(f"{tmp_path}/folder", f"{tmp_path}/file", f"{tmp_path}/gone"),
    )
    actual = parse(ask(script(request)))
    kinds = {name: getattr(actual.file(f"{tmp_path}/{name}"), "kind", None) for name in names}
    assert kinds == {"fifo": "fifo", "link": "link", "folder": "directory", "file": "file"} | dict.fromkeys(names[4:])
    assert actual.file(f"{tmp_path}/gone/deeper") is None
    assert actual.file(f"{tmp_path}/link").target == "no where"  # type: ignore[union-attr]
    assert isinstance(actual.content(f"{tmp_path}/fifo"), Unknown)
    assert actual.content(f"{tmp_path}/gone") is None
    assert actual.listing(f"{tmp_path}/folder") == {}
    assert isinstance(actual.listing(f"{tmp_path}/file"), Unknown)
    assert actual.listing(f"{tmp_path}/gone") is None


@needs_root
def test_what_another_user_may_not_see_is_unknown_never_absent(shell: list[str], tmp_path: Path) -> None:
    """An unreadable file, and everything in a folder that may not be searched, whether it exists or not."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:-1]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    secret, closed = tmp_path / "secret", tmp_path / "closed"
    secret.write_text("x")
    secret.chmod(0o600)
    closed.mkdir(0o700)
    (closed / "inside").touch()
    paths = (str(secret), f"{closed}/inside", f"{closed}/nothing")
    request = ProbeRequest(files=(*paths, f"{tmp_path}/gone"), contents=paths, listed=(str(closed),))
    actual = parse(ask(script(request), shell, user="nobody", group="nogroup", extra_groups=[]))
    state = actual.file(str(secret))
    assert not isinstance(state, Unknown)
    assert state is not None
    assert isinstance(state.sha256, Unknown)
    for path in paths[1:]:
        assert isinstance(actual.file(path), Unknown)
    for path in paths:
        assert isinstance(actual.content(path), Unknown)
    assert isinstance(actual.listing(str(closed)), Unknown)
    assert actual.file(f"{tmp_path}/gone") is None


def test_the_probe_writes_nothing(shell: list[str], tmp_path: Path) -> None:
    """It ends well where no file may grow, leaves its folders untouched, and its text has nothing that writes."""
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.iterdir())
    text = script(ProbeRequest(files=(f"{tmp_path}/file",), listed=(str(tmp_path),), stacks=("cxb-fleet",)))
    lines = ask(
        text,
        shell,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert not isinstance(parse(lines).file(f"{tmp_path}/file"), Unknown)
    assert sorted(tmp_path.iterdir()) == before
    for writes in ("<<", "mktemp", "tee ", ">>"):
        assert writes not in text


# ---- tools that are missing, hang or fail


def test_a_bare_host_is_absent_where_it_can_be_and_unknown_elsewhere(bare: Bare) -> None:
    """Docker, nft and the slot program are not there: that is known. systemctl is missing: nothing about units is."""
    actual = bare.probe(ProbeRequest(units=("ssh.service",), packages=("coreutils", "nosuch"), stacks=("cxb-fleet",)))
    assert actual.engine is None
    assert actual.containers == ()
    assert actual.images == ()
    assert actual.nft is None
    assert actual.stack_slots("cxb-fleet") is None
    assert actual.drains("cxb-fleet") == {}
    assert actual.site is None
    assert actual.fence is None
    assert isinstance(actual.unit("ssh.service"), Unknown)
    assert actual.package("nosuch") is None
    coreutils = actual.package("coreutils")
    assert not isinstance(coreutils, Unknown)
    assert coreutils is not None
    assert coreutils.status == "installed"


def test_a_missing_dpkg_makes_packages_unknown(bare: Bare) -> None:
    (bare.bin / "dpkg-query").unlink()
    assert isinstance(bare.probe(ProbeRequest(packages=("haproxy",))).package("haproxy"), Unknown)
    bare.tool("dpkg-query", "echo 'the database is damaged' >&2; exit 2")
    assert bare.probe(ProbeRequest(packages=("haproxy",))).package("haproxy") == Unknown("the database is damaged")


def test_a_daemon_that_does_not_answer_is_unknown(bare: Bare) -> None:
    """With a daemon that is down there may be any container: unknown, with Docker's own words."""
    bare.tool("docker", "echo '{\"version\":\"\"}'; echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    actual = bare.probe(ProbeRequest())
    assert actual.engine == Unknown("Cannot connect to the Docker daemon")
    assert isinstance(actual.containers, Unknown)
    assert isinstance(actual.images, Unknown)


def test_a_client_that_ends_well_without_its_daemon_is_unknown(bare: Bare) -> None:
    """Docker 26 does so for a user who may not use the socket; its words are the reason."""
    (bare.folder / "engine").write_text(json.dumps({**ENGINE, "version": "", "errors": ["permission denied"]}))
    bare.tool("docker", f'[ "$1" = info ] && cat {bare.folder}/engine')
    actual = bare.probe(ProbeRequest())
    assert isinstance(actual.engine, Unknown)
    assert "permission denied" in actual.engine.reason
    assert isinstance(actual.containers, Unknown)


def test_a_daemon_without_its_client_is_unknown(bare: Bare) -> None:
    bare.tool("dockerd", "exit 0")
    assert isinstance(bare.probe(ProbeRequest()).engine, Unknown)


def test_a_hanging_docker_costs_its_own_part_only(bare: Bare) -> None:
    """It is given up once, not once a question, and what comes after it is read."""
    bare.tool("docker", "sleep 300")
    bare.mark.mkdir()
    (bare.mark / "fence").write_text("7\n")
    text = bare.text(ProbeRequest()).replace("run 10 docker info", "run 1 docker info")
    began = time.monotonic()
    actual = parse(ask(text))
    assert time.monotonic() - began < 8
    assert actual.engine == Unknown("docker did not answer within 1 s")
    assert isinstance(actual.containers, Unknown)
    assert actual.fence == 7
    assert actual.hostname == socket.gethostname()


def test_a_failing_nft_is_unknown_and_a_missing_table_absent(bare: Bare) -> None:
    bare.tool("nft", "echo 'Operation not permitted' >&2; exit 1")
    assert bare.probe(ProbeRequest()).nft == Unknown("Operation not permitted")
    bare.tool("nft", '[ "$2" = tables ] && { echo "table inet callfleet2"; exit; }; exit 1')
    assert bare.probe(ProbeRequest()).nft is None
    bare.tool(
        "nft", 'case "$*" in "list tables") echo "table ip nat"; echo "table inet callfleet" ;; *) echo rules ;; esac'
    )
    actual = bare.probe(ProbeRequest())
    assert actual.nft_rules == "rules\n"
    assert actual.nft == hashlib.sha256(b"rules\n").hexdigest()


CONTAINER = {
    "id": "c1" * 32,
    "name": "/cxb-fleet-worker-1-1",
    "labels": {
        "callfleet.stack": "cxb-fleet",
        "callfleet.service": "worker-1",
        "callfleet.config": "ab",
        "odd": "a\u0085b",
    },
    "image_id": "sha256:aa",
    "image": "registry.example.com/cxb-core-worker@sha256:bb",
    "state": "running",
    "health": "healthy",
    "exit_code": 0,
    "restart_count": 0,
    "started": "2026-11-20T10:00:00.123456789Z",
    "pid": 4242,
    "restart_policy": "unless-stopped",
    "network": "none",
    "stop_signal": "SIGURG",
    "memory": 512,
    "cpus": 0,
    "processes": None,
}
ENGINE = {
    "version": "26.1.5",
    "live_restore": True,
    "storage_driver": "overlay2",
    "cgroup_driver": "systemd",
    "log_driver": "json-file",
    "root": "/var/lib/docker",
    "plugins": [{"Name": "compose", "Version": "v2.26.1"}],
    "errors": None,
}


def docker_answers(bare: Bare, container: dict[str, object] = CONTAINER) -> None:
    (bare.folder / "engine").write_text(json.dumps(ENGINE))
    (bare.folder / "container").write_text(json.dumps(container, ensure_ascii=False))
    image = {"id": "sha256:aa", "repository": "cxb-core-worker", "tag": "<none>", "digest": "sha256:bb"}
    (bare.folder / "image").write_text(json.dumps(image))
    bare.tool(
        "docker",
        f'case "$1" in info) cat {bare.folder}/engine ;; ps) echo {"c1" * 32} ;; '
        f"inspect) cat {bare.folder}/container ;; image) cat {bare.folder}/image ;; esac",
    )


def test_a_working_docker_is_read(bare: Bare) -> None:
    docker_answers(bare)
    actual = bare.probe(ProbeRequest())
    assert not isinstance(actual.engine, Unknown)
    assert actual.engine is not None
    assert (actual.engine.version, actual.engine.compose, actual.engine.live_restore) == ("26.1.5", "2.26.1", True)
    containers = actual.stack_containers("cxb-fleet")
    assert isinstance(containers, tuple)
    [container] = containers
    assert (container.name, container.service, container.health) == ("cxb-fleet-worker-1-1", "worker-1", "healthy")
    assert container.labels["odd"] == "a\u0085b"
    assert actual.stack_containers("other") == ()
    assert not isinstance(actual.images, Unknown)
    assert [(i.repository, i.tag, i.digest) for i in actual.images] == [("cxb-core-worker", None, "sha256:bb")]


def test_a_container_that_goes_away_meanwhile_is_looked_up_again(bare: Bare) -> None:
    """The listing and the details are two calls; a failure between them must not lose the rest."""
    docker_answers(bare)
    bare.tool(
        "docker",
        f'case "$1" in info) cat {bare.folder}/engine ;; ps) echo c1 ;; image) ;; '
        f"inspect) [ -e {bare.folder}/second ] || {{ : >{bare.folder}/second; echo gone >&2; exit 1; }}; "
        f"cat {bare.folder}/container ;; esac",
    )
    containers = bare.probe(ProbeRequest()).containers
    assert isinstance(containers, tuple)
    assert len(containers) == 1


def test_two_hundred_containers_stay_a_small_answer(bare: Bare) -> None:
    docker_answers(bare)
    (bare.folder / "container").write_text("\n".join([json.dumps(CONTAINER)] * 200))
    lines = ask(bare.text(ProbeRequest()))
    assert len(parse(lines).containers) == 200  # type: ignore[arg-type]
    assert sum(map(len, lines)) < 500_000


def test_container_environments_are_never_asked_for() -> None:
    """They hold secrets; the fields that are read are listed one by one."""
    text = script(ProbeRequest())
    assert ".Config.Env" not in text
    assert "{{json .}}" not in text
    assert "{{json .Config}}" not in text


# ---- units

UNITS = """Id=ssh.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
MainPID=321
ActiveEnterTimestamp=@1764000000
InvocationID=0123
NRestarts=2
FragmentPath=/usr/lib/systemd/system/ssh.service
DropInPaths=/etc/a.conf /etc/b.conf
NeedDaemonReload=no

Id=gone.service
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
MainPID=0
ActiveEnterTimestamp=
NeedDaemonReload=no

Id=cxbcore@1.service
LoadState=not-found
ActiveState=active
SubState=running
MainPID=99
NeedDaemonReload=yes
"""


def test_units_are_read_in_the_order_asked(bare: Bare) -> None:
    """An alias answers by its real name; a unit whose file is gone while it runs is not absent."""
    bare.tool("systemctl", f"cat {bare.folder}/units")
    (bare.folder / "units").write_text(UNITS)
    actual = bare.probe(ProbeRequest(units=("sshd.service", "gone.service", "cxbcore@1.service")))
    ssh, orphan = actual.unit("sshd.service"), actual.unit("cxbcore@1.service")
    assert not isinstance(ssh, Unknown)
    assert ssh is not None
    assert (ssh.id, ssh.active, ssh.main_pid, ssh.since, ssh.restarts) == ("ssh.service", "active", 321, 1764000000, 2)
    assert ssh.drop_ins == ("/etc/a.conf", "/etc/b.conf")
    assert actual.unit("gone.service") is None
    assert orphan is not None
    assert not isinstance(orphan, Unknown)
    assert (orphan.main_pid, orphan.needs_reload) == (99, True)


def test_fewer_units_than_asked_are_unknown(bare: Bare) -> None:
    """Answers are matched by order: with one missing, none can be trusted."""
    bare.tool("systemctl", f"cat {bare.folder}/units")
    (bare.folder / "units").write_text(UNITS)
    actual = bare.probe(ProbeRequest(units=("a.service", "b.service", "c.service", "d.service")))
    assert isinstance(actual.unit("a.service"), Unknown)


# ---- what is ours


def test_slots_keep_the_words_they_know_and_are_unknown_for_the_rest(bare: Bare) -> None:
    slots = [
        {
            "slot": 2,
            "state": "on a call",
            "calls": 1,
            "container": "c",
            "config": "h",
            "published": True,
        },
        {"slot": 1, "state": "idle", "calls": 0, "published": True},
        {"slot": 3, "state": "resting", "calls": "none", "published": "yes"},
    ]
    bare.tool("slotctl", f"cat <<'X'\n{json.dumps({'slots': slots})}\nX\n")
    found = bare.probe(ProbeRequest(stacks=("cxb-fleet",))).stack_slots("cxb-fleet")
    assert isinstance(found, tuple)
    assert [(s.number, s.word, s.calls, s.busy) for s in found] == [
        (1, SlotWord.IDLE, 0, False),
        (2, SlotWord.ON_A_CALL, 1, True),
        (3, SlotWord.UNKNOWN, None, True),
    ]
    assert found[2].published is None
    assert found[2].why == "the slot program says 'resting'"


@pytest.mark.parametrize("text", ["exit 1", "echo nonsense", "echo '[]'", "echo '{\"slots\":[{}]}'", "exit 100"])
def test_a_broken_slot_program_is_unknown(bare: Bare, text: str) -> None:
    bare.tool("slotctl", text)
    assert isinstance(bare.probe(ProbeRequest(stacks=("s",))).stack_slots("s"), Unknown)


def test_the_mark_is_read_and_a_broken_drain_still_drains(bare: Bare) -> None:
    drained = bare.mark / "stacks/s/drained"
    drained.mkdir(parents=True)
    (bare.mark / "site.json").write_text('{"site": "prod"}\n')
    (bare.mark / "fence").write_text("12\n")
    (bare.mark / "stacks/s/canary.json").write_text("{broken")
    (drained / "1").write_text('{"reason": "disk"}')
    (drained / "2").write_text("")
    (drained / ".3.tmp").write_text("{}")
    actual = bare.probe(ProbeRequest(stacks=("s",)))
    assert actual.site == {"site": "prod"}
    assert actual.fence == 12
    assert isinstance(actual.canary("s"), Unknown)
    assert actual.drains("s") == {"1": {"reason": "disk"}, "2": {}}


def test_the_fleet_list_is_read_with_a_token_that_shows_nowhere(bare: Bare) -> None:
    """The token is in a file; only the list of addresses survives of the answer."""
    config = bare.folder / "api.conf"
    config.write_text('header = "Authorization: Bearer t0ken"')
    request = ProbeRequest(api=ApiRequest(str(config), "http://127.0.0.1:8080/api/v1/settings/fleet"))
    assert isinstance(bare.probe(request).core_fleet, Unknown)
    bare.tool("curl", 'echo "$*" >&2; echo \'{"core_fleet": ["https://eu1.example.com"], "other": 1}\'')
    assert "t0ken" not in "".join(base64.b64decode(line).decode() for line in ask(bare.text(request)) if line[0] != "@")
    assert bare.probe(request).core_fleet == ("https://eu1.example.com",)
    bare.tool("curl", "exit 22")
    assert isinstance(bare.probe(request).core_fleet, Unknown)
    config.unlink()
    assert bare.probe(request).core_fleet is None


# ---- HAProxy

STAT = """# pxname,svname,scur,status,weight,type,last_chk,addr,
front,FRONTEND,1,OPEN,,0,,,
workers,w1,1,UP,1,2,"L7, odd",unix,
workers,w2,0,DRAIN,0,2,,192.0.2.7:8443,
workers,BACKEND,1,UP,1,1,,,

"""
SERVERS = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state
3 workers 1 w1 - 2 0
3 workers 2 w2 192.0.2.7 2 8

"""
PROCESSES = """#<PID>          <type>          <reloads>       <uptime>        <version>
18252           master          1 [failed: 0]   0d00h00m03s     3.0.11
# workers
18558           worker          0               0d00h00m02s     3.0.11
# old workers
18300           worker          1               0d00h05m02s     3.0.11
# programs

"""
ANSWERS = {
    "show info": "Name: HAProxy\nVersion: 3.0.11\nPid: 18558\nStart_time_sec: 1000\nCurrConns: 1\nStopping: 0\n\n",
    "show stat": STAT,
    "show servers state": SERVERS,
    "show env CALLFLEET_CONFIG": "CALLFLEET_CONFIG=abc123\n\n",
    "show proc": PROCESSES,
    "@!18558 show stat -1 1 -1": "# pxname,svname,scur,type\ncalls,FRONTEND,3,0\nmetrics,FRONTEND,1,0\n\n",
    "@!18300 show stat -1 1 -1": "Unknown command\n",
    "@!18558 show sess": "0x1: proto=tcpv4 src=198.51.100.7:5 fe=calls be=workers srv=w1 ts=00 age=3m2s calls=2\n"
    "0x2: proto=tcpv4 src=198.51.100.7:6 fe=calls be=workers srv=w1 ts=00 age=45s calls=2\n"
    "0x3: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00 age=0s calls=1\n\n",
    "@!18300 show sess": "0x1: proto=tcpv4 src=198.51.100.7:5 fe=calls be=workers srv=w2 ts=00 age=1d2h calls=2\n\n",
}


@contextlib.contextmanager
def speaking(path: Path, answers: dict[str, str]) -> Iterator[None]:
    """A socket that answers like HAProxy: one command a connection, kept open until the asker is done sending."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                asked = b""
                while part := client.recv(1000):
                    asked += part
                client.sendall(answers[asked.decode().strip()].encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_proxy_tells_its_servers_processes_and_configuration(tmp_path: Path) -> None:
    admin, master, none = tmp_path / "admin.sock", tmp_path / "master.sock", tmp_path / "none.sock"
    request = ProbeRequest(
        haproxy_admin=(str(admin), str(none)), haproxy_master=(str(master),), haproxy_sessions=(str(master),)
    )
    with speaking(admin, ANSWERS), speaking(master, ANSWERS):
        answer = ask(script(request))
    actual = parse(answer)
    assert "198.51.100.7" not in b"".join(base64.b64decode(line) for line in answer if line[0] != "@").decode()
    running = actual.proxy(str(admin))
    assert running is not None
    assert not isinstance(running, Unknown)
    assert (running.version, running.config, running.stopping) == ("3.0.11", "abc123", False)
    assert [(s.name, s.status, s.sessions, s.address, s.admin) for s in running.servers] == [
        ("w1", "UP", 1, "unix", 0),
        ("w2", "DRAIN", 0, "192.0.2.7:8443", 8),
    ]
    processes = actual.processes(str(master))
    assert isinstance(processes, tuple)
    assert [(p.pid, p.role, p.old) for p in processes] == [
        (18252, "master", False),
        (18558, "worker", False),
        (18300, "worker", True),
    ]
    # What one process does not tell is not known, and takes nothing else down.
    assert [p.connections for p in processes] == [None, 3, None]
    assert [p.ages for p in processes] == [{}, {("workers", "w1"): 182}, {("workers", "w2"): 93600}]
    assert actual.proxy(str(none)) is None


def test_a_socket_without_a_listener_is_absent_and_without_a_client_unknown(bare: Bare) -> None:
    """A dead proxy leaves its name behind and can be started; without python3 or socat nobody can ask."""
    path = bare.folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    request = ProbeRequest(haproxy_admin=(str(path), f"{bare.folder}/none"))
    asked = parse(ask(script(request)))
    assert asked.proxy(str(path)) is None
    assert asked.proxy(f"{bare.folder}/none") is None
    without = bare.probe(request).proxy(str(path))
    assert isinstance(without, Unknown)
    assert "python3" in without.reason


# ---- strange answers


FULL_REQUEST = ProbeRequest(
    files=("/etc/passwd", "/etc/gone"),
    contents=("/etc/hostname",),
    certificates=("/etc/hostname", "/etc/gone"),
    listed=("/etc/apt",),
    units=("ssh.service",),
    packages=("coreutils", "nosuch"),
    stacks=("cxb-fleet",),
    haproxy_admin=("/run/cxb-fleet/proxy/admin.sock",),
    haproxy_master=("/run/cxb-fleet/proxy/master.sock",),
)


@pytest.fixture(scope="module")
def full() -> list[str]:
    return ask(script(FULL_REQUEST))


def test_a_cut_answer_never_turns_into_absence(full: list[str]) -> None:
    """Wherever the link dies, a part is what it is in the whole answer, or unknown."""
    whole = parse(full)
    first = full.index("@callfleet os") + 1
    for end in range(first, len(full)):
        cut = parse(full[:end])
        for field in dataclasses.fields(Actual):
            _same_or_unknown(getattr(cut, field.name), getattr(whole, field.name), f"{field.name} at line {end}")


def _same_or_unknown(cut: object, whole: object, where: str) -> None:
    if isinstance(cut, Unknown) or cut == whole:
        return
    if isinstance(cut, FileState) and isinstance(whole, FileState):
        _same_or_unknown(cut.sha256, whole.sha256, where)
        cut = dataclasses.replace(cut, sha256=whole.sha256)
        assert cut == whole, where
        return
    assert isinstance(cut, dict), where
    assert isinstance(whole, dict), where
    for key, value in cut.items():
        _same_or_unknown(value, whole[key], where)


def test_noise_of_a_login_shell_before_the_answer_is_skipped(full: list[str]) -> None:
    assert parse(["Welcome!", "", *full, "logout"]) == parse(full)


@given(st.lists(st.text(max_size=40), max_size=20))
def test_garbage_is_refused_by_its_own_error(lines: list[str]) -> None:
    with pytest.raises(ProbeError):
        parse(lines)


def framed(parts: dict[str, bytes], request: ProbeRequest = FULL_REQUEST) -> list[str]:
    lines = ["@callfleet probe 1", "@callfleet request", encode_request(request)]
    for name, data in parts.items():
        lines += [f"@callfleet {name}", base64.b64encode(data).decode()]
    return [*lines, "@callfleet end"]


NAMES = [
    "os",
    "host",
    "clock",
    "disks",
    "listeners",
    "nft",
    "presence",
    "files",
    "hashes",
    "contents",
    "listings",
    "packages",
    "units",
    "engine",
    "containers",
    "images",
    "slots:cxb-fleet",
    "socket-presence",
    "sockets",
    "mark",
    "core-fleet",
]
TRAILERS = st.sampled_from([b"\0" + b"0\0", b"\0" + b"1\0bad", b"\0" + b"124\0late", b"", b"\0x\0"])
SHAPES = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(["0", "1", "2", "f", "644", "/etc/passwd", "x", ""]), max_size=24).map(
        lambda fields: "".join(f"{field}\0" for field in fields).encode()
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["slots", "slot", "state", "version", "plugins", "id"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(NAMES), st.tuples(SHAPES, TRAILERS).map(b"".join)))
def test_damaged_parts_never_raise_and_never_stop_the_others(parts: dict[str, bytes]) -> None:
    """Whatever stands in a part, the answer is an Actual with a fingerprint, and an untouched part is read."""
    parts["host"] = b"hostname=h1\n\0" + b"0\0"
    actual = parse(framed(parts))
    assert actual.hostname == "h1"
    assert len(actual.fingerprint()) == 64
    assert isinstance(actual.unknowns(), dict)


def test_a_request_that_could_reach_further_than_meant_is_refused() -> None:
    """Patterns would answer for other names than asked; relative paths for another place."""
    for bad in (
        {"files": ("etc/passwd",)},
        {"files": ("/etc/../etc/passwd",)},
        {"listed": ("/etc/",)},
        {"units": ("cxbcore@*.service",)},
        {"packages": ("docker*",)},
        {"stacks": ("../x",)},
        {"nft_table": "inet a; flush ruleset"},
        {"api": ApiRequest("/etc/x", "file:///etc/shadow")},
    ):
        with pytest.raises(ValueError, match="cannot be asked for"):
            ProbeRequest(**bad)  # type: ignore[arg-type]


def test_the_script_fits_in_one_argument_or_says_so() -> None:
    assert len(script(FULL_REQUEST)) < 16_000
    with pytest.raises(ValueError, match="ask for fewer paths"):
        script(ProbeRequest(files=tuple(f"/opt/stacks/cxb-fleet/some/longer/path/{n}" for n in range(2000))))


# ---- the fingerprint


def sample() -> Actual:
    container = {**CONTAINER, "name": "w1"}
    fields = {field.name: container.get(field.name, ()) for field in dataclasses.fields(Container)}
    return dataclasses.replace(
        parse(framed({"host": b"hostname=h1\nMemTotal=8\nMemAvailable=4\n\0" + b"0\0"})),
        containers=(Container(**fields),),  # type: ignore[arg-type]
        listeners=(Listener("0.0.0.0", 22, (("sshd", 1),)),),
        fence=1,
        site={"release": "a"},
    )


def changed(**fields: object) -> Callable[[Actual], Actual]:
    def change(actual: Actual) -> Actual:
        assert isinstance(actual.containers, tuple)
        return dataclasses.replace(actual, containers=(dataclasses.replace(actual.containers[0], **fields),))  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(id="other", pid=1, started="later", restart_count=9, health="starting"),
        lambda a: dataclasses.replace(a, fence=2),
        lambda a: dataclasses.replace(a, boot_id="other", kernel="other"),
        lambda a: dataclasses.replace(a, memory=dataclasses.replace(a.memory, available=1)),
        lambda a: dataclasses.replace(a, listeners=(*a.listeners, Listener("127.0.0.1", 45000))),
        lambda a: dataclasses.replace(a, listeners=(Listener("0.0.0.0", 22, (("sshd", 77),)),)),
        lambda a: dataclasses.replace(a, units=Unknown("another reason")),
    ],
)
def test_what_changes_by_itself_leaves_the_fingerprint(change: Callable[[Actual], Actual]) -> None:
    assert change(sample()).fingerprint() == sample().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        changed(state="exited"),
        changed(labels={"callfleet.stack": "cxb-fleet", "callfleet.config": "cd"}),
        lambda a: dataclasses.replace(a, site={"release": "b"}),
        lambda a: dataclasses.replace(a, listeners=(*a.listeners, Listener("127.0.0.1", 80))),
        lambda a: dataclasses.replace(a, units={}),
        lambda a: dataclasses.replace(a, core_fleet=()),
        lambda a: dataclasses.replace(a, engine=None),
    ],
)
def test_what_a_plan_depends_on_changes_the_fingerprint(change: Callable[[Actual], Actual]) -> None:
    assert change(sample()).fingerprint() != sample().fingerprint()


def test_two_probes_of_a_quiet_host_have_one_fingerprint(full: list[str]) -> None:
    assert parse(full).fingerprint() == parse(ask(script(FULL_REQUEST))).fingerprint()


def test_an_unknown_cannot_be_taken_for_no() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(Actual().engine)


# ---- the pyinfra fact


def test_the_fact_reads_a_host_through_pyinfra() -> None:
    """pyinfra's own quoting and line reading carry the script and its answer unharmed."""
    state = State(Inventory((["@local"], {})), Config())
    connect_all(state)
    host = state.inventory.get_host("@local")
    request = ProbeRequest(files=("/etc/passwd", '/tmp/it\'s "odd"\n$HOME'))
    actual = host.get_fact(Probe, request)
    disconnect_all(state)
    assert actual.hostname == socket.gethostname()
    assert actual.file("/etc/passwd").kind == "file"
    assert actual.file('/tmp/it\'s "odd"\n$HOME') is None


def test_a_host_that_does_not_answer_is_unknown_in_every_part() -> None:
    """pyinfra gives default() for a failed fact; it must not look like an empty host."""
    silent = Probe.default()
    for field in dataclasses.fields(Actual):
        assert field.name == "request" or isinstance(getattr(silent, field.name), Unknown)
    assert isinstance(silent.file("/etc/passwd"), Unknown)


def test_an_answer_that_is_none_fails_that_host_only() -> None:
    with pytest.raises(FactProcessError):
        Probe().process(["bash: line 1: something else"])
