"""SSH host keys: read from a host, shown as OpenSSH shows them, pinned in a site's known_hosts. Pure but for `read`."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.hostkeys import HostKeys

from callfleet.errors import CallfleetError
from callfleet.site import SshSettings


@dataclass(frozen=True)
class Key:
    """A host's public key: its kind (`ssh-ed25519`) and the key itself in base64."""

    kind: str
    data: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -lf` prints it: SHA256:... without padding."""
        digest = hashlib.sha256(base64.b64decode(self.data)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.kind})"


def read(ssh: SshSettings, known: Iterable[Key] = ()) -> Key:
    """The key that a host shows now, of a kind that is `known` if it has one.

    By the same SSH configuration and jump hosts as every run; those must be pinned or known already. CallfleetError
    says why it could not be had.
    """
    seconds = ssh.connect_timeout_seconds
    try:
        with _Link(ssh) as link:
            transport = paramiko.Transport(link)
            try:
                options = transport.get_security_options()
                kinds = [key.kind for key in known]
                options.key_types = sorted(options.key_types, key=lambda kind: kind not in kinds)
                transport.banner_timeout = seconds
                transport.start_client(timeout=seconds)
                found = transport.get_remote_server_key()
            finally:
                transport.close()
    except (OSError, EOFError, paramiko.SSHException) as error:
        said = str(error) or type(error).__name__
        raise CallfleetError(
            f"{ssh.hostname} port {ssh.port} shows no SSH host key: {said}. "
            "Expected an SSH server there, reached as `ssh:` in the site file says"
        ) from None
    return Key(found.get_name(), found.get_base64())


class _Link:
    """A connection to a host's SSH port, through the jump hosts of the SSH configuration."""

    def __init__(self, ssh: SshSettings) -> None:
        self.ssh = ssh
        self.link: Any = None

    def __enter__(self) -> Any:
        from callfleet.pyinfra_remote import route

        hostname, through = route(self.ssh)
        address = (hostname, self.ssh.port)
        self.link = through or socket.create_connection(address, timeout=self.ssh.connect_timeout_seconds)
        return self.link

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.link.close()


# known_hosts


def name(hostname: str, port: int) -> str:
    """What a host is called there."""
    return hostname if port == 22 else f"[{hostname}]:{port}"


def pinned(text: str, host: str) -> list[Key]:
    """The keys that a known_hosts text has for a host; hashed names count too."""
    return [Key(*words[1:3]) for words in _entries(text) if any(_is(each, host) for each in words[0].split(","))]


def pin(text: str, host: str, key: Key) -> str:
    """The text with exactly this key for a host, at its end unless it is there."""
    if pinned(text, host) == [key]:
        return text
    text = unpin(text, [host])
    newline = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{newline}{host} {key.kind} {key.data}\n"


def unpin(text: str, hosts: Iterable[str]) -> str:
    """The text without these hosts; other names on the same line keep it, comments and markers stay."""
    gone = list(hosts)
    lines = []
    for line in text.splitlines(keepends=True):
        words = line.split()
        if len(words) < 3 or line.startswith(("#", "@")):
            lines.append(line)
            continue
        names = words[0].split(",")
        kept = [each for each in names if not any(_is(each, host) for host in gone)]
        if kept == names:
            lines.append(line)
        elif kept:
            lines.append(line.replace(words[0], ",".join(kept), 1))
    return "".join(lines)


def _entries(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not line.startswith(("#", "@")):
            yield words


def _is(entry: str, host: str) -> bool:
    if entry.startswith("|1|"):
        try:
            return HostKeys.hash_host(host, entry) == entry
        except Exception:  # a hash that is cut off names nobody
            return False
    return entry == host
