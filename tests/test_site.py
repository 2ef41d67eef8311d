"""What a valid site means: everything a site file leaves out is decided here, once."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from site_files import DIGEST, REPOSITORY, valid, valid_release, write_site

from callfleet.errors import SiteError
from callfleet.site import Site, load_site
from callfleet.site.schema import SiteFile

SHIPPED = ("local", "staging", "prod")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The valid site of the tests."""
    return load_site(write_site(tmp_path, valid()))


def test_hosts_carry_everything_decided(site: Site) -> None:
    """Roles, workers, names, ports and SSH settings of a host need no look at the file."""
    a, b = site.fleet_hosts
    assert (a.name, a.fleet, a.workers, b.workers) == ("a", "eu1", 4, 8)
    assert a.roles == {"fleet"}
    assert (a.public_name, a.url, a.ports.fleet, a.ports.mtls, a.ports.front) == (
        "a.acme.test", "https://a.acme.test", 443, 8443, None,
    )  # fmt: skip
    assert [host.name for host in site.ingress_hosts] == ["front"]
    assert site.app_host == site.host("app")
    assert (a.ssh.user, a.ssh.port, a.ssh.key, a.ssh.hostname) == ("root", 22, None, "10.1.0.11")
    assert a.ssh.known_hosts == site.base_dir / "acme.known_hosts"


def test_shared_values_are_made_in_one_place(site: Site) -> None:
    """What must match across hosts has one source."""
    assert site.fleet_urls == ("https://a.acme.test", "https://b.acme.test")
    assert site.config_url == "https://api.acme.test/api/v1/config"
    assert (site.vite_api_url, site.mongodb_db, site.ingress_name) == (
        "https://api.acme.test",
        "acme",
        "calls.acme.test",
    )


def test_images_are_references_by_digest(site: Site) -> None:
    """An image's name gives what to pull, from the site's registry."""
    assert site.image("haproxy") == f"registry.acme.test:5000/cxb/haproxy@{DIGEST}"


def test_certificates_are_found_by_name_or_wildcard(site: Site) -> None:
    """A wildcard covers one level and no more."""
    assert str(site.certificate_for("calls.acme.test")) == "file:wildcard.pem"
    with pytest.raises(KeyError):
        site.certificate_for("a.b.acme.test")


def test_a_host_with_every_role_is_a_valid_site(tmp_path: Path) -> None:
    """One host is enough, and its fleet port gives way to the front's: the URLs carry it."""
    one = valid()
    one["hosts"] = {}
    one["fleets"]["eu1"]["hosts"] = {"a": {"address": "10.1.0.11", "roles": ["ingress", "app"]}}
    one["tls"]["internal"]["hosts"].pop("b")
    site = load_site(write_site(tmp_path, one))
    assert site.fleet_urls == ("https://a.acme.test:9443",)
    assert (site.host("a").ports.front, site.host("a").ports.fleet, site.host("a").ports.mtls) == (443, 9443, 8443)
    assert site.public_names(site.host("a")) == (
        "a.acme.test", "calls.acme.test", "api.acme.test", "console.acme.test",
    )  # fmt: skip


def test_a_fleet_alone_is_a_valid_site(tmp_path: Path) -> None:
    """No ingress, no app host: only what a fleet needs is asked for."""
    alone = valid()
    for key in ("hosts", "app", "registry"):
        del alone[key]
    alone["secrets"] = {"core_secret": "file:core_secret"}
    del alone["tls"]["internal"]
    release = valid_release()
    release["images"] = {name: release["images"][name] for name in ("cxb-core-worker", "haproxy")}
    site = load_site(write_site(tmp_path, alone, release))
    assert (site.ingress_hosts, site.app_host) == ((), None)
    assert site.required_images == ("cxb-core-worker", "haproxy")


def test_tags_are_enough_in_the_lab_alone(tmp_path: Path) -> None:
    """The same release is refused for staging and prod."""
    release, lab = valid_release(), valid()
    del release["images"]["redis"]["digest"]
    lab["stage"] = "lab"
    assert load_site(write_site(tmp_path, lab, release)).image("redis").endswith("cxb/redis:1")
    for stage in ("staging", "prod"):
        with pytest.raises(SiteError, match="digest"):
            load_site(write_site(tmp_path, valid() | {"stage": stage}, release))


