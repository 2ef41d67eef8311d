"""What hosts must be: shared values everywhere the same, secrets nowhere, digests that change only when they must."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import renderings
import yaml
from hypothesis import given
from hypothesis import strategies as st
from renderings import SHIPPED, Dummies, concern, context, expected, files, proxies, shipped, write_proxy
from site_files import REPOSITORY, valid, valid_release, write_site

from callfleet.actual import Actual, Unknown
from callfleet.desired import expected_host
from callfleet.desired.firewall import rules
from callfleet.desired.mark import registered_urls
from callfleet.desired.registration import core_fleet
from callfleet.errors import CallfleetError
from callfleet.expected import (
    CERTIFICATE_CHECK,
    Command,
    Directory,
    ExpectedHost,
    File,
    Item,
    Package,
    Runtime,
    Stack,
    Unit,
    unit_check,
)
from callfleet.plan import plan
from callfleet.site import Site, load_site
from callfleet.site.schema import HELD_PACKAGES, HELD_PROXY

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two fleet hosts, an ingress and an app host."""
    return made(tmp_path)


def made(folder: Path, *edits: Edit, release: Edit = lambda data: None) -> Site:
    """The same site with changes to its file or its release."""
    data, pins = valid(), valid_release()
    for edit in edits:
        edit(data)
    release(pins)
    return load_site(write_site(folder, data, pins))


def stack(host: ExpectedHost, name: str) -> Stack:
    """One Compose project of a host."""
    return next(item for item in host.items() if isinstance(item, Stack) and item.name == name)


def compose(host: ExpectedHost, name: str) -> dict[str, Any]:
    """The services of a project as Compose reads them."""
    return dict(yaml.safe_load(files(host)[f"/opt/stacks/{name}/compose.yml"].content)["services"])


def haproxy_version() -> tuple[int, ...]:
    """The version on this machine; empty without one."""
    if not shutil.which("haproxy"):
        return ()
    said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return tuple(int(part) for part in found.groups()) if found else ()


# Proxies


