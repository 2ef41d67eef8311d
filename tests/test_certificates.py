"""Certificates and keys that cannot serve are told from their content, before anything connects."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from renderings import authority, certificate_only
from site_files import valid, write_site

from callfleet.authority import Authority
from callfleet.credentials import unusable
from callfleet.site import Site, load_site

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@cache
def pem(name: str = "*.acme.test", client: bool = False) -> bytes:
    """A certificate of the authority that the site trusts, and its key."""
    return authority().issue(name, client=client)


@cache
def other() -> Authority:
    """Somebody else's authority, of the same name."""
    return Authority.make("nobody")


def key_of(content: bytes) -> bytes:
    """The key alone."""
    return content[len(certificate_only(content)) :]


def made(since: datetime = NOW - DAY, until: datetime = NOW + DAY, names: tuple[str, ...] = ("*.acme.test",)) -> bytes:
    """A certificate with dates and names of one's own; signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "calls.acme.test")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(since).not_valid_after(until)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM) + private


def formed(form: PrivateFormat, passphrase: bytes = b"") -> bytes:
    """A certificate with its key in another form, or behind a passphrase."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "calls.acme.test")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("*.acme.test")]), critical=False)
    behind = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return certificate + key.private_bytes(Encoding.PEM, form, behind)


def der() -> bytes:
    """A certificate as other tools keep it."""
    return x509.load_pem_x509_certificate(pem()).public_bytes(Encoding.DER)


def laid(folder: Path, changes: dict[str, bytes], edit: Callable[[dict[str, Any]], object] = lambda _: None) -> Site:
    """A site with right certificates, some of them changed."""
    data = valid()
    edit(data)
    file = write_site(folder, data)
    contents = {
        "core_secret": b"word",
        "ca.pem": certificate_only(authority().pem()),
        "wildcard.pem": pem(),
        "i.pem": pem("ingress", client=True),
        "a.pem": pem("a.acme.test"),
        "b.pem": pem("b.acme.test"),
    }
    for name, content in (contents | changes).items():
        file.with_name(name).write_bytes(content)
        file.with_name(name).chmod(0o600)
    return load_site(file)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "word")