def test_the_second_brand_is_data(tmp_path: Path) -> None:
    """Another brand changes names, and a site may replace single ones."""
    vox, release = valid() | {"brand": "voxbridge"}, valid_release()
    vox["brand_overrides"] = {"secret_header": "X-Acme", "services": {"api": "acme-api"}}
    release["images"] = {name.replace("cxb-", "vox-"): pin for name, pin in release["images"].items()}
    brand = load_site(write_site(tmp_path, vox, release)).brand
    assert (brand.stack, brand.worker_env_prefix, brand.secret_header) == ("vox-fleet", "VOXCORE", "X-Acme")
    assert (brand.services.api, brand.services.dialler) == ("acme-api", "vox-dialler")


def test_own_ssh_settings_win_and_paths_start_at_the_file(tmp_path: Path) -> None:
    """A host's exceptions replace the site's settings one by one."""
    some = valid()
    some["ssh"] = {"user": "deploy", "key": "keys/site", "port": 2222}
    some["fleets"]["eu1"]["hosts"]["a"]["ssh"] = {"port": 22, "hostname": "10.9.0.1"}
    site = load_site(write_site(tmp_path, some))
    ssh = site.host("a").ssh
    assert (ssh.user, ssh.port, ssh.hostname, ssh.key) == ("deploy", 22, "10.9.0.1", site.base_dir / "keys" / "site")
    assert site.host("b").ports.ssh == 2222


def test_a_site_cannot_be_changed(site: Site) -> None:
    """Sites are values."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        site.hosts = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        site.calls.max_seconds = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sites_are_valid(name: str) -> None:
    """The files that people start from pass every check."""
    assert load_site(REPOSITORY / "inventories" / f"{name}.yml").name == name


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_shipped_sites_are_not_connected_to(name: str) -> None:
    """They name every value that must be edited first, with its line."""
    site = load_site(REPOSITORY / "inventories" / f"{name}.yml")
    problems = site.environment_refuses()
    assert {"domain", "registry.address"} <= {each.path for each in problems}
    assert len([each for each in problems if each.path.endswith(".address")]) == len(site.hosts) + 1
    assert all(each.line for each in problems)


def test_an_edited_site_is_not_refused(site: Site) -> None:
    """Addresses and names of one's own are enough."""
    assert site.environment_refuses() == []


def test_the_shipped_prod_file_documents_every_key() -> None:
    """Each key of the schema stands in prod.yml, set or commented out."""
    words = set(re.findall(r"[a-z_0-9]+(?=:)", (REPOSITORY / "inventories" / "prod.yml").read_text("utf-8")))
    missing = sorted(path for path in _keys(SiteFile) if path.rpartition(".")[2] not in words)
    assert missing == []


def _keys(model: type[BaseModel], above: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        path = f"{above}{field.alias or name}"
        found.add(path)
        for inner in _models(field.annotation):
            found |= _keys(inner, f"{path}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]


def test_keys_commented_out_in_the_shipped_file_are_valid(tmp_path: Path) -> None:
    """What a reader uncomments works: the examples in comments are of the schema, and defaults say what they are."""
    source = (REPOSITORY / "inventories" / "prod.yml").read_text("utf-8")
    keys = r"calls|ports|metrics|logs|firewall|docker|versions|names|brand_overrides|release"
    section = re.compile(rf"^# (?=({keys}):)", re.MULTILINE)
    text, block = "", False
    for line in source.splitlines(keepends=True):
        block = bool(section.match(line)) or (block and line.startswith("#   "))
        text += line[2:] if block else line
    site = load_site(write_site(tmp_path, text, (REPOSITORY / "inventories" / "prod.release.yml").read_text(), "prod"))
    default = load_site(REPOSITORY / "inventories" / "prod.yml")
    assert text.count("# calls:") == 0
    off = {"metrics": None, "metrics_shared": None}
    silence = {"tunnel_timeout_seconds": default.calls.silence_seconds}
    assert (site.calls, site.ports.model_copy(update=off), site.firewall, site.docker, site.versions) == (
        default.calls.model_copy(update=silence), default.ports, default.firewall, default.docker, {},
    )  # fmt: skip
    assert (default.ports.metrics, default.metrics.sources, default.logs.ship_to) == (None, (), None)
