"""Certificates and keys of a lab: a public-facing authority, a second one for mutual TLS inside, and SSH keys."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from callfleet.authority import PEM, Authority
from callfleet.secrets import write_private
from lab.model import Lab, LabHost

PUBLIC_CA = "ca"
INTERNAL_CA = "internal-ca"
INGRESS = "internal-ingress"
SECRETS = ("core_secret", "registry_password", "api_admin_token")


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