RIGHT: dict[str, Callable[[], bytes]] = {
    "windows line ends": lambda: pem().replace(b"\n", b"\r\n"),
    "text around it": lambda: b"Bag Attributes\n    friendlyName: x\n" + pem() + b"\nend of file\n",
    "key first": lambda: key_of(pem()) + certificate_only(pem()),
    "with its authority": lambda: pem() + certificate_only(authority().pem()),
    "an RSA key of the old form": lambda: formed(PrivateFormat.TraditionalOpenSSL),
    "each name by itself": lambda: made(names=tuple(f"{x}.acme.test" for x in ("A", "b", "calls", "api", "console"))),
    "parameters beside it": lambda: pem() + b"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_the_proxies_read_is_accepted(tmp_path: Path, kind: str) -> None:
    """In every form in which people have it."""
    assert unusable(laid(tmp_path, {"wildcard.pem": RIGHT[kind]()})) == []


WRONG: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty": (lambda: b"\n", "the secret is empty", "one PEM"),
    "text": (lambda: b"to be done\n", "something that is not PEM", "one PEM"),
    "binary": (lambda: bytes(range(256)) * 8, "not UTF-8", "one PEM"),
    "DER": (der, "not UTF-8", "one PEM"),
    "cut off in the key": (lambda: pem()[:-60], "cut off or damaged", "one PEM"),
    "cut off in the certificate": (lambda: pem()[:200], "cut off or damaged", "one PEM"),
    "shortened": (lambda: pem().replace(pem()[40:140], b"", 1), "a damaged part (number 1, certificate)", "one PEM"),
    "certificate alone": (lambda: certificate_only(pem()), "1 certificate and no private key", "one PEM"),
    "key alone": (lambda: key_of(pem()), "no certificates and 1 private key", "one PEM"),
    "two keys": (lambda: pem() + key_of(pem()), "1 certificate and 2 private keys", "one PEM"),
    "another's key": (
        lambda: certificate_only(pem()) + key_of(pem("a.acme.test")),
        "a private key of another certificate",
        'the private key of the certificate of "*.acme.test"',
    ),
    "chain first": (
        lambda: certificate_only(authority().pem()) + pem(),
        "a private key of another certificate",
        "comes first",
    ),
    "another's chain": (
        lambda: pem() + certificate_only(other().pem()),
        "which issued no certificate of the file",
        'the chain of the certificate of "*.acme.test"',
    ),
    "encrypted": (lambda: formed(PrivateFormat.PKCS8, b"pass"), "an encrypted private key", "passphrase"),
    "encrypted, old form": (
        lambda: formed(PrivateFormat.TraditionalOpenSSL, b"pass"),
        "an encrypted private key",
        "passphrase",
    ),
    "OpenSSH key": (lambda: formed(PrivateFormat.OpenSSH), "a form that the proxies do not read", "one PEM"),
    "expired": (
        lambda: made(since=datetime(2020, 1, 1, tzinfo=UTC), until=datetime(2021, 2, 3, tzinfo=UTC)),
        'the certificate of "calls.acme.test", which expired on 2021-02-03',
        "a valid certificate",
    ),
    "not yet": (
        lambda: made(since=datetime(2199, 2, 3, tzinfo=UTC), until=datetime(2199, 5, 1, tzinfo=UTC)),
        "not valid before 2199-02-03",
        f"Here it is {NOW:%Y}",
    ),
    "another name": (
        lambda: pem("calls.other.test"),
        "a certificate for calls.other.test",
        "one that covers a.acme.test, b.acme.test, calls.acme.test, api.acme.test, console.acme.test",
    ),
    "one name of several": (lambda: pem("calls.acme.test"), "a certificate for calls.acme.test", "covers a.acme.test"),
    "a wildcard of another level": (lambda: pem("*.test"), "a certificate for *.test", "covers a.acme.test"),
    "no name": (lambda: made(names=()), "no name (subjectAltName)", "covers a.acme.test"),
    "a client's": (lambda: pem("*.acme.test", client=True), "not for servers", "a certificate for servers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_would_not_serve_is_told_with_its_place(tmp_path: Path, kind: str) -> None:
    """File, line, place and reference, what was found and what is expected; nothing from inside a key."""
    make, got, expected = WRONG[kind]
    content = make()
    site = laid(tmp_path, {"wildcard.pem": content})
    (said,) = unusable(site)
    line = site.lines["tls", "certificates", "*.acme.test"]
    assert said.startswith(f'{site.path}:{line}: tls.certificates["*.acme.test"]: ')
    assert "file:wildcard.pem" in said
    assert got in said
    assert expected in said.partition(got)[2]
    for inside in content.decode("latin-1").splitlines():
        assert len(inside) < 20 or "-----" in inside or inside not in said


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    """Several things wrong with one certificate, and with several."""
    old = made(until=NOW - timedelta(hours=1), names=("x.test",))
    said = unusable(laid(tmp_path, {"wildcard.pem": old, "ca.pem": b"x", "a.pem": old}))
    assert len([one for one in said if "tls.certificates" in one]) == 2
    assert len([one for one in said if "tls.internal.hosts.a" in one]) == 2
    assert len([one for one in said if "tls.internal.ca" in one]) == 1
    assert len(said) == 5, "without the authority nobody can say who issued what"


INTERNAL: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "a server's for the ingress": ("i.pem", lambda: pem("ingress"), "not for clients", "tls.internal.ingress"),
    "a stranger's": ("i.pem", lambda: pem("i", client=True), 'with the common name "ingress"', "tls.internal.ingress"),
    "a client's for a host": ("a.pem", lambda: pem("a.acme.test", client=True), "not for servers", "hosts.a"),
    "another host's": ("a.pem", lambda: pem("b.acme.test"), "covers a.acme.test", "tls.internal.hosts.a"),
    "another authority's": ("a.pem", lambda: other().issue("a.acme.test"), "one issued by tls.internal.ca", "hosts.a"),
    "an expired authority": (
        "ca.pem",
        lambda: certificate_only(made(until=NOW - DAY / 2)),
        "expired on",
        "internal.ca",
    ),
    "no authority": ("ca.pem", lambda: certificate_only(pem()), "which is no authority's", "tls.internal.ca"),
    "an authority's key": ("ca.pem", lambda: authority().pem(), "a private key", "tls.internal.ca"),
    "an authority in DER": ("ca.pem", der, "in DER form", "tls.internal.ca"),
    "an empty authority": ("ca.pem", lambda: b"", "an empty file", "tls.internal.ca"),
    "binary": ("ca.pem", lambda: bytes(range(256)), "not PEM", "tls.internal.ca"),
    "no certificate": ("ca.pem", lambda: b"-----BEGIN X-----\n-----END X-----\n", "no certificate", "tls.internal.ca"),
}


@pytest.mark.parametrize("kind", INTERNAL)
def test_mutual_tls_that_would_not_come_about_is_told(tmp_path: Path, kind: str) -> None:
    """Ingress and hosts must accept each other: the right use, the name that is asked for, the one authority."""
    name, make, said, place = INTERNAL[kind]
    found = [one for one in unusable(laid(tmp_path, {name: make()})) if place in one.splitlines()[0]]
    assert any(said in one for one in found), found
    assert all("PRIVATE KEY" not in one for one in found)


def test_a_bundle_may_hold_more_than_it_needs(tmp_path: Path) -> None:
    """Authorities that expired beside valid ones, text between them, and a registry that signed for itself."""

    def more(data: dict[str, Any]) -> None:
        data["tls"]["ca_bundle"] = "bundle.pem"
        data["registry"]["ca"] = "registry.pem"

    bundle = b"# one\n" + certificate_only(made(until=NOW - DAY / 2)) + certificate_only(authority().pem())
    right = {"bundle.pem": bundle, "registry.pem": certificate_only(made())}
    assert unusable(laid(tmp_path, right, more)) == []
    (said,) = unusable(laid(tmp_path, right | {"registry.pem": b"x"}, more))
    assert "registry.ca: got something that is not PEM, in registry.pem" in said


def test_a_command_is_asked_once_for_its_certificate(tmp_path: Path) -> None:
    """What it prints is checked as it comes; asking may cost its user something, wrong or right."""

    def command(data: dict[str, Any]) -> None:
        data["tls"]["certificates"]["*.acme.test"] = "command:sh -c 'echo asked >> asked; cat printed.pem'"

    (said,) = unusable(laid(tmp_path, {"printed.pem": pem("x.test")}, command))
    assert "command:sh" in said
    assert "covers a.acme.test" in said
    assert (tmp_path / "inventories/asked").read_text() == "asked\n"


def test_only_certificates_that_the_hosts_of_a_run_get_stop_it(tmp_path: Path) -> None:
    """One that has expired concerns those that serve it, or ask for it; the authority concerns all."""
    old = made(until=NOW - DAY, since=NOW - 2 * DAY)

    def stopped(name: str) -> set[str]:
        site = laid(tmp_path, {name: old if name != "ca.pem" else b"x"})
        return {host.name for host in site.hosts if unusable(site, {host.name})}

    assert stopped("b.pem") == {"b"}
    assert stopped("i.pem") == {"front"}
    assert stopped("wildcard.pem") == {"a", "b", "front", "app"}
    assert stopped("ca.pem") == {"a", "b", "front", "app"}
    own = {"a.acme.test": "file:own.pem", "*.acme.test": "file:wildcard.pem"}
    site = laid(tmp_path, {"own.pem": old}, lambda data: data["tls"].update(certificates=own))
    assert [host.name for host in site.hosts if unusable(site, {host.name})] == ["a"]
    assert len(unusable(site)) == 1
