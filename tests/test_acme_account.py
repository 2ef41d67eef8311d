"""Certificates are obtained from a real ACME authority, which fetches every challenge."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from pebble import Pebble, pebble

from callfleet.acme_account import Account, AcmeError, account_key
from callfleet.certificates import pair_findings

SERVER = ExtendedKeyUsageOID.SERVER_AUTH


class Responder:
    """Stands in for the ingress: answers the challenges that are set, remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, token = self.headers["Host"].partition(":")[0], self.path.rpartition("/")[2]
                outer.asked.append((name, token))
                answer = outer.answers.get(token)
                self.send_response(404 if answer is None else 200)
                self.end_headers()
                self.wfile.write((answer or "").encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])

    @contextmanager
    def answering(self, answers: Mapping[str, str]) -> Iterator[None]:
        """As the ingress does it."""
        self.answers |= answers
        yield
        for token in answers:
            del self.answers[token]

    @contextmanager
    def silent(self, _answers: Mapping[str, str]) -> Iterator[None]:
        """As an ingress that answers nothing."""
        yield


@pytest.fixture
def responder() -> Iterator[Responder]:
    made = Responder()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def authority(responder: Responder, tmp_path: Path) -> Iterator[Pebble]:
    with pebble(tmp_path / "pebble", http_port=responder.port) as made:
        yield made


def chain(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def test_one_certificate_for_several_names_each_with_a_new_key(authority: Pebble, responder: Responder) -> None:
    """Every name is asked for, nothing stays answered, and the account is found again by its key."""
    key, names = account_key(), ("calls.acme.test", "api.acme.test")
    first = Account(authority.directory, key, "ops@acme.test", str(authority.ca)).obtain(names, responder.answering)
    assert list(pair_findings(first, datetime.now(UTC), SERVER, names, authority.root())) == []
    assert {name for name, _ in responder.asked} == set(names)
    assert responder.answers == {}
    again = Account(authority.directory, key, "ops@acme.test", str(authority.ca)).obtain(names, responder.answering)
    assert chain(first)[0].serial_number != chain(again)[0].serial_number
    keys = [load_pem_private_key(one, None) for one in (first, again)]
    assert [one.curve.name for one in keys] == ["secp256r1"] * 2  # type: ignore[union-attr]
    assert keys[0].public_key() != keys[1].public_key()
    assert authority.log.read_text().count("There are now 1 accounts in memory") == 1
    assert "There are now 2 accounts" not in authority.log.read_text()


def test_an_authority_that_refuses_nonces_in_a_row_is_asked_again(responder: Responder, tmp_path: Path) -> None:
    """One of three good nonces is refused; one that takes none at all is told, in its own word."""
    with pebble(tmp_path / "pebble", http_port=responder.port, refuse=33) as authority:
        account = Account(authority.directory, account_key(), None, str(authority.ca))
        assert account.obtain(("calls.acme.test", "api.acme.test"), responder.answering)
    with (
        pebble(tmp_path / "never", http_port=responder.port, refuse=100) as authority,
        pytest.raises(AcmeError, match="badNonce"),
    ):
        Account(authority.directory, account_key(), None, str(authority.ca))


def test_a_challenge_that_nobody_answers_is_told_in_the_authoritys_words(
    authority: Pebble, responder: Responder
) -> None:
    """Which name, what kind, what it met; the control is the same order with the answer in place."""
    account = Account(authority.directory, account_key(), None, str(authority.ca))
    with pytest.raises(AcmeError, match=r"^calls\.acme\.test: unauthorized: .*404"):
        account.obtain(("calls.acme.test",), responder.silent)
    assert account.obtain(("calls.acme.test",), responder.answering)


def test_a_name_that_was_proven_before_needs_no_new_proof(responder: Responder, tmp_path: Path) -> None:
    """The authority may remember: then nothing is to be answered."""
    with pebble(tmp_path / "pebble", http_port=responder.port, reuse=100) as authority:
        account = Account(authority.directory, account_key(), None, str(authority.ca))
        account.obtain(("calls.acme.test",), responder.answering)
        responder.asked.clear()
        assert account.obtain(("calls.acme.test",), responder.silent)
        assert responder.asked == []


def test_what_cannot_be_asked_is_told(authority: Pebble, responder: Responder) -> None:
    """An authority that is not trusted, one that is not there, a name it does not issue, a key that is none."""
    with pytest.raises(AcmeError, match=r"localhost.*(?i:certificate)"):
        Account(authority.directory, account_key())
    with pytest.raises(AcmeError, match="localhost"):
        Account("https://localhost:1/dir", account_key())
    with pytest.raises(AcmeError, match="no private key in PEM form") as caught:
        Account(authority.directory, b"correct-horse", None, str(authority.ca))
    assert "correct-horse" not in str(caught.value)
    account = Account(authority.directory, account_key(), None, str(authority.ca))
    with pytest.raises(AcmeError, match=r"malformed|rejected"):
        account.obtain(("calls_acme.test",), responder.answering)
