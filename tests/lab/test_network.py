"""What answers on the network, tried from another host: the declared ports, for who may use them, no others."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from renderings import SHIPPED, proxies, shipped

from callfleet.authority import Authority
from lab import hosts
from lab.ca import INTERNAL_CA
from lab.model import REGISTRY_PORT, LabHost
from operations.firewall import KEEP, PREVIOUS, REVERT_UNIT, loading
from tests.lab.fleet import STACK, Fleet

SCAN = Path(__file__).with_name("scan.py").read_text()
RULES = "/etc/callfleet/firewall.nft"
FOREIGN = "callfleet_test_foreign"


def scan(fleet: Fleet, source: str, target: LabHost, first: int = 1, last: int = 65535) -> dict[str, list[int]]:
    """Ports of a host, IPv4 and IPv6, that accept a connection from another host."""
    command = f"python3 - {first} {last} {target.address} {target.address6} <<'SCAN'\n{SCAN}\nSCAN\n"
    return dict(json.loads(fleet.ssh(source, command, timeout=240)))


def both(target: LabHost, *ports: int) -> dict[str, list[int]]:
    """The same ports on both of a host's addresses."""
    return {target.address: list(ports), target.address6: list(ports)}


# Ports


def test_only_declared_ports_of_every_fleet_host_answer(fleet: Fleet) -> None:
    """All ports of both families: from the ingress SSH, the public and the mutual TLS one; from others not that."""
    targets = [fleet.lab.host(name) for name in fleet.fleet_names]
    assert len(targets) > 1
    with ThreadPoolExecutor() as pool:  # a scan is mostly waiting
        every = [pool.submit(scan, fleet, "hub", target) for target in targets]
        assert [one.result() for one in every] == [both(target, 22, 443, 8443) for target in targets]
    for target, other in zip(targets, reversed(targets), strict=True):
        assert scan(fleet, other.name, target, 1, 10_000) == both(target, 22, 443)


def test_only_declared_ports_of_the_hub_answer(fleet: Fleet) -> None:
    """The registry is declared in the site file; API, Console, stores and Dialler are for the host alone."""
    assert scan(fleet, fleet.fleet_names[0], fleet.lab.hub) == both(fleet.lab.hub, 22, 443, REGISTRY_PORT)
    listening = fleet.ssh("hub", "ss -Hltn")
    assert all(f":{port} " in listening for port in (8080, 8081, 6379)), "something must be there to be hidden"


@contextmanager
def listener(fleet: Fleet, name: str, port: int) -> Iterator[None]:
    """A program on a host that accepts on every address."""
    unit = f"callfleet-test-listener-{port}"
    fleet.ssh(
        name,
        f"systemd-run --quiet --collect --unit={unit} python3 -c 'import socket, time; "
        f's = socket.create_server(("::", {port}), family=socket.AF_INET6, dualstack_ipv6=True); time.sleep(300)\'\n'
        f"for _ in $(seq 100); do ss -Hltn | grep -q :{port} && exit 0; sleep 0.2; done; exit 1",
    )
    try:
        yield
    finally:
        fleet.ssh(name, f"systemctl stop {unit}")


def test_a_port_opened_by_hand_is_found(fleet: Fleet) -> None:
    """The control of the scans: silent while the firewall covers it, seen on both families once a rule allows it."""
    target = fleet.lab.host(fleet.fleet_names[0])
    port = 23456
    with listener(fleet, target.name, port):
        assert scan(fleet, "hub", target, port - 5, port + 5) == both(target)
        fleet.ssh(target.name, f"nft insert rule inet callfleet input tcp dport {port} accept")
        assert scan(fleet, "hub", target, port - 5, port + 5) == both(target, port)
    done = fleet.converge()
    assert (
        f"{target.name}: load setting nftables table inet callfleet: what the kernel holds is not what the file says"
        in (done.planned)
    )
    with listener(fleet, target.name, port):
        assert scan(fleet, "hub", target, port - 5, port + 5) == both(target)


def test_nothing_listens_on_every_address_but_what_is_declared(fleet: Fleet) -> None:
    """Bound to loopback is the second wall behind the firewall; the registry of the hub is the lab's own."""
    allowed = {"hub": {22, 443, REGISTRY_PORT}} | {name: {22, 443, 8443} for name in fleet.fleet_names}
    for host in fleet.lab.hosts:
        listening = set()
        for line in fleet.ssh(host.name, "ss -Hltn").splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if not address.strip("[]").startswith(("127.", "::1", "::ffff:127.")):
                listening.add(int(port))
        # Debian's systemd-resolved speaks LLMNR where it is installed; the firewall covers it and it is not ours.
        assert listening - {5355} == allowed[host.name], host.name


