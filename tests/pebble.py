"""A real ACME authority for tests: Pebble, which fetches every challenge, with a DNS server of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from callfleet.authority import Authority
from callfleet.secrets import write_private

STARTS_SECONDS = 30.0


@dataclass(frozen=True)
class Pebble:
    """A running one: the URL of its directory, the file of the authority behind that, its log, where it is managed."""

    directory: str
    ca: Path
    log: Path
    management: str
    names: str

    def lead(self, name: str, address: str) -> None:
        """This name leads to another address than the others."""
        body = json.dumps({"host": f"{name}.", "addresses": [address]}).encode()
        urllib.request.urlopen(f"{self.names}/add-a", body, timeout=10).close()  # noqa: S310

    def root(self) -> bytes:
        """The authority of what it issues, new at each start."""
        return self._ask("roots/0") + self._ask("intermediates/0")

    def _ask(self, path: str) -> bytes:
        trust = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(f"{self.management}/{path}", context=trust, timeout=10) as answer:  # noqa: S310
            return bytes(answer.read())


def free_port() -> int:
    """A TCP port of loopback that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def install() -> None:
    """Have the package that has it, by apt; the test is skipped where that cannot be."""
    with (Path(tempfile.gettempdir()) / "callfleet-test-pebble.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run several at a time
        if shutil.which("pebble"):
            return
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.skip("needs pebble, and it cannot be installed here (root, apt)")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", "pebble"]):
            subprocess.run(["apt-get", *arguments], env=quiet, capture_output=True, check=True)


@contextmanager
def pebble(
    folder: Path, *, http_port: int, address: str = "127.0.0.1", reuse: int = 0, refuse: int = 5
) -> Iterator[Pebble]:
    """One that takes every name for `address`, and fetches challenges there at `http_port`.

    `reuse`: in how many of 100 cases a name that was proven needs no new proof. `refuse`: how many of 100 good nonces
    it refuses on purpose.
    """
    install()
    folder.mkdir(parents=True, exist_ok=True)
    own = Authority.make("directory")
    write_private(folder / "ca.pem", own.pem())
    write_private(folder / "server.pem", own.issue("localhost", ("127.0.0.1",)))
    acme, management, dns, names = free_port(), free_port(), free_port(), free_port()
    config = {
        "listenAddress": f"127.0.0.1:{acme}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(folder / "server.pem"),
        "privateKey": str(folder / "server.pem"),
        "httpPort": http_port,
        "tlsPort": free_port(),
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
    settings = {"PEBBLE_VA_ALWAYS_VALID": "0", "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": str(reuse),
                "PEBBLE_WFE_NONCEREJECT": str(refuse)}  # fmt: skip
    resolver = ["pebble-challtestsrv", "-defaultIPv4", address, "-defaultIPv6", "", "-http01", "", "-https01", "",
             "-tlsalpn01", "", "-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{names}"]  # fmt: skip
    issuer = ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{dns}"]
    log = folder / "pebble.log"
    with log.open("wb") as out:
        running = [
            subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | settings)
            for command in (resolver, issuer)
        ]
    try:
        made = Pebble(
            f"https://localhost:{acme}/dir",
            folder / "ca.pem",
            log,
            f"https://localhost:{management}",
            f"http://127.0.0.1:{names}",
        )
        until = time.monotonic() + STARTS_SECONDS
        while True:
            try:
                made.root()
                break
            except OSError:
                ended = [process.args for process in running if process.poll() is not None]
                assert not ended and time.monotonic() < until, log.read_text()  # noqa: PT018
                time.sleep(0.05)
        yield made
    finally:
        for process in running:
            process.terminate()
            process.wait(10)
