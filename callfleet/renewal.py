"""Which of a site's certificates are to be renewed, by what, and the making of those of the site's own authority."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cryptography import x509

from callfleet.authority import Authority
from callfleet.certificates import INGRESS, Declared, declared, described, unfit
from callfleet.credentials import Credentials
from callfleet.document import shown
from callfleet.errors import CallfleetError
from callfleet.secrets import SecretRef
from callfleet.site import Site
from callfleet.site.schema import Acme, InternalAuthority

INTERNAL, PUBLIC = ("tls", "internal"), ("tls", "certificates")
PLACEHOLDER_VALID = timedelta(days=7)


class Source(StrEnum):
    """Where a certificate comes from: the operator's own file, or this tool by the site's authority or by ACME."""

    OWN = "own file"
    SITE = "site CA"
    ACME = "ACME"


class State(StrEnum):
    """Fine; fine and soon at its end; of no use as it is; not to be had."""

    FINE = "fine"
    RENEW = "renew"
    WRONG = "wrong"
    MISSING = "missing"


@dataclass(frozen=True)
class Held:
    """A declared certificate as it lies on this machine. `until` is its end, None where it cannot be read."""

    declared: Declared
    purpose: str
    source: Source
    state: State
    names: tuple[str, ...] = ()
    issuer: str = ""
    until: datetime | None = None
    problems: tuple[str, ...] = ()


def survey(site: Site, now: datetime | None = None) -> list[Held]:
    """Every certificate that the site file refers to, each reference resolved. Connects to nothing."""
    now = now or datetime.now(UTC)
    credentials, contents = Credentials(site), {}
    every = {shown(each.place): each for each in declared(site)}
    problems: dict[str, list[str]] = {}
    for at, each in every.items():
        try:
            contents[each.place] = credentials.credential(each.reference)
        except CallfleetError as error:
            problems[at] = [str(error)]
    for problem in unfit(site, contents, now):
        problems.setdefault(problem.path, []).append(
            f"{problem.got}; expected {problem.expected}. {problem.hint}".strip()
        )
    return [
        _held(site, each, contents.get(each.place), problems.get(shown(each.place), []), now) for each in declared(site)
    ]


def _held(site: Site, each: Declared, content: bytes | None, problems: list[str], now: datetime) -> Held:
    found = described(content, each.use) if content is not None else None
    state = State.FINE
    if content is None:
        state = State.MISSING
    elif problems or found is None:
        state = State.WRONG
    elif found.until - now < timedelta(days=site.tls.renew_days):
        state = State.RENEW
    names, issuer, until = found or (each.names, "", None)
    return Held(each, _purpose(each), _source(site, each), state, names, issuer, until, tuple(problems))


def _purpose(each: Declared) -> str:
    """What it is for, in the words of the site file."""
    match each.place:
        case ("tls", "certificates", name):
            return f"public: {name}"
        case ("tls", "internal", "ca"):
            return "internal: authority"
        case ("tls", "internal", "ingress"):
            return "internal: ingress"
        case ("tls", "internal", "hosts", host):
            return f"internal: {host}"
        case ("registry", "ca"):
            return "registry: authority"
    return "public: authority"


def _source(site: Site, each: Declared) -> Source:
    internal = site.tls.internal
    if internal is not None and internal.authority is not None and each.place[:2] == INTERNAL:
        return Source.SITE
    acme = site.tls.acme
    if acme is not None and each.place[:2] == PUBLIC and each.place[2] in acme.names:
        return Source.ACME
    return Source.OWN


# The site's own authority


def authority_of(site: Site) -> InternalAuthority:
    """The declared authority. CallfleetError where there is none."""
    internal = site.tls.internal
    if internal is None or internal.authority is None:
        raise CallfleetError(
            f"{site.path.name} has no authority of its own; expected tls.internal.authority, with `key: file:PATH`. "
            "With it, internal certificates are made by callfleet; without it they are your own files."
        )
    return internal.authority


def authority_certificate(site: Site) -> str:
    """The path, as the site file has it, of the file with the authority's certificate."""
    internal = site.tls.internal
    assert internal is not None  # noqa: S101 - who has an authority has this
    return authority_of(site).certificate or internal.ca


