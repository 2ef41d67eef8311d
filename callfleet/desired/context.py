"""What every builder of desired state is given."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from callfleet.secrets import SecretRef
from callfleet.site import Host, Site


@dataclass(frozen=True)
class Context:
    """One host of one site, the secrets it needs, and who may be registered.

    `secret` resolves a named secret when it is really used,
    `credential` a certificate by reference or path. `registered` names the fleet hosts whose canary call
    succeeded, and which may therefore get calls; None means all of the site. `registered_before` are those that have it
    already. `drained` says which of them an operator has taken out of service as a whole, where that is known.
    """

    site: Site
    host: Host
    secret: Callable[[str], str] = field(repr=False)
    credential: Callable[[SecretRef | str], bytes] = field(repr=False)
    registered: frozenset[str] | None = None
    registered_before: frozenset[str] = frozenset()
    drained: Mapping[str, bool] = field(default_factory=dict)

    @property
    def registered_hosts(self) -> tuple[Host, ...]:
        """Fleet hosts that may get calls, in the order of the site file."""
        hosts = self.site.fleet_hosts
        return hosts if self.registered is None else tuple(h for h in hosts if h.name in self.registered)

    def fingerprint(self, data: bytes) -> str:
        """Keyed digest of secret bytes, fit for a label that everyone with Docker access may read."""
        key = hashlib.sha256(b"callfleet fingerprint:" + self.secret("core_secret").encode()).digest()
        return hmac.new(key, data, hashlib.sha256).hexdigest()
