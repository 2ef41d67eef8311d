"""Host keys: fingerprints as OpenSSH prints them, pins in known_hosts, and what a real SSH server shows."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import paramiko
import pytest
from click.testing import CliRunner, Result
from paramiko.hostkeys import HostKeys
from site_files import write_site

from callfleet.cli import cli
from callfleet.errors import CallfleetError
from callfleet.hostkeys import Key, name, pin, pinned, read, unpin
from callfleet.site import SshSettings
from lab.ca import ssh_key_pair
from tests.test_inventory import _local


def key(comment: str = "x") -> Key:
    """A new one."""
    kind, data, _ = ssh_key_pair(comment)[1].split()
    return Key(kind, data)


def test_a_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    """Digest, base64, no padding."""
    one = key()
    (tmp_path / "key.pub").write_text(f"{one.kind} {one.data} x\n")
    said = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "key.pub")], capture_output=True, text=True, check=True)
    assert said.stdout.split()[1] == one.fingerprint


def test_a_pin_is_added_replaced_and_removed_and_touches_no_other_line() -> None:
    """Comments, other hosts and markers stay as they are; a port that is not 22 is part of the name."""
    old, new = key(), key()
    text = f"# ours\nother,192.0.2.9 {old.kind} {old.data}\n@revoked * {old.kind} {old.data}\n"
    host = name("192.0.2.1", 2222)
    assert host == "[192.0.2.1]:2222"
    assert name("192.0.2.1", 22) == "192.0.2.1"
    once = pin(text, host, old)
    assert once == f"{text}{host} {old.kind} {old.data}\n"
    assert pin(once, host, old) == once
    replaced = pin(once, host, new)
    assert pinned(replaced, host) == [new]
    assert unpin(replaced, [host]) == text
    assert pinned(text, "192.0.2.9") == [old]
    assert unpin(text, ["192.0.2.9"]) == text.replace("other,192.0.2.9", "other")


def test_a_hashed_name_is_found() -> None:
    """As `HashKnownHosts yes` writes them."""
    one = key()
    text = f"{HostKeys.hash_host('192.0.2.1')} {one.kind} {one.data}\n"
    assert pinned(text, "192.0.2.1") == [one]
    assert pinned(text, "192.0.2.2") == []
    assert unpin(text, ["192.0.2.1"]) == ""


def settings(port: int, folder: Path) -> SshSettings:
    """SSH to this machine."""
    return SshSettings("127.0.0.1", port, "root", None, folder / "known_hosts", folder / "config", 5)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_the_key_that_a_server_shows_is_read(listener: socket.socket, tmp_path: Path) -> None:
    """Nobody logs in; of two keys the known kind is asked for."""
    rsa, ecdsa = paramiko.RSAKey.generate(2048), paramiko.ECDSAKey.generate()

    def serve() -> None:
        for _ in range(2):
            with suppress(OSError, EOFError, paramiko.SSHException):
                transport = paramiko.Transport(listener.accept()[0])
                transport.add_server_key(rsa)
                transport.add_server_key(ecdsa)
                transport.start_server(server=paramiko.ServerInterface())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    (tmp_path / "config").write_text("")
    for known in (rsa, ecdsa):
        wanted = Key(known.get_name(), known.get_base64())
        kinds = {"ssh-rsa": "rsa-sha2-512"}
        found = read(settings(port, tmp_path), [Key(kinds.get(wanted.kind, wanted.kind), wanted.data)])
        assert found == wanted
    thread.join(10)


def test_what_is_no_ssh_server_is_an_error_in_words(listener: socket.socket, tmp_path: Path) -> None:
    """A port where nobody listens: what was tried, what was expected."""
    (tmp_path / "config").write_text("")
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(CallfleetError, match=f"127.0.0.1 port {port} shows no SSH host key"):
        read(settings(port, tmp_path))


@pytest.fixture
def server(listener: socket.socket) -> Iterator[tuple[int, list[paramiko.PKey]]]:
    """An SSH server's port, and the key that it shows, which may be exchanged."""
    keys: list[paramiko.PKey] = [paramiko.ECDSAKey.generate()]

    def serve() -> None:
        while True:
            try:
                line = listener.accept()[0]
            except OSError:
                return
            with suppress(OSError, EOFError, paramiko.SSHException):
                transport = paramiko.Transport(line)
                transport.add_server_key(keys[0])
                transport.start_server(server=paramiko.ServerInterface())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], keys
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def shown(key: paramiko.PKey) -> str:
    """Its fingerprint."""
    return Key(key.get_name(), key.get_base64()).fingerprint


def test_a_key_is_pinned_and_pinned_anew_on_purpose_only(
    server: tuple[int, list[paramiko.PKey]], tmp_path: Path
) -> None:
    """Unknown, confirmed, changed, wrong, confirmed again: known_hosts follows what was confirmed and nothing else."""
    port, keys = server
    path = write_site(tmp_path, _local(port))
    known = path.with_suffix(".known_hosts")

    def pinning(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["host", "pin", "--site", str(path), *arguments])

    unseen = pinning()
    assert (unseen.exit_code, known.exists()) == (1, False)
    assert f"--fingerprint {shown(keys[0])}" in unseen.stderr
    first = pinning("a", "--fingerprint", shown(keys[0]))
    assert first.exit_code == 0, first.stderr
    assert known.read_text().startswith(f"[127.0.0.1]:{port} {keys[0].get_name()} ")
    before = known.read_text()
    assert (pinning().exit_code, known.read_text()) == (0, before), "it is pinned: nobody is asked"
    old, keys[0] = keys[0], paramiko.ECDSAKey.generate()
    changed = pinning("eu1")
    assert changed.exit_code == 1
    assert f"ITS KEY CHANGED: {shown(old)}" in changed.stderr
    assert pinning("a", "--fingerprint", shown(old)).exit_code == 1
    assert known.read_text() == before
    assert pinning("a", "--fingerprint", shown(keys[0])).exit_code == 0
    assert keys[0].get_base64() in known.read_text()
    assert old.get_base64() not in known.read_text()
