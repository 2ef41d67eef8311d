"""Bare hosts: what `--dry` lists is what the first run does, everything serves then, the second run does nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.lab.fleet import Converge, Fleet
from tests.lab.look import acted_on, differences, docker_events, leaks, nothing_to_do, outside, probe

SLOTS = 8


@dataclass
class First:
    """A dry run on bare hosts, what changed on them meanwhile, and the run that followed."""

    dry: Converge
    changed: list[str]
    fingerprints: tuple[dict[str, str], dict[str, str]]
    real: Converge


@pytest.fixture(scope="module")
def first(bare: Fleet) -> First:
    """Carried out once; the tests below each look at one side of it."""
    if "site.json" in bare.ssh("hub", "ls /etc/callfleet 2>/dev/null || true"):
        pytest.skip("the kept lab was converged before; bare hosts are needed")
    names = [host.name for host in bare.lab.hosts]
    before, prints = outside(bare), {name: probe(bare, name).fingerprint() for name in names}
    dry = bare.pyinfra("--dry", "--diff", "-vvv")
    changed = differences(before, outside(bare))
    again = {name: probe(bare, name).fingerprint() for name in names}
    return First(dry, changed, (prints, again), bare.converge("-vvv"))


def test_dry_on_bare_hosts_writes_nothing(first: First) -> None:
    """Content, times, packages, units and rules are the same before and after, and two probes see the same host."""
    assert first.dry.code == 0, first.dry.output[-3000:]
    assert first.changed == []
    assert first.fingerprints[0] == first.fingerprints[1]


def test_the_first_run_does_exactly_what_dry_listed(first: First) -> None:
    """The two sets of changes, each with its host and its reason, are equal."""
    assert first.dry.planned, first.dry.output[-3000:]
    assert first.real.planned == first.dry.planned


def test_dry_shows_unified_diffs(first: First) -> None:
    """New files with every line, secret ones by name alone."""
    assert "+++ /opt/stacks/cxb-fleet/compose.yml" in first.dry.output
    assert "+  worker-4:" in first.dry.output
    assert "+++ /opt/stacks/cxb-fleet/secrets/worker.env (secret, new; content not shown)" in first.dry.output


def test_no_output_holds_a_secret(bare: Fleet, first: First) -> None:
    """Secrets, private keys and their base64 forms are in neither output, whatever the verbosity."""
    held = bare.lab.secret("core_secret").read_text().strip()
    assert leaks(bare.lab, f"a control: {held}") == ["core_secret"]
    assert leaks(bare.lab, first.dry.output) == []
    assert leaks(bare.lab, first.real.output) == []


def test_everything_serves_after_the_first_run(bare: Fleet, first: First) -> None:
    """Eight calls at once through the ingress, API and Console by their names, both hosts registered outbound."""
    assert first.real.pending == []
    with bare.calls() as held:
        held.start(SLOTS)
        assert held.wait_open() == SLOTS, held.report().as_json()
        held.stop()
        assert held.report().clean
    urls = [f"https://{name}.{bare.lab.domain}" for name in bare.fleet_names]
    settings = bare.ssh(
        "hub", "curl -fsS -K /opt/stacks/cxb-app/secrets/api-curl.conf http://127.0.0.1:8080/api/v1/settings/fleet"
    )
    assert json.loads(settings) == {"core_fleet": urls}
    # The Dialler was started last.
    health = bare.ssh("hub", "curl -fsS --retry 30 --retry-delay 1 --retry-connrefused http://127.0.0.1:8090/health")
    assert json.loads(health)["status"] == "ok"
    for name, path in (("api", "/health"), ("console", "/")):
        answer = bare.ssh("hub", f"curl -fsSk -o /dev/null -w '%{{http_code}}' https://{name}.{bare.lab.domain}{path}")
        assert answer == "200", name
    bare.wait_idle()


def test_the_second_run_changes_nothing(bare: Fleet, first: First) -> None:
    """No operation changed, and from outside: same files and times, containers, units, rules; Docker did nothing."""
    assert leaks(bare.lab, nothing_to_do(bare, "-vvv").output) == []


def test_dry_on_converged_hosts_writes_nothing(bare: Fleet, first: First) -> None:
    """It lists nothing, and content, times, containers, units and rules stay. Control: a file that is only touched."""
    before = outside(bare)
    with docker_events(bare) as events:
        dry = bare.pyinfra("--dry", "--diff", "-vvv")
    assert (dry.code, dry.planned) == (0, set()), dry.output[-3000:]
    assert differences(before, outside(bare)) == []
    assert acted_on(events) == []
    path = "/etc/callfleet/site.json"
    bare.ssh("hub", f"touch {path}")
    with docker_events(bare) as seen:
        bare.ssh("hub", "docker kill -s URG cxb-app-cxb-console-1")
    assert {line.split()[3] for line in differences(before, outside(bare))} == {path}
    assert acted_on(seen)


def test_what_an_upgrade_would_stop_is_held(bare: Fleet, first: First) -> None:
    """Each of the engine's packages wherever it is installed, and the native proxy where there is one."""
    engine = {"docker.io", "docker-cli", "docker-compose", "containerd", "runc"}
    for host in bare.lab.hosts:
        held = set(bare.ssh(host.name, "apt-mark showhold").split())
        assert held == (engine | {"haproxy"} if host.name == "hub" else engine), host.name
        installed = set(bare.ssh(host.name, "dpkg-query -W -f '${Package} '").split())
        assert held == installed & (engine | {"haproxy"}), host.name


def test_a_stack_may_stop_for_longer_than_the_longest_call(bare: Fleet, first: First) -> None:
    """systemd's limit for each stack, as systemd says it: 600 s of a call and 600 more."""
    stacks = [(name, "cxb-fleet") for name in bare.fleet_names]
    for host, stack in (*stacks, ("hub", "cxb-app"), ("hub", "cxb-dialler")):
        limit = bare.ssh(host, f"systemctl show -P TimeoutStopUSec stack@{stack}.service").strip()
        assert limit == "20min", f"{host} {stack}"
