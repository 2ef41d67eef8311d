"""The lab's two journeys: up and down. Both may be killed at any point and run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from callfleet.secrets import write_private
from lab import apt, ca, cgroups, hosts, inventory, mounts, network, paths, registry, requirements, rootfs
from lab.brands import brand_of
from lab.errors import LabError
from lab.legacy import check_contradictions, lay_down
from lab.legacy import layers as legacy_layers
from lab.locks import locked
from lab.model import DEFAULT_SUITE, NAME, Lab, LabHost, all_names, allocate, label

Say = Callable[[str], None]
PARALLEL = 16
TRASH = ".trash-"


def up(
    name: str,
    count: int,
    suite: str,
    say: Say,
    *,
    brand: str | None = None,
    legacy: bool = False,
    contradictions: Sequence[str] = (),
) -> Lab:
    """Make the lab run with at least this many hosts; what runs already is left alone.

    With `legacy` they are what production was before callfleet, with these contradictions in their files.
    """
    if brand is not None:
        brand_of(brand)
    check_contradictions(contradictions, count)
    requirements.check_machine()
    requirements.check_state()
    requirements.install_missing(say)
    with _alone(name):
        lab = allocate(name, count, suite, legacy=legacy, brand=brand)
        layers = {host.name: _layers(lab, host, say) for host in lab.hosts}
        ca.ensure(lab)
        network.ensure(lab)
        off = sum(hosts.state(host) == "off" for host in lab.hosts)
        say(f"{lab.subnet}: {len(lab.hosts) - off} hosts run, {off} to boot")
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda host: _boot(lab, host, layers[host.name]), lab.hosts))
        _pin_host_keys(lab)
        digests = _fill_registry(lab, say)
        for host in lab.hosts:
            hosts.wait_for_ssh(host)
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda host: hosts.write_names(lab, host), lab.hosts))
        inventory.write(lab, digests)
        if legacy:
            lay_down(lab, contradictions, say)
    return lab


def down(name: str, say: Say) -> None:
    """Remove everything with the lab's label: processes, mounts, groups, network, directories, site files."""
    requirements.check_machine()
    with _alone(name):
        root = paths.labs() / name
        say(f"stopping the hosts of {name}")
        if not cgroups.kill(label(name)):
            left = sorted(cgroups.processes(label(name)))
            raise LabError(f"processes {left} of lab {name} do not die", f"callfleet lab down --name {name}")
        mounts.unmount_below(root)
        cgroups.remove(label(name))
        network.remove(name)
        if (root / "lab.json").exists():
            lab = Lab.load(name)
            for host in lab.hosts:
                apt.harvest(host.suite, host.upper)
                hosts.remove_propagation(host)
        inventory.remove(Lab(name, 0, DEFAULT_SUITE, ()))  # their names come from the lab's name alone
        _forget(root)
    if not all_names():
        network.restore_forwarding()


def known() -> list[str]:
    """Names of labs of which anything is left on this machine."""
    groups = {path.name for root in cgroups.hierarchies() for path in root.glob(label("*"))}
    left = {group.removeprefix(label("")) for group in groups} | network.labelled()
    left |= {path.name.removeprefix(TRASH) for path in paths.labs().glob(f"{TRASH}*")}
    return sorted({name for name in left if NAME.fullmatch(name)} | set(all_names()))


def drop_cache() -> None:
    """Delete the cache. Raises LabError while a lab still stands on it."""
    if known():
        raise LabError(f"these labs still use the cache: {', '.join(known())}", "callfleet lab down --all --cache")
    mounts.delete(paths.cache())


def power_on(host: LabHost) -> None:
    """Boot a host that is off and wait for its SSH."""
    hosts.start(host)
    hosts.wait_for_ssh(host)


def _alone(name: str) -> AbstractContextManager[None]:
    """One run a lab at a time."""
    busy = f"another run is working on lab {name}"
    return locked(paths.state() / "locks" / name, wait=False, busy=busy)


def _layers(lab: Lab, host: LabHost, say: Say) -> list[Path]:
    """The root filesystem of one host, uppermost layer first."""
    if lab.legacy:
        return legacy_layers(lab, host, say)
    return rootfs.ensure_hub(say) if host.name == lab.hub.name else [rootfs.ensure(host.suite, say)]


def _boot(lab: Lab, host: LabHost, layers: list[Path]) -> None:
    if hosts.state(host) != "off":
        return
    if not hosts.is_prepared(host):
        hosts.prepare(lab, host, layers)
        if host.name == lab.hub.name:
            registry.prepare(lab, next(layer for layer in layers if (layer / "etc/passwd").exists()))
        hosts.seal(host, layers)
    hosts.write_names(lab, host)
    hosts.start(host)


def _pin_host_keys(lab: Lab) -> None:
    lines = []
    for host in lab.hosts:
        key = (host.upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().rsplit(" ", 1)[0]
        lines.append(f"{host.address},{host.address6},{host.name},{host.name}.{lab.domain} {key}\n")
    write_private(lab.known_hosts, "".join(lines).encode())


def _fill_registry(lab: Lab, say: Say) -> dict[str, str]:
    """Build the stand-in images (cached) and have them in the registry; returns digests by repository:tag."""
    from lab.images import REPOS, build  # slow to import, and needed here only
    from lab.images.build import BuildError

    try:
        with locked(paths.cache() / "images.lock"):
            layout = build(paths.cache() / "images")
    except (BuildError, OSError) as error:
        raise LabError(f"the lab's images cannot be built: {error}", f"callfleet lab up --name {lab.name}") from error
    return registry.sync(lab, layout, REPOS, say)


def _forget(root: Path) -> None:
    """Take the directory out of sight in one step, then delete it; the next `down` finishes a killed one."""
    trash = root.with_name(f"{TRASH}{root.name}")
    mounts.delete(trash)
    if root.exists():
        root.rename(trash)
        mounts.delete(trash)
