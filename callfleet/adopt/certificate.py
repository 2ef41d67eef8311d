"""Certificates as they lie on hosts: what names they cover. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import ExtensionOID


def opened(pem: bytes) -> x509.Certificate | None:
    """The certificate in it; None when there is none that can be read."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None


def covered(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names of a certificate."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    if not isinstance(extension, x509.SubjectAlternativeName):
        return ()
    return tuple(name.lower() for name in extension.get_values_for_type(x509.DNSName))


def covers(names: Sequence[str], name: str) -> bool:
    """Whether one of a certificate's names is this name or a wildcard for it."""
    return name in names or f"*.{name.partition('.')[2]}" in names
