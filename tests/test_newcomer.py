"""A new host's entry, and the certificates and names that follow its sisters'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from site_files import valid, write_site

from callfleet.errors import CallfleetError
from callfleet.site import Site, load_site
from callfleet.site.newcomer import Newcomer, admit, like_sisters

NEW = Newcomer("c", "10.1.0.13", "eu1", 4)


def joined(folder: Path, new: Newcomer, change: Any = lambda site: None) -> Site:
    """The site after a host was admitted."""
    data = valid()
    change(data)
    path = write_site(folder, json.dumps(data, indent=1))
    return load_site(path, admit(path.read_text(), load_site(path), new))


def test_a_host_gets_what_its_sisters_have(tmp_path: Path) -> None:
    """The certificate for mutual TLS by their pattern; the wildcard covers its public name."""
    site = joined(tmp_path, NEW)
    assert (site.host("c").fleet, site.host("c").workers, site.host("c").address) == ("eu1", 4, "10.1.0.13")
    assert site.tls.internal is not None
    assert str(site.tls.internal.hosts["c"]) == "file:c.pem"
    assert site.names == {}


def test_certificates_and_names_of_their_own_are_followed(tmp_path: Path) -> None:
    """Where each host has its own entry."""

    def own(data: dict[str, Any]) -> None:
        names = ("a", "b", "calls", "api", "console")
        data["tls"]["certificates"] = {f"{name}.acme.test": f"file:tls/{name}.acme.test.pem" for name in names}
        data["names"] = {"a.acme.test": "10.1.0.11"}

    site = joined(tmp_path, NEW, own)
    assert str(site.certificate_for("c.acme.test")) == "file:tls/c.acme.test.pem"
    assert site.names["c.acme.test"] == "10.1.0.13"


def test_what_cannot_be_derived_is_asked_for_by_its_option(tmp_path: Path) -> None:
    """A sentence with the option; given, it is taken."""

    def strange(data: dict[str, Any]) -> None:
        data["tls"]["internal"]["hosts"] = {"a": "file:one.pem", "b": "file:two.pem"}

    with pytest.raises(CallfleetError, match="--internal-certificate"):
        joined(tmp_path, NEW, strange)
    with pytest.raises(CallfleetError, match="--certificate"):
        joined(tmp_path, Newcomer("c", "10.1.0.13", "eu1", 4, public_name="c.other.test"))
    given = Newcomer("c", "10.1.0.13", "eu1", 4, internal_certificate="file:three.pem")
    site = joined(tmp_path, given, strange)
    assert site.tls.internal is not None
    assert str(site.tls.internal.hosts["c"]) == "file:three.pem"


def test_an_unknown_fleet_and_a_known_host_are_refused(tmp_path: Path) -> None:
    """With what to do instead."""
    with pytest.raises(CallfleetError, match="callfleet fleet add us1"):
        joined(tmp_path, Newcomer("c", "10.1.0.13", "us1", 4))
    with pytest.raises(CallfleetError, match="has a host a already"):
        joined(tmp_path, Newcomer("a", "10.1.0.13", "eu1", 4))


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({"eu1-a": "file:internal-eu1-a.pem"}, "file:internal-new.pem"),
        ({"a": "file:a/data.pem"}, "file:new/data.pem"),
        ({"a": "file:a/a.pem"}, ""),
        ({"a": "file:one.pem"}, ""),
        ({"a": "file:one.pem", "b": "file:one.pem"}, "file:one.pem"),
        ({}, ""),
    ],
)
def test_a_pattern_is_followed_only_where_it_is_clear(known: dict[str, str], wanted: str) -> None:
    """The sister's name once, as a word; or one reference for all."""
    assert like_sisters(known, "new") == wanted
