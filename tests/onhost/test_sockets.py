"""Public names, and counting who is connected, with real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from callfleet.onhost import sockets
from callfleet.onhost.slots import prepare
from callfleet.onhost.stack import Stack

from .conftest import Host, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="other network namespaces are root's")


@pytest.fixture
def stack(host: Host) -> Stack:
    host.declare(slots=3)
    prepare(host.stack)
    return host.stack


def listen(stack: Stack, n: int) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(stack.own_socket(n)))
    server.listen(5)
    return server


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_publishing_links_everywhere_and_withdrawing_keeps_only_its_own_name(stack: Stack) -> None:
    """Proxy and siblings find a published slot; withdrawn, only its own directory has it, and it still answers."""
    server = listen(stack, 1)
    sockets.link(stack, 1)
    sockets.link(stack, 1)
    names = sorted(str(path.relative_to(stack.run_dir)) for path in stack.run_dir.rglob("*.sock*"))
    assert names == ["published/t_1.sock", "slots/1/t_1.sock", "slots/2/t_1.sock", "slots/3/t_1.sock"]
    assert sockets.is_linked(stack, 1)
    assert sockets.unlink(stack, 1)
    assert list(stack.run_dir.rglob("*.sock*")) == [stack.own_socket(1)]
    assert sockets.listening(stack.own_socket(1))
    assert not sockets.unlink(stack, 1)
    server.close()


def test_a_restarted_worker_is_not_published_by_its_old_name(stack: Stack) -> None:
    """A new socket is another inode: the old link does not count, and publishing replaces it."""
    listen(stack, 1).close()
    sockets.link(stack, 1)
    stack.own_socket(1).unlink()
    time.sleep(0.01)
    server = listen(stack, 1)
    assert not sockets.is_published(stack, 1)
    sockets.link(stack, 1)
    assert sockets.listening(stack.published_socket(1))
    server.close()


def test_connections_by_any_name_accepted_or_not_are_counted(stack: Stack) -> None:
    """A connection through the public name counts; so does one that nobody has accepted yet."""
    server = listen(stack, 1)
    sockets.link(stack, 1)
    assert sockets.connections(stack, 1, sockets.rows()) == 0
    waiting = connect(stack.published_socket(1))
    assert sockets.connections(stack, 1, sockets.rows()) == 1
    accepted, _ = server.accept()
    sockets.unlink(stack, 1)
    assert sockets.connections(stack, 1, sockets.rows()) == 1
    waiting.close()
    accepted.close()
    assert sockets.connections(stack, 1, sockets.rows()) == 0
    server.close()


SERVER = "import socket,sys,time; s=socket.socket(1); s.bind(sys.argv[1]); s.listen(5); c=s.accept(); time.sleep(60)"
CLIENT = "import socket,sys,time; s=socket.socket(1); s.connect(sys.argv[1]); time.sleep(60)"


def test_worker_and_caller_in_other_network_namespaces_are_seen(stack: Stack, host: Host) -> None:
    """Worker in one namespace, caller in a second, we in a third. One `ss` here shows neither: the control."""
    (host.root / "bin/nsenter").unlink()
    path = str(stack.own_socket(2))
    alone = ["unshare", "-n", sys.executable, "-c"]
    running = [subprocess.Popen([*alone, SERVER, path])]
    try:
        wait_until(lambda: sockets.connections(stack, 2, sockets.rows()) == 0)
        running.append(subprocess.Popen([*alone, CLIENT, path]))
        wait_until(lambda: sockets.connections(stack, 2, sockets.rows()) == 1)
        assert path not in subprocess.run(["ss", "-xaH"], capture_output=True, text=True, check=True).stdout
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_reading_without_the_listener_counts_as_blind(stack: Stack) -> None:
    """If our method does not even see the listener, its 0 is worth nothing."""
    server = listen(stack, 1)
    assert sockets.connections(stack, 1, []) is None
    assert sockets.connections(stack, 2, sockets.rows()) is None
    server.close()


def test_a_listening_socket_is_never_removed(stack: Stack) -> None:
    """Only a dead socket's name is cleared away."""
    server = listen(stack, 1)
    with pytest.raises(sockets.SlotError, match="still listens"):
        sockets.remove_dead(stack, 1)
    server.close()
    sockets.remove_dead(stack, 1)
    assert not stack.own_socket(1).exists()