def test_no_container_publishes_a_port(fleet: Fleet) -> None:
    """A published port would bypass the firewall and put docker-proxy into the path of a call."""
    for host in fleet.lab.hosts:
        ports = fleet.ssh(
            host.name, "docker ps -q | xargs -r docker inspect -f '{{.Name}} {{json .HostConfig.PortBindings}}'"
        )
        assert ports.split()
        assert set(ports.split()[1::2]) <= {"{}", "null"}, ports
        assert "docker-proxy" not in fleet.ssh(host.name, "ps -eo args")


# Mutual TLS


def ask(fleet: Fleet, target: LabHost, certificate: bytes | None) -> tuple[int, str]:
    """GET /health/fleet at a fleet host's mutual TLS port, from the ingress host: (curl's code, HTTP status)."""
    internal = fleet.lab.tls(f"{INTERNAL_CA}.pem").read_text()
    name = f"{target.name}.{fleet.lab.domain}"
    lines = [
        "umask 077; d=$(mktemp -d); trap 'rm -rf $d' EXIT",
        f"cat > $d/ca.pem <<'PEM'\n{internal}\nPEM",
        f"cat > $d/client.pem <<'PEM'\n{(certificate or b'').decode()}\nPEM",
        "curl -s -o /dev/null --max-time 10 -w '%{http_code}' --cacert $d/ca.pem "
        + ("--cert $d/client.pem " if certificate else "")
        + f'--resolve {name}:8443:{target.address} https://{name}:8443/health/fleet; echo " $?"',
    ]
    status, code = fleet.ssh("hub", "\n".join(lines)).split()
    return int(code), status


def test_the_mutual_tls_port_is_for_the_ingress_alone(fleet: Fleet) -> None:
    """No certificate or a stranger's: no TLS. One of our authority for another role: 403. The ingress' own: 200."""
    target = fleet.lab.host(fleet.fleet_names[0])
    ours = Authority.load(fleet.lab.tls(f"{INTERNAL_CA}-key.pem").read_bytes())
    stranger = Authority.make(f"callfleet {fleet.lab.site} {INTERNAL_CA}")
    for refused in (None, stranger.issue("ingress", client=True)):
        code, status = ask(fleet, target, refused)
        assert (code != 0, status) == (True, "000")
    assert ask(fleet, target, ours.issue("another-role", client=True)) == (0, "403")
    assert ask(fleet, target, ours.issue("ingress.example", client=True)) == (0, "403")
    assert ask(fleet, target, fleet.lab.tls("internal-ingress.pem").read_bytes()) == (0, "200")


# Firewall


def table(fleet: Fleet, name: str) -> str:
    """Our table as the kernel has it; empty without one."""
    return fleet.ssh(name, "nft -s list table inet callfleet 2>/dev/null || true")


def test_rules_that_lock_us_out_take_themselves_back(fleet: Fleet) -> None:
    """New connections get nothing, so nobody says "keep": the host restores what it had, within its time."""
    target = fleet.lab.host(fleet.fleet_names[0])
    before = table(fleet, target.name)
    assert before
    seconds = 6
    locked = "/run/callfleet-test-locked.nft"
    fleet.ssh(target.name, f"sed '/dport 22 /d' {RULES} > {locked}")
    began = time.monotonic()
    # A second ssh would hang on purpose; the rules are loaded through the connection that is open.
    fleet.ssh(target.name, loading(locked, seconds))
    assert not hosts.answers(target), "the rules were to lock us out; otherwise this proves nothing"
    hosts.wait_for_ssh(target, seconds + 10)
    assert time.monotonic() - began < seconds + 10
    assert table(fleet, target.name) == before
    fleet.ssh(target.name, f"rm -f {locked}")
    assert fleet.converge().changed == 0


def test_a_redirected_port_answers_and_its_side_port_does_not(fleet: Fleet) -> None:
    """A port turned over by `redirect` passes our firewall with its new number, which stays closed from outside.

    Control: without the rule for it nothing answers.
    """
    target = fleet.lab.host(fleet.fleet_names[0])
    public, side = 23455, 23456
    before = table(fleet, target.name)
    redirect = f"add table inet {FOREIGN}; add chain inet {FOREIGN} in {{ type nat hook prerouting priority dstnat; }}"
    fleet.ssh(target.name, f"nft '{redirect}; add rule inet {FOREIGN} in tcp dport {public} redirect to :{side}'")
    try:
        with listener(fleet, target.name, side):
            assert scan(fleet, "hub", target, public - 5, side + 5) == both(target, public)
            handle = "nft -a list chain inet callfleet input | sed -n 's/.*ct status dnat accept # handle //p'"
            fleet.ssh(target.name, f"nft delete rule inet callfleet input handle $({handle})")
            assert scan(fleet, "hub", target, public - 5, side + 5) == both(target)
    finally:
        fleet.ssh(target.name, f"nft delete table inet {FOREIGN}; nft -f {RULES}")
    assert table(fleet, target.name) == before


