"""What a site refers to is read once a run, and missed before anything connects."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_files import valid, write_site

from callfleet.credentials import Credentials, unusable
from callfleet.secrets import SecretRef
from callfleet.site import load_site


def test_credentials_resolve_each_secret_once(tmp_path: Path) -> None:
    """A command that asks its user for something asks once in a run, and a PEM keeps its form."""
    site = valid()
    site["secrets"]["core_secret"] = "command:sh -c 'echo asked >> asked; echo word'"
    site["tls"]["ca_bundle"] = "ca.pem"
    store = Credentials(load_site(write_site(tmp_path, site)))
    folder = tmp_path / "inventories"
    assert (store.secret("core_secret"), store.secret("core_secret")) == ("word", "word")
    assert (folder / "asked").read_text() == "asked\n"
    (folder / "ca.pem").write_bytes(b"public\n")
    assert store.credential("ca.pem") == b"public\n"
    (folder / "wildcard.pem").write_bytes(b"chain\nkey\n")
    (folder / "wildcard.pem").chmod(0o600)
    assert store.credential(SecretRef("file", "wildcard.pem")) == b"chain\nkey\n"


def test_everything_unavailable_is_listed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look before connecting finds every missing file and variable, once each."""
    monkeypatch.delenv("ADMIN_TOKEN", raising=False)
    missing = unusable(load_site(write_site(tmp_path, valid())))
    for name in ("file:core_secret", "env:ADMIN_TOKEN", "file:wildcard.pem", "ca.pem", "file:i.pem", "file:b.pem"):
        assert len([line for line in missing if name in line]) == 1
    assert len(missing) == 7
