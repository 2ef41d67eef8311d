"""Certificates and keys of a lab: a public-facing authority, a second one for mutual TLS inside, and SSH keys."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.model import Lab, LabHost

VALID = timedelta(days=365)
PEM = serialization.Encoding.PEM
PUBLIC_CA = "ca"
INTERNAL_CA = "internal-ca"
INGRESS = "internal-ingress"
SECRETS = ("core_secret", "registry_password", "api_admin_token")


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the lab."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str) -> Authority:
        """A new self-signed authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = _builder(subject, subject, key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(authority=True), critical=True).add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pem: bytes) -> Authority:
        """An authority from one PEM with certificate and key."""
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("not an authority of the lab")
        return cls(x509.load_pem_x509_certificate(pem), key)

    def issue(self, name: str, also: Sequence[str] = (), *, client: bool = False) -> bytes:
        """One PEM, certificate then key, for a server of these names and addresses, or for a client named `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        names = [_alternative(each) for each in (name, *also)]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(_subject(name), self.certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(PEM) + _private(key)

    def pem(self) -> bytes:
        """Certificate and key."""
        return self.certificate.public_bytes(PEM) + _private(self.key)


def ensure(lab: Lab) -> None:
    """Write what the lab needs and does not have yet: authorities, certificates, the SSH key and the secrets."""
    public, internal = (_authority(lab, name) for name in (PUBLIC_CA, INTERNAL_CA))
    for name in public_names(lab):
        _once(lab.tls(f"{name}.pem"), partial(public.issue, name))
    _once(lab.tls("registry.pem"), lambda: public.issue(f"registry.{lab.domain}", (lab.hub.address, "127.0.0.1")))
    _once(lab.tls(f"{INGRESS}.pem"), lambda: internal.issue("ingress", client=True))
    for host in lab.fleet_hosts:
        _once(lab.tls(f"internal-{host.name}.pem"), partial(internal_server, internal, lab, host))
    for secret in SECRETS:
        _once(lab.secret(secret), lambda: secrets.token_urlsafe(24).encode())
    if not lab.ssh_key.exists():
        private_key, public_key = ssh_key_pair(f"callfleet-lab-{lab.name}")
        _once(lab.ssh_key.with_suffix(".pub"), public_key.encode, replace=True)
        _once(lab.ssh_key, private_key.encode)


def internal_server(internal: Authority, lab: Lab, host: LabHost) -> bytes:
    """The certificate that a fleet host shows to the ingress: by name and by address."""
    return internal.issue(f"{host.name}.{lab.domain}", (host.name, host.address, host.address6))


def public_names(lab: Lab) -> tuple[str, ...]:
    """Names that callers, browsers and the Dialler use."""
    services = (f"{name}.{lab.domain}" for name in ("calls", "api", "console"))
    return (*services, *(f"{host.name}.{lab.domain}" for host in lab.hosts))


def ssh_key_pair(comment: str) -> tuple[str, str]:
    """A new Ed25519 key: private and public text of OpenSSH."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), f"{public.decode()} {comment}\n"


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, never visible half written or with another mode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    candidate = path.with_name(f".{path.name}.new")
    candidate.unlink(missing_ok=True)
    with os.fdopen(os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(content)
    candidate.replace(path)


def _authority(lab: Lab, name: str) -> Authority:
    """The lab's authority; its key lies apart from the certificate that hosts are given."""
    key = lab.tls(f"{name}-key.pem")
    if not key.exists():
        write_private(key, Authority.make(f"callfleet {lab.site} {name}").pem())
    authority = Authority.load(key.read_bytes())
    _once(lab.tls(f"{name}.pem"), lambda: authority.certificate.public_bytes(PEM))
    return authority


def _once(path: Path, content: Callable[[], bytes], *, replace: bool = False) -> None:
    if replace or not path.exists():
        write_private(path, content())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + VALID)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