def test_a_host_without_a_table_goes_back_to_none(fleet: Fleet) -> None:
    """The first load has nothing to restore: the way back is no table, and never an empty one that drops."""
    name = fleet.fleet_names[0]
    fleet.ssh(name, "nft delete table inet callfleet")
    fleet.ssh(name, loading(RULES, 6))
    assert table(fleet, name)
    fleet.until(lambda: table(fleet, name) == "", 20, "the table is taken back")
    done = fleet.converge()
    assert done.planned == {
        f"{name}: load setting nftables table inet callfleet: what the kernel holds is not what the file says"
    }
    assert fleet.converge().changed == 0


def test_rules_that_are_kept_stay(fleet: Fleet) -> None:
    """Once a fresh connection succeeded, the timer is gone and nothing is put back later."""
    name = fleet.fleet_names[0]
    before = table(fleet, name)
    fleet.ssh(name, loading(RULES, 8) + KEEP)
    fleet.ssh(name, "sleep 9")
    assert table(fleet, name) == before
    assert fleet.ssh(name, f"systemctl is-active {REVERT_UNIT}.timer || true").strip() == "inactive"
    assert PREVIOUS in fleet.ssh(name, f"stat -c '%a %n' {PREVIOUS}")


def test_tables_of_others_are_left_alone(fleet: Fleet) -> None:
    """Docker's and an operator's own: the same before and after our table is loaded anew."""
    name = fleet.fleet_names[0]
    fleet.ssh(
        name, f"nft 'add table inet {FOREIGN}; add chain inet {FOREIGN} kept; add rule inet {FOREIGN} kept counter'"
    )
    try:

        def others() -> str:
            listing = fleet.ssh(name, "nft -s list ruleset")
            return re.sub(r"table inet callfleet \{\n.*?\n\}\n", "", listing, flags=re.DOTALL)

        before = others()
        assert FOREIGN in before
        assert "DOCKER" in before, "Docker's rules are to be seen; otherwise this proves nothing"
        fleet.ssh(name, "nft delete table inet callfleet")
        fleet.converge()
        assert table(fleet, name)
        assert others() == before
    finally:
        fleet.ssh(name, f"nft delete table inet {FOREIGN}")


def test_the_table_is_there_after_a_reboot(fleet: Fleet) -> None:
    """Our unit loads it before the network comes up; a second run finds nothing to do."""
    name = fleet.fleet_names[1]
    before = table(fleet, name)
    hosts.reboot(fleet.lab.host(name))
    assert table(fleet, name) == before
    active = f"systemctl is-active stack@{STACK}.service || true"
    fleet.until(lambda: fleet.ssh(name, active).strip() == "active", 90, "the slots are back")
    target = fleet.lab.host(name)
    fleet.until(lambda: scan(fleet, "hub", target, 440, 450) == both(target, 443), 30, "the host's proxy is back")
    assert fleet.converge().changed == 0


# Configurations


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sites_render_what_haproxy_accepts(fleet: Fleet, name: str) -> None:
    """Every proxy of the site, with certificates of nobody, checked by the host's own HAProxy without a warning."""
    folder = f"/run/callfleet-test-{name}"
    found = proxies(shipped(name), folder)
    assert found
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for proxy in found:
            for path, content in {"haproxy.cfg": proxy.config.encode(), **proxy.beside}.items():
                entry = tarfile.TarInfo(f"{proxy.label}/{path}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    subprocess.run(
        [*hosts.ssh_command(fleet.lab.hub), f"rm -rf {folder}; mkdir -p {folder} && tar -x -C {folder}"],
        input=packed.getvalue(), check=True, timeout=60,
    )  # fmt: skip
    try:
        for proxy in found:
            said = fleet.ssh("hub", f"haproxy -c -dW -f {folder}/{proxy.label}/haproxy.cfg 2>&1; echo $?", check=False)
            assert said.split()[-1] == "0", f"{proxy.label}: {said}"
            broken = f"sed -i 's/^defaults/defaults\\n    nonsense/' {folder}/{proxy.label}/haproxy.cfg"
            said = fleet.ssh("hub", f"{broken}; haproxy -c -dW -f {folder}/{proxy.label}/haproxy.cfg 2>&1; echo $?")
            assert said.split()[-1] != "0", "the checker must be able to say no"
    finally:
        fleet.ssh("hub", f"rm -rf {folder}")
