"""HAProxy configurations of different hands: their words, their sections, and what they say of calls."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callfleet.adopt import ingress
from callfleet.adopt.haproxy import Config, address, options, parse, seconds, servers, split
from callfleet.adopt.ingress import Ingress, check_path, expectation, fleet_health, understand

BY_HAND = r"""
# written by hand, years ago
global
    daemon
    maxconn 2000
    stats socket /var/run/haproxy.sock mode 600 level admin
    nbproc 1
defaults
    mode http
    timeout connect 5000
    timeout client 50000
    timeout server 50000
    option redispatch
frontend wss *:443 ssl crt /etc/ssl/calls.pem
    reqrep ^([^\ :]*)\ /old/(.*) \1\ /ws/\2
    acl host_eu hdr(host) -i calls-eu.example.com
    acl host_in hdr(host) -i calls-in.example.com
    use_backend eu if host_eu
    use_backend in if host_in
    default_backend nowhere
backend eu
    balance leastconn
    option httpchk GET /health/fleet HTTP/1.0
    http-check expect rstring "\"fleet_available\":([1-9]|1[0-6])[,}]"
    server eu1 203.0.113.11:443 ssl verify none check inter 1s fall 2 rise 2 maxconn 16
    server eu2 203.0.113.12:443 ssl verify none check inter 1s fall 2 rise 2 maxconn 16
backend in
    balance leastconn
    option httpchk GET /health/fleet HTTP/1.0
    http-check expect rstring "\"fleet_available\":([1-9]|1[0-6])[,}]"
    server in1 203.0.113.21:443 ssl verify none check inter 1s fall 2 rise 2 maxconn 8
backend nowhere
    errorfile 503 /etc/haproxy/404.http
"""

BY_LISTEN = """
global
    log stdout format raw local0
defaults
    mode http
    timeout client 1m
    timeout server 1m
    timeout connect 2s
    timeout tunnel 2h
    default-server inter 3s fall 3 rise 2
resolvers dns
    nameserver one 192.0.2.53:53
listen calls
    bind :443 ssl crt /etc/haproxy/certs/
    http-request deny if !{ path_beg /ws/ /exotel/ }
    balance roundrobin
    option httpchk
    http-check send meth GET uri /health/fleet ver HTTP/1.1 hdr Host fleet.example.com
    http-check expect status 200
    timeout check 10s
    default-server ssl verify required ca-file /etc/ssl/certs/ca.pem maxconn 8 check
    server-template eu 1-3 fleet.example.com:8443 resolvers dns sni str(fleet.example.com)
    server extra [2001:db8::11]:443 maxconn 16
"""

BY_NAMES = """
global
    maxconn 50000
defaults base
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
defaults ws from base
    timeout tunnel 4h
    option httpchk GET /health/fleet
    default-server check inter 5s ssl verify none
frontend fe_calls from base
    bind :443 ssl crt-list /etc/haproxy/crt-list.txt alpn http/1.1
    acl calls path -m beg -f /etc/haproxy/call-paths.lst
    http-request return status 200 content-type text/plain string ok if { path /haproxy-health }
    http-request deny deny_status 404 if !calls
    use_backend %[req.hdr(host),lower,map(/etc/haproxy/hosts.map,be_eu)]
frontend fe_stats from base
    bind 127.0.0.1:8404
    stats enable
    stats auth operator:hunter2
backend be_eu from ws
    server eu1-a 203.0.113.11:443 maxconn 16
    server eu1-b 203.0.113.12:443 maxconn 16
backend be_in from ws
    server in1-a 203.0.113.21:443 maxconn 8
backend be_api from base
    server api 203.0.113.5:8080
"""
MAPS = {
    "/etc/haproxy/hosts.map": "# carrier names\ncalls.example.com be_eu\nindia.example.com be_in\n",
    "/etc/haproxy/call-paths.lst": "/ws/\n/exotel/\n",
}

RENDERED = r"""
# rendered by render.sh from ingress.env; do not edit
global
    maxconn "${MAXCONN-4000}"
    setenv DOMAIN example.com
defaults
    mode http
    timeout connect 5s
    timeout client  60s
    timeout server  60s
    timeout tunnel  1h
