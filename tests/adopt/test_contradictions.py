"""What a hand-made platform contradicts itself in: each seeded one is found, by name and place, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from adopt.handmade import NGINX_FLEET, Handmade, environment

from callfleet.actual import Unknown
from callfleet.adopt.contradictions import Finding, Weight, numbers

Seed = Callable[[Handmade], object]
RETRY = "proxy_next_upstream error timeout http_429 non_idempotent;"


def in_nginx(old: str, new: str, count: int = -1) -> Seed:
    """A change in the nginx file of eu1-b."""

    def seed(one: Handmade) -> None:
        assert old in one.nginx["eu1-b"]
        one.nginx["eu1-b"] = one.nginx["eu1-b"].replace(old, new, count)

    return seed


def in_haproxy(old: str, new: str) -> Seed:
    """A change in the ingress's file."""

    def seed(one: Handmade) -> None:
        assert old in one.haproxy
        one.haproxy = one.haproxy.replace(old, new)

    return seed


def variable(name: str, value: str, host: str = "eu1-b") -> Seed:
    """A change in the environment file of a host's workers."""
    return lambda one: one.worker[host].update({name: value})


def change(**values: object) -> Seed:
    """Other facts."""

    def seed(one: Handmade) -> None:
        for name, value in values.items():
            setattr(one, name, value)

    return seed


EU1_A, EU1_B = "https://eu1-a.acme.test", "https://eu1-b.acme.test"
SERVER_B = "    server eu1-b 10.1.0.12:443 ssl verify none check inter 5s fall 2 rise 2 maxconn 4\n"

