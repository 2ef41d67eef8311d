"""One host: lay down what is its own, boot it, run commands on it over SSH, take its power away."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from lab import cgroups, mounts, network, paths
from lab.apt import seed
from lab.ca import ssh_key_pair
from lab.errors import LabError
from lab.locks import locked
from lab.model import Lab, LabHost
from lab.tool import tool

BOOT_SECONDS = 60.0
REBOOT_SECONDS = 90.0
POLL_SECONDS = 0.05
LOG_LINES = 15
LAYERS = "lower.json"
NETWORK = """[Match]
Name=host0

[Network]
Address={host.address}/24
Gateway={host.gateway}
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
{ipv6}
"""


def is_prepared(host: LabHost) -> bool:
    """Whether everything that the host needs for its first boot was laid down."""
    return (host.directory / LAYERS).exists()


def seal(host: LabHost, layers: list[Path]) -> None:
    """Record the host's root filesystem layers, uppermost first. A host without this record is made anew."""
    _write(host.directory / f"{LAYERS}.new", json.dumps([str(layer) for layer in layers]))
    (host.directory / f"{LAYERS}.new").replace(host.directory / LAYERS)


def prepare(lab: Lab, host: LabHost, layers: list[Path]) -> None:
    """Lay down the host's own files: identity, network, keys, the packages that the cache has."""
    mounts.delete(host.directory)
    for part in ("upper", "work", "root", "docker", "containerd"):
        (host.directory / part).mkdir(parents=True)
    own = host.upper
    _write(own / "etc/hostname", f"{host.name}\n")
    _write(own / "etc/machine-id", f"{secrets.token_hex(16)}\n", mode=0o444)
    ipv6 = f"Address={host.address6}/64\nIPv6DuplicateAddressDetection=0" if network.has_ipv6() else ""
    _write(own / "etc/systemd/network/10-host0.network", NETWORK.format(host=host, ipv6=ipv6))
    _write(own / "etc/resolv.conf", Path("/etc/resolv.conf").read_text())
    private, public = ssh_key_pair(f"root@{host.name}")
    _write(own / "etc/ssh/ssh_host_ed25519_key", private, mode=0o600)
    _write(own / "etc/ssh/ssh_host_ed25519_key.pub", public)
    _authorise(own, layers[-1], lab.ssh_key.with_suffix(".pub").read_text())
    seed(host.suite, own)


def write_names(lab: Lab, host: LabHost) -> None:
    """The host's /etc/hosts: every name of the site, as DNS would have it. Written again when the lab grows."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", ""]
    for other in lab.hosts:
        lines.append(f"{other.address} {other.name}.{lab.domain} {other.name}")
    services = " ".join(f"{name}.{lab.domain}" for name in ("calls", "api", "console", "registry"))
    lines.append(f"{lab.hub.address} {services}")
    content = "\n".join(lines) + "\n"
    with suppress(FileNotFoundError):
        if (host.root / "etc/hosts").read_text() == content:
            return
    if state(host) == "off":
        _write(host.upper / "etc/hosts", content)
    else:  # the upper directory of a mounted overlay must not be changed from outside
        run(host, "cat >/etc/hosts", stdin=content)


def start(host: LabHost) -> None:
    """Boot the host if it is off. Returns at once; `wait_for_ssh` waits."""
    with locked(host.directory / "power.lock"):
        if state(host) != "off":
            return
        _sweep(host)  # what a killed keeper left behind
        for name in ("max_user_instances", "max_user_watches"):
            _raise_inotify(name)
        cgroups.create(host.label)
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(paths.REPO), "LC_ALL": "C.UTF-8"}
        if moved := os.environ.get("CALLFLEET_LAB_DIR"):
            environment["CALLFLEET_LAB_DIR"] = moved
        with (host.directory / "keeper.log").open("ab") as log:
            # --fork: the keeper is nobody's child, so it outlives this run and leaves no zombie. It is in the host's
            # group before it begins, so that a `down` can find it from its first instant.
            subprocess.run(
                ["setsid", "--fork", sys.executable, "-m", "lab.keeper", host.lab, host.name],
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: cgroups.enter(host.label, cgroups.KEEPER),
                check=True,
            )


def state(host: LabHost) -> str:
    """`running` while the host's control group has processes beside the keeper, `booting` before that, or `off`."""
    if cgroups.processes(f"{host.label}/{cgroups.PAYLOAD}"):
        return "running"
    return "booting" if cgroups.processes(host.label) else "off"


