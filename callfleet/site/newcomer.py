"""A host that is to be added: its entry, and the certificates and names that its sisters have too. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from callfleet.document import nearest
from callfleet.errors import CallfleetError
from callfleet.site.edit import Value, add_host
from callfleet.site.model import Host, Site, covering


@dataclass(frozen=True)
class Newcomer:
    """What an operator says of a new fleet host. Empty and None: the site's default, or as the sisters have it."""

    name: str
    address: str
    fleet: str
    workers: int | None = None
    public_name: str = ""
    memory_mb: int | None = None
    internal_certificate: str = ""
    certificate: str = ""
    fingerprint: str = ""


def admit(text: str, site: Site, new: Newcomer) -> str:
    """The site file's text with a new host. CallfleetError says what cannot be derived and by what option it is given.

    `site` is what the text declares.
    """
    fleets = [fleet.name for fleet in site.fleets]
    if new.fleet not in fleets:
        near = nearest(new.fleet, fleets)
        raise CallfleetError(f"{site.name} has no fleet {new.fleet}. {near} Or first: callfleet fleet add {new.fleet}")
    if new.name in [host.name for host in site.hosts]:
        raise CallfleetError(f"{site.name} has a host {new.name} already. Next: callfleet plan {site.name}")
    public = new.public_name or f"{new.name}.{site.domain}"
    entry: dict[str, Value] = {"address": new.address}
    if new.workers is not None:
        entry["workers"] = new.workers
    if new.memory_mb is not None:
        entry["memory_mb"] = new.memory_mb
    if new.public_name:
        entry["public_name"] = new.public_name
    sisters = sorted(site.fleet_hosts, key=lambda host: host.fleet != new.fleet)
    return add_host(
        text,
        new.fleet,
        new.name,
        entry,
        internal=_internal(site, sisters, new),
        certificate=_certificate(site, sisters, new, public),
        static_name=(public, new.address) if _has_static_names(site, sisters, public) else ("", ""),
    )


def _internal(site: Site, sisters: Iterable[Host], new: Newcomer) -> str:
    """The reference of its certificate for mutual TLS; none where the site has none."""
    internal = site.tls.internal
    if internal is None or new.internal_certificate:
        return new.internal_certificate
    known = {host.name: str(internal.hosts[host.name]) for host in sisters if host.name in internal.hosts}
    if found := like_sisters(known, new.name):
        return found
    raise CallfleetError(
        f"{new.name} needs a certificate for mutual TLS with the ingress (tls.internal.hosts), and its sisters' "
        "references have no pattern to follow. Give it: --internal-certificate file:PATH"
    )


def _certificate(site: Site, sisters: Iterable[Host], new: Newcomer, public: str) -> tuple[str, str]:
    """An entry of tls.certificates for its public name, unless one covers it already."""
    if new.certificate:
        return public, new.certificate
    try:
        covering(public, site.tls.certificates)
    except KeyError:
        certificates = site.tls.certificates
        own = [str(host.public_name) for host in sisters if host.public_name in certificates]
        if found := like_sisters({name: str(certificates[name]) for name in own}, public):
            return public, found
        raise CallfleetError(
            f'no certificate of the site covers "{public}", and its sisters\' have no pattern to follow. '
            "Give one: --certificate file:PATH"
        ) from None
    return "", ""


def _has_static_names(site: Site, sisters: Iterable[Host], public: str) -> bool:
    """Sites that no DNS server knows say where each name leads."""
    return public not in site.names and any(host.public_name in site.names for host in sisters)


def like_sisters(references: Mapping[str, str], name: str) -> str:
    """The reference for `name` as its sisters have theirs: with their name in it, or one for all. Empty: no pattern."""
    for sister, reference in references.items():
        pattern = rf"(?<![A-Za-z0-9]){re.escape(sister)}(?![A-Za-z0-9])"
        if len(re.findall(pattern, reference)) == 1:
            return re.sub(pattern, name, reference)
    found = set(references.values())
    return found.pop() if len(found) == 1 and len(references) > 1 else ""
