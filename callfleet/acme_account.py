"""Public certificates from an authority that speaks ACME (RFC 8555), by the challenge that is answered over HTTP."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import requests
from acme import challenges, client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from josepy.errors import Error as JoseError
from josepy.jwa import ES256, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA
from josepy.util import ComparableECKey, ComparableRSAKey

from callfleet import __version__
from callfleet.authority import private_pem
from callfleet.errors import CallfleetError

ORDER_SECONDS = 180.0
REQUEST_SECONDS = 30
NONCE_ROUNDS = 5
Answering = Callable[[Mapping[str, str]], AbstractContextManager[object]]
"""Has each token (`/.well-known/acme-challenge/TOKEN`) answered with its text for as long as the context is open."""


class AcmeError(CallfleetError):
    """The authority refused, or could not be asked. Holds its own words; never a key."""


def account_key() -> bytes:
    """A new key of an account: EC P-256, PEM."""
    return private_pem(ec.generate_private_key(ec.SECP256R1()))


class Account:
    """An account at one authority, found by its key or else made: to make one is to agree to the authority's terms."""

    def __init__(self, directory: str, key: bytes, contact: str | None = None, ca: str | None = None) -> None:
        """`ca` is the path of the authorities that the directory's own certificate is checked against."""
        self.directory = directory
        with self._told():
            self._key, algorithm = _jwk(key)
            agent = f"callfleet/{__version__}"
            net = _Network(self._key, alg=algorithm, user_agent=agent, timeout=REQUEST_SECONDS)
            net.verify_ssl = ca or True  # type: ignore[assignment] # requests takes a path as well
            self._client = client.ClientV2(client.ClientV2.get_directory(directory, net), net)
            wanted = messages.NewRegistration.from_data(email=contact, terms_of_service_agreed=True)
            try:
                self._client.new_account(wanted)
            except errors.ConflictError as known:
                body = messages.Registration()
                self._client.query_registration(messages.RegistrationResource(uri=known.location, body=body))

    def obtain(self, names: Sequence[str], answering: Answering, seconds: float = ORDER_SECONDS) -> bytes:
        """One PEM for these names: certificate, chain, a new EC P-256 key. AcmeError with what the authority said."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
        with self._told():
            order = self._client.new_order(_request(key, names))
            asked = [_by_http(each) for each in order.authorizations if each.body.status != messages.STATUS_VALID]
            answers = {one.chall.encode("token"): one.chall.validation(self._key) for one in asked}
            with answering(answers):
                for one in asked:
                    self._client.answer_challenge(one, one.chall.response(self._key))
                order = self._client.poll_authorizations(order, until)
            order = self._client.finalize_order(order, until)
        chain: str = order.fullchain_pem
        return chain.strip().encode() + b"\n" + private_pem(key)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Everything that ends an order, as an AcmeError."""
        try:
            yield
        except errors.ValidationError as error:
            raise AcmeError("\n".join(_refusals(error)) or f"{self.directory}: the authority gave no reason") from None
        except messages.Error as error:
            raise AcmeError(f"{self.directory}: {_words(error)}") from None
        except errors.IssuanceError as error:
            raise AcmeError(f"{self.directory}: {_words(error.error)}") from None
        except errors.TimeoutError:
            raise AcmeError(f"{self.directory}: the authority did not decide in time; the same again later") from None
        except (errors.Error, JoseError, requests.RequestException, ValueError) as error:
            raise AcmeError(f"{self.directory}: {str(error)[:500] or type(error).__name__}") from None


class _Network(client.ClientNetwork):
    """One that bears with an authority that refuses several nonces in a row: such a request was not taken at all."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """As the library's own, which asks twice in a round (RFC 8555, section 6.5), in up to `NONCE_ROUNDS` rounds."""
        for _ in range(NONCE_ROUNDS - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


def _jwk(pem: bytes) -> tuple[JWK, JWASignature]:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return JWKEC(key=ComparableECKey(key)), ES256
    if isinstance(key, rsa.RSAPrivateKey):
        return JWKRSA(key=ComparableRSAKey(key)), RS256
    raise AcmeError("the account's key is no private key in PEM form; expected EC P-256 or RSA, without a passphrase")


def _request(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> bytes:
    wanted = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(wanted, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _by_http(authorization: messages.AuthorizationResource) -> messages.ChallengeBody:
    for one in authorization.body.challenges:
        if isinstance(one.chall, challenges.HTTP01):
            return one
    name = authorization.body.identifier.value
    raise AcmeError(f"{name}: the authority offers no challenge over HTTP (HTTP-01), the one that callfleet answers")


def _refusals(error: errors.ValidationError) -> Iterator[str]:
    for authorization in error.failed_authzrs:
        for one in authorization.body.challenges:
            if one.error is not None:
                yield f"{authorization.body.identifier.value}: {_words(one.error)}"


def _words(problem: messages.Error) -> str:
    """The problem document (RFC 8555, section 6.7) in one line: kind, and what it says."""
    kind = problem.code or problem.typ or "refused"
    said = "; ".join(filter(None, [problem.detail or problem.title, *map(_words, problem.subproblems or ())]))
    who = f"{problem.identifier.value}: " if problem.identifier else ""
    return f"{who}{kind}: {said}"[:1000]
