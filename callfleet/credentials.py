"""The values behind a site's references, each read once a run and kept in memory only."""

from __future__ import annotations

from pathlib import Path

from callfleet.errors import CallfleetError
from callfleet.secrets import SecretRef
from callfleet.site import Site


class Credentials:
    """Secrets by name and certificates by reference or path, read when first asked for."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._values: dict[str, str] = {}

    def secret(self, name: str) -> str:
        """The value of a declared secret. Raises SecretError when it cannot be had."""
        return self._resolve(self._site.secret_ref(name))

    def credential(self, reference: SecretRef | str) -> bytes:
        """A certificate: a secret reference (chain and key), or a path of the site (an authority's certificate)."""
        if isinstance(reference, SecretRef):
            return self._resolve(reference).encode() + b"\n"
        path = self._site.file(reference)
        try:
            return path.read_bytes()
        except OSError as error:
            raise CallfleetError(f"{path}: cannot be read: {error.strerror}. The site file names it.") from None

    def _resolve(self, reference: SecretRef) -> str:
        key = str(reference)
        if key not in self._values:
            self._values[key] = self._site.resolve(reference).reveal()
        return self._values[key]


_opened: dict[Path, Credentials] = {}


def opened(site: Site) -> Credentials:
    """The credentials of a site as its check left them, so that a `command:` secret is asked for once a run."""
    return _opened.setdefault(site.path, Credentials(site))


def unreadable(site: Site) -> list[str]:
    """Every reference of the site that cannot be had, as lines for the operator: asked before anything connects."""
    credentials = _opened[site.path] = Credentials(site)
    internal = site.tls.internal
    references: list[SecretRef | str] = [*site.declared.secrets.values(), *site.tls.certificates.values()]
    if internal is not None:
        references += [internal.ingress, *internal.hosts.values(), internal.ca]
    if site.tls.ca_bundle:
        references.append(site.tls.ca_bundle)
    if site.registry is not None and site.registry.ca:
        references.append(site.registry.ca)
    problems = []
    for reference in references:
        try:
            credentials.credential(reference)
        except CallfleetError as error:
            problems.append(str(error))
    return problems
