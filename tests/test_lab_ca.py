"""Certificates and secrets of a lab are what TLS libraries accept, and private to root."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lab import ca
from lab.model import Lab, allocate


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab of three hosts with its certificates and secrets made."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))
    made = allocate("demo", 3, "trixie")
    ca.ensure(made)
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory; raises ssl.SSLError when either side refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = [False, False]
    for turn in range(10):
        try:
            ends[turn % 2].do_handshake()
            done[turn % 2] = True
        except ssl.SSLWantReadError:
            continue
    assert all(done)


def server_context(pem: Path) -> ssl.SSLContext:
    """A server with a certificate of the lab."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_public_names_are_trusted_through_the_lab_authority_alone(lab: Lab) -> None:
    """A client that trusts the lab's authority accepts the name; under another name, or authority, it refuses."""
    server = server_context(lab.tls("calls.demo.lab.example.com.pem"))
    handshake(server, ssl.create_default_context(cafile=str(lab.tls("ca.pem"))), "calls.demo.lab.example.com")
    with pytest.raises(ssl.SSLError):
        handshake(server, ssl.create_default_context(cafile=str(lab.tls("ca.pem"))), "api.demo.lab.example.com")
    with pytest.raises(ssl.SSLError):
        handshake(
            server, ssl.create_default_context(cafile=str(lab.tls("internal-ca.pem"))), "calls.demo.lab.example.com"
        )


def test_the_registry_is_trusted_by_address(lab: Lab) -> None:
    """Hosts and controller reach it without DNS."""
    client = ssl.create_default_context(cafile=str(lab.tls("ca.pem")))
    handshake(server_context(lab.tls("registry.pem")), client, lab.hub.address)


def test_only_the_ingress_passes_mutual_tls(lab: Lab) -> None:
    """A fleet host takes the ingress's certificate, and refuses a client that has none or a public one."""
    name = f"eu1-a.{lab.domain}"
    for certificate, accepted in (("internal-ingress.pem", True), (f"{name}.pem", False), ("", False)):
        server = server_context(lab.tls("internal-eu1-a.pem"))
        server.verify_mode = ssl.CERT_REQUIRED
        server.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the client learns of a refusal only when it reads
        server.load_verify_locations(lab.tls("internal-ca.pem"))
        client = ssl.create_default_context(cafile=str(lab.tls("internal-ca.pem")))
        if certificate:
            client.load_cert_chain(lab.tls(certificate))
        if accepted:
            handshake(server, client, name)
        else:
            with pytest.raises(ssl.SSLError):
                handshake(server, client, name)


def test_the_ingress_certificate_is_for_clients(lab: Lab) -> None:
    """Its common name is what the fleet hosts check."""
    certificate = x509.load_pem_x509_certificate(lab.tls("internal-ingress.pem").read_bytes())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.subject.rfc4514_string() == "CN=ingress"


def test_everything_private_is_for_its_owner_alone(lab: Lab) -> None:
    """Mode 0600 on every file of tls, secrets and ssh."""
    files = [path for part in ("tls", "secrets", "ssh") for path in (lab.directory / part).iterdir()]
    assert len(files) > 10
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_second_up_makes_nothing_anew_and_a_grown_lab_only_adds(lab: Lab) -> None:
    """Running hosts keep the certificates, keys and secrets they have."""
    before = {path: path.read_bytes() for path in lab.directory.rglob("*") if path.is_file() and path.suffix != ".json"}
    grown = allocate("demo", 4, "trixie")
    ca.ensure(grown)
    assert {path: path.read_bytes() for path in before} == before
    assert grown.tls("internal-eu1-c.pem").exists()
