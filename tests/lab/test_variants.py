"""Other sites than the usual: another brand, one host, no ingress, sudo, jump hosts, a Docker that was there before."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from callfleet.authority import Authority
from callfleet.secrets import write_private
from lab import paths, registry
from lab.images import REPOS
from lab.model import Lab
from tests.lab.conftest import NAME, lab_command
from tests.lab.fleet import Converge, Fleet
from tests.lab.look import failed_hosts, nothing_to_do

# Long enough that no random secret or certificate holds one by chance.
FIRST_BRAND = "cxb-|cxb_|cxbcore|cx ?bridge"
VOX = "vox-fleet"


@contextmanager
def small_lab(suffix: str, hosts: int) -> Iterator[Fleet]:
    """A lab of its own beside the run's, bare."""
    name = f"{NAME}{suffix}"
    keep = os.environ.get("CALLFLEET_KEEP_LAB") == "1"
    if not keep:
        lab_command("down", "--name", name)
    lab_command("up", "--name", name, "--hosts", str(hosts))
    try:
        yield Fleet(Lab.load(name))
    finally:
        if not keep:
            lab_command("down", "--name", name)


def rewrite(path: Path, change: Any) -> None:
    """Edit a YAML file for good."""
    yaml = YAML()
    data = yaml.load(path.read_text())
    change(data)
    with path.open("w") as out:
        yaml.dump(data, out)


def slot_states(fleet: Fleet, host: str, stack: str) -> list[str]:
    """Each slot's word."""
    return [slot["state"] for slot in json.loads(fleet.ssh(host, f"slotctl status {stack} --json"))["slots"]]


def serves(fleet: Fleet, slots: int, name: str = "calls") -> None:
    """A call on every slot, echoing without a gap."""
    with fleet.calls(name) as held:
        held.start(slots)
        assert held.wait_open() == slots, held.report().as_json()["refused"]
        held.stop()
        assert held.report().clean, held.report().gaps[:5]


# Another brand, reached as another user and through a jump host


@pytest.fixture(scope="module")
def vox() -> Iterator[Fleet]:
    """The same software under its other names, converged."""
    with small_lab("v", 2) as fleet:
        for repository, ref in [(name, ref) for name, ref in REPOS.items() if name.endswith(":1")]:
            if repository.startswith("cxb-"):
                registry.push(fleet.lab, paths.cache() / "images" / "oci", repository.replace("cxb-", "vox-"), ref=ref)

        def brand(site: dict[str, Any]) -> None:
            site["brand"] = "voxbridge"
            site["app"]["mongodb_db"] = "voxbridge_lab"
            site["core"]["environment"]["STANDIN_EVENT_LOG"] = "/var/lib/voxcore/outbox/events.jsonl"

        def images(release: dict[str, Any]) -> None:
            for name in [name for name in release["images"] if name.startswith("cxb-")]:
                pin = release["images"].pop(name)
                pin["repository"] = pin["repository"].replace("cxb-", "vox-")
                release["images"][name.replace("cxb-", "vox-")] = pin

        rewrite(fleet.lab.inventory, brand)
        rewrite(fleet.lab.inventory.with_suffix(".release.yml"), images)
        # From bare to converged by a user who is not root: everything that any run does.
        with fleet.edited(as_ops):
            began = {host.name: fleet.ssh(host.name, "date '+%F %T'").strip() for host in fleet.lab.hosts}
            assert fleet.converge().pending == []
        for host, since in began.items():
            log = fleet.ssh(host, f"journalctl --since '{since}' -o cat -t sshd-session -t sshd -t sudo")
            assert "Accepted publickey for ops" in log, log
            assert "session opened for user root" in log, log
        yield fleet


def as_ops(site: dict[str, Any]) -> None:
    """The site reached as a user with sudo and no password."""
    site["ssh"]["user"] = "ops"


def test_another_brand_serves_and_bears_no_name_of_the_first(vox: Fleet) -> None:
    """Calls on all slots; no file, unit, label or environment on any host says the first brand's name."""
    serves(vox, 4)
    vox.until(lambda: slot_states(vox, "eu1-a", VOX) == ["idle"] * 4, 30, "all slots idle")
    for host in vox.lab.hosts:
        found = vox.ssh(
            host,
            f"grep -rliE --exclude='*.pem' --exclude=config.json '{FIRST_BRAND}' "
            "/etc/callfleet /opt/stacks /etc/tmpfiles.d /usr/local "
            "$(find /etc/systemd/system -name '*callfleet*' -o -name 'stack@*') 2>/dev/null; "
            f"find /etc/callfleet /opt/stacks /run /var/lib/vox* -xdev 2>/dev/null | grep -iE '{FIRST_BRAND}'; "
            f"docker inspect $(docker ps -aq) | grep -iE '{FIRST_BRAND}'; true",
        )
        assert found == "", host.name
    assert "voxcore" in vox.ssh("eu1-a", "grep -rh voxcore /opt/stacks")
    nothing_to_do(vox)


