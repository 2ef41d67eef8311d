"""What `callfleet status` says: slots in the words of their hosts, unknown as unknown, half registrations named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from renderings import certificate_only
from site_files import valid, write_site

from callfleet import health, report
from callfleet.actual import (
    Actual,
    Clock,
    Container,
    Disk,
    Memory,
    Os,
    Proxy,
    ProxyProcess,
    Slot,
    SlotWord,
    Unknown,
)
from callfleet.plan import HostPlan
from callfleet.site import Site, load_site
from tests.test_certificates import made

ALIVE = Actual(
    os=Os("debian", "13", "trixie"),
    site={"release": "1", "callfleet": "0.1.0", "registered": ["a", "b"]},
    clock=Clock(1, True),
    memory=Memory(8, 4),
    disks={"/": Disk("/", 100, 50, None), "/var": Disk("/var", 100, 10, None)},
    slots={},
    drained={},
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The tests' site: fleet hosts a and b, and others."""
    return load_site(write_site(tmp_path, valid()))


def looked(site: Site, name: str, actual: Actual, error: str = "") -> report.Looked:
    """A host as it was read, with nothing to do."""
    plan = None if error else HostPlan(name, ())
    return report.Looked(name, site.host(name).address, plan, error, actual, lambda data: "")


def with_slots(site: Site, slots: Iterable[Slot], **drained: dict[str, Any]) -> Actual:
    """A living host with these slots."""
    stack = site.brand.stack
    names = {key.removeprefix("n"): value for key, value in drained.items()}
    return replace(ALIVE, slots={stack: tuple(slots)}, drained={stack: names})


def of(site: Site, name: str, actual: Actual, error: str = "") -> dict[str, Any]:
    """The document's part about one host."""
    found: dict[str, Any] = health.document(site, [looked(site, name, actual, error)], {})["hosts"][0]
    return found


@pytest.mark.parametrize("word", SlotWord)
def test_every_state_of_a_slot_says_why_it_takes_no_call(word: SlotWord, site: Site) -> None:
    """Only an idle one has nothing to say."""
    (slot,) = of(site, "a", with_slots(site, [Slot(1, word, None, None, None, None, None)]))["slots"]
    assert slot["state"] == word
    assert bool(slot["why"]) is (word is not SlotWord.IDLE)


def test_a_drain_names_who_and_why(site: Site) -> None:
    """What was declared stands before what is seen."""
    drain = {"who": "anna@desk", "at": "2026-01-01T00:00:00Z", "reason": "memory"}
    slots = [Slot(1, SlotWord.DRAINED, 0, None, None, None, None), Slot(2, SlotWord.DRAINED, 0, None, None, None, None)]
    one, other = of(site, "a", with_slots(site, slots, n1=drain, n2={}))["slots"]
    assert one["why"] == "drained by anna@desk at 2026-01-01T00:00:00Z: memory"
    assert other["why"].startswith("drained by somebody")


def test_a_host_that_is_not_reached_has_unknown_slots(site: Site) -> None:
    """As many as are declared: none of them is taken for free or gone."""
    made = health.document(site, [], {"a": "no route"})
    (host,) = made["hosts"]
    assert made["slots"] == {"unknown": site.host("a").workers}
    assert (host["reached"], host["changes"], host["notes"]) == (False, None, ["not reached: no route"])


def test_what_cannot_be_read_is_null(site: Site) -> None:
    """Unknown is never 0."""
    host = of(site, "a", Actual.unread("silent"), "the probe failed")
    assert [host[key] for key in ("memory", "disk", "changes", "release")] == [None] * 4
    assert host["reached"] is False
    assert host["notes"] == ["the probe failed"]


def test_the_fullest_disk_counts(site: Site) -> None:
    """Bytes of the one with the least room."""
    assert of(site, "a", ALIVE)["disk"] == {"size": 100, "free": 10}


@pytest.mark.parametrize(
    ("inbound", "outbound", "said"),
    [
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a"], ["half registration: b inbound only; the next apply completes it"]),
        (["a"], ["a", "b"], ["half registration: b outbound only; the next apply completes it"]),
        (["a"], ["a"], ["b is registered nowhere: it gets no calls; the next apply registers it"]),
    ],
)
def test_half_registrations_are_named(inbound: list[str], outbound: list[str], said: list[str], site: Site) -> None:
    """From the marks of the ingress and the app host."""
    hosts = []
    for host in site.hosts:
        if host.roles & {"ingress", "app"}:
            names = inbound if "ingress" in host.roles else outbound
            hosts.append(looked(site, host.name, replace(ALIVE, site={"registered": names})))
    assert health.document(site, hosts, {})["notes"] == said


def test_a_clock_that_nothing_keeps_and_a_bare_host_are_noted(site: Site) -> None:
    """Notes say what an operator would want to know beside the numbers."""
    bare = replace(ALIVE, site=None, clock=Clock(1, False), slots=Unknown("no slot program"))
    notes = of(site, "a", bare)["notes"]
    assert "not converged yet" in notes
    assert any("clock" in line for line in notes)
    assert any("slots" in line for line in notes)


# What runs in front of the slots, and what it is made of

FRONT, MASTER = "/run/callfleet-ingress/admin.sock", "/run/haproxy-master.sock"
RUNNING = Proxy("3.0.11", 8, 1767225600, 7, False, "c", ())


