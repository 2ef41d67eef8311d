"""Whether certificates and keys that a site refers to can serve, told from their content before anything connects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from callfleet.document import Place, shown
from callfleet.errors import Problem
from callfleet.secrets import SecretRef
from callfleet.site import Site
from callfleet.site.model import covering

PAIR = "one PEM with the certificate, its chain and its private key"
AUTHORITIES = "one PEM with the certificates of authorities"
INGRESS = "ingress"
"""The common name by which fleet hosts know the ingress; templates/fleet/haproxy.cfg.j2 refuses any other."""
_USES = {ExtendedKeyUsageOID.SERVER_AUTH: "servers", ExtendedKeyUsageOID.CLIENT_AUTH: "clients"}
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_KEYS = (b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY")


class Finding(NamedTuple):
    """What is wrong with one file, in the words of a Problem. Never holds what is in a key."""

    got: str
    expected: str
    hint: str = ""


class Described(NamedTuple):
    """What a certificate says of itself; of several authorities in one file, the one that lasts longest."""

    names: tuple[str, ...]
    issuer: str
    until: datetime


@dataclass(frozen=True)
class Declared:
    """A certificate of the site file: its place, and what it is for. Without `use` it is a file of authorities."""

    place: Place
    reference: SecretRef | str
    use: x509.ObjectIdentifier | None = None
    names: tuple[str, ...] = ()
    issuers: Place | None = None

    @property
    def expected(self) -> str:
        """What is to be at the reference."""
        return PAIR if self.use else AUTHORITIES


def declared(site: Site) -> list[Declared]:
    """Every certificate that the site file refers to."""
    tls, server = site.tls, ExtendedKeyUsageOID.SERVER_AUTH
    served = dict.fromkeys(name for host in site.hosts for name in site.public_names(host))
    found = [
        Declared(
            ("tls", "certificates", entry),
            reference,
            server,
            tuple(name for name in served if covering(name, tls.certificates) == entry),
        )
        for entry, reference in tls.certificates.items()
    ]
    if tls.internal is not None:
        at: Place = ("tls", "internal")
        ca = (*at, "ca")
        found.append(Declared(ca, tls.internal.ca))
        found.append(Declared((*at, "ingress"), tls.internal.ingress, ExtendedKeyUsageOID.CLIENT_AUTH, issuers=ca))
        for host, reference in tls.internal.hosts.items():
            # The ingress asks for the host by its public name.
            names = tuple(filter(None, [site.host(host).public_name]))
            found.append(Declared((*at, "hosts", host), reference, server, names, ca))
    if tls.ca_bundle:
        found.append(Declared(("tls", "ca_bundle"), tls.ca_bundle))
    if site.registry is not None and site.registry.ca:
        found.append(Declared(("registry", "ca"), site.registry.ca))
    return found


def unfit(site: Site, contents: Mapping[Place, bytes], now: datetime | None = None) -> Iterator[Problem]:
    """What is wrong with the certificates whose content could be had, by their places in the site file."""
    now = now or datetime.now(UTC)
    for each in declared(site):
        if each.place not in contents:
            continue
        content = contents[each.place]
        if each.use is None:
            findings = authority_findings(content, now)
        else:
            issuers = contents.get(each.issuers) if each.issuers else None
            findings = pair_findings(content, now, each.use, each.names, issuers)
        for got, expected, hint in findings:
            path, line = shown(each.place), site.lines.get(each.place)
            yield Problem(site.path, path, expected, f"{got}, in {each.reference}", line, hint)


def pair_findings(
    content: bytes, now: datetime, use: x509.ObjectIdentifier, names: Sequence[str] = (), issuers: bytes | None = None
) -> Iterator[Finding]:
    """Everything wrong with a certificate that is to be served or shown, its chain and its key."""
    parsed = _parsed(content, PAIR)
    if isinstance(parsed, Finding):
        yield parsed
        return
    certificates, keys = parsed
    if not certificates or len(keys) != 1:
        yield Finding(f"{_count(certificates, 'certificate')} and {_count(keys, 'private key')}", PAIR)
        return
    first, chain = certificates[0], certificates[1:]
    key = _public(keys[0])
    if key != _public(first):
        other = any(key == _public(each) for each in chain)
        hint = "The key belongs to another certificate of the file: that one comes first." if other else ""
        yield Finding("a private key of another certificate", f"the private key of {_called(first)}", hint)
        return
    for each in chain:
        if not any(_issued(each, other) for other in certificates if other is not each):
            yield Finding(f"{_called(each)}, which issued no certificate of the file", f"the chain of {_called(first)}")
    yield from _dates(first, now)
    yield from _purpose(first, use)
    yield from _names(first, names)
    if use == ExtendedKeyUsageOID.CLIENT_AUTH and _common_name(first) != INGRESS:
        yield Finding(_called(first), f'one with the common name "{INGRESS}"', "Fleet hosts let nobody else in.")
    if issuers is not None and not isinstance(known := _parsed(issuers, AUTHORITIES), Finding):
        valid = [each for each in known[0] if _not_now(each, now) is None]
        if not any(_issued(authority, each) for authority in valid for each in certificates):
            hint = "The other end of the connection between ingress and fleet host would refuse it."
            yield Finding(f"{_called(first)}, issued by another authority", "one issued by tls.internal.ca", hint)


def valid_until(content: bytes) -> datetime | None:
    """When the certificate of a PEM that is served expires; None where that cannot be read."""
    parsed = _parsed(content, PAIR)
    return None if isinstance(parsed, Finding) or not parsed[0] else parsed[0][0].not_valid_after_utc


def authority_findings(content: bytes, now: datetime) -> Iterator[Finding]:
    """Everything wrong with a file of authorities. One that expired does no harm beside one that is valid."""
    parsed = _parsed(content, AUTHORITIES)
    if isinstance(parsed, Finding):
        yield parsed
        return
    certificates, keys = parsed
    if keys:
        yield Finding("a private key", AUTHORITIES, "Hosts would get it. Keep an authority's key off this file.")
    if not certificates:
        yield Finding("no certificate", AUTHORITIES)
    for each in certificates:
        if not _is_authority(each):
            yield Finding(f"{_called(each)}, which is no authority's", AUTHORITIES)
    if certificates and all(_not_now(each, now) for each in certificates):
        yield from _dates(certificates[0], now)


@dataclass(frozen=True)
class Served:
    """What a certificate on a host says of itself: who it is for, and until when it is valid (unix seconds)."""

    name: str
    until: int


def served(pem: bytes) -> Served | None:
    """The certificate in a PEM; None where it is none."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        try:
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = alternative.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            names = []
        name = ", ".join(names) or _common_name(certificate)
        return Served(name if name.isprintable() else "", int(certificate.not_valid_after_utc.timestamp()))
    except (ValueError, UnsupportedAlgorithm):
        return None