def power_off(host: LabHost) -> None:
    """Take the power away: every process dies at once, nothing is flushed or said. Its disk stays."""
    with locked(host.directory / "power.lock"):
        _sweep(host)


def reboot(host: LabHost, *, wait: bool = True) -> None:
    """`systemctl reboot` on the host; with `wait`, until it answers again under another boot id."""
    before = boot_id(host)
    run(host, "systemctl reboot", check=False, timeout=15)
    deadline = time.monotonic() + REBOOT_SECONDS
    while wait:
        with suppress(LabError, subprocess.TimeoutExpired):
            if boot_id(host) != before:
                return
        if time.monotonic() > deadline:
            raise LabError(f"{host.name} did not come back within {REBOOT_SECONDS:.0f} s:\n{log_tail(host)}")
        time.sleep(POLL_SECONDS)


def boot_id(host: LabHost) -> str:
    """What differs from boot to boot."""
    return run(host, "cat /proc/sys/kernel/random/boot_id", timeout=10).stdout.strip()


def wait_for_ssh(host: LabHost, seconds: float = BOOT_SECONDS) -> None:
    """Until sshd greets. Raises LabError with the end of the host's log."""
    deadline = time.monotonic() + seconds
    seen = False
    while time.monotonic() < deadline:
        if answers(host):
            return
        alive = state(host) != "off"
        if seen and not alive:
            break
        seen = seen or alive
        time.sleep(POLL_SECONDS)
    raise LabError(f"{host.name} ({host.address}) does not answer on SSH:\n{log_tail(host)}", "callfleet lab status")


def answers(host: LabHost, port: int = 22) -> bool:
    """Whether sshd greets on the host's address within half a second."""
    try:
        with socket.create_connection((host.address, port), timeout=0.5) as link:
            link.settimeout(0.5)
            return link.recv(4) == b"SSH-"
    except OSError:
        return False


def ssh_command(host: LabHost, user: str = "root") -> list[str]:
    """ssh with the lab's key and pinned host keys, and nothing of the caller's own configuration."""
    options = {
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(host.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "ConnectTimeout": "5",
        "LogLevel": "ERROR",
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", "-i", str(host.ssh_key), *flags, f"{user}@{host.address}"]


def run(
    host: LabHost,
    command: str,
    *,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 120,
    user: str = "root",
) -> subprocess.CompletedProcess[str]:
    """Run a shell command on the host. With `check`, an exit code other than 0 raises LabError with its output."""
    done = subprocess.run(
        [*ssh_command(host, user), "--", command],
        input="" if stdin is None else stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise LabError(f"{host.name}: `{command[:200]}` failed with exit code {done.returncode}: {said}")
    return done


def log_tail(host: LabHost) -> str:
    """The end of the host's console and keeper log."""
    with suppress(FileNotFoundError):
        return "\n".join((host.directory / "keeper.log").read_text(errors="replace").splitlines()[-LOG_LINES:])
    return "(no log)"


def remove_propagation(host: LabHost) -> None:
    """Remove the folder that nspawn leaves behind for a machine."""
    shutil.rmtree(Path("/run/systemd/nspawn/propagate") / host.machine, ignore_errors=True)


def _sweep(host: LabHost) -> None:
    if not cgroups.kill(host.label):
        raise LabError(f"processes of {host.name} do not die: {sorted(cgroups.processes(host.label))}")
    mounts.unmount_below(host.directory)
    cgroups.remove(host.label)


def _authorise(own: Path, base: Path, public_key: str) -> None:
    """Root and ops accept the lab's key."""
    ops = next(line for line in (base / "etc/passwd").read_text().splitlines() if line.startswith("ops:"))
    for home, uid in ((own / "root", 0), (own / "home/ops", int(ops.split(":")[2]))):
        _write(home / ".ssh/authorized_keys", public_key, mode=0o600)
        for path in (home, home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, uid, uid)
        home.chmod(0o700)
        (home / ".ssh").chmod(0o700)


def _write(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(content)
    path.chmod(mode)


def _raise_inotify(name: str) -> None:
    """Every systemd needs several watchers; the default is enough for about 25 hosts."""
    setting = Path("/proc/sys/fs/inotify") / name
    wanted = {"max_user_instances": 8192, "max_user_watches": 524288}[name]
    if int(setting.read_text()) < wanted:
        tool("sysctl", "--quiet", "--write", f"fs.inotify.{name}={wanted}")