frontend ft_wss
    bind :443 ssl crt "/etc/haproxy/certs/calls.${DOMAIN}.pem"
    http-request return status 200 content-type "text/plain" string "ok" if { path /haproxy-health }
    acl is_ws path_beg /ws/
    acl is_exotel path_beg /exotel/
    acl is_host hdr(host),lower -m str "calls.${DOMAIN}"
    use_backend bk_fleet if is_ws || is_exotel
    http-request deny deny_status 404
backend bk_fleet
    balance leastconn
    option httpchk
    http-check send meth GET uri /health/fleet hdr Host "fleet.${DOMAIN}"
    http-check expect rstring "\"fleet_available\":([1-9]|1[0-6])[,}]"
    server fleet1 fleet1.example.com:443 ssl verify required ca-file @system-ca sni str(fleet1.example.com) check inter 1s fall 2 rise 2 maxconn 16
    server fleet2 fleet2.example.com:443 ssl verify required ca-file @system-ca sni str(fleet2.example.com) check inter 1s fall 2 rise 2 maxconn 16
.if defined(CANARY)
    server canary 203.0.113.99:443 check
.endif
"""  # noqa: E501 - as it is found


def read(text: str, texts: dict[str, str] | None = None) -> Ingress:
    """A configuration, understood."""
    return understand("calls", parse([("haproxy.cfg", text)]), texts or {})


def hosts(found: Ingress) -> dict[str, dict[str, tuple[str, int | None, int | None]]]:
    """Servers of each backend that carries calls: host, port, maxconn."""
    return {
        backend.name: {server.name: (server.host, server.port, server.maxconn) for server in backend.servers}
        for backend in found.backends
    }


def why(found: Ingress) -> dict[str, str]:
    """The lines that are not understood, and why."""
    return {line.text: reason for line, reason in found.unknown}


def test_one_by_hand_with_two_fleets() -> None:
    """Each fleet a backend, recognised by its check; names by host; what has no counterpart is told."""
    found = read(BY_HAND)
    assert hosts(found) == {
        "eu": {"eu1": ("203.0.113.11", 443, 16), "eu2": ("203.0.113.12", 443, 16)},
        "in": {"in1": ("203.0.113.21", 443, 8)},
    }
    assert set(found.names) == {"calls-eu.example.com", "calls-in.example.com"}
    assert found.certificates == ("/etc/ssl/calls.pem",)
    assert [text.split()[0] for text in why(found)] == ["reqrep"]
    wanted = expectation(found.backends[0].section)
    assert wanted is not None
    assert [wanted.takes(fleet_health(free, 20)) for free in (1, 9, 10, 16, 17, 20)] == [True] * 4 + [False] * 2


def test_one_by_listen_with_a_template_and_default_server() -> None:
    """Options of `default-server` count where the server says nothing else, those of `defaults` too."""
    found = read(BY_LISTEN)
    template, extra = found.backends[0].servers
    assert (template.name, template.host, template.port, template.count) == ("eu", "fleet.example.com", 8443, 3)
    assert (template.maxconn, extra.maxconn) == (8, 16)
    assert (extra.host, extra.port) == ("2001:db8::11", 443)
    assert template.options["inter"] == "3s"
    assert extra.options["ca-file"] == "/etc/ssl/certs/ca.pem"
    assert check_path(found.backends[0].section) == "/health/fleet"
    assert why(found)["resolvers dns"].startswith("a section resolvers")


def test_one_by_named_defaults_and_maps() -> None:
    """`from` chains are followed, maps and pattern files read; a backend without calls is told, line by line."""
    found = read(BY_NAMES, MAPS)
    assert set(hosts(found)) == {"be_eu", "be_in"}
    assert set(found.names) == {"calls.example.com", "india.example.com"}
    tunnel = ingress.timeout(found.backends[1].section, "tunnel")
    assert tunnel is not None
    assert tunnel[0] == 14400
    assert found.backends[0].section.last("timeout", "server") is not None
    assert "check" in found.backends[0].servers[0].options
    assert why(found)["server api 203.0.113.5:8080"] == "a backend that carries no calls"


def test_one_rendered_with_variables_and_a_condition() -> None:
    """Variables are put in, with their defaults; what stands under a condition is told and not taken."""
    found = read(RENDERED)
    assert set(hosts(found)["bk_fleet"]) == {"fleet1", "fleet2"}
    assert found.names == ("calls.example.com",)
    assert found.certificates == ("/etc/haproxy/certs/calls.example.com.pem",)
    assert "condition" in why(found)["server canary 203.0.113.99:443 check"]
    assert found.config.of("global")[0].last("maxconn").words == ("maxconn", "4000")  # type: ignore[union-attr]


def test_unnamed_defaults_hold_until_the_next() -> None:
    """And not for what stands before them."""
    config = parse([("f", "defaults\n timeout tunnel 1h\nbackend a\n mode http\ndefaults\nbackend b\n mode http\n")])
    first, second = config.of("backend")
    assert first.last("timeout", "tunnel") is not None
    assert second.last("timeout", "tunnel") is None


def test_several_files_are_one_configuration() -> None:
    """Places name the file."""
    config = parse([("a.cfg", "defaults\n mode http\n"), ("b.cfg", "\nbackend x\n server s 192.0.2.1:1\n")])
    assert servers(config.of("backend")[0])[0].line.place == "b.cfg:3"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (r"a b\ c d", ["a", "b c", "d"]),
        (r'a "b c" d # comment', ["a", "b c", "d"]),
        (r"a 'b \"$X\" #c'", ["a", r"b \"$X\" #c"]),
        (r'a "x $X y"', ["a", "x value y"]),
        (r'a "x ${X}y ${NONE-other}"', ["a", "x valuey other"]),
        (r'a "\$X"', ["a", "$X"]),
        (r"a $X", ["a", "$X"]),
        (r'a x"y z"w', ["a", "xy zw"]),
        (r'a ""', ["a", ""]),
        (r"a \#b\\c \x41 \1", ["a", r"#b\c", "A", r"\1"]),
        (r"a b#c", ["a", "b"]),
        (r'"${LIST[*]}"', ["one", "two"]),
        ("\t a\t\tb ", ["a", "b"]),
        ("# nothing", []),
    ],
)
def test_words(raw: str, words: list[str]) -> None:
    """Quoting, escaping, comments and variables as the manual says."""
    assert split(raw, {"X": "value", "LIST": "one two"}) == (words, [])


def test_what_is_wrong_with_a_line_is_told() -> None:
    """Never raised."""
    assert split('a "b', {})[1] == ["a quote is not closed"]
    assert split('a "$NONE"', {}) == (["a", ""], ["the environment variable NONE is not known here"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("203.0.113.1:443", ("203.0.113.1", 443)),
        ("host.example.com", ("host.example.com", None)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("ipv4@203.0.113.1:80", ("203.0.113.1", 80)),
        ("/run/a.sock", ("/run/a.sock", None)),
        ("unix@/run/a.sock", ("unix@/run/a.sock", None)),
        ("127.0.0.1:+100", ("127.0.0.1", 100)),
        ("a:b", ("a", None)),
    ],
)
def test_addresses(text: str, parts: tuple[str, int | None]) -> None:
    """With and without port, families and sockets."""
    assert address(text) == parts


def test_options_and_times() -> None:
    """`no-` takes back; times without a unit are milliseconds."""
    assert options(["check", "inter", "1s", "no-check", "maxconn"]) == {"inter": "1s", "no-check": "", "maxconn": ""}
    assert [seconds(text) for text in ("5000", "1h", "500ms", "soon")] == [5.0, 3600, 0.5, None]


LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(BY_HAND.splitlines() + BY_NAMES.splitlines() + RENDERED.splitlines() + BY_LISTEN.splitlines()),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(LINES)
def test_any_text_is_read_without_a_traceback(lines: list[str]) -> None:
    """Garbage, and pieces of real ones in any order: every line is a section's, or told."""
    config = parse([("f", "\n".join(lines))])
    assert isinstance(config, Config)
    found = understand("f", config, MAPS)
    for backend in found.backends:
        expectation(backend.section)
        ingress.timeout(backend.section, "tunnel")
        ingress.frontends_of(found, backend)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r"), min_size=1), max_size=5)
)
def test_words_in_strong_quotes_come_back(words: list[str]) -> None:
    """A round trip: what is quoted is read as it was."""
    raw = " ".join("'" + word.replace("'", "'\"'\"'") + "'" for word in words)
    assert split(raw, {}) == (words, [])


def test_a_map_that_was_not_read_is_told() -> None:
    """What it says is not known; it is not taken for empty."""
    told = [reason for _, reason in read(BY_NAMES).unknown]
    assert "/etc/haproxy/hosts.map was not read, or is empty" in told
    assert "/etc/haproxy/call-paths.lst was not read, or is empty" in told
    assert not any("was not read" in reason for _, reason in read(BY_NAMES, MAPS).unknown)
