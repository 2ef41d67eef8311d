"""nginx configurations of different hands: what holds for a request, wherever it is written."""

from __future__ import annotations

import pytest
from adopt.handmade import NGINX_FLEET, NGINX_MAIN
from hypothesis import given, settings
from hypothesis import strategies as st

from callfleet.adopt import nginx
from callfleet.adopt.nginx import Route, Tree

ONE_FILE = """
worker_processes 4;
events {}
http {
  proxy_next_upstream error timeout http_429 non_idempotent;
  proxy_next_upstream_tries 16;
  upstream calls { server unix:/run/vox/voxcore_1.sock; server unix:/run/vox/voxcore_2.sock max_conns=1; }
  server {
    listen [::]:8443 ssl http2;
    server_name fleet.example.com ~^x;
    location /livekit {
        proxy_pass http://calls;
        location = /livekit/dispatch { proxy_pass http://calls; proxy_next_upstream error; }
    }
    location ^~ /ws/ { proxy_pass http://calls; proxy_read_timeout 1h30m; }
    location ~* \\.(png|ws)$ { return 404; }
    location / { proxy_pass http://calls/; }
  }
}
"""


def read(text: str, **others: str) -> Tree:
    """A configuration of one file and perhaps others."""
    return nginx.read(
        {"/etc/nginx/nginx.conf": text} | {f"/etc/nginx/{k}": v for k, v in others.items()}, "/etc/nginx/nginx.conf"
    )


def route(tree: Tree, path: str, server: int = -1) -> Route:
    """What answers a path at one of the servers."""
    found = nginx.route(*nginx.all_servers(tree)[server], path)
    assert found is not None
    return found


def test_what_debian_lays_out_is_one_tree() -> None:
    """Includes by pattern and by name; places name the file they stand in."""
    files = {
        "/etc/nginx/nginx.conf": NGINX_MAIN,
        "/etc/nginx/sites-enabled/cxb": NGINX_FLEET,
        "/etc/nginx/sites-available/x": "}",
    }
    tree = nginx.read(files, "/etc/nginx/nginx.conf")
    assert [why for _, why in tree.odd] == ["includes /etc/nginx/mime.types, which was not read"]
    (upstream,) = nginx.socket_upstreams(tree)
    assert (upstream.prefix, upstream.directory, upstream.numbers) == ("cxbcore", "/tmp", (1, 2, 3, 4))
    assert upstream.node.place == "/etc/nginx/sites-enabled/cxb:4"
    assert route(tree, "/attach").holding("proxy_next_upstream_tries")[0].args == ("4",)
    assert route(tree, "/ws/bot").target == "cxbcore"
    assert nginx.route(*nginx.all_servers(tree)[-1], "/other") is None


def test_one_file_written_otherwise_means_the_same() -> None:
    """Inherited retries, nested locations, precedence, another brand's sockets."""
    tree = read(ONE_FILE)
    (upstream,) = nginx.socket_upstreams(tree)
    assert (upstream.prefix, upstream.numbers) == ("voxcore", (1, 2))
    assert "http_429" in route(tree, "/attach").holding("proxy_next_upstream")[0].args
    assert route(tree, "/livekit/dispatch").holding("proxy_next_upstream")[0].args == ("error",)
    assert "http_429" in route(tree, "/livekit/widget").holding("proxy_next_upstream")[0].args
    assert nginx.seconds(route(tree, "/ws/x.png").holding("proxy_read_timeout")[0].args[0]) == 5400
    server = nginx.all_servers(tree)[-1][1]
    assert nginx.names(server) == ["fleet.example.com"]
    assert nginx.ports(server) == {8443: True}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("http { server { listen 80; ", "expecting"),
        ("}", ""),
        ("http { include /nowhere.conf; }", "was not read"),
        ("include /etc/nginx/nginx.conf;", "too deeply"),
        ('http { server_name "x; }', ""),
        ("\x00\xff{;}", ""),
    ],
)
def test_what_cannot_be_read_is_told(text: str, word: str) -> None:
    """With its place, and the rest is read."""
    tree = read(text)
    assert nginx.all_servers(tree) == [] or tree.odd
    assert any(word in why for _, why in tree.odd) or not word


def test_a_file_that_was_not_read_is_told() -> None:
    """No guess."""
    assert nginx.read({}, "/etc/nginx/nginx.conf").odd == (("/etc/nginx/nginx.conf", "was not read"),)


def test_sizes() -> None:
    """With and without a unit."""
    assert [nginx.size(text) for text in ("0", "64k", "10M", "x")] == [0, 65536, 10485760, None]


PIECES = st.lists(st.one_of(st.text(max_size=20), st.sampled_from((ONE_FILE + NGINX_FLEET).split())), max_size=40)


@settings(max_examples=60, deadline=None)
@given(PIECES)
def test_any_text_is_read_without_a_traceback(pieces: list[str]) -> None:
    """Garbage, and pieces of real ones in any order."""
    tree = read("http { " + " ".join(pieces) + " }")
    nginx.socket_upstreams(tree)
    for around, server in nginx.all_servers(tree):
        nginx.names(server)
        nginx.ports(server)
        for path in ("/ws/bot", "/attach", "/livekit/dispatch"):
            nginx.route(around, server, path)