def test_a_user_with_sudo_finds_and_does_the_same(vox: Fleet) -> None:
    """Hosts that `ops` converged from bare have nothing to do for `ops` or root; then `ops` mends them."""
    nothing_to_do(vox)
    with vox.edited(as_ops):
        nothing_to_do(vox)
        path = f"/opt/stacks/{VOX}/secrets/worker.env"
        was = vox.ssh("eu1-a", f"stat -c '%a %U:%G' {path} /etc/needrestart/conf.d/callfleet.conf")
        vox.ssh("eu1-a", f"chmod 0644 {path}; rm /etc/needrestart/conf.d/callfleet.conf; docker rm -f {VOX}-worker-2-1")
        dry = vox.pyinfra("--dry")
        done = vox.converge()
        assert done.planned == dry.planned
        assert {f"eu1-a: create container {VOX}/worker-2: missing"} <= done.planned
        assert vox.ssh("eu1-a", f"stat -c '%a %U:%G' {path} /etc/needrestart/conf.d/callfleet.conf") == was
        assert slot_states(vox, "eu1-a", VOX) == ["idle"] * 4
        assert vox.ssh("eu1-a", "ls -A /tmp | grep -i pyinfra; true") == ""
    nothing_to_do(vox)


def test_an_ssh_config_with_a_jump_host_is_used(vox: Fleet, tmp_path: Path) -> None:
    """The fleet host by an alias and through the hub: its sshd sees the hub's address, the run finds nothing to do."""
    lab = vox.lab
    config = tmp_path / "ssh_config"
    common = f"  User root\n  IdentityFile {lab.ssh_key}\n  UserKnownHostsFile {lab.known_hosts}\n"
    config.write_text(
        f"Host jump\n  HostName {lab.hub.address}\n{common}"
        f"Host inner\n  HostName {lab.host('eu1-a').address}\n  ProxyJump jump\n{common}"
    )

    def by_alias(site: dict[str, Any]) -> None:
        site["ssh"]["config"] = str(config)
        site["fleets"]["eu1"]["hosts"]["eu1-a"]["ssh"] = {"hostname": "inner"}

    began = vox.ssh("eu1-a", "date '+%F %T'").strip()
    with vox.edited(by_alias):
        done = vox.converge()
    assert done.changed == 0, done.output[-3000:]
    log = vox.ssh("eu1-a", f"journalctl --since '{began}' -o cat | grep 'Accepted publickey' || true")
    assert f"from {lab.hub.address}" in log, log


@contextmanager
def ssh_agent(fleet: Fleet, folder: Path) -> Iterator[Path]:
    """The socket of an agent that holds the lab's key alone."""
    sock = folder / "agent.sock"
    with subprocess.Popen(["ssh-agent", "-D", "-a", sock], stdout=subprocess.DEVNULL) as agent:
        try:
            fleet.until(sock.exists, 10, "the agent listens")
            subprocess.run(
                ["ssh-add", "-q", fleet.lab.ssh_key], env=os.environ | {"SSH_AUTH_SOCK": str(sock)}, check=True
            )
            yield sock
        finally:
            agent.terminate()


