"""`callfleet import` as operators run it: what it writes, tells and refuses. Hosts answer from fixtures."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from adopt.handmade import KNOWN, Handmade
from adopt.test_contradictions import SEEDED
from adopt.test_haproxy import BY_HAND, BY_LISTEN, BY_NAMES, MAPS, RENDERED
from click.testing import CliRunner, Result
from site_files import DIGEST, IMAGES, REPOSITORY

from callfleet.adopt.found import Found
from callfleet.adopt.inventory import Source
from callfleet.commands import adopt
from callfleet.errors import CallfleetError
from callfleet.site import load_site

Import = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of its own: inventories with a release, and group_data."""
    shutil.copytree(REPOSITORY / "group_data", tmp_path / "group_data")
    made = tmp_path / "inventories"
    made.mkdir()
    images = {name: {"repository": f"cxb/{name}", "tag": "1", "digest": DIGEST} for name in IMAGES}
    release = {"callfleet_release": 1, "release": "1", "images": images}
    (made / "ready.release.yml").write_text(json.dumps(release))
    return made


@pytest.fixture
def handmade() -> Handmade:
    """What the hosts are; tests change it first."""
    return Handmade()


@pytest.fixture
def run(folder: Path, handmade: Handmade, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Run it with the site acme of that folder."""

    class Fixture(adopt.Reading):
        """Hosts that need no connection."""

        def __init__(
            self, path: Path, ssh: Mapping[str, Any], targets: Sequence[adopt.Target], fingerprints: Sequence[str]
        ) -> None:
            super().__init__(path, ssh, (), fingerprints)
            self.targets = {each.key: each for each in targets}
            self.found = handmade.found() if targets else []

        def look(self) -> list[Found]:
            return self.found

        @property
        def hostnames(self) -> dict[str, str]:
            return {each.name: each.address for each in self.found}

        def fetch(self, sources: Sequence[Source]) -> dict[str, bytes]:
            return {each.reference: b"very-secret\n" for each in sources if "stt" not in each.reference}

    monkeypatch.setattr(adopt, "Reading", Fixture)
    monkeypatch.setattr(adopt, "with_fleet_list", lambda reading, machine, defaults, token: machine)
    names = {**KNOWN, "fleet.example.com": ["203.0.113.31", "203.0.113.32", "203.0.113.33"],
             "fleet1.example.com": ["203.0.113.41"], "fleet2.example.com": ["203.0.113.42"]}  # fmt: skip
    monkeypatch.setattr(adopt, "resolved", lambda name: names.get(name, []))

    def go(*arguments: str) -> Result:
        return CliRunner().invoke(adopt.import_, [str(folder / "acme.yml"), *arguments])

    return go


def hosts(folder: Path) -> dict[str, tuple[str, str | None, int]]:
    """The hosts of the written site: address, fleet, workers."""
    return {host.name: (host.address, host.fleet, host.workers) for host in load_site(folder / "acme.yml").hosts}


READY = ("--from", "10.1.0.11", "10.1.0.12", "10.1.0.2", "--release", "ready.release.yml")


def test_a_platform_that_agrees_is_written_whole(run: Import, folder: Path) -> None:
    """Exit code 0, a site file that is valid as it stands, with what the hosts said and nothing secret."""
    done = run(*READY)
    assert done.exit_code == 0, done.output
    assert "Contradictions: none" in done.output
    assert "Validation names" not in done.output
    assert "Next: callfleet plan" in done.output
    assert hosts(folder) == {
        "eu1-a": ("10.1.0.11", "eu1", 4), "eu1-b": ("10.1.0.12", "eu1", 4), "hub": ("10.1.0.2", None, 0)
    }  # fmt: skip
    site = load_site(folder / "acme.yml")
    assert (site.domain, site.declared.brand, site.mongodb_db) == ("acme.test", "cxbridge", "acme")
    assert site.host("hub").roles == {"ingress", "app"}
    assert [port.port for port in site.host("hub").open_ports] == [7880]
    assert site.core.secret_environment == {"STT_API_KEY": "stt_api_key"}
    assert site.app.stores == ()
    assert (site.calls.largest_body_bytes, site.calls.tunnel_timeout_seconds) == (65536, 3600)
    text = (folder / "acme.yml").read_text()
    assert "the-core-secret" not in text + done.output
    assert (folder / "acme.py").read_text() == (REPOSITORY / "inventories" / "prod.py").read_text()
    assert not (folder / "acme.release.yml").exists()


def test_the_document_holds_all_of_it(run: Import, handmade: Handmade) -> None:
    """For programs; exit code 3 with a contradiction, which is there with its sides and what to do."""
    SEEDED["the variable"][0](handmade)
    done = run(*READY, "--json")
    assert done.exit_code == 3
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["kind"], answer["exit"], answer["site"]) == (1, "import", 3, "acme")
    (finding,) = answer["contradictions"]
    assert (finding["kind"], finding["host"]) == ("worker-count", "eu1-b")
    assert {"where": "eu1-b: /opt/cxbcore/.env: CXBCORE_WORKERS", "says": "16"} in finding["sides"]
    assert answer["hosts"][0]["core_fleet"] == "https://eu1-a.acme.test"
    assert answer["problems"] == []


def test_unknown_directives_are_kept_and_told(run: Import, handmade: Handmade, folder: Path) -> None:
    """In the report and as comments in the file; without what may be a secret."""
    handmade.haproxy = handmade.haproxy.replace(
        "balance roundrobin", "balance roundrobin\n    stick-table type ip size 1m"
    )
    handmade.haproxy = handmade.haproxy.replace(
        "    maxconn 4000", "    lua-load /etc/haproxy/x.lua auth-token very-secret"
    )
    handmade.nginx["eu1-b"] = handmade.nginx["eu1-b"].replace("least_conn;", "least_conn; ").replace(
        "location /health", "limit_req zone=x burst=5;\n    location /health"
    )  # fmt: skip
    done = run(*READY)
    assert done.exit_code == 3
    text = (folder / "acme.yml").read_text()
    for said in ("stick-table type ip size 1m", "limit_req zone=x burst=5", "lua-load /etc/haproxy/x.lua ***"):
        assert said in text
        assert said in done.output
    assert "very-secret" not in text + done.output
    assert load_site(folder / "acme.yml").name == "acme"


def test_without_a_release_validation_names_what_is_missing(run: Import, folder: Path) -> None:
    """A skeleton is written, and the report says what validation says of it."""
    done = run("--from", "10.1.0.11")
    assert done.exit_code == 3
    assert "a pin for cxb-core-worker" in done.output
    assert "Next: callfleet validate" in done.output
    assert (folder / "acme.release.yml").is_file()


def test_secrets_are_fetched_only_when_asked(run: Import, folder: Path) -> None:
    """Each in a file for its owner alone; what could not be read is left to do."""
    assert not (folder / "secrets").exists()
    done = run(*READY, "--secrets-to", str(folder / "secrets" / "acme"))
    assert done.exit_code == 0, done.output
    files = [path for path in (folder / "secrets").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"core_secret", "api_admin_token", "calls.acme.test.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert "secrets: file:secrets/acme/stt_api_key: STT_API_KEY of eu1-a" in done.output
    assert "very-secret" not in done.output + (folder / "acme.yml").read_text()


def test_a_site_file_is_never_replaced_unasked(run: Import, folder: Path) -> None:
    """Refused with the next command; with --force the old one stays beside it."""
    path = folder / "acme.yml"
    path.write_text("mine\n")
    done = run(*READY)
    assert isinstance(done.exception, CallfleetError)
    assert "is there already" in str(done.exception)
    assert "callfleet plan" in str(done.exception)
    assert path.read_text() == "mine\n"
    assert run(*READY, "--force").exit_code == 0
    assert (folder / "acme.yml.old").read_text() == "mine\n"
    assert hosts(folder)["eu1-a"][2] == 4


def test_another_brand_is_data(run: Import, handmade: Handmade, folder: Path) -> None:
    """The brand is told by the names of units; those that differ from it become overrides."""
    for name in handmade.nginx:
        handmade.nginx[name] = handmade.nginx[name].replace("cxbcore", "acmecore")
        environment = handmade.worker[name]
        environment["ACMECORE_WORKERS"] = environment.pop("CXBCORE_WORKERS")
        environment["SECRET_HEADER"] = "X-Acme-Secret"
    for name in ("eu1-a", "eu1-b"):
        one = next(each for each in Handmade(worker=handmade.worker, nginx=handmade.nginx).found() if each.name == name)
        assert isinstance(one.units, dict)
        units = {
            key.replace("cxbcore", "acmecore"): type(unit)(
                unit.name.replace("cxbcore", "acmecore"),
                {k: v.replace("cxbcore_", "acmecore_") for k, v in unit.properties.items()},
            )
            for key, unit in one.units.items()
        }
        sockets = frozenset(f"/tmp/acmecore_{number}.sock" for number in range(1, 5))
        handmade.changes[name] = {"units": units, "sockets": sockets, "listening": sockets}
    done = run(*READY)
    assert done.exit_code == 0, done.output
    brand = load_site(folder / "acme.yml").brand
    assert (brand.socket_prefix, brand.worker_env_prefix, brand.secret_header) == (
        "acmecore",
        "ACMECORE",
        "X-Acme-Secret",
    )
    assert brand.services.api == "cxb-api"


def test_two_secrets_of_one_name_stay_two(run: Import, handmade: Handmade, folder: Path) -> None:
    """The API's key of the same name as the workers' has a file of its own; equal ones share one."""
    handmade.api["STT_API_KEY"] = "*of-the-api"
    handmade.dialler["STT_API_KEY"] = "*of-the-api"
    assert run(*READY).exit_code == 0
    site = load_site(folder / "acme.yml")
    assert site.app.api.secret_environment == site.app.dialler.secret_environment == {"STT_API_KEY": "stt_api_key"}
    assert site.core.secret_environment == {"STT_API_KEY": "worker_stt_api_key"}
    assert len({str(reference) for reference in site.declared.secrets.values()}) == len(site.declared.secrets)


def test_a_host_that_only_the_ingress_names_is_told(run: Import, handmade: Handmade, folder: Path) -> None:
    """It is in the inventory as the ingress has it, and the report says that it was not read."""
    handmade.haproxy = handmade.haproxy.replace(
        "\nbackend web", "    server us1-a 10.1.0.31:443 ssl verify none check inter 5s fall 2 maxconn 8\n\nbackend web"
    )
    done = run(*READY)
    assert "us1-a was not read, only named by the ingress" in done.output
    assert hosts(folder)["us1-a"] == ("10.1.0.31", "eu1", 8)
    assert done.exit_code == 3  # inbound only


def test_what_one_host_has_beside_is_told(run: Import, handmade: Handmade, folder: Path) -> None:
    """Workers of a second name, further names, a certificate declared for all servers by a relative path."""
    handmade.nginx["eu1-b"] = (
        "upstream voxcore { server unix:/tmp/voxcore_1.sock; }\nssl_certificate c.pem;\nssl_certificate_key k.pem;\n"
        + handmade.nginx["eu1-b"].replace("server_name eu1-b.acme.test", "server_name eu1-b.acme.test old.acme.test")
    )
    done = run(*READY)
    assert done.exit_code == 3
    assert "eu1-b: workers voxcore@ (a host carries the workers of one name alone)" in done.output
    assert "eu1-b is also called old.acme.test" in done.output
    assert hosts(folder)["eu1-b"][2] == 4


FILES = {
    "by hand": (
        BY_HAND,
        {"eu1": ("203.0.113.11", "eu", 16), "eu2": ("203.0.113.12", "eu", 16), "in1": ("203.0.113.21", "in", 8)},
    ),
    "by listen": (
        BY_LISTEN,
        {"eu1": ("203.0.113.31", "calls", 8), "eu2": ("203.0.113.32", "calls", 8), "eu3": ("203.0.113.33", "calls", 8),
         "extra": ("2001:db8::11", "calls", 16)},
    ),
    "by names": (
        BY_NAMES,
        {"eu1-a": ("203.0.113.11", "eu", 16), "eu1-b": ("203.0.113.12", "eu", 16), "in1-a": ("203.0.113.21", "in", 8)},
    ),
    "rendered": (RENDERED, {"fleet1": ("203.0.113.41", "fleet", 16), "fleet2": ("203.0.113.42", "fleet", 16)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_haproxy_file_alone_gives_the_fleets(name: str, run: Import, folder: Path, tmp_path: Path) -> None:
    """Whoever wrote it: hosts, fleets and slots, and a site that is valid once its ingress has an address."""
    text, expected = FILES[name]
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    for path, content in MAPS.items():
        (tmp_path / Path(path).name).write_text(content)
    given = ("--ingress", "calls-1=203.0.113.2", "--release", "ready.release.yml", "--domain", "example.com")
    done = run("--haproxy", str(file), *given)
    assert done.exit_code in (0, 3), done.output
    assert "Validation names" not in done.output
    found = hosts(folder)
    assert found.pop("calls-1") == ("203.0.113.2", None, 0)
    assert found == expected
    assert load_site(folder / "acme.yml").ingress_hosts[0].name == "calls-1"
    kept = yaml.safe_load((folder / "acme.yml").read_text())
    assert kept["site"] == "acme"


def test_a_file_without_an_address_is_left_to_do(run: Import, tmp_path: Path) -> None:
    """The report says which option gives it."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(BY_HAND)
    done = run("--haproxy", str(file), "--release", "ready.release.yml", "--domain", "example.com")
    assert "--ingress NAME=ADDRESS" in done.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no frontend"),
        (b"\x00\x01", "expected an HAProxy"),
        (b"hello\nworld\n", "no frontend"),
        (b"backend x\n server a 192.0.2.1:1\n", "neither workers"),
    ],
)
def test_what_is_no_ingress_is_refused(content: bytes, said: str, run: Import, folder: Path, tmp_path: Path) -> None:
    """With what was expected, and nothing written."""
    file = tmp_path / "haproxy.cfg"
    file.write_bytes(content)
    done = run("--haproxy", str(file))
    assert isinstance(done.exception, CallfleetError)
    assert said in str(done.exception)
    assert not (folder / "acme.yml").exists()


@pytest.mark.parametrize(
    "arguments",
    [(), ("10.1.0.1",), ("--from", "Bad_Name=10.1.0.1"), ("--haproxy", "/dev/null/none"),
     ("--from", "10.1.0.1", "--ingress", "x"), ("--from", "10.1.0.1", "10.1.0.2", "--fingerprint", "SHA256:x")],
)  # fmt: skip
def test_usage(arguments: tuple[str, ...], run: Import) -> None:
    """What cannot be meant is a usage error."""
    assert run(*arguments).exit_code == click.UsageError.exit_code