# What is seeded, which kind of finding it is, on which host, and a word that the finding must say.
SEEDED: dict[str, tuple[Seed, str, str, str]] = {
    "a unit fewer": (lambda one: one.running.update({"eu1-b": {1, 2, 3}}), "worker-count", "eu1-b", "1-3"),
    "the variable": (variable("CXBCORE_WORKERS", "16"), "worker-count", "eu1-b", "16"),
    "the upstream": (
        in_nginx("    server unix:/tmp/cxbcore_4.sock max_conns=1 fail_timeout=10;\n", ""),
        "worker-count",
        "eu1-b",
        "sites-enabled/cxbcore:4",
    ),
    "a socket nobody made": (change(listening={"eu1-b": {1, 2, 3}}), "worker-count", "eu1-b", "1-3"),
    "a gap": (lambda one: one.running.update({"eu1-b": {1, 2, 3, 5}}), "worker-numbers", "eu1-b", "1-3, 5"),
    "two calls a worker": (variable("MAX_CONCURRENT_CALLS", "2"), "calls-per-worker", "eu1-b", "2"),
    "maxconn": (
        in_haproxy(SERVER_B, SERVER_B.replace("maxconn 4", "maxconn 16")),
        "ingress-maxconn",
        "eu1-b",
        "maxconn 16",
    ),
    "no maxconn": (
        in_haproxy(SERVER_B, SERVER_B.replace(" maxconn 4", "")),
        "ingress-maxconn",
        "eu1-b",
        "without a limit",
    ),
    "inbound only": (
        lambda one: (setattr(one, "core_fleet", (EU1_A,)), one.dialler.update(FLEET_URLS=EU1_A)),
        "inbound-only",
        "eu1-b",
        "haproxy.cfg:28",
    ),
    "outbound only": (in_haproxy(SERVER_B, ""), "outbound-only", "eu1-b", EU1_B),
    "core_fleet lacks it": (change(core_fleet=(EU1_A,)), "fleet-lists", "eu1-b", "FLEET_URLS alone"),
    "FLEET_URLS lacks it": (
        lambda one: one.dialler.update(FLEET_URLS=EU1_A),
        "fleet-lists",
        "eu1-b",
        "core_fleet alone",
    ),
    "a host nobody read": (
        lambda one: (
            setattr(one, "core_fleet", (EU1_A, EU1_B, "https://us1-a.acme.test")),
            one.dialler.update(FLEET_URLS=f"{EU1_A},{EU1_B},https://us1-a.acme.test"),
        ),
        "unknown-host",
        "",
        "us1-a",
    ),
    "another core secret": (variable("CORE_SECRET", "*another"), "shared-value", "eu1-b", "not shown"),
    "another config URL": (variable("CONFIG_URL", "https://old.acme.test/config"), "shared-value", "", "old.acme.test"),
    "another database": (variable("MONGODB_DB", "staging"), "shared-value", "eu1-b", "staging"),
    "another log level": (variable("LOG_LEVEL", "debug"), "environment-differs", "", "LOG_LEVEL"),
    "another key": (variable("STT_API_KEY", "*second"), "environment-differs", "", "STT_API_KEY"),
    "no retry": (
        in_nginx(f"        {RETRY}\n        proxy_next_upstream_tries 4;\n", "", 1),
        "no-retry",
        "eu1-b",
        "/attach",
    ),
    "retry without 429": (in_nginx("timeout http_429", "timeout", 1), "no-retry", "eu1-b", "/attach"),
    "few tries": (in_nginx("tries 4", "tries 2"), "retry-tries", "eu1-b", "tries 2"),
    "dispatch retried": (
        in_nginx("dispatch { proxy_pass http://cxbcore; }", f"dispatch {{ proxy_pass http://cxbcore; {RETRY} }}"),
        "dispatch-retry",
        "eu1-b",
        "/livekit/dispatch",
    ),
    "dispatch in a pattern with the others": (
        in_nginx(
            "location = /livekit/dispatch { proxy_pass http://cxbcore; }",
            f"location ~ ^/livekit/ {{ proxy_pass http://cxbcore; {RETRY} }}",
        ),
        "dispatch-retry",
        "eu1-b",
        "/livekit/dispatch",
    ),
    "keepalive": (in_nginx("least_conn;", "least_conn; keepalive 8;"), "upstream-keepalive", "eu1-b", "keepalive 8"),
    "no zone": (in_nginx("    zone cxbcore 64k;\n", ""), "max-conns-unshared", "eu1-b", "no zone"),
    "a backup worker": (
        in_nginx("cxbcore_4.sock max", "cxbcore_4.sock backup max"),
        "upstream-server",
        "eu1-b",
        "backup",
    ),
    "fixed Connection": (
        in_nginx("Connection $connection_upgrade", 'Connection "upgrade"'),
        "connection-header",
        "eu1-b",
        "upgrade",
    ),
    "two body limits": (in_nginx("client_max_body_size 64k", "client_max_body_size 1m"), "body-limit", "", "1048576"),
    "any body": (in_nginx("client_max_body_size 64k", "client_max_body_size 0"), "body-limit", "", "0 bytes"),
    "short silence at nginx": (
        in_nginx("proxy_read_timeout 3600s", "proxy_read_timeout 75s"),
        "timeout-short",
        "",
        "75 s",
    ),
    "short silence at the ingress": (in_haproxy("    timeout tunnel 1h\n", ""), "timeout-short", "", "60s"),
    "a check that ends below": (
        in_haproxy(r'rstring "\"fleet_available\": ?[1-9]"', r'rstring "\"fleet_available\": ?[1-3][,}]"'),
        "check-cap",
        "",
        "4 of 4",
    ),
    "a check that begins with a comma": (
        in_haproxy(r'"\"fleet_available\": ?[1-9]"', r'"^{\"fleet_available\": ?[1-9]"'),
        "check-cap",
        "",
        "1-4 of 4",
    ),
    "no check": (
        lambda one: setattr(one, "haproxy", one.haproxy.replace(" check inter 5s fall 2 rise 2", "")),
        "no-check",
        "",
        "backend eu1",
    ),
    "a disabled server": (
        in_haproxy("10.1.0.12:443 ssl", "10.1.0.12:443 disabled ssl"),
        "ingress-server",
        "",
        "disabled",
    ),
    "fall 1": (in_haproxy("fall 2", "fall 1"), "fall-1", "", "fall 1"),
    "a certificate of another name": (
        change(names={"eu1-b": ("eu1-a.acme.test",)}),
        "certificate-name",
        "eu1-b",
        "covers eu1-a.acme.test",
    ),
    "the ingress's certificate": (
        change(names={"calls": ("old.acme.test",)}),
        "certificate-name",
        "hub",
        "calls.acme.test",
    ),
    "a certificate near its end": (change(days={"eu1-b": 5}), "certificate-end", "eu1-b", "ends on"),
    "an ended certificate": (change(days={"eu1-b": -1}), "certificate-end", "eu1-b", "ended on"),
    "a private /tmp": (change(unit={"PrivateTmp": "yes"}), "private-tmp", "eu1-b", "PrivateTmp"),
}


def said(finding: Finding) -> str:
    """All that a finding says."""
    return " ".join([finding.what, *(f"{side.where} {side.says}" for side in finding.sides), finding.next])


def test_a_platform_that_agrees_with_itself_has_no_finding() -> None:
    """Neither a contradiction nor a weakness."""
    assert Handmade().findings() == []


