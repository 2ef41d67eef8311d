"""Where hosts are registered: at the ingress, in core_fleet, in FLEET_URLS. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from callfleet.adopt.contradictions.finding import Finding, Side, contradiction
from callfleet.adopt.platform import Platform


def registrations(platform: Platform) -> Iterator[Finding]:
    """A host gets calls from the ingress and from the API and the Dialler, or from all or none of them."""
    has_ingress = any(ingress.backends for ingress in platform.ingresses)
    for one in platform.fleet_hosts:
        lists = [("core_fleet", one.listed), (platform.fleet_urls_place or "FLEET_URLS", one.dialled)]
        known = [(name, url) for name, url in lists if url is not None]
        outbound = [f"{name} has {url}" for name, url in known if url]
        if has_ingress and one.inbound and known and not outbound:
            yield contradiction(
                "inbound-only", one.name, "it gets calls from the ingress only, none that go out",
                [Side(each.ingress.where, f"{each.place}: server {each.server.name}") for each in one.inbound]
                + [Side(name, "not there") for name, _ in known],
                "callfleet registers it everywhere; if that is not wanted, leave it out of the inventory",
            )  # fmt: skip
        elif has_ingress and not one.inbound and outbound:
            yield contradiction(
                "outbound-only", one.name, "it gets calls that go out, none from the ingress",
                [Side(name, str(url)) for name, url in known if url]
                + [Side(each.where, "no server for it") for each in platform.ingresses if each.backends],
                "callfleet adds it to the ingress; if that is not wanted, leave it out of the inventory",
            )  # fmt: skip
        elif not one.inbound and known and not outbound and one.machine is not None:
            yield contradiction(
                "unregistered", one.name, "it has workers, and nobody sends calls to it",
                [Side(name, "not there") for name, _ in known],
                "callfleet registers it; if that is not wanted, leave it out of the inventory",
            )  # fmt: skip


def lists(platform: Platform) -> Iterator[Finding]:
    """The API's and the Dialler's list say the same."""
    for one in platform.fleet_hosts:
        if one.listed is None or one.dialled is None or bool(one.listed) == bool(one.dialled):
            continue
        place = platform.fleet_urls_place
        yield contradiction(
            "fleet-lists", one.name, f"it stands in {'core_fleet' if one.listed else 'FLEET_URLS'} alone",
            [Side("core_fleet", one.listed or "not there"), Side(place, one.dialled or "not there")],
            "callfleet makes both lists from the inventory",
        )  # fmt: skip


def strangers(platform: Platform) -> Iterator[Finding]:
    """What is registered is known."""
    for stranger in platform.strangers:
        yield contradiction(
            "unknown-host", "", "calls are sent to a host that was not looked at, or that has no workers",
            [Side("core_fleet, FLEET_URLS or ingress", stranger)],
            "read it too (--from), or take it out of the list: callfleet keeps URLs in core_fleet that are not its own",
        )  # fmt: skip
