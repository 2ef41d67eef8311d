"""What names are served with. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from callfleet.actual import Unknown
from callfleet.adopt.certificate import covered, covers, opened
from callfleet.adopt.contradictions.finding import Finding, Side, contradiction
from callfleet.adopt.fleet import Machine
from callfleet.adopt.platform import Platform, call_names, web_names

RENEW = timedelta(days=30)


def certificates(platform: Platform, now: datetime) -> Iterator[Finding]:
    """What a name is served with covers it and lasts."""
    for machine in platform.machines:
        for name, path in served(platform, machine).items():
            found = machine.found.certificates
            pem = None if isinstance(found, Unknown) else found.get(path)
            if pem is None or isinstance(pem, Unknown):
                continue
            where = Side(f"{machine.name}: {path}", "")
            certificate = opened(pem)
            if certificate is None:
                yield contradiction(
                    "certificate-unreadable", machine.name, f"the file that {name} is served with holds no certificate",
                    [Side(where.where, "no certificate")], "put the right file there",
                )  # fmt: skip
                continue
            names = covered(certificate)
            if not covers(names, name):
                yield contradiction(
                    "certificate-name", machine.name, f"{name} is served with a certificate that does not cover it",
                    [Side(where.where, f"covers {', '.join(names) or 'no name'}")],
                    f"one that covers {name}, before callfleet takes the name over",
                )  # fmt: skip
            until = certificate.not_valid_after_utc
            if until - now < RENEW:
                word = "ended" if until < now else "ends"
                yield contradiction(
                    "certificate-end", machine.name, f"the certificate of {name} {word} on {until:%Y-%m-%d}",
                    [Side(where.where, f"until {until:%Y-%m-%d}")],
                    "renew it; see `callfleet certificates obtain`",
                )  # fmt: skip


def served(platform: Platform, machine: Machine) -> dict[str, str]:
    """By name, the file of the certificate that this machine serves it with."""
    found: dict[str, str] = {}
    if machine.front is not None:
        mine = [one.public_name for one in platform.fleet_hosts if one.machine is machine]
        for names, path, _ in machine.front.certificates:
            for name in names or mine:
                if name and not name.startswith("*."):
                    found.setdefault(name, path)
    ingress = next((each for each in platform.ingresses if each.where == machine.name), None)
    if ingress is not None:
        wanted = [*call_names(platform), *(n for m in platform.machines for n in web_names(m) if n in ingress.names)]
        files = _expanded(machine, ingress.certificates)
        for name in wanted:
            good = [path for path, names in files.items() if covers(names, name)]
            if good or files:
                found.setdefault(name, good[0] if good else next(iter(files)))
    return found


def _expanded(machine: Machine, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The files behind `crt` words, a folder being all of its files, with the names that each covers."""
    held = machine.found.certificates
    if isinstance(held, Unknown):
        return {}
    found = {}
    for path, pem in held.items():
        if any(path == each or path.startswith(each.rstrip("/") + "/") for each in paths) and isinstance(pem, bytes):
            certificate = opened(pem)
            found[path] = covered(certificate) if certificate else ()
    return found


def held_for(platform: Platform, name: str) -> tuple[Machine, str] | None:
    """Where a certificate lies that a name is served with, or that covers it and is served with another name."""
    for machine in platform.machines:
        if path := served(platform, machine).get(name):
            return machine, path
    for machine in platform.machines:
        held = machine.found.certificates
        for path, pem in () if isinstance(held, Unknown) else held.items():
            certificate = opened(pem) if isinstance(pem, bytes) else None
            if certificate is not None and covers(covered(certificate), name):
                return machine, path
    return None