@pytest.mark.parametrize("name", SEEDED)
def test_each_seeded_contradiction_is_found(name: str) -> None:
    """By its kind, at its host, with what was found; and what follows from it is of no other kind."""
    seed, kind, host, word = SEEDED[name]
    one = Handmade()
    seed(one)
    found = [each for each in one.findings() if each.weight is Weight.CONTRADICTION]
    mine = [each for each in found if each.kind == kind]
    assert host in [each.host for each in mine]
    assert any(word in said(each) for each in mine), [said(each) for each in mine]
    follow = {
        "a gap": {"worker-count"},
        "two calls a worker": {"environment-differs"},
        "a unit fewer": {"ingress-maxconn"},
    }
    assert {each.kind for each in found} - {kind} <= follow.get(name, set()), found
    assert all(each.sides and each.next for each in found)


def test_ten_at_once_are_all_found() -> None:
    """One does not hide another."""
    names = ["the variable", "maxconn", "FLEET_URLS lacks it", "another core secret", "another config URL", "few tries",
             "dispatch retried", "keepalive", "fixed Connection", "a check that ends below", "no zone",
             "a certificate near its end"]  # fmt: skip
    one = Handmade()
    for name in names:
        SEEDED[name][0](one)
    assert {SEEDED[name][1] for name in names} <= {each.kind for each in one.findings()}


def test_a_secret_is_compared_and_never_shown() -> None:
    """Sides that differ are told apart by letters."""
    one = Handmade()
    one.worker["eu1-b"]["CORE_SECRET"] = "*another"
    finding = next(each for each in one.findings() if each.kind == "shared-value")
    assert {side.says for side in finding.sides} == {"value A (not shown)", "value B (not shown)"}
    assert "another" not in repr(finding)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("balance roundrobin", "balance"),
        ("    timeout check 10s\n", "check-timeout"),
        (r"fleet_available\": ?[1-9]", "check-json"),
    ],
)
def test_weaknesses_are_told_apart(name: str, kind: str) -> None:
    """What works, and callfleet does otherwise, is no contradiction."""
    one = Handmade()
    better = {"balance": "balance leastconn", "check-timeout": "", "check-json": r"fleet_available\":[1-9]"}
    assert name in one.haproxy
    one.haproxy = one.haproxy.replace(name, better[kind])
    assert [(each.kind, each.weight) for each in one.findings()] == [(kind, Weight.WEAKNESS)]


def test_nginx_without_a_word_about_silence_is_a_weakness() -> None:
    """Its default of 60 s is what calls live with today."""
    one = Handmade()
    for name in one.nginx:
        one.nginx[name] = one.nginx[name].replace("    proxy_read_timeout 3600s;\n", "")
    assert [each.kind for each in one.findings()] == ["timeout-default"]


def test_one_process_of_nginx_needs_no_zone() -> None:
    """max_conns counts there for all."""
    one = Handmade()
    for name in one.nginx:
        one.nginx[name] = one.nginx[name].replace("    zone cxbcore 64k;\n", "")
    one.changes = {name: {"cpus": 1} for name in one.nginx}
    assert one.findings() == []


def test_two_diallers_are_told() -> None:
    """Each would reserve slots that the other does not know of."""
    one = Handmade()
    hub = one.found()[2]
    assert not isinstance(hub.units, Unknown)
    units = {unit.name: unit for unit in (*one.found()[0].units.values(), hub.units["cxb-dialler.service"])}  # type: ignore[union-attr]
    one.changes = {"eu1-a": {"units": units}}
    assert [each.kind for each in one.findings()] == ["two-diallers"]


def test_what_could_not_be_read_is_unknown_and_no_contradiction() -> None:
    """A part that failed says nothing about numbers; it is listed as unknown."""
    one = Handmade()
    one.core_fleet = Unknown("curl: (22) 401")
    one.changes = {
        "eu1-b": {"units": Unknown("systemctl failed"), "listening": Unknown("no ss"), "environments": Unknown("no")}
    }
    assert one.findings() == []
    whole = one.platform()
    assert [each.listed for each in whole.fleet_hosts] == [None, None]
    told = [line for machine in whole.machines for line in machine.found.unknowns()]
    assert ("units", "systemctl failed") in told
    assert ("core fleet", "curl: (22) 401") in told


def test_an_environment_changed_after_the_start_is_told() -> None:
    """What runs may not be what the file says."""
    one = Handmade(unit={"ActiveEnterTimestamp": "@1000"})
    values = environment("/opt/cxbcore/.env", one.worker["eu1-b"])
    newer = type(values)(values.path, values.values, changed=2000)
    one.changes = {"eu1-b": {"environments": {"/opt/cxbcore/.env": newer}}}
    assert {each.kind for each in one.findings()} == {"environment-newer"}


def test_numbers_are_told_in_ranges() -> None:
    """As people write them."""
    assert numbers({1, 2, 3, 5}) == "1-3, 5"
    assert numbers(()) == "none"


def test_the_fixture_is_what_tests_change() -> None:
    """A negative control of the fixture: three retry blocks, one zone."""
    assert NGINX_FLEET.count("proxy_next_upstream ") == 3
