"""A legacy site's files: of which names they are made, what each contradiction changes, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from callfleet.site import load_site
from lab import ca, inventory, paths
from lab.cli import lab as command
from lab.errors import LabError
from lab.legacy import CONTRADICTIONS, LegacySite, check_contradictions, onhost, seeded, site_of
from lab.legacy.files import HostFiles, files_of
from lab.legacy.laydown import program
from lab.model import Lab, allocate

DIGESTS = {f"{repository}:1": "sha256:" + "0" * 64 for repository in inventory.images("cxbridge").values()}
NGINX, ENV = "/etc/nginx/sites-available/cxbcore", "/opt/cxbcore/.env"
DIALLER, HAPROXY = "/opt/cxb-dialler/.env", "/etc/haproxy/haproxy.cfg"
# Contradiction: every host and file that it changes, with what is then in one of them.
CHANGES = {
    "units": ({"eu1-b units": "(?!.*cxbcore@4)"}),
    "declared-workers": {f"eu1-b {ENV}": "CXBCORE_WORKERS=16"},
    "upstream": {f"eu1-b {NGINX}": "(?s)(?!.*cxbcore_4)"},
    "maxconn": {f"hub {HAPROXY}": r"(?s).*eu1-b [^\n]* maxconn 16\n"},
    "inbound-only": {"hub core_fleet": "(?!.*eu1-b)", f"hub {DIALLER}": "(?!.*eu1-b)"},
    "outbound-only": {f"hub {HAPROXY}": "(?s)(?!.*eu1-a)"},
    "core-fleet": {"hub core_fleet": "(?!.*eu1-a)"},
    "fleet-urls": {f"hub {DIALLER}": "(?!.*eu1-b)"},
    "core-secret": {f"eu1-b {ENV}": "(?s).*CORE_SECRET=of-another-day\n"},
    "config-url": {f"eu1-b {ENV}": "(?s).*CONFIG_URL=https://old-api.example.com/"},
    "mongodb-db": {f"eu1-b {ENV}": "(?s).*MONGODB_DB=staging\n"},
    "calls-per-worker": {f"eu1-b {ENV}": "(?s).*MAX_CONCURRENT_CALLS=2\n"},
    "no-retry": {f"eu1-b {NGINX}": "(?s)(?!.*next_upstream)"},
    "retry-tries": {f"eu1-b {NGINX}": "(?s).*next_upstream_tries 2;"},
    "retry-dispatch": {f"eu1-b {NGINX}": "(?s).*/livekit/dispatch {[^}]*http_429 non_idempotent"},
    "keepalive": {f"eu1-b {NGINX}": r"(?s).*''      '';.*\n    keepalive 8;"},
    "no-zone": {f"eu1-b {NGINX}": r"(?s)(?!.*\bzone\b)"},
    "connection-header": {f"eu1-b {NGINX}": '(?s).*Connection "upgrade";'},
    "check-cap": {f"hub {HAPROXY}": r'(?s).*\\"fleet_available\\":\[1-3\]\[,}\]"'},
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labs and inventories in directories of the test's own."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))
    (tmp_path / "inventories").mkdir()
    (tmp_path / "inventories" / "lab.py").write_text("entry = 1\n")
    monkeypatch.setattr(paths, "INVENTORIES", tmp_path / "inventories")


def legacy(name: str = "old", hosts: int = 3, brand: str | None = None) -> Lab:
    """A legacy lab that is not booted."""
    lab = allocate(name, hosts, "trixie", legacy=True, brand=brand)
    ca.ensure(lab)
    return lab


def made(lab: Lab, site: LegacySite) -> dict[str, HostFiles]:
    """What each host of the lab is made of."""
    return {
        host.name: files_of(site, host.name, lambda name: lab.tls(f"{name}.pem").read_text(), "the lab's authority\n")
        for host in lab.hosts
    }


def contents(hosts: dict[str, HostFiles]) -> dict[str, str]:
    """Everything that an import could read, by host and place."""
    found = {f"{name} units": " ".join(one.units) for name, one in hosts.items()}
    found |= {f"{name} core_fleet": " ".join(one.core_fleet or ()) for name, one in hosts.items()}
    return found | {f"{name} {file.path}": file.content for name, one in hosts.items() for file in one.files}


def test_every_contradiction_has_its_row() -> None:
    """And there are enough of them to choose ten."""
    assert CHANGES.keys() == CONTRADICTIONS.keys()
    assert len(CHANGES) >= 10


@pytest.mark.parametrize("name", CHANGES)
def test_a_contradiction_changes_what_it_names_and_nothing_else(name: str) -> None:
    """By comparison with the same site without it, which does not have what it looks for."""
    lab = legacy()
    plain = contents(made(lab, site_of(lab)))
    wrong = contents(made(lab, seeded(site_of(lab), [name])))
    if name == "units":
        # The comment of nginx's file counts the units too.
        plain[f"eu1-b {NGINX}"] = wrong[f"eu1-b {NGINX}"] = ""
    assert {place for place in plain if plain[place] != wrong[place]} == set(CHANGES[name])
    for place, pattern in CHANGES[name].items():
        assert re.match(pattern, wrong[place]), wrong[place]
        assert not re.match(pattern, plain[place])


def test_many_at_once_come_out_the_same_in_any_order() -> None:
    """Each of them is still to be seen."""
    lab = legacy()
    every = [name for name in CONTRADICTIONS if name not in ("fleet-urls", "retry-tries", "retry-dispatch")]
    check_contradictions(every, 3)
    wrong = made(lab, seeded(site_of(lab), every))
    assert wrong == made(lab, seeded(site_of(lab), every[::-1]))
    for name in every:
        for place, pattern in CHANGES[name].items():
            assert re.match(pattern, contents(wrong)[place]), (name, place)


@pytest.mark.parametrize(
    ("names", "hosts", "said"),
    [
        (["nonsense"], 3, "there are units, declared-workers"),
        (["maxconn"], 1, "takes a lab of 2 hosts"),
        (["outbound-only"], 2, "takes a lab of 3 hosts"),
        (["retry-tries", "no-retry"], 3, "would not be seen beside no-retry"),
    ],
)
def test_what_cannot_be_had_is_refused(names: list[str], hosts: int, said: str) -> None:
    """With the ones there are, or what they take."""
    with pytest.raises(LabError, match=said):
        check_contradictions(names, hosts)


def test_contradictions_are_listed_and_belong_to_legacy_hosts() -> None:
    """Each by name with a sentence; asking for one on bare hosts is refused before anything is made."""
    listed = json.loads(CliRunner().invoke(command, ["contradictions", "--json"]).output)
    assert listed.keys() == CONTRADICTIONS.keys()
    assert listed["maxconn"] == {"says": CONTRADICTIONS["maxconn"].says, "hosts": 2}
    refused = CliRunner().invoke(command, ["up", "--contradict", "units"])
    assert (refused.exit_code, "next: callfleet lab up --legacy" in refused.output) == (1, True)


def test_another_brand_has_none_of_the_first_one_s_names() -> None:
    """Units, paths, variables and headers; the stand-ins' own code speaks of no brand's site."""
    lab = legacy("vox", 1, "voxbridge")
    hub = made(lab, site_of(lab))["hub"]
    assert {"voxcore@4.service", "vox-api.service", "vox-dialler.service"} <= set(hub.units)
    files = {
        file.path: file.content for file in hub.files if "/standin/" not in file.path and "/dist/" not in file.path
    }
    assert "X-VoxCore-Secret" in files["/opt/voxcore/.env"]
    assert "VOXCORE_WORKERS=4" in files["/opt/voxcore/.env"]
    assert re.findall("(?i)cxb-|cxb_|cxbcore|cx ?bridge", json.dumps([hub.units, hub.users, files])) == []


def test_one_host_has_everything_but_an_ingress() -> None:
    """nginx serves three names on 443; behind an ingress only API and Console, from loopback."""
    lab, three = legacy("one", 1), legacy("three", 3)
    alone, hub = made(lab, site_of(lab))["hub"], made(three, site_of(three))["hub"]
    files = {file.path: file.content for file in alone.files}
    assert HAPROXY not in files
    assert alone.reloads == ("nginx",)
    assert files["/etc/nginx/sites-available/cxb-app"].count("listen 443 ssl;") == 2
    web = next(file.content for file in hub.files if file.path == "/etc/nginx/sites-available/cxb-app")
    assert web.count("listen 127.0.0.1:8081;") == 2
    assert "443" not in web


def test_secrets_and_keys_are_not_for_everybody() -> None:
    """No file with a secret or a private key is readable by others, and each host has its own part only."""
    lab = legacy()
    secrets = [lab.secret(name).read_text() for name in ("core_secret", "api_admin_token")]
    for host, one in made(lab, site_of(lab)).items():
        for file in one.files:
            if "PRIVATE KEY" in file.content or any(secret in file.content for secret in secrets):
                assert file.mode & 0o007 == 0, (host, file.path)
        assert (one.admin_token == "") == (host != "hub")


@pytest.mark.parametrize(("hosts", "brand"), [(1, "cxbridge"), (1, "voxbridge"), (3, "voxbridge")])
def test_the_site_file_is_what_the_site_is_to_become(hosts: int, brand: str) -> None:
    """The same hosts, workers and brand, by the loader that every command uses."""
    lab = legacy("next", hosts, brand)
    site = load_site(inventory.write(lab, DIGESTS))
    assert {host.name: host.workers for host in site.fleet_hosts} == {host.name: 4 for host in lab.fleet_hosts}
    assert site.brand == site_of(lab).brand
    assert (site.config_url, site.mongodb_db) == (site_of(lab).fleet[0].config_url, site_of(lab).mongodb_db)


def test_a_lab_stays_of_its_kind() -> None:
    """Bare hosts do not become legacy ones, one host does not grow, a brand stays. Control: the same again."""
    allocate("bare", 3, "trixie")
    legacy("one", 1)
    for name, hosts, brand, said in (
        ("bare", 3, None, "bare hosts already"),
        ("one", 3, None, "does not grow"),
        ("one", 1, "voxbridge", "has the brand cxbridge"),
    ):
        with pytest.raises(LabError, match=said):
            allocate(name, hosts, "trixie", legacy=True, brand=brand)
    assert allocate("one", 1, "trixie", legacy=True, brand="cxbridge") == allocate("one", 1, "trixie")


def test_a_record_from_before_is_a_bare_lab() -> None:
    """Labs that run while callfleet is upgraded stay what they are."""
    lab = allocate("before", 3, "trixie")
    record = lab.directory / "lab.json"
    record.write_text(
        json.dumps({key: json.loads(record.read_text())[key] for key in ("name", "index", "suite", "hosts")})
    )
    assert Lab.load("before") == lab


def test_a_host_is_laid_down_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same document is no reason to touch it, another one is; a host that callfleet was on is refused."""
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(onhost, "MARK", tmp_path / "mark.json")
    monkeypatch.setattr(onhost, "HANDED_OVER", tmp_path / "callfleet")
    monkeypatch.setattr(onhost, "run", lambda *words: done.append(words) or "")
    monkeypatch.setattr(onhost.shutil, "chown", lambda *words: None)
    file = {"path": str(tmp_path / "etc/file"), "content": "text", "mode": 0o640, "owner": "root:root"}
    keys = ("users", "directories", "absent", "links", "checks", "units", "reloads", "ready")
    wanted = {**{key: [] for key in keys}, "files": [file], "core_fleet": None, "instances_of": ""}
    assert onhost.lay_down(wanted, "one") == "laid"
    written = (tmp_path / "etc/file").stat()
    assert written.st_mode & 0o777 == 0o640
    count = len(done)
    assert (onhost.lay_down(wanted, "one"), len(done)) == ("unchanged", count)
    assert onhost.lay_down(wanted, "two") == "laid"
    assert (tmp_path / "etc/file").stat().st_mtime_ns == written.st_mtime_ns
    (tmp_path / "callfleet").mkdir()
    assert onhost.lay_down(wanted, "two") == "unchanged"
    with pytest.raises(SystemExit, match="callfleet was at work"):
        onhost.lay_down(wanted, "three")


def test_a_bare_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setattr(onhost, "MARK", tmp_path / "mark.json")
    with pytest.raises(SystemExit, match="nowhere-to-be-found is not installed"):
        onhost.lay_down({"checks": [["nowhere-to-be-found", "-t"]]}, "one")


def test_the_program_carries_its_document_unharmed() -> None:
    """It is sent as one text: quotes and backslashes of configuration files must come through."""
    lab = legacy()
    hub = made(lab, site_of(lab))["hub"]
    text = program(hub).replace("print(lay_down(", "found = ((")
    names: dict[str, object] = {"__name__": "program"}
    exec(compile(text, "program", "exec"), names)  # noqa: S102 - our own
    document, digest = names["found"]  # type: ignore[misc]
    assert [file["content"] for file in document["files"]] == [file.content for file in hub.files]
    assert digest == hub.digest