def described(content: bytes, use: x509.ObjectIdentifier | None) -> Described | None:
    """What is in a certificate's file, if it can be read; without `use` it is a file of authorities."""
    parsed = _parsed(content, PAIR)
    if isinstance(parsed, Finding) or not parsed[0]:
        return None
    one = parsed[0][0] if use else max(parsed[0], key=lambda each: each.not_valid_after_utc)
    names = sorted(_alternatives(one)) if use == ExtendedKeyUsageOID.SERVER_AUTH else []
    issuer = next((str(each.value) for each in one.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)), "")
    if one.issuer == one.subject:
        issuer = "itself"
    elif not issuer:
        issuer = one.issuer.rfc4514_string()
    shown = [text if text.isprintable() else "?" for text in (*(names or [_common_name(one)]), issuer)]
    return Described(tuple(shown[:-1]), shown[-1], one.not_valid_after_utc)


def _parsed(content: bytes, expected: str) -> tuple[list[x509.Certificate], list[PrivateKeyTypes]] | Finding:
    """The certificates and keys of a PEM in their order, or why it cannot be read."""
    if not content.strip():
        return Finding("an empty file", expected)
    blocks = list(_BLOCK.finditer(content))
    if len(blocks) != content.count(b"-----BEGIN "):
        return Finding("a PEM that is cut off or damaged", expected)
    if not blocks:
        if _is_der(content):
            return Finding("a certificate in DER form", expected, "openssl x509 -inform der turns it into PEM.")
        return Finding("something that is not PEM", expected)
    certificates: list[x509.Certificate] = []
    keys: list[PrivateKeyTypes] = []
    for number, block in enumerate(blocks, 1):
        label = block[1]
        if label.endswith(b"PRIVATE KEY"):
            if label == b"ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block[0]:
                hint = "The proxies start unattended: take the passphrase off, openssl pkey does it."
                return Finding("an encrypted private key", expected, hint)
            if label not in _KEYS:
                return Finding("a private key of a form that the proxies do not read", expected)
        try:
            if label.endswith(b"PRIVATE KEY"):
                keys.append(load_pem_private_key(block[0], None))
            elif label == b"CERTIFICATE":
                certificates.append(x509.load_pem_x509_certificate(block[0]))
                _public(certificates[-1])
                _ = certificates[-1].extensions  # read when asked for: now, so that a damaged one is told here
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # What the reader says of it is dropped: it may quote a key.
            return Finding(f"a damaged part (number {number}, {label.decode().lower()})", expected)
    return certificates, keys