def container(
    stack: str, service: str, image: str = "i", *, state: str = "running", restart: str = "always", pid: int = 1,
    labels: Mapping[str, str] | None = None,
) -> Container:  # fmt: skip
    """A container of ours."""
    made_of = {"callfleet.stack": stack, "callfleet.service": service, **(labels or {})}
    return Container("id", service, made_of, "i", image, state, None, 0, 0, "", pid, restart, "host", "SIGURG")


def test_a_proxy_names_its_reloads_and_what_older_processes_carry(site: Site) -> None:
    """Connections that did not say are unknown; a proxy that is not there says so, and one that is silent too."""
    processes = (
        ProxyProcess(1, "master", 4, False),
        ProxyProcess(8, "worker", 0, False, connections=5),
        ProxyProcess(6, "worker", 2, True, connections=3),
        ProxyProcess(5, "worker", 3, True),
    )
    (front,) = of(site, "front", replace(ALIVE, proxies={FRONT: RUNNING}, proxy_processes={MASTER: processes}))[
        "proxies"
    ]
    assert front == {
        "name": "front", "running": True, "version": "3.0.11", "since": "2026-01-01T00:00:00Z", "connections": 5,
        "reloads": 4, "old": [{"pid": 6, "connections": 3}, {"pid": 5, "connections": None}],
    }  # fmt: skip
    silent, gone = (
        of(site, "front", replace(ALIVE, proxies={FRONT: found}, proxy_processes={}))["proxies"][0]
        for found in (Unknown("silent"), None)
    )
    assert (silent["running"], silent["old"]) == (None, None)
    assert (gone["running"], gone["version"]) == (False, None)


def test_a_proxy_that_was_turned_over_is_still_shown(site: Site) -> None:
    """Its container runs on until its last call has ended, and cannot be asked any more."""
    stack, socket = site.brand.stack, f"/run/{site.brand.stack}/proxy"
    former = container(stack, "proxy", restart="no", pid=99)
    present = container(stack, "proxy")
    actual = replace(
        ALIVE,
        containers=(former, present),
        proxies={f"{socket}/admin.sock": RUNNING},
        proxy_processes={f"{socket}/master.sock": (ProxyProcess(1, "master", 0, False),)},
    )
    (proxy,) = of(site, "a", actual)["proxies"]
    assert (proxy["name"], proxy["old"]) == (f"{stack} proxy", [{"pid": 99, "connections": None}])


def test_a_call_has_the_age_of_its_connection(site: Site) -> None:
    """Over all processes of the host proxy; health questions are no calls, and a call without connection has no age."""
    slots = [Slot(n, SlotWord.ON_A_CALL, 1, None, None, True, None) for n in (1, 2, 3)]
    ages = [{("workers", "w1"): 30, ("health", "w2"): 900}, {("workers", "w1"): 600}]
    processes = tuple(ProxyProcess(n, "worker", 0, False, ages=age) for n, age in enumerate(ages))
    actual = replace(with_slots(site, slots), proxy_processes={f"/run/{site.brand.stack}/proxy/master.sock": processes})
    assert [slot["age"] for slot in of(site, "a", actual)["slots"]] == [600, None, None]


def test_certificates_are_those_on_the_host_by_its_own_clock(site: Site) -> None:
    """Days left, a note before the end; what is damaged, missing or unread says so."""
    now = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    noon, names = datetime(2026, 1, 1, 12, tzinfo=UTC), ("a.acme.test", "b.acme.test")
    soon, later = (certificate_only(made(noon - timedelta(days=9), noon + timedelta(n), names)) for n in (-1, 90))
    found: dict[str, bytes | Unknown | None] = {
        "/soon": soon, "/later": later, "/none": None, "/unread": Unknown("why"), "/damaged": b"x",
    }  # fmt: skip
    host = of(site, "a", replace(ALIVE, certificates=found, clock=Clock(now, True)))
    one, other, *rest = host["certificates"]
    assert (one["name"], one["until"], one["days"]) == ("a.acme.test, b.acme.test", "2025-12-31T12:00:00Z", -1)
    assert other["days"] == 90
    assert [each["problem"] for each in rest] == [
        "not there yet", "could not be read: why", "no certificate that can be read",
    ]  # fmt: skip
    assert [line for line in host["notes"] if "certificate" in line] == [
        "the certificate of a.acme.test, b.acme.test has expired (/soon)"
    ]


def test_what_runs_is_compared_with_the_release(site: Site) -> None:
    """Workers of one image stand in one line; another image than the pinned one is named, by its tag if it has one."""
    stack, name = site.brand.stack, site.brand.images.core_worker
    pinned, other = site.image(name), f"{site.image(name).partition('@')[0]}@sha256:{'9' * 64}"
    labels = {"org.opencontainers.image.version": "0.9"}
    running = [container(stack, f"worker-{n}", pinned) for n in (1, 2)]
    running += [container(stack, "worker-3", other, labels=labels)]
    running += [container(stack, "worker-4", other, state="exited")]
    foreign = replace(running[0], labels={})
    host = of(site, "a", replace(ALIVE, containers=(*running, foreign)))
    said = {(one["tag"], one["containers"], one["released"]) for one in host["services"]}
    assert said == {("1", 2, True), ("0.9", 1, False)}
    assert f"{stack}/worker runs 0.9, which release {site.release.release} does not pin" in host["notes"]
