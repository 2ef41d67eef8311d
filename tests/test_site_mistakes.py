"""Wrong sites: every mistake is named with file, line, path, value and expectation, and nothing is connected to."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from site_files import Change, dump, valid, valid_release, write_site

from callfleet.errors import SiteError
from callfleet.site import load_site

WORD = "correct-horse-battery"
A = "fleets.eu1.hosts.a"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect or to look up a name fails the test."""

    def refuse(*_arguments: object, **_options: object) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def host(site: dict[str, Any]) -> dict[str, Any]:
    """The entry of host a."""
    entry: dict[str, Any] = site["fleets"]["eu1"]["hosts"]["a"]
    return entry


def put(path: str, value: object) -> Change:
    """A change that sets one value, making what is above it."""

    def change(site: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            site = site.setdefault(key, {})
        site[last] = value

    return change


def cut(path: str) -> Change:
    """A change that removes one key."""

    def change(site: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            site = site[key]
        del site[last]

    return change


def both(*changes: Change) -> Change:
    """Several changes as one."""

    def change(site: dict[str, Any]) -> None:
        for one in changes:
            one(site)

    return change


def acme(**over: object) -> Change:
    """A change that has the ingress's certificate obtained by ACME, otherwise than is right."""
    right = {"directory": "https://acme.test/dir", "account_key": "file:k.pem", "names": ["calls.acme.test"]}
    return put("tls.acme", right | over)


# what is done to the valid site, the path that must be named, words that the message must hold
MISTAKES: dict[str, tuple[Change, str, str]] = {
    "key unknown": (put("domian", "x"), "domian", "Did you mean domain?"),
    "key unknown, deep": (put(f"{A}.wrokers", 4), f"{A}.wrokers", "Did you mean workers?"),
    "key unknown, in open_ports": (
        put(f"{A}.open_ports", [{"port": 1, "comment": "x", "protocl": "tcp"}]),
        f"{A}.open_ports[0].protocl",
        "Did you mean protocol?",
    ),
    "key missing": (cut("domain"), "domain", "required"),
    "address missing": (cut(f"{A}.address"), f"{A}.address", "required"),
    "format of the future": (put("callfleet", 2), "callfleet", "reads format version 1"),
    "format as text": (put("callfleet", "1"), "callfleet", "callfleet: 1"),
    "stage unknown": (put("stage", "production"), "stage", "'prod'"),
    "brand override of another kind": (
        put("brand_overrides", {"dialler_quiet": {"equals": [0]}}),
        "brand_overrides.dialler_quiet.equals",
        "true or false",
    ),
    "version of what is not held": (put("versions", {"haproxi": "3.0"}), "versions.haproxi", "Did you mean haproxy?"),
    "version of the other engine": (put("versions", {"docker-ce": "5:28"}), "versions.docker-ce", "docker.source"),
    "version that is none": (put("versions", {"haproxy": "latest"}), "versions.haproxy", "package version"),
    "brand unknown": (put("brand", "cxbrige"), "brand", "Did you mean cxbridge?"),
    "brand override unknown": (
        put("brand_overrides", {"secret_haeder": "X"}),
        "brand_overrides.secret_haeder",
        "secret_header",
    ),
    "site of another name": (put("site", "other"), "site", '"acme", as the file is called'),
    "domain with a scheme": (put("domain", "https://acme.test"), "domain", "host name"),
    "workers as words": (put(f"{A}.workers", "sixteen"), f"{A}.workers", "from 1 to 512"),
    "workers in quotes": (put(f"{A}.workers", "16"), f"{A}.workers", "without quotes"),
    "workers true": (put(f"{A}.workers", True), f"{A}.workers", "from 1 to 512"),
    "workers zero": (put(f"{A}.workers", 0), f"{A}.workers", "from 1 to 512"),
    "workers undeclared": (cut("core.workers_default"), f"{A}.workers", "core.workers_default"),
    "workers beyond memory": (put(f"{A}.workers", 12), f"{A}.workers", "at most 11 workers"),
    "memory below the reserve": (put(f"{A}.memory_mb", 512), f"{A}.workers", "at most 0 workers"),
    "address is no address": (put(f"{A}.address", "10.1.0.300"), f"{A}.address", "IPv4 or IPv6"),
    "address is a number": (put(f"{A}.address", 10), f"{A}.address", "IPv4 or IPv6"),
    "address twice": (put("hosts.front.address", "10.1.0.11"), "hosts.front.address", "which a has"),
    "address6 twice, spelt otherwise": (
        lambda s: (put(f"{A}.address6", "fd00::1")(s), put("hosts.app.address6", "fd00:0::1")(s)),
        "hosts.app.address6",
        "which a has",
    ),
    "address6 is IPv4": (put(f"{A}.address6", "10.1.0.99"), f"{A}.address6", "an IPv6 address"),
    "address of this machine": (put(f"{A}.address", "127.0.0.1"), f"{A}.address", "other hosts reach it"),
    "address of nobody": (put(f"{A}.address", "0.0.0.0"), f"{A}.address", "other hosts reach it"),
    "host twice": (put("hosts.a", {"address": "10.1.0.9", "roles": ["ingress"]}), "hosts.a", "once in the file"),
    "host in two fleets": (
        put("fleets.us1", {"hosts": {"a": {"address": "10.1.0.99"}}}),
        "fleets.us1.hosts.a",
        "once in the file",
    ),
    "host name in capitals": (put("hosts.Front", {"address": "10.1.0.9"}), "hosts.Front", "lower-case"),
    "host without role": (put("hosts.front.roles", []), "hosts.front.roles", "at least one role"),
    "role unknown": (put("hosts.front.roles", ["sip"]), "hosts.front.roles[0]", "'ingress' or 'app'"),
    "role fleet": (put("hosts.front.roles", ["fleet"]), "hosts.front.roles", "under fleets"),
    "role twice": (put("hosts.front.roles", ["ingress", "ingress"]), "hosts.front.roles", "Entry 2"),
    "two app hosts": (put("hosts.front.roles", ["ingress", "app"]), "hosts.app.roles", "a second one beside front"),
    "ingress without a fleet": (put("fleets", {}), "hosts.front.roles", "a fleet host to pass calls to"),
    "ingress name without ingress": (
        lambda s: (put("ingress.public_name", "c.acme.test")(s), cut("hosts.front")(s)),
        "ingress",
        "role ingress",
    ),
    "port twice": (put(f"{A}.ports", {"mtls": 443}), f"{A}.ports.mtls", "the fleet's public port has it"),
    "port of SSH": (put("ssh.port", 443), f"{A}.ports.fleet", "where SSH has it"),
    "port of a store": (put("ports.redis", 8080), "ports.redis", "where api has it"),
    "open port of ours": (
        put(f"{A}.open_ports", [{"port": 8443, "comment": "x"}]),
        f"{A}.open_ports[0].port",
        "ingress has it",
    ),
    "metrics for nobody": (put("ports.metrics", 9101), "metrics.from", "opens a port: say for whom"),
    "metrics without a port": (
        put("metrics.from", ["10.9.0.1"]),
        "ports.metrics",
        "the port that metrics.from may read",
    ),
    "metrics port taken": (put("ports.metrics", 8443), "ports.metrics", "the fleet's port for the ingress has it"),
    "logs to nowhere": (
        put("logs", {"ship_to": {"host": "logs.acme.test"}}),
        "logs.ship_to.port",
        "this key is required",
    ),
    "logs by pigeon": (
        put("logs", {"ship_to": {"host": "logs.acme.test", "port": 514, "protocol": "relp"}}),
        "logs.ship_to.protocol",
        "tcp",
    ),
    "port out of range": (put("ports.mtls", 70000), "ports.mtls", "from 1 to 65535"),
    "network with host bits": (put("firewall.callers", ["10.1.0.5/8"]), "firewall.callers[0]", "after the prefix"),
    "public name twice": (put(f"{A}.public_name", "calls.acme.test"), "ingress.public_name", "which host a has"),
    "certificate missing": (
        put(f"{A}.public_name", "a.eu1.acme.test"),
        'tls.certificates["a.eu1.acme.test"]',
        '"*.eu1.acme.test"',
    ),
    "internal certificate missing": (cut("tls.internal.hosts.b"), "tls.internal.hosts.b", "internal certificate for b"),
    "internal certificate of nobody": (
        put("tls.internal.hosts.c", "file:c.pem"),
        "tls.internal.hosts.c",
        "a fleet host's name",
    ),
    "ACME without TLS": (acme(directory="http://acme.test/dir"), "tls.acme.directory", "the https URL"),
    "ACME for nobody": (acme(contact="mailto:ops@acme.test"), "tls.acme.contact", "a mail address"),
    "ACME for a wildcard": (acme(names=["*.acme.test"]), "tls.acme.names[0]", "a host name in lower case"),
    "ACME for no name": (acme(names=[]), "tls.acme.names", "at least 1"),
    "ACME for a name under a wildcard": (acme(names=["api.acme.test"]), "tls.acme.names[0]", "an entry of its own"),
    "ACME for a name that nobody serves": (
        both(
            put("tls.certificates", {"*.acme.test": "file:w.pem", "x.acme.test": "file:x.pem"}),
            acme(names=["x.acme.test"]),
        ),
        "tls.acme.names[0]",
        "a name that a host of this site answers",
    ),
    "ACME into a command": (
        both(put("tls.certificates", {"*.acme.test": "file:w.pem", "calls.acme.test": "command:pass x"}), acme()),
        'tls.certificates["calls.acme.test"]',
        "a file: reference, where the certificate is written",
    ),
    "ACME into another's file": (
        both(put("tls.certificates", {"*.acme.test": "file:w.pem", "calls.acme.test": "file:w.pem"}), acme()),
        'tls.certificates["calls.acme.test"]',
        "a file that is obtained by ACME as a whole",
    ),
    "ACME where something else has the port": (
        both(
            put("tls.certificates", {"*.acme.test": "file:w.pem", "calls.acme.test": "file:c.pem"}),
            put("hosts.front.open_ports", [{"port": 80, "comment": "a page"}]),
            acme(),
        ),
        "hosts.front.open_ports[0].port",
        "80 for open_ports (a page) on front, where challenges of ACME has it",
    ),
    "days that are none": (put("tls.renew_days", 0), "tls.renew_days", "days from 1 to 365"),
    "internal TLS missing": (cut("tls.internal"), "tls.internal", "mutual TLS"),
    "secret undeclared": (cut("secrets.core_secret"), "secrets.core_secret", "what workers show"),
    "secret misspelt": (put("registry.password", "registry_pasword"), "registry.password", "registry_password"),
    "secret of a variable undeclared": (
        put("core.secret_environment", {"KEY": "nothing_like_it"}),
        "core.secret_environment.KEY",
        "declared under",
    ),
    "registry half declared": (cut("registry.username"), "registry", "together, or neither"),
    "registry with a scheme": (put("registry.address", "https://r.test"), "registry.address", "without https"),
    "shared value set again": (
        put("core.environment", {"CONFIG_URL": "https://x"}),
        "core.environment.CONFIG_URL",
        "app.config_url",
    ),
    "FLEET_URLS set by hand": (
        put("app.dialler.environment", {"FLEET_URLS": "https://x"}),
        "app.dialler.environment.FLEET_URLS",
        "the fleet hosts themselves",
    ),
    "worker count set by hand": (
        put("core.environment", {"CXBCORE_WORKERS": "3"}),
        "core.environment.CXBCORE_WORKERS",
        "workers, of each fleet host",
    ),
    "variable as a number": (put("core.environment", {"LIMIT": 3}), "core.environment.LIMIT", "write it in quotes"),
    "database undeclared": (cut("app.mongodb_db"), "app.mongodb_db", "API's database"),
    "refusal that cannot be retried": (put("calls.refusal_codes", [429, 418]), "calls.refusal_codes[1]", "retry on"),
    "canary to no bot": (put("calls.canary", {"path": "/ws/demo"}), "calls.canary.path", "with {bot} once"),
    "canary path with a space": (
        put("calls.canary", {"path": "/ws/{bot} x"}),
        "calls.canary.path",
        "such as /ws/{bot}",
    ),
    "canary that is no call": (put("calls.canary", {"busy": 0}), "calls.canary.busy", "calls"),
    "health field that is no name": (
        put("brand_overrides", {"health": {"calls_field": "calls.now"}}),
        "brand_overrides.health.calls_field",
        "field in a JSON answer",
    ),
    "health path without a slash": (
        put("brand_overrides", {"health": {"path": "health"}}),
        "brand_overrides.health.path",
        "a path of a URL",
    ),
    "config URL without scheme": (put("app.config_url", "api.acme.test"), "app.config_url", "a URL such as"),
    "hosts as a list": (put("hosts", [{"name": "x"}]), "hosts", "a mapping"),
    "section as text": (put("tls", "yes"), "tls", "a mapping"),
    "section empty": (put("app", None), "app", "a mapping"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    """The path, its line, and what to do."""
    change, path, says = MISTAKES[name]
    site = valid()
    change(site)
    with pytest.raises(SiteError) as caught:
        load_site(write_site(tmp_path, site))
    found = {problem.path: problem for problem in caught.value.errors}
    assert path in found, str(caught.value)
    assert says in str(found[path])
    assert found[path].line
    assert f"acme.yml:{found[path].line}" in str(caught.value)


FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "an empty file"),
    "comments alone": ("# nothing\n", "an empty file"),
    "a list": ("- a\n", "a mapping"),
    "text": ("just text\n", "a mapping"),
    "not YAML": ("site: [a\nstage: prod\n", "syntax error"),
    "tab": ("site:\n\tname: x\n", "syntax error"),
    "not UTF-8": ("site: k\xf6ln\n".encode("latin-1"), "UTF-8"),
    "control character": ("site: \x01\n", "syntax error"),
    "two documents": ("a: 1\n---\nb: 2\n", "syntax error"),
    "key twice": (f"secrets:\n  core_secret: {WORD}\n  core_secret: {WORD}\n", "a second time (first on line 2)"),
    "key is a list": ("? [a]\n: 1\n", "plain text as a key"),
    "alias to itself": ("a: &x [*x]\n", "contain themselves"),
    "alias to nothing": ("a: *x\n", "syntax error"),
    "object tag": ("a: !!python/object/apply:os.system [id]\n", "a YAML tag"),
    "impossible number": ("a: !!int many\n", "cannot be read"),
    "huge number": ("callfleet: 1\nport: " + "9" * 5000 + "\n", "cannot be read"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "laughs": (
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "moderate size",
    ),
    "large": ("#" * 1_000_001, "at most 1000000 bytes"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    """Whatever is in the file, the answer is a sentence about it, without what the file says."""
    content, says = FILES[name]
    with pytest.raises(SiteError, match=r"acme\.yml") as caught:
        load_site(write_site(tmp_path, content))
    assert says in str(caught.value)
    assert WORD not in str(caught.value)


def test_a_missing_site_lists_what_there_is(tmp_path: Path) -> None:
    """And a missing lab says how to make one."""
    file = write_site(tmp_path, valid())
    with pytest.raises(SiteError, match="Sites here: acme"):
        load_site(file.with_name("acmee.yml"))
    with pytest.raises(SiteError, match="callfleet lab up"):
        load_site(file.with_name("lab.yml"))


RELEASES: dict[str, tuple[Change, str, str]] = {
    "unpinned": (cut("images.redis.digest"), "images.redis.digest", "callfleet release pin acme redis 1"),
    "unpinned, unused": (cut("images.minio.digest"), "images.minio.digest", "no unpinned image"),
    "missing": (cut("images.haproxy"), "images.haproxy", "callfleet release pin acme haproxy"),
    "misspelt": (put("images.cxb-apo", {"tag": "1"}), "images.cxb-apo", "Did you mean cxb-api?"),
    "name missing": (cut("release"), "release", "required"),
    "name is a number": (put("release", 2026.11), "release", "write it in quotes"),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_wrong_release_is_named_together_with_the_site(tmp_path: Path, name: str) -> None:
    """The release is checked with the site: one run shows the mistakes of both files."""
    change, path, says = RELEASES[name]
    release, site = valid_release(), valid()
    change(release)
    put(f"{A}.workers", 12)(site)
    with pytest.raises(SiteError) as caught:
        load_site(write_site(tmp_path, site, release))
    found = {problem.path: problem for problem in caught.value.errors}
    assert says in str(found[path])
    assert found[path].file.name == "acme.release.yml"
    assert f"{A}.workers" in found


def test_a_missing_release_is_named(tmp_path: Path) -> None:
    """By the file that is looked for."""
    file = write_site(tmp_path, valid())
    file.with_name("acme.release.yml").unlink()
    with pytest.raises(SiteError, match=r"acme\.release\.yml.*No such file"):
        load_site(file)


def test_all_mistakes_are_listed_together(tmp_path: Path) -> None:
    """One run, every mistake, in the order of the file's parts."""
    site = valid()
    for change in (put(f"{A}.workers", "x"), put("stage", "live"), put("hosts.app.addres", "x"), cut("domain")):
        change(site)
    with pytest.raises(SiteError) as caught:
        load_site(write_site(tmp_path, site))
    assert {each.path for each in caught.value.errors} == {
        f"{A}.workers", "stage", "hosts.app.addres", "domain",
    }  # fmt: skip
    assert "4 mistakes" in str(caught.value)


PEM = f"-----BEGIN PRIVATE KEY-----\n{WORD}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "change",
    [
        put("secrets.core_secret", WORD),
        put("secrets.core_secret", [WORD]),
        put("secrets", WORD),
        put("registry.password", WORD),
        put("registry.pasword", WORD),
        put("registry.address", f"https://user:{WORD}@r.test"),
        put("app.config_url", f"https://user:{WORD}@api.test"),
        put("core_secret", WORD),
        put("tls.certificates", {"*.acme.test": WORD}),
        put("tls.internal.ingress", WORD),
        put("tls.internal.hosts.a", PEM),
        put("tls.internal.authority", {"key": PEM}),
        put("tls.acme", {"account_key": PEM}),
        put("ssh.key", PEM),
        put("core.environment", {"SOME_TOKEN": WORD}),
        put("core.environment", {"SOME_TOKEN": [WORD]}),
        put("core.secret_environment", {"KEY": WORD}),
        put("core.secret_environment", {"KEY": WORD.replace("-", "_")}),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path, change: Change) -> None:
    """It is refused, and the message does not hold it."""
    site = valid()
    change(site)
    with pytest.raises(SiteError) as caught:
        load_site(write_site(tmp_path, site))
    for word in (WORD, WORD.replace("-", "_")):
        assert word not in str(caught.value)
        assert word not in repr(caught.value.errors)


def test_group_data_must_be_plain(tmp_path: Path) -> None:
    """A wrong group_data is a mistake like any other, and is never run."""
    file = write_site(tmp_path, valid())
    defaults = tmp_path / "group_data" / "all.py"
    defaults.write_text(defaults.read_text() + f"import os\nports = open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(SiteError, match="literal"):
        load_site(file)
    assert not (tmp_path / "run").exists()


# Generated sites

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["10.1.0.11", "a", "*.acme.test", "file:x", "env:", "https://x", "::1", "443", "fleet", "ingress"]),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(value: object, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above] if above else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        found += _places(below, (*above, key))
    return found


@st.composite
def _mutated(draw: st.DrawFn, base: dict[str, Any]) -> dict[str, Any]:
    """The base with one to four values replaced, removed, renamed or added."""
    site: dict[str, Any] = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 4))):
        places = _places(site)
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        parent: Any = site
        for key in above:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if kind == "replace" or isinstance(parent, list):
            parent[last] = draw(_VALUES)
        elif kind == "remove":
            del parent[last]
        elif kind == "rename":
            parent[draw(st.text(max_size=8))] = parent.pop(last)
        else:
            parent[draw(st.sampled_from(["workers", "address", "roles", "x", "ports", "hosts"]))] = draw(_VALUES)
    return site


def _loads_or_explains(folder: Path, site: object, release: object) -> None:
    """The only two answers there are. JSON is YAML, and writes every generated text."""
    file = write_site(folder, json.dumps(site), json.dumps(release))
    problems, text = [], ""
    try:
        load_site(file)
    except SiteError as error:
        problems, text = error.errors, str(error)
    assert bool(problems) == bool(text)
    assert all(str(problem) in text and problem.expected for problem in problems)
    text.encode()  # can be written to any log


_GENEROUS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_GENEROUS
@given(site=_mutated(valid()))
def test_any_change_of_a_site_loads_or_is_explained(tmp_path: Path, site: dict[str, Any]) -> None:
    """No change of a valid site leads to another exception."""
    _loads_or_explains(tmp_path, site, valid_release())


@_GENEROUS
@given(release=_mutated(valid_release()))
def test_any_change_of_a_release_loads_or_is_explained(tmp_path: Path, release: dict[str, Any]) -> None:
    """Nor does one of its release."""
    _loads_or_explains(tmp_path, valid(), release)


@_GENEROUS
@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet="ab:-[]{}&*!?|>'\"#%@`, \n\t0", max_size=80)))
def test_any_file_at_all_is_explained(tmp_path: Path, content: bytes | str) -> None:
    """Nor does a file of anything."""
    file = write_site(tmp_path, valid())
    dump(file, content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SiteError):
        load_site(file)
