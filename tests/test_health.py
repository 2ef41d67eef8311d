"""What `callfleet status` says: slots in the words of their hosts, unknown as unknown, half registrations named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from site_files import valid, write_site

from callfleet import health, report
from callfleet.actual import Actual, Clock, Disk, Memory, Os, Slot, SlotWord, Unknown
from callfleet.plan import HostPlan
from callfleet.site import Site, load_site

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