def test_a_key_that_only_an_agent_holds_is_used(vox: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key in the site file nor in the operator's home: the agent's opens every host, and again for the firewall.

    Control: without the agent the run says so of each host and opens none.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    vox.ssh("eu1-a", "nft delete table inet callfleet")  # new rules are kept once a second connection succeeded

    def keyless(site: dict[str, Any]) -> None:
        del site["ssh"]["key"]

    with vox.edited(keyless):
        with ssh_agent(vox, tmp_path) as sock:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
            loaded = vox.converge()
            assert vox.converge().changed == 0
        monkeypatch.delenv("SSH_AUTH_SOCK")
        refused = vox.pyinfra("-y")
    assert len(loaded.planned) == 1
    assert "eu1-a: load setting nftables table inet callfleet" in loaded.planned.pop()
    assert refused.code != 0
    assert " Connected" not in refused.output
    for host in vox.lab.hosts:
        said = [line for line in refused.output.splitlines() if f"[{host.name}]" in line]
        assert any("authentication" in line.lower() for line in said), refused.output[-3000:]
    assert "Traceback" not in refused.output


def test_a_wrong_host_key_is_refused(vox: Fleet, tmp_path: Path) -> None:
    """Another key in known_hosts than the host's: a clear message, and no session is opened there."""
    wrong = tmp_path / "known_hosts"
    lines = vox.lab.known_hosts.read_text().splitlines()
    hub = next(line for line in lines if line.startswith(vox.lab.hub.address)).partition(" ")[2]
    wrong.write_text("".join(f"{line.partition(' ')[0]} {hub}\n" for line in lines))

    def other_keys(site: dict[str, Any]) -> None:
        site["ssh"]["known_hosts"] = str(wrong)

    began = vox.ssh("eu1-a", "sleep 1; date '+%F %T'; sleep 1").strip()
    with vox.edited(other_keys):
        done = vox.pyinfra("-y")
    refused = [line for line in done.output.splitlines() if "[eu1-a]" in line]
    assert any("host key" in line.lower() for line in refused), done.output[-3000:]
    assert "Traceback" not in done.output
    assert "[eu1-a] Connected" not in done.output
    count = f"journalctl --sync; journalctl --since '{began}' -o cat | grep -c 'Accepted publickey' || true"
    log = vox.ssh("eu1-a", count)
    assert int(log) == 1, "only this look itself"
    nothing_to_do(vox)


# Everything on one host


@pytest.fixture(scope="module")
def single() -> Iterator[Fleet]:
    """One host with ingress, app and two workers, converged."""
    with small_lab("o", 1) as fleet:
        lab = fleet.lab
        authority = Authority.load(lab.tls("internal-ca-key.pem").read_bytes())
        own = lab.tls("internal-hub.pem")
        write_private(own, authority.issue(f"hub.{lab.domain}", ("hub", lab.hub.address)))

        def everything(site: dict[str, Any]) -> None:
            hub = site["hosts"].pop("hub")
            del site["hosts"]
            hub["roles"], hub["workers"] = ["ingress", "app"], 2
            site["fleets"] = {"eu1": {"hosts": {"hub": hub}}}
            site["tls"]["internal"] = {
                "ca": str(lab.tls("internal-ca.pem")),
                "ingress": f"file:{lab.tls('internal-ingress.pem')}",
                "hosts": {"hub": f"file:{own}"},
            }

        rewrite(lab.inventory, everything)
        assert fleet.converge().pending == []
        yield fleet


def test_one_host_can_be_everything(single: Fleet) -> None:
    """Two calls through the ingress on the same machine, a third is refused, and a second run finds nothing to do."""
    single.until(lambda: slot_states(single, "hub", "cxb-fleet") == ["idle"] * 2, 30, "both slots idle")
    serves(single, 2)
    single.until(lambda: slot_states(single, "hub", "cxb-fleet") == ["idle"] * 2, 30, "both slots idle")
    with single.calls() as held:
        held.start(3)
        assert held.wait_open() == 2
        held.stop()
    nothing_to_do(single)


# Without an ingress, and on hosts that had a Docker before


@pytest.fixture(scope="module")
def plain() -> Iterator[Fleet]:
    """An app host and a fleet host, bare, without the role ingress."""
    with small_lab("n", 2) as fleet:

        def no_ingress(site: dict[str, Any]) -> None:
            site["hosts"]["hub"]["roles"] = ["app"]
            site["tls"].pop("internal", None)

        rewrite(fleet.lab.inventory, no_ingress)
        yield fleet


DUMMY = """
set -e
mkdir -p /root/dummy/DEBIAN
cat > /root/dummy/DEBIAN/control <<'END'
Package: docker-ce
Version: 1
Architecture: all
Maintainer: nobody
Conflicts: docker.io
Description: none
END
dpkg-deb -b /root/dummy /root/dummy.deb >/dev/null && dpkg -i /root/dummy.deb >/dev/null
"""


def test_another_engine_is_reported_and_never_swapped(plain: Fleet) -> None:
    """A host with another engine's package: the plan says so, the run fails there, both packages are as they were."""
    plain.ssh("hub", DUMMY)
    try:
        dry = plain.pyinfra("--dry", "--limit", "hub")
        blocked = [
            line for line in dry.planned if line.startswith("hub: blocked package docker.io: docker-ce is installed")
        ]
        assert len(blocked) == 1, dry.planned
        done = plain.pyinfra("-y", "--limit", "hub")
        assert failed_hosts(done) == {"hub"}, done.output[-3000:]
        assert "one engine is never swapped for another" in done.output
        show = "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' docker-ce docker.io 2>/dev/null; true"
        state = plain.ssh("hub", show)
        assert "docker-ce installed" in state.splitlines()
        assert "docker.io installed" not in state.splitlines()
    finally:
        plain.ssh("hub", "dpkg -r docker-ce >/dev/null; rm -rf /root/dummy /root/dummy.deb")


FOREIGN = """
set -e
apt-get -qq update >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install docker.io docker-cli >/dev/null 2>&1
cat > /etc/docker/daemon.json <<'END'
{"labels": ["owner=someone-else"], "debug": false, "log-driver": "local",
 "default-address-pools": [{"base": "10.99.0.0/16", "size": 26}]}
END
systemctl restart docker
parts=$(ldd "$(command -v sleep)" | grep -o '/[^ ]*')
tar -ch "$(command -v sleep)" $parts 2>/dev/null | docker import - tiny:1 >/dev/null
docker run -d --name foreign --restart unless-stopped tiny:1 "$(command -v sleep)" infinity >/dev/null
"""


def test_a_docker_that_was_there_keeps_its_containers_and_its_keys(plain: Fleet) -> None:
    """A foreign container runs on, started when it was; its owner's keys stay in daemon.json; live-restore is on.

    The site has no ingress: calls are placed at the fleet host itself.
    """
    look = "docker inspect -f '{{.Id}} {{.State.StartedAt}} {{.State.Status}} {{.RestartCount}}' foreign"
    plain.ssh("eu1-a", FOREIGN, timeout=300)
    before = plain.ssh("eu1-a", look)
    assert "running" in before
    done = plain.converge()
    assert done.pending == []
    assert plain.ssh("eu1-a", look) == before
    daemon = json.loads(plain.ssh("eu1-a", "cat /etc/docker/daemon.json"))
    assert daemon == {
        "labels": ["owner=someone-else"],
        "debug": False,
        "log-driver": "local",
        "default-address-pools": [{"base": "10.99.0.0/16", "size": 26}],
        "live-restore": True,
    }
    assert plain.ssh("eu1-a", "docker info -f '{{.LoggingDriver}}'") == "local\n"
    subnet = plain.ssh("eu1-a", "docker network inspect -f '{{(index .IPAM.Config 0).Subnet}}' cxb-fleet_default")
    assert subnet.startswith("10.99."), "the operator's pool is in use"
    logs = plain.ssh("eu1-a", "docker inspect -f '{{.HostConfig.LogConfig}}' cxb-fleet-worker-1-1")
    assert logs == "{json-file map[max-file:3 max-size:10m]}\n", "our containers rotate whatever the daemon's default"
    assert plain.ssh("eu1-a", "docker info -f '{{.LiveRestoreEnabled}}'") == "true\n"
    plain.ssh("eu1-a", "systemctl restart docker")
    assert plain.ssh("eu1-a", look) == before, "live-restore holds it over a restart of the daemon"
    serves(plain, 4, "eu1-a")
    plain.until(lambda: slot_states(plain, "eu1-a", "cxb-fleet") == ["idle"] * 4, 30, "all slots idle")
    nothing_to_do(plain)


def test_a_registration_on_one_side_only_is_named(plain: Fleet) -> None:
    """A run without the ingress host registers the fleet host with the API and says that inbound is missing."""
    lab = plain.lab
    unused = lab.hub.address.rpartition(".")[0] + ".99"

    def with_ingress(site: dict[str, Any]) -> None:
        site["hosts"]["calls-1"] = {"address": unused, "roles": ["ingress"]}
        site["tls"]["internal"] = {
            "ca": str(lab.tls("internal-ca.pem")),
            "ingress": f"file:{lab.tls('internal-ingress.pem')}",
            "hosts": {"eu1-a": f"file:{lab.tls('internal-eu1-a.pem')}"},
        }

    with plain.edited(with_ingress):
        known: Converge = plain.converge("--limit", "hub", "--limit", "eu1-a")
        assert "half registration" not in known.output, "it was registered there before"
        plain.ssh("hub", "sed -i '/\"eu1-a\"/d' /etc/callfleet/site.json")
        done = plain.converge("--limit", "hub", "--limit", "eu1-a")
    assert "half registration: eu1-a outbound only, calls-1 not in this run" in done.output, done.output[-3000:]