@pytest.mark.skipif(haproxy_version() < (3, 0), reason="needs HAProxy 3.0 (`retry-on 429`); the lab test has it")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sites_render_what_haproxy_accepts(name: str, tmp_path: Path) -> None:
    """Without a warning, for every proxy of the site."""
    for proxy in proxies(shipped(name), str(tmp_path)):
        config = write_proxy(tmp_path, proxy)
        done = subprocess.run(["haproxy", "-c", "-dW", "-f", str(config)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{proxy.label}: {done.stderr}"


def test_ipv6_addresses_are_bracketed_where_a_port_follows(tmp_path: Path) -> None:
    """A server line with a bare IPv6 address would be read as another address and port."""

    def move(data: dict[str, Any]) -> None:
        data["fleets"]["eu1"]["hosts"]["a"]["address"] = "fd00::11"

    config = files(expected(made(tmp_path, move), "front"))["/etc/callfleet/ingress/haproxy.cfg"].content.decode()
    assert " server a [fd00::11]:8443 " in config
    assert " server b 10.1.0.12:8443 " in config


def test_the_ingress_has_the_registered_hosts_alone(site: Site) -> None:
    """`front` brings up those that the proxy has, `ingress` those whose canary call succeeded."""
    host = expected(site, "front", registered=frozenset({"b"}), registered_before=frozenset({"a"}))
    configs = {}
    for one in host.concerns:
        for item in one.items:
            if getattr(item, "path", "") == "/etc/callfleet/ingress/haproxy.cfg":
                configs[one.name] = item.content.decode()  # type: ignore[union-attr]
    servers = {name: re.findall(r"^ +server (\w+)", text, re.MULTILINE) for name, text in configs.items()}
    assert servers == {"front": ["a", "files"], "ingress": ["b", "files"]}
    unchanged = expected(site, "front", registered=frozenset({"a"}), registered_before=frozenset({"a"}))
    assert unchanged.concern("ingress") is None


def test_retries_cover_every_host_twice(site: Site) -> None:
    """A call finds the last free slot whatever the order in which hosts refuse."""
    config = files(expected(site, "front"))["/etc/callfleet/ingress/haproxy.cfg"].content.decode()
    assert re.search(r"retries 6\n", config), "and those of one more: it joins without a reload"
    assert re.search(r"retry-on [^\n]*429", config)
    fleet = files(expected(site, "b"))["/opt/stacks/cxb-fleet/haproxy/haproxy.cfg"].content.decode()
    assert re.search(r"backend workers\n(?:.*\n)*?    retries 16\n", fleet)
    dispatch = fleet[fleet.index("backend dispatch\n") :]
    assert "429" not in dispatch[: dispatch.index("backend dispatch_full")], "dispatch must never be sent twice"


def test_hosts_come_and_go_without_another_configuration(tmp_path: Path) -> None:
    """Up to three are one configuration of the ingress, whatever their slots; a fourth takes a reload."""

    def many(data: dict[str, Any]) -> None:
        for n, name in enumerate("cde"):
            data["fleets"]["eu1"]["hosts"][name] = {"address": f"10.1.0.{50 + n}", "workers": 9}
            data["tls"]["internal"]["hosts"][name] = "file:a.pem"

    site = made(tmp_path, many)
    found = {
        hosts: digests(site, registered=frozenset(hosts), registered_before=frozenset(hosts))[
            "front/front configuration"
        ]
        for hosts in ("", "a", "ab", "abc", "cde", "abcd", "abcde")
    }
    assert len(set(list(found.values())[:5])) == 1
    assert found["abcd"] == found["abcde"] != found["abc"]


def test_the_host_proxy_writes_no_line_for_each_call(site: Site) -> None:
    """Its output has a reader only while dockerd runs: a full pipe would stop every call of the host."""
    assert "-q" in compose(expected(site, "a"), "cxb-fleet")["proxy"]["entrypoint"]


def section(config: str, name: str) -> str:
    """One backend of a proxy's configuration."""
    return re.split(r"\n\S", config[config.index(f"\nbackend {name}\n") + 1 :])[0]


@pytest.mark.parametrize(
    ("calls", "stop", "silence"),
    [
        ({}, 900, 90),
        ({"max_seconds": 120}, 420, 60),
        ({"max_seconds": 7200}, 7500, 120),
        ({"max_seconds": 7200, "tunnel_timeout_seconds": 45}, 7500, 45),
    ],
)
def test_one_number_says_how_long_everything_waits_for_a_call(
    calls: dict[str, Any], stop: int, silence: int, tmp_path: Path
) -> None:
    """The longest call: former processes outlive it; silence ends a call long before, within its own bounds."""
    site = made(tmp_path, lambda data: data.update(calls=calls))
    for host, path in (
        ("front", "/etc/callfleet/ingress/haproxy.cfg"),
        ("b", "/opt/stacks/cxb-fleet/haproxy/haproxy.cfg"),
    ):
        config = files(expected(site, host))[path].content.decode()
        assert f"hard-stop-after {stop}s\n" in config
        assert f"timeout tunnel {silence}s\n" in config


def test_the_ingress_retries_what_the_hosts_proxies_say_themselves(tmp_path: Path) -> None:
    """A full host says 429 whatever code its workers use; no code stands there twice."""
    site = made(tmp_path, lambda data: data.update(calls={"refusal_codes": [503]}))
    config = files(expected(site, "front"))["/etc/callfleet/ingress/haproxy.cfg"].content.decode()
    retried = re.findall(r"retry-on (.*)", section(config, "calls"))[0].split()
    assert {"429", "503"} <= set(retried)
    assert len(retried) == len(set(retried))


def test_a_worker_that_does_not_answer_a_start_is_left_for_another(site: Site) -> None:
    """A WebSocket after 10 s, a POST when today's proxy gives up too; a dispatch never."""
    config = files(expected(site, "b"))["/opt/stacks/cxb-fleet/haproxy/haproxy.cfg"].content.decode()
    workers = section(config, "workers")
    assert re.search(r"retry-on [^\n]*response-timeout", workers)
    assert "http-request set-timeout server 10s if { var(txn.ws) -m bool }" in workers
    assert "timeout server 60s" in config
    for backend in ("dispatch", "dispatch_full"):
        assert "response-timeout" not in section(config, backend)


def test_canary_and_health_are_data(tmp_path: Path) -> None:
    """What a site says of its canary and its brand of health answers is what the slot program and the proxy use."""

    def other(data: dict[str, Any]) -> None:
        data["calls"] = {"canary": {"path": "/exotel/{bot}", "bot": "trial", "busy": 2}}
        data["brand_overrides"] = {"health": {"path": "/healthz", "calls_field": "busy_calls", "id_field": "slot"}}

    rendered = files(expected(made(tmp_path, other), "b"))
    described = json.loads(rendered["/opt/stacks/cxb-fleet/stack.json"].content)
    assert described["health"] == {"path": "/healthz", "calls_field": "busy_calls", "id_field": "slot"}
    canary = described["canary"]
    assert (canary["path"], canary["bot"], canary["busy_value"]) == ("/exotel/{bot}", "trial", 2)
    config = rendered["/opt/stacks/cxb-fleet/haproxy/haproxy.cfg"].content.decode()
    assert config.count("option httpchk GET /healthz\n") == 2
    assert "busy_calls" in section(config, "dispatch")
    assert "use_backend health if { path /healthz /health/fleet }" in config


# Shared values


def test_fleet_urls_hold_registered_hosts_in_the_order_of_the_file(site: Site) -> None:
    """The Dialler never calls a host whose canary call failed."""
    for registered, urls in (
        (None, "https://a.acme.test,https://b.acme.test"),
        (frozenset({"b"}), "https://b.acme.test"),
        (frozenset({"b", "a"}), "https://a.acme.test,https://b.acme.test"),
        (frozenset(), ""),
    ):
        services = compose(expected(site, "app", registered=registered), "cxb-dialler")
        assert services["cxb-dialler"]["environment"]["FLEET_URLS"] == urls


def test_values_that_must_match_are_the_same_everywhere(site: Site) -> None:
    """Config URL, core secret, database and worker count come from one place."""
    worker = compose(expected(site, "b"), "cxb-fleet")["worker-1"]["environment"]
    assert (worker["CXBCORE_WORKERS"], worker["MAX_CONCURRENT_CALLS"]) == ("8", "1")
    assert worker["CONFIG_URL"] == "https://api.acme.test/api/v1/config"
    api = compose(expected(site, "app"), "cxb-app")["cxb-api"]["environment"]
    assert worker["MONGODB_DB"] == api["MONGODB_DB"] == "acme"
    env = {
        host: files(expected(site, host))[path].content
        for host, path in {
            "a": "/opt/stacks/cxb-fleet/secrets/worker.env",
            "b": "/opt/stacks/cxb-fleet/secrets/worker.env",
            "app": "/opt/stacks/cxb-app/secrets/cxb-api.env",
        }.items()
    }
    assert len(set(env.values())) == 1


def test_nothing_is_published_past_the_firewall(site: Site) -> None:
    """No service publishes a port, and none on the app host listens on the network."""
    for host in ("a", "b", "app"):
        for name in [item.name for item in expected(site, host).items() if isinstance(item, Stack)]:
            for service, spec in compose(expected(site, host), name).items():
                assert "ports" not in spec, f"{host} {service}"
                assert spec.get("environment", {}).get("HOST", "127.0.0.1") == "127.0.0.1"


def test_workers_are_not_stopped_by_what_a_stop_sends(site: Site) -> None:
    """Every slot ignores the stop signal and is given longer than the longest call; the proxy drains."""
    services = compose(expected(site, "a"), "cxb-fleet")
    for name, spec in services.items():
        assert int(spec["stop_grace_period"].rstrip("s")) > site.calls.max_seconds
        assert spec["stop_signal"] == ("SIGUSR1" if name == "proxy" else "SIGURG")
    assert services["proxy"]["restart"] == "always"


# Secrets


def hiding(secret: bytes) -> Iterator[bytes]:
    """The forms in which a secret could show: itself, its plain digests, its base64 at every alignment."""
    yield secret
    for digest in ("md5", "sha1", "sha256", "sha512"):
        yield hashlib.new(digest, secret).hexdigest().encode()
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret)
        yield encoded[4 if shift else 0 : -4]


def open_text(item: Item) -> Iterator[bytes]:
    """Everything of an item that others than root may come to see: files, scripts, arguments, labels, printed forms."""
    yield repr(item).encode()
    match item:
        case Command():
            yield item.script.encode() + item.wanted.encode()
        case Stack():
            yield json.dumps(dict(item.config)).encode() + item.proxy_config.encode()
    if hasattr(item, "content"):
        yield item.path.encode()
        if not item.secret:
            yield item.content


@pytest.mark.parametrize("host", ["a", "front", "app"])
def test_no_secret_shows_outside_secret_files(host: str, tmp_path: Path) -> None:
    """Not as text, digest or base64, in any file, label, hash, script or printed form; nor an env file's digest."""

    def more(data: dict[str, Any]) -> None:
        data["secrets"] |= {"extra": "env:EXTRA"}
        data["core"]["secret_environment"] = {"EXTRA_KEY": "extra"}
        data["app"]["api"] = {"secret_environment": {"EXTRA_KEY": "extra"}}
        data["tls"]["ca_bundle"] = "ca.pem"

    dummies = Dummies()
    host_state = expected(made(tmp_path, more), host, dummies)
    assert dummies.used, "no secret was asked for: this test would prove nothing"
    secret_files = [item for item in files(host_state).values() if item.secret]
    forms = {form: name for name, value in dummies.used.items() for form in hiding(value)}
    # A digest of a whole secret file can be tried out offline as well as one of the secret.
    forms |= {hashlib.sha256(item.content).hexdigest().encode(): item.path for item in secret_files}
    for item in host_state.items():
        for text in open_text(item):
            shown = [name for form, name in forms.items() if form in text]
            assert not shown, f"{shown} shows in {item}"
    found = {name for name, value in dummies.used.items() for item in secret_files if value.strip() in item.content}
    carried = [name for name in dummies.used if name not in ("registry_password",)]
    assert {"core_secret"} & found <= set(carried)
    assert secret_files


@pytest.mark.parametrize("host", ["a", "front", "app"])
def test_secret_files_are_readable_by_their_owner_alone(host: str, site: Site) -> None:
    """And lie in folders that only root may enter, or are the one file that a container's user needs."""
    for item in files(expected(site, host)).values():
        if item.secret:
            assert item.mode in ("0600", "0400"), item.path
            # OpenSSL names the reason alone; any other checker's message could quote the file.
            assert item.check in ("", CERTIFICATE_CHECK), item.path


def test_every_unit_file_is_read_by_systemd_before_it_is_used(site: Site) -> None:
    """Plain ones, templates and drop-ins, on every kind of host."""
    checked = set()
    for host in site.hosts:
        for path, item in files(expected(site, host.name)).items():
            if path.startswith("/etc/systemd/system/"):
                assert item.check == unit_check(path), path
                checked.add(path.rpartition("/")[2])
    assert checked == {"stack@.service", "callfleet-keeper@.service", "callfleet-firewall.service", "callfleet.conf"}


def test_a_secret_with_shell_characters_survives_in_its_env_file(tmp_path: Path) -> None:
    """Compose would replace `$` in an unquoted value."""
    dummies = Dummies({"core_secret": 'a$b"c d#e\\f'})
    env = files(expected(made(tmp_path), "a", dummies))["/opt/stacks/cxb-fleet/secrets/worker.env"].content
    assert env == b"CORE_SECRET='a$b\"c d#e\\f'\n"


# The second brand


def test_the_second_brand_leaves_no_first_brand_name_behind(tmp_path: Path) -> None:
    """Paths, units, services, headers and images of every host: names are data."""

    def vox(data: dict[str, Any]) -> None:
        data["brand"] = "voxbridge"

    def pins(data: dict[str, Any]) -> None:
        data["images"] = {
            name.replace("cxb-", "vox-"): pin | {"repository": f"acme/{name.replace('cxb-', 'vox-')}"}
            for name, pin in data["images"].items()
        }

    site = made(tmp_path, vox, release=pins)
    for host in site.hosts:
        for item in expected(site, host.name).items():
            text = repr(item) + getattr(item, "path", "") + getattr(item, "script", "")
            text += bytes(getattr(item, "content", b"")).decode(errors="replace")
            found = re.findall(r".{0,30}cx-?b(?:core|ridge|-).{0,30}", text, re.IGNORECASE)
            assert not found, f"{host.name}: {item}: {found}"


# Digests


def digests(site: Site, **others: Any) -> dict[str, str]:
    """Every digest that decides whether something is made anew or reloaded."""
    found = {}
    for host in site.hosts:
        state = expected(site, host.name, **others)
        for item in state.items():
            if isinstance(item, Stack):
                found |= {f"{host.name}/{item.name}/{service}": value for service, value in item.config.items()}
                if item.proxy_config:
                    found[f"{host.name}/proxy configuration"] = item.proxy_config
            if isinstance(item, Command) and item.fact.startswith("proxy:"):
                found[f"{host.name}/front configuration"] = item.wanted
            if isinstance(item, Runtime):
                found |= {f"{host.name}/server {one.subject}": repr(one) for one in item.servers}
                found |= {f"{host.name}/certificate {one.path}": one.fingerprint for one in item.certificates}
    return found


def test_digests_are_the_same_in_every_run(site: Site) -> None:
    """Another process with another hash seed and another order of things comes to the same digests."""
    pem = site.path.with_name("any.pem")
    pem.write_bytes(renderings.certificate("any"))
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "from pathlib import Path\nfrom callfleet.site import load_site\n"
        "import json, renderings, test_desired\n"
        # Certificates are made anew in that process; a digest covers them, so all of them are one that was made here.
        f"renderings.certificate = lambda name: Path({str(pem)!r}).read_bytes()\n"
        f"renderings.certificate_only = lambda _: Path({str(pem)!r}).read_bytes()\n"
        f"print(json.dumps(test_desired.digests(load_site(Path({str(site.path)!r})))))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(json.loads(said[0])) > 10
    assert said[0] == said[1]


def workers(image: str) -> Edit:
    """An edit of the release that gives one image another digest."""
    return lambda pins: pins["images"][image].update(digest="sha256:" + "1" * 64)


SITE_INGREDIENTS: list[tuple[str, Edit, Edit, str]] = [
    ("worker image", lambda d: None, workers("cxb-core-worker"), r"[ab]/cxb-fleet/worker-\d"),
    ("proxy image", lambda d: None, workers("haproxy"), r"[ab]/cxb-fleet/proxy"),
    ("api image", lambda d: None, workers("cxb-api"), r"app/cxb-app/cxb-api"),
    (
        "worker setting",
        lambda d: d["core"].update(environment={"LOG_LEVEL": "debug"}),
        lambda d: None,
        r"[ab]/cxb-fleet/worker-\d",
    ),
    (
        "worker count of one host",
        lambda d: d["fleets"]["eu1"]["hosts"]["a"].update(workers=3),
        lambda d: None,
        r"a/cxb-fleet/worker-\d|a/proxy configuration|front/server calls/a",
    ),
    (
        "address of one host",
        lambda d: d["fleets"]["eu1"]["hosts"]["a"].update(address="10.1.0.99"),
        lambda d: None,
        r"front/server calls/a",
    ),
    (
        "database",
        lambda d: d["app"].update(mongodb_db="other"),
        lambda d: None,
        r"[ab]/cxb-fleet/worker-\d|app/cxb-app/cxb-api",
    ),
    (
        "silence that ends a call",
        lambda d: d.update(calls={"tunnel_timeout_seconds": 75}),
        lambda d: None,
        r"[ab]/proxy configuration|(front|app)/front configuration",
    ),
]


@pytest.mark.parametrize(("name", "edit", "pin", "touched"), SITE_INGREDIENTS, ids=[one[0] for one in SITE_INGREDIENTS])
def test_each_ingredient_changes_what_is_made_from_it_alone(
    name: str, edit: Edit, pin: Edit, touched: str, tmp_path: Path
) -> None:
    """A forgotten ingredient would never be rolled out; one too many would touch slots for nothing."""
    before = digests(made(tmp_path / "before"))
    after = digests(made(tmp_path / "after", edit, release=pin))
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed
    assert changed == {key for key in before.keys() & after.keys() if re.fullmatch(touched, key)}, name


@pytest.mark.parametrize(
    ("reference", "touched"),
    [
        ("core_secret", r".*worker-\d|.*cxb-api|[ab]/proxy configuration"),  # also the key of every fingerprint
        ("api_admin_token", r"app/cxb-app/cxb-api"),
        ("file:a.pem", r"a/proxy configuration"),
        ("file:wildcard.pem", r"[ab]/proxy configuration|.*/certificate .*/tls/.*"),
        ("file:i.pem", r"front/certificate .*/client.pem"),
    ],
)
def test_a_changed_secret_reaches_what_uses_it(reference: str, touched: str, site: Site) -> None:
    """A rotated secret or certificate is rolled out like any other change, without being on any label."""
    before = digests(site)
    value = renderings.certificate("another").decode() if reference.startswith("file:") else "another-value"
    after = digests(site, dummies=Dummies({reference: value}))
    assert {key for key in before if before[key] != after[key]} == {key for key in before if re.fullmatch(touched, key)}


def test_the_proxy_reports_the_digest_that_is_expected(site: Site) -> None:
    """What `show env` says of the running proxy is compared with what the plan wants: they must be one value."""
    text = files(expected(site, "a"))["/opt/stacks/cxb-fleet/haproxy/haproxy.cfg"].content.decode()
    assert f"setenv CALLFLEET_CONFIG {digests(site)['a/proxy configuration']}\n" in text
    front = files(expected(site, "front"))["/etc/callfleet/ingress/haproxy.cfg"].content.decode()
    assert f"setenv CALLFLEET_CONFIG {digests(site)['front/front configuration']}\n" in front


def test_labels_say_what_each_container_was_made_from(site: Site) -> None:
    """The description on the host, the label and the plan hold the same digest."""
    state = expected(site, "a")
    services = compose(state, "cxb-fleet")
    described = json.loads(files(state)["/opt/stacks/cxb-fleet/stack.json"].content)["config"]
    labels = {name: spec["labels"]["callfleet.config"] for name, spec in services.items()}
    assert labels == described == dict(stack(state, "cxb-fleet").config)


# Registration


URLS = st.lists(st.sampled_from([f"https://{name}.other.test{end}" for name in "uvwxyz" for end in ("", "/")]))


@given(foreign=URLS, ours=st.permutations(["https://a.acme.test", "https://b.acme.test/"]), data=st.data())
def test_the_merged_list_keeps_what_is_not_ours(
    foreign: list[str], ours: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Foreign URLs stay, as often and in the order as they were; ours stand once, in the order of the site file."""
    site = _cached_site(tmp_path_factory)
    current = list(foreign)
    for url in ours:
        for _ in range(data.draw(st.integers(0, 2))):
            current.insert(data.draw(st.integers(0, len(current))), url)
    registered = data.draw(st.sampled_from([None, frozenset(), frozenset({"a"}), frozenset({"a", "b"})]))
    made_for = context(site, "app", registered=registered)
    wanted = [host.url for host in site.fleet_hosts if registered is None or host.name in registered]
    merged = core_fleet(made_for, tuple(current))
    assert list(merged) == foreign + wanted
    assert core_fleet(made_for, merged) == merged, "a second run would change it again"


_sites: list[Site] = []


def _cached_site(factory: pytest.TempPathFactory) -> Site:
    if not _sites:
        _sites.append(made(factory.mktemp("site")))
    return _sites[0]


def test_a_list_that_could_not_be_read_is_never_written(site: Site) -> None:
    """PUT replaces the whole list: with an unknown one the plan is blocked."""
    unread = Actual.unread("timed out")
    found = plan(ExpectedHost("app", (concern(site, "app", "registration"),)), unread).concern("registration")
    assert [str(change.word) for change in found.changes] == ["blocked"]


def test_urls_of_others_are_data_in_the_script_that_writes_the_list(site: Site, tmp_path: Path) -> None:
    """A quote in a URL that is not ours ends no argument: the script runs, and nothing in the URL does."""
    foreign = f"https://x.test/'; touch {tmp_path}/ran; '"
    sent = tmp_path / "sent"
    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    # Stands in for the API: answers the list that it has, and keeps the one that it is given.
    curl.write_text(
        "#!/usr/bin/env python3\nimport json, pathlib, sys\n"
        f"kept = pathlib.Path({str(sent)!r})\n"
        "if '-d' in sys.argv: kept.write_text(sys.argv[sys.argv.index('-d') + 1])\n"
        f"print(kept.read_text() if kept.exists() else json.dumps({{'core_fleet': [{foreign!r}]}}))\n"
    )
    curl.chmod(0o755)
    actual = Actual(core_fleet=(foreign,), contents={"/etc/docker/daemon.json": None})
    found = expected_host(context(site, "app"), actual).concern("registration")
    assert found is not None
    (command,) = found.items
    assert isinstance(command, Command)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-s"], input=command.script, env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(sent.read_text())["core_fleet"] == [foreign, *site.fleet_urls]
    assert not (tmp_path / "ran").exists()


# Docker


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", {}),
        (b"{}", {}),
        (b'{"dns": ["10.0.0.1"], "live-restore": false}', {"dns": ["10.0.0.1"]}),
        (b'{"log-driver": "journald", "log-opts": {"tag": "x"}}', {"log-driver": "journald", "log-opts": {"tag": "x"}}),
        (b'{"log-driver": "local"}', {"log-driver": "local", "log-opts": None}),
        (b'{"default-address-pools": []}', {"default-address-pools": []}),
        (
            b'{"default-address-pools": [{"base": "10.9.0.0/16", "size": 26}], "log-opts": {"max-size": "1g"}}',
            {
                "default-address-pools": [{"base": "10.9.0.0/16", "size": 26}],
                "log-opts": {"max-size": "1g", "max-file": "3"},
            },
        ),
        (
            b'{"log-driver": "json-file", "log-opts": {"labels": "a"}}',
            {"log-driver": "json-file", "log-opts": {"labels": "a", "max-size": "10m", "max-file": "3"}},
        ),
    ],
)
def test_an_operators_own_keys_in_daemon_json_are_kept(content: bytes, kept: dict[str, Any], site: Site) -> None:
    """live-restore is insisted upon; rotation is filled in for json-file alone, where it is missing."""
    written = daemon_json(site, content)
    assert {key: written.get(key) for key in kept} == kept
    assert written["live-restore"] is True
    assert daemon_json(site, json.dumps(written).encode()) == written


def test_a_bare_host_gets_rotation_and_pools_of_its_own(site: Site) -> None:
    """Nothing was said before: everything is ours."""
    assert daemon_json(site, b"") == {
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}],
    }


@pytest.mark.parametrize("source", ["debian", "docker"])
def test_every_held_package_can_be_pinned(source: str, tmp_path: Path) -> None:
    """The engine, what it runs on, and the native proxy; packages that are not named are held at what is installed."""
    names = (*HELD_PACKAGES[source], HELD_PROXY)

    def pin(data: dict[str, Any]) -> None:
        data["docker"] = {"source": source}
        data["versions"] = {name: f"1.{n}" for n, name in enumerate(names)}

    for pinned in (made(tmp_path, pin), made(tmp_path, lambda data: data.update(docker={"source": source}))):
        found = {item.name: item for host in ("a", "front") for item in expected(pinned, host).items()
                 if isinstance(item, Package)}  # fmt: skip
        assert {name: found[name].version for name in names} == {n: pinned.versions.get(n, "") for n in names}
        assert {name for name, item in found.items() if item.hold} == set(names)


# What stops


@pytest.mark.parametrize("seconds", [600, 86400])
def test_a_stack_may_stop_for_longer_than_the_longest_call(seconds: int, tmp_path: Path) -> None:
    """The unit's limit, above every container's own, follows the site; the unit itself sets none."""
    found = made(tmp_path, lambda data: data.update(calls={"max_seconds": seconds}))
    for host, name in (("a", "cxb-fleet"), ("app", "cxb-app"), ("app", "cxb-dialler")):
        built = expected(found, host)
        drop_in = files(built)[f"/etc/systemd/system/stack@{name}.service.d/callfleet.conf"].content.decode()
        (limit,) = re.findall(r"^TimeoutStopSec=(\d+)$", drop_in, re.MULTILINE)
        graces = [int(service.get("stop_grace_period", "0s")[:-1]) for service in compose(built, name).values()]
        assert int(limit) > max(seconds, *graces)
    unit = files(expected(found, "a"))["/etc/systemd/system/stack@.service"].content.decode()
    assert "TimeoutStopSec=infinity" in unit


# The Dialler


def test_the_diallers_quiet_rule_is_data_of_the_brand(tmp_path: Path) -> None:
    """Another field and value, for a Dialler that says it otherwise."""

    def otherwise(data: dict[str, Any]) -> None:
        data["brand_overrides"] = {"dialler_quiet": {"path": "/state", "field": "idle", "equals": True}}

    for found, rule in (
        (made(tmp_path), {"url": "http://127.0.0.1:8090/health", "field": "calls_in_setup", "equals": 0}),
        (made(tmp_path, otherwise), {"url": "http://127.0.0.1:8090/state", "field": "idle", "equals": True}),
    ):
        stack_json = json.loads(files(expected(found, "app"))["/opt/stacks/cxb-dialler/stack.json"].content)
        quiet = stack_json["services"]["cxb-dialler"]["quiet"]
        assert quiet == rule
        assert type(quiet["equals"]) is type(rule["equals"])


def test_a_daemon_json_that_is_right_is_left_as_it_is_laid_out(site: Site) -> None:
    """Another layout of the same values is no difference."""
    content = json.dumps(daemon_json(site, b"{}") | {"mtu": 1400}).encode()
    state = context(site, "a")
    found = files(expected_host(state, Actual(contents={"/etc/docker/daemon.json": content})))
    assert found["/etc/docker/daemon.json"].content == content


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"log-opts": []}', Unknown("larger than 64 KiB")])
def test_a_daemon_json_that_cannot_be_understood_is_not_overwritten(content: bytes | Unknown, site: Site) -> None:
    """The operator's keys would be lost: this host fails with a sentence instead."""
    with pytest.raises(CallfleetError, match=r"/etc/docker/daemon\.json .*keys"):
        daemon_json(site, content)


def daemon_json(site: Site, content: bytes | Unknown) -> dict[str, Any]:
    """What is written where daemon.json has this content."""
    found = files(expected_host(context(site, "a"), Actual(contents={"/etc/docker/daemon.json": content})))
    return dict(json.loads(found["/etc/docker/daemon.json"].content))


# Firewall


def accepted(site: Site, host: str, ssh: frozenset[int] = frozenset({22})) -> list[str]:
    """The accepting rules of a host, as nft reads them."""
    return [f"{rule.match}{rule.protocol} {rule.port}" for rule in rules(context(site, host), set(ssh))]


def test_each_role_opens_its_ports_and_no_others(site: Site) -> None:
    """The mutual TLS port is for the ingress' addresses alone."""
    assert accepted(site, "a") == ["tcp 22", "tcp 443", "ip saddr { 10.1.0.2 } tcp 8443"]
    assert accepted(site, "front") == ["tcp 22", "tcp 443"]
    assert accepted(site, "app") == ["tcp 22", "tcp 443"]


def test_port_80_is_there_for_acme_alone(site: Site, tmp_path: Path) -> None:
    """On every front, and on the fleet host whose own name is obtained: it sends the authority to a front."""

    def declare(data: dict[str, Any]) -> None:
        names = ["calls.acme.test", "a.acme.test"]
        data["tls"]["certificates"] |= {name: f"file:{name}.pem" for name in names}
        data["tls"]["acme"] = {"directory": "https://acme.test/dir", "account_key": "file:k.pem", "names": names}

    with_acme = made(tmp_path, declare)
    for host, opened in (("front", True), ("app", True), ("a", True), ("b", False)):
        assert "tcp 80" not in accepted(site, host)
        assert ("tcp 80" in accepted(with_acme, host)) == opened
        before, after = (
            next(text for path, text in configurations(one, host).items() if path.endswith("haproxy.cfg"))
            for one in (site, with_acme)
        )
        assert "bind :80\n" not in before
        assert ("bind :80\n" in after) == opened
    assert "map_str(virt@challenges)" in configurations(with_acme, "front")["/etc/callfleet/ingress/haproxy.cfg"]
    sent = configurations(with_acme, "a")["/opt/stacks/cxb-fleet/haproxy/haproxy.cfg"]
    assert "location http://calls.acme.test%[path] if challenge" in sent


def configurations(site: Site, host: str) -> dict[str, str]:
    """The files of a host as text."""
    return {path: file.content.decode(errors="replace") for path, file in files(expected(site, host)).items()}


def test_sources_are_matched_in_their_own_family(tmp_path: Path) -> None:
    """A list without a family leaves that family closed."""

    def limit(data: dict[str, Any]) -> None:
        data["firewall"] = {"callers": ["10.0.0.0/8", "fd00::/8"], "ssh_from": ["0.0.0.0/0"]}
        data["hosts"]["front"]["address6"] = "fd00::2"
        data["fleets"]["eu1"]["hosts"]["a"]["open_ports"] = [
            {"port": 7882, "protocol": "udp", "comment": "LiveKit", "from": ["::/0"]}
        ]

    assert accepted(made(tmp_path, limit), "a") == [
        "meta nfproto ipv4 tcp 22",
        "ip saddr { 10.0.0.0/8 } tcp 443",
        "ip6 saddr { fd00::/8 } tcp 443",
        "ip saddr { 10.1.0.2 } tcp 8443",
        "ip6 saddr { fd00::2 } tcp 8443",
        "meta nfproto ipv6 udp 7882",
    ]


def test_logs_go_to_the_declared_target_and_to_nobody_otherwise(site: Site, tmp_path: Path) -> None:
    """No container is made anew for it: definitions stay the same. Undeclared, what was laid down is taken away."""

    def ship(data: dict[str, Any]) -> None:
        data["logs"] = {"ship_to": {"host": "logs.acme.test", "port": 6514, "protocol": "udp"}}

    shipping = made(tmp_path, ship)
    laid = files(expected(shipping, "a"))["/etc/rsyslog.d/60-callfleet.conf"]
    assert laid.check
    assert laid.content.count(b'target="logs.acme.test" port="6514" protocol="udp"') == 2
    compose = f"/opt/stacks/{site.brand.stack}/compose.yml"
    assert files(expected(shipping, "a"))[compose].content == files(expected(site, "a"))[compose].content
    (item,) = concern(site, "a", "logs").items
    assert isinstance(item, Command)
    assert (item.fact, item.wanted) == ("file:/etc/rsyslog.d/60-callfleet.conf", "")


def metered(data: dict[str, Any]) -> None:
    """Metrics for one address, on a site with a host that is everything."""
    data["ports"] = {"metrics": 9101, "metrics_shared": 9102}
    data["metrics"] = {"from": ["10.9.0.1"]}
    data["fleets"]["eu1"]["hosts"]["a"]["roles"] = ["ingress"]


def test_metrics_are_for_the_declared_sources_and_off_otherwise(site: Site, tmp_path: Path) -> None:
    """Each proxy has a port of its own; nobody else gets in; without the port nothing of it is laid down."""
    with_them = made(tmp_path, metered)
    for host, ports in {"a": [9101, 9102], "b": [9101], "front": [9101], "app": [9101]}.items():
        found = [rule for rule in accepted(with_them, host) if "910" in rule]
        assert found == [f"ip saddr {{ 10.9.0.1 }} tcp {port}" for port in ports]
    stack = with_them.brand.stack
    a = files(expected(with_them, "a"))
    front = a["/etc/callfleet/ingress/haproxy.cfg"].content.decode()
    fleet = a[f"/opt/stacks/{stack}/haproxy/haproxy.cfg"].content.decode()
    assert "bind :9101\n" in front
    assert "bind :9102\n" in fleet
    assert "/metrics/slots" in fleet
    for host in ("a", "front"):
        assert not [path for path, file in files(expected(site, host)).items() if b"prometheus" in file.content]


@pytest.mark.skipif(haproxy_version() < (3, 0), reason="needs HAProxy 3.0; the lab test has it")
def test_haproxy_accepts_the_metrics_ports(tmp_path: Path) -> None:
    """Without a warning."""
    for proxy in proxies(made(tmp_path, metered), str(tmp_path)):
        config = write_proxy(tmp_path, proxy)
        done = subprocess.run(["haproxy", "-c", "-dW", "-f", str(config)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{proxy.label}: {done.stderr}"


def test_the_ssh_port_in_use_stays_open(site: Site) -> None:
    """Whatever the site file says: the run's own link must survive its own rules."""
    found = files(expected_host(context(site, "a"), Actual(ssh_port=2222, contents={"/etc/docker/daemon.json": None})))[
        "/etc/callfleet/firewall.nft"
    ].content
    assert b"tcp dport 22 accept" in found
    assert b"tcp dport 2222 accept" in found


def test_other_tables_are_never_named(site: Site) -> None:
    """One table of ours is replaced in one step; nothing flushes the rule set."""
    for host in ("a", "front", "app"):
        text = files(expected(site, host))["/etc/callfleet/firewall.nft"].content.decode()
        assert set(re.findall(r"^(?:delete )?table (.*?)(?: \{)?$", text, re.MULTILINE)) == {"inet callfleet"}
        assert "flush" not in text
    named = {
        item.name for host in ("a", "front", "app") for item in expected(site, host).items() if isinstance(item, Unit)
    }
    assert "nftables.service" not in named


# Every host


@pytest.mark.parametrize("name", SHIPPED)
def test_folders_come_before_what_lies_in_them(name: str) -> None:
    """A concern can be carried out from its first line: no file is written into a folder that is declared later."""
    site = shipped(name)
    for host in site.hosts:
        seen: set[str] = set()
        declared = {item.path for item in expected(site, host.name).items() if isinstance(item, Directory)}
        for item in expected(site, host.name).items():
            if isinstance(item, Directory | File):
                parent = str(Path(item.path).parent)
                assert parent not in declared or parent in seen, f"{host.name}: {item.path} before its folder"
            if isinstance(item, Directory):
                seen.add(item.path)


@pytest.mark.parametrize("name", SHIPPED)
def test_one_path_has_one_content(name: str) -> None:
    """Two concerns that want a file differently would undo each other in every run."""
    for host in shipped(name).hosts:
        same = expected(shipped(name), host.name, registered=frozenset(), registered_before=frozenset())
        contents: dict[str, set[bytes]] = {}
        for item in same.items():
            if isinstance(item, File):
                contents.setdefault(item.path, set()).add(item.content)
        assert {path for path, found in contents.items() if len(found) > 1} == set()


def test_the_mark_names_who_is_registered_through_it(site: Site) -> None:
    """The next run reads from it who has calls already."""
    for host, registered in (("front", ["b"]), ("app", ["b"])):
        state = expected(site, host, registered=frozenset({"b"}))
        mark = json.loads(files(state)["/etc/callfleet/site.json"].content)
        assert (mark["registered"], mark["host"], mark["release"]) == (registered, host, "2026.11.20")
    assert "registered" not in json.loads(files(expected(site, "a"))["/etc/callfleet/site.json"].content)


def test_a_host_that_left_takes_its_url_along(site: Site) -> None:
    """The app host's mark names the URLs that we registered; one that somebody else listed stays."""
    mark = json.loads(files(expected(site, "app"))["/etc/callfleet/site.json"].content)
    assert mark["urls"] == ["https://a.acme.test", "https://b.acme.test"]
    gone = "https://gone.acme.test"
    assert registered_urls(Actual(site={"urls": [gone]})) == {gone}
    assert registered_urls(Actual(site=Unknown("x"))) == registered_urls(Actual(site=None)) == frozenset()
    made = context(site, "app")
    current = ("https://foreign.test", gone)
    assert gone in core_fleet(made, current)
    assert core_fleet(made, current, frozenset({gone})) == ("https://foreign.test", *site.fleet_urls)


def test_a_worker_is_not_made_anew_because_another_host_comes(tmp_path: Path) -> None:
    """Static names and entries of other fleet hosts are not part of it; the API's name and its own are."""

    def names(data: dict[str, Any]) -> None:
        data["names"] = {"api.acme.test": "10.1.0.3", "a.acme.test": "10.1.0.11"}

    def third(data: dict[str, Any]) -> None:
        names(data)
        data["names"]["c.acme.test"] = "10.1.0.13"
        data["fleets"]["eu1"]["hosts"]["c"] = {"address": "10.1.0.13"}
        data["tls"]["internal"]["hosts"]["c"] = "file:c.pem"

    before, after = (
        next(item for item in expected(made(tmp_path / name, edit), "a").items() if isinstance(item, Stack))
        for name, edit in (("before", names), ("after", third))
    )
    assert before.config == after.config


def test_contexts_hide_what_can_read_secrets(site: Site) -> None:
    """A context in a log or traceback shows neither secrets nor the way to them."""
    made_for = context(site, "a", Dummies({"core_secret": "correct-horse"}))
    made_for.secret("core_secret")
    assert "correct-horse" not in repr(made_for)
    assert "Dummies" not in repr(replace(made_for, registered=frozenset()))
