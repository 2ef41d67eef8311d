"""A certificate authority of the site's own: it issues what the ingress and the fleet hosts show each other."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from callfleet.errors import CallfleetError

AUTHORITY_VALID = timedelta(days=3650)
CERTIFICATE_VALID = timedelta(days=365)
_AHEAD = timedelta(hours=1)
"""How far a host's clock may be behind."""
PEM = serialization.Encoding.PEM
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Authority:
    """The certificate of an authority with its key."""

    certificate: x509.Certificate
    key: Key

    @classmethod
    def make(cls, name: str) -> Authority:
        """A new self-signed authority, with an EC P-256 key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject, now = _subject(name), datetime.now(UTC)
        builder = (
            _builder(subject, subject, key.public_key(), now, now + AUTHORITY_VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, key: bytes, certificates: bytes | None = None) -> Authority:
        """An authority from its key and that certificate of `certificates` (default: of the same PEM) which belongs to
        it. CallfleetError, with nothing of the key in it, where there is none."""
        try:
            private = serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError):
            raise CallfleetError("the authority's key is no private key in PEM form, or has a passphrase") from None
        if not isinstance(private, Key):
            raise CallfleetError("the authority's key is neither EC nor RSA")
        try:
            found = x509.load_pem_x509_certificates(key if certificates is None else certificates)
        except ValueError:
            found = []
        for certificate in found:
            if certificate.public_key() == private.public_key():
                return cls(certificate, private)
        raise CallfleetError("the authority's key belongs to none of its certificates")

    def issue(
        self, name: str, also: Sequence[str] = (), *, client: bool = False, valid: timedelta = CERTIFICATE_VALID
    ) -> bytes:
        """One PEM, certificate then key, for a server of these names and addresses, or for a client named `name`.

        A new EC P-256 key each time. It ends with the authority at the latest.
        """
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        until = min(now + valid, self.certificate.not_valid_after_utc)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        names = [_alternative(each) for each in (name, *also)]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key())  # type: ignore[arg-type]
        certificate = (
            _builder(_subject(name), self.certificate.subject, key.public_key(), now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(PEM) + private_pem(key)

    def private(self) -> bytes:
        """The key alone."""
        return private_pem(self.key)

    def pem(self) -> bytes:
        """Certificate and key."""
        return self.certificate.public_bytes(PEM) + self.private()


def private_pem(key: Key) -> bytes:
    """A key as the proxies read it: PKCS #8, without a passphrase."""
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _AHEAD).not_valid_after(until)


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