def open_authority(site: Site) -> Authority:
    """The site's authority, fit to issue. CallfleetError where it cannot be had, is over, or hosts do not trust it."""
    internal, entry = site.tls.internal, authority_of(site)
    assert internal is not None  # noqa: S101 - as above
    credentials = Credentials(site)
    try:
        key = credentials.credential(entry.key)
        opened = Authority.load(key, credentials.credential(authority_certificate(site)))
        trusted = credentials.credential(internal.ca)
    except CallfleetError as error:
        hint = f"Where there is none yet: callfleet certificates authority {site.name}"
        raise CallfleetError(f"tls.internal.authority: {error}\n{hint}") from None
    if opened.certificate not in x509.load_pem_x509_certificates(trusted):
        raise CallfleetError(
            f"tls.internal.ca ({internal.ca}) does not have the certificate of tls.internal.authority: hosts would "
            "refuse what it issues. Add it there, beside the present one, and apply before you issue."
        )
    if opened.certificate.not_valid_after_utc < datetime.now(UTC):
        raise CallfleetError(f"tls.internal.authority expired on {opened.certificate.not_valid_after_utc:%Y-%m-%d}")
    return opened


def internal_certificates(site: Site, wanted: Collection[str], states: Collection[State]) -> list[tuple[str, Declared]]:
    """The internal certificates in one of these states, each with whom it is for: of those named, or of all.

    CallfleetError for a name that is neither a fleet host nor `ingress`.
    """
    held = [one for one in survey(site) if one.declared.place[:2] == INTERNAL and one.declared.use is not None]
    names = [str(one.declared.place[-1]) for one in held]
    if unknown := [name for name in wanted if name not in names]:
        raise CallfleetError(
            f"{site.name} has no internal certificate for {', '.join(unknown)}. It has: {', '.join(sorted(names))}"
        )
    return [
        (name, one.declared)
        for name, one in zip(names, held, strict=True)
        if one.state in states and (name in wanted or not wanted)
    ]


def renewed(site: Site, authority: Authority, each: Declared) -> bytes:
    """A new certificate and key for one place. The ingress verifies a host by its public name (`verifyhost`)."""
    if each.place == (*INTERNAL, "ingress"):
        return authority.issue(INGRESS, client=True)
    host = site.host(str(each.place[-1]))
    return authority.issue(host.public_name or host.name, (host.name, *host.addresses))


# By ACME


@dataclass(frozen=True)
class Order:
    """One certificate to be obtained: for which names, into which file, and how what lies there is."""

    names: tuple[str, ...]
    reference: SecretRef
    state: State
    until: datetime | None

    @property
    def why(self) -> str:
        """The state as a reason."""
        end = f", ends {self.until:%Y-%m-%d}" if self.until else ""
        return {State.FINE: "fine", State.RENEW: "near its end", State.WRONG: "of no use", State.MISSING: "missing"}[
            self.state
        ] + end


def acme_of(site: Site) -> Acme:
    """The declared authority that speaks ACME. CallfleetError where there is none."""
    if site.tls.acme is None:
        raise CallfleetError(
            f"{site.path.name} has no certificates by ACME; expected tls.acme, with `directory`, `account_key` "
            "and `names`. Without it, public certificates are your own files."
        )
    return site.tls.acme


def orders(site: Site, wanted: Collection[str], *, every: bool) -> list[Order]:
    """The certificates to be obtained: those of the names given, all, or else those that are not fine.

    Names that share a file share a certificate. CallfleetError for a name that is not obtained by ACME.
    """
    acme = acme_of(site)
    if unknown := [name for name in wanted if name not in acme.names]:
        raise CallfleetError(
            f"{', '.join(unknown)}: not among tls.acme.names. There are: {', '.join(sorted(acme.names))}"
        )
    held = {str(one.declared.place[2]): one for one in survey(site) if one.source is Source.ACME}
    together: dict[SecretRef, list[str]] = {}
    for name in acme.names:
        together.setdefault(site.tls.certificates[name], []).append(name)
    found = []
    for reference, names in together.items():
        worst = max((held[name] for name in names), key=lambda one: list(State).index(one.state))
        due = every or worst.state is not State.FINE
        if any(name in wanted for name in names) if wanted else due:
            found.append(Order(tuple(names), reference, worst.state, worst.until))
    return found


def placeholder(order: Order) -> bytes:
    """A certificate that nobody trusts, and a key: with it the proxy starts, which must run to answer challenges."""
    first, *others = order.names
    return Authority.make("placeholder").issue(first, others, valid=PLACEHOLDER_VALID)