def _is_der(content: bytes) -> bool:
    try:
        return bool(x509.load_der_x509_certificate(content.rstrip(b"\n")))
    except ValueError:
        return False


def _public(one: x509.Certificate | PrivateKeyTypes) -> bytes:
    return one.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether one is signed by the other; an algorithm that is unknown here is left to the host to judge."""
    if authority.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError):
        return False
    except (TypeError, UnsupportedAlgorithm):
        return True
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    """As clients take it: marked as one, or signed by itself."""
    try:
        marked = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        marked = False
    return marked or _issued(certificate, certificate)


def _not_now(certificate: x509.Certificate, now: datetime) -> Finding | None:
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if until < now:
        return Finding(f"{_called(certificate)}, which expired on {until:%Y-%m-%d}", "a valid certificate")
    if since > now:
        hint = f"Here it is {now:%Y-%m-%d %H:%M} UTC."
        return Finding(f"{_called(certificate)}, not valid before {since:%Y-%m-%d}", "a valid certificate", hint)
    return None


def _dates(certificate: x509.Certificate, now: datetime) -> Iterator[Finding]:
    if finding := _not_now(certificate, now):
        yield finding


def _purpose(certificate: x509.Certificate, use: x509.ObjectIdentifier) -> Iterator[Finding]:
    try:
        allowed = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if use not in allowed and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in allowed:
        yield Finding(f"{_called(certificate)}, not for {_USES[use]}", f"a certificate for {_USES[use]}")


def _names(certificate: x509.Certificate, wanted: Sequence[str]) -> Iterator[Finding]:
    covered = _alternatives(certificate)
    missing = [name for name in wanted if not covered & {name, f"*.{name.partition('.')[2]}"}]
    if missing:
        has = ", ".join(sorted(covered)[:5]) or "no name (subjectAltName)"
        yield Finding(f"a certificate for {has}", f"one that covers {', '.join(missing)}")


def _alternatives(certificate: x509.Certificate) -> set[str]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in alternative.get_values_for_type(x509.DNSName)}


def _common_name(certificate: x509.Certificate) -> str:
    return next((str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def _called(certificate: x509.Certificate) -> str:
    """A certificate as people know it. Text from inside is shown only if it is plain."""
    name = _common_name(certificate)[:60]
    return f'the certificate of "{name}"' if name and name.isprintable() else "a certificate without a name"


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things) or 'no'} {what}{'' if len(things) == 1 else 's'}"
