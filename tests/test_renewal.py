"""A site's certificates are listed with what is to be done, and internal ones are made by the site's own authority."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from renderings import authority, certificate_only
from site_files import valid, write_site

from callfleet.authority import Authority
from callfleet.commands.certificates import certificates
from callfleet.commands.hosts import issued
from callfleet.credentials import unusable
from callfleet.errors import CallfleetError
from callfleet.renewal import State, survey
from callfleet.site import Site, load_site

WORD = "core_secret"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "word")


def laid(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda _: None, **contents: bytes) -> Path:
    """A site whose public certificate is there, and beside it the files that are given (`a` is a.pem)."""
    data = valid()
    data["tls"]["internal"]["authority"] = {"key": "file:ca-key.pem"}
    edit(data)
    file = write_site(folder, data)
    found = {"core_secret": b"word", "wildcard.pem": authority().issue("*.acme.test")}
    for name, content in (found | {f"{name}.pem": content for name, content in contents.items()}).items():
        file.with_name(name).write_bytes(content)
        file.with_name(name).chmod(0o600)
    return file


def run(file: Path, *arguments: str) -> Result:
    """`callfleet certificates` with the site as its argument behind the verb."""
    verb, rest = (arguments[:1], arguments[1:]) if arguments and not arguments[0].startswith("-") else ((), arguments)
    return CliRunner().invoke(certificates, [*verb, str(file), *rest])


def certificate(path: Path) -> x509.Certificate:
    """The first one of a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def listed(file: Path) -> dict[str, Any]:
    """The document of `--json`; its `exit` is the exit code."""
    done = run(file, "--json")
    answer: dict[str, Any] = json.loads(done.output)
    assert answer["exit"] == done.exit_code
    return answer


def states(answer: dict[str, Any]) -> dict[str, str]:
    """The state of each, by what it is for."""
    return {one["for"]: one["state"] for one in answer["certificates"]}


def test_from_nothing_to_mutual_tls_of_the_sites_own(tmp_path: Path) -> None:
    """Listed as missing with the next command; made by two commands; then nothing is missing and a run may connect."""
    file = laid(tmp_path)
    answer = listed(file)
    assert answer["exit"] == 1
    assert set(states(answer).values()) == {"fine", "missing"}
    assert f"Next: callfleet certificates authority {file}\n" in run(file).output
    verbs = ["authority", "issue", "issue", "issue"]
    assert [line.split()[-2] for line in unusable(load_site(file)) if "Next:" in line] == verbs

    made = run(file, "authority")
    assert made.exit_code == 0, made.output
    assert file.with_name("ca-key.pem").stat().st_mode & 0o777 == 0o600
    done = run(file, "issue")
    assert [line.split(":")[0] for line in done.output.splitlines()[:-1]] == ["issued ingress", "issued a", "issued b"]
    assert done.output.endswith(f"Next: callfleet apply {file}\n")
    for name in ("i.pem", "a.pem", "b.pem"):
        assert file.with_name(name).stat().st_mode & 0o777 == 0o600

    answer = listed(file)
    assert (answer["exit"], set(states(answer).values())) == (0, {"fine"})
    assert {one["source"] for one in answer["certificates"]} == {"own file", "site CA"}
    assert unusable(load_site(file)) == []
    assert "PRIVATE KEY" not in file.with_name("ca.pem").read_text()

    names = certificate(file.with_name("a.pem")).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.acme.test", "a"], "the ingress asks for the public name"
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.1.0.11"]
    assert certificate(file.with_name("i.pem")).subject.rfc4514_string() == "CN=ingress"


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    """Whichever of its two files is there."""
    file = laid(tmp_path)
    run(file, "authority")
    for name in ("ca.pem", "ca-key.pem"):
        before = file.with_name(name).read_bytes()
        again = run(file, "authority")
        assert isinstance(again.exception, CallfleetError)
        assert "never overwritten" in str(again.exception)
        assert file.with_name(name).read_bytes() == before
        file.with_name(name).unlink()
        assert isinstance(run(file, "authority").exception, CallfleetError)
        assert not file.with_name(name).exists()
        file.with_name(name).write_bytes(before)
        file.with_name(name).chmod(0o600)


def test_only_what_needs_it_is_issued_and_the_one_before_is_kept(tmp_path: Path) -> None:
    """Without names what is not fine, with names exactly those, with --all every one."""
    file = laid(tmp_path)
    run(file, "authority")
    run(file, "issue")
    assert "is fine" in run(file, "issue").output
    before = {name: file.with_name(name).read_bytes() for name in ("i.pem", "a.pem", "b.pem")}

    def changed() -> set[str]:
        return {name for name, content in before.items() if file.with_name(name).read_bytes() != content}

    assert run(file, "issue", "a").exit_code == 0
    assert changed() == {"a.pem"}
    assert file.with_name("a.pem.old").read_bytes() == before["a.pem"]
    assert file.with_name("a.pem.old").stat().st_mode & 0o777 == 0o600
    file.with_name("b.pem").unlink()
    run(file, "issue")
    assert not file.with_name("i.pem.old").exists()
    assert file.with_name("b.pem").exists()
    run(file, "issue", "--all")
    assert changed() == set(before)


def test_what_ends_soon_is_to_be_renewed(tmp_path: Path) -> None:
    """Below the declared number of days: exit code 2 and the command; above it, fine."""
    file = laid(tmp_path)
    run(file, "authority")
    run(file, "issue")
    site = load_site(file)

    def ahead(days: int) -> set[State]:
        return {one.state for one in survey(site, datetime.now(UTC) + timedelta(days=days))}

    assert (ahead(330), ahead(340), ahead(370)) == (
        {State.FINE},
        {State.FINE, State.RENEW},
        {State.FINE, State.WRONG},
    )

    def early(data: dict[str, Any]) -> None:
        data["tls"]["renew_days"] = 365
        data["tls"]["internal"]["authority"] = {"key": "file:ca-key.pem"}

    data = valid()
    early(data)
    write_site(tmp_path, data)
    answer = listed(file)
    assert answer["exit"] == 2
    assert states(answer)["internal: a"] == "renew"
    assert states(answer)["internal: authority"] == "fine"
    said = run(file).output
    assert f"callfleet certificates issue {file} && callfleet apply {file}" in said
    assert "put a new certificate at file:wildcard.pem, then" in said


def test_a_host_that_changed_its_name_gets_another(tmp_path: Path) -> None:
    """What no longer covers the name that the ingress asks for is of no use, and issue makes it again."""
    file = laid(tmp_path)
    run(file, "authority")
    run(file, "issue")

    def renamed(data: dict[str, Any]) -> None:
        data["fleets"]["eu1"]["hosts"]["a"]["public_name"] = "first.acme.test"

    laid(tmp_path, renamed)
    answer = listed(file)
    assert (answer["exit"], states(answer)["internal: a"]) == (1, "wrong")
    assert "issued a:" in run(file, "issue").output
    assert listed(file)["exit"] == 0


TRUSTED = certificate_only(authority().pem())
OTHER = Authority.make("another").pem()

REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], dict[str, bytes], tuple[str, ...], str]] = {
    "no authority declared": (lambda d: d["tls"]["internal"].pop("authority"), {}, (), "no authority of its own"),
    "a name that is none": (lambda _: None, {}, ("c",), "no internal certificate for c. It has: a, b, ingress"),
    "no key": (
        lambda _: None,
        {"ca": TRUSTED},
        (),
        "callfleet certificates authority acme",
    ),
    "another key": (
        lambda _: None,
        {"ca": TRUSTED, "ca-key": OTHER},
        (),
        "belongs to none of its certificates",
    ),
    "an authority that hosts do not trust": (
        lambda d: d["tls"]["internal"]["authority"].update(certificate="new.pem"),
        {
            "ca": TRUSTED,
            "ca-key": OTHER,
            "new": certificate_only(OTHER),
        },
        (),
        "does not have the certificate of tls.internal.authority",
    ),
    "a command in place of a file": (
        lambda d: d["tls"]["internal"]["hosts"].update(b="command:cat b.pem"),
        {"ca": TRUSTED, "ca-key": authority().pem()},
        (),
        "command:cat b.pem: callfleet writes only what file: references name; nothing was written",
    ),
    "no key in it": (
        lambda _: None,
        {"ca": TRUSTED, "ca-key": b"correct-horse"},
        (),
        "no private key in PEM form",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_issued_writes_nothing_and_says_why(kind: str, tmp_path: Path) -> None:
    """And nothing of a key."""
    edit, contents, arguments, said = REFUSED[kind]
    file = laid(tmp_path, edit, **{name.replace("-", "_"): content for name, content in contents.items()})
    for path in file.parent.glob("ca_key.pem"):
        path.rename(file.with_name("ca-key.pem"))
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    done = run(file, "issue", *arguments)
    assert isinstance(done.exception, CallfleetError), done.output
    assert said in str(done.exception)
    assert "correct-horse" not in str(done.exception)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before


def test_a_new_authority_beside_the_old_one_takes_over(tmp_path: Path) -> None:
    """Both are trusted, the newer issues: hosts and ingress accept each other's old and new certificates meanwhile."""
    old, new = Authority.make("old"), Authority.make("new")
    both = certificate_only(old.pem()) + certificate_only(new.pem())
    file = laid(tmp_path, ca=both, a=old.issue("a.acme.test"), b=old.issue("b.acme.test"),
                i=old.issue("ingress", client=True))  # fmt: skip
    file.with_name("ca-key.pem").write_bytes(new.private())
    file.with_name("ca-key.pem").chmod(0o600)
    assert listed(file)["exit"] == 0
    run(file, "issue", "a")
    assert certificate(file.with_name("a.pem")).issuer == new.certificate.subject
    assert unusable(load_site(file)) == []


def test_the_authoritys_key_is_read_by_issue_alone(tmp_path: Path) -> None:
    """A site may keep it off the machine: neither a run nor a list asks for it."""
    file = laid(tmp_path)
    run(file, "authority")
    run(file, "issue")
    file.with_name("ca-key.pem").unlink()
    site: Site = load_site(file)
    assert unusable(site) == []
    assert listed(file)["exit"] == 0


# By ACME


def acme(folder: Path, **files: str) -> Path:
    """A site that has the names' certificates obtained, each into its file."""

    def edit(data: dict[str, Any]) -> None:
        names = {f"{name}.acme.test": f"file:{file}.pem" for name, file in files.items()}
        data["tls"]["certificates"] |= names
        entry = {"directory": "https://localhost:1/dir", "account_key": "file:account.pem", "names": [*names]}
        data["tls"]["acme"] = entry

    return laid(folder, edit)


def test_names_that_share_a_file_are_one_order(tmp_path: Path) -> None:
    """And only what is not fine is ordered; named ones are in any case."""
    file = acme(tmp_path, calls="front", console="front", api="api")
    shared = authority().issue("calls.acme.test", ("console.acme.test",))
    for name, content in (("front", shared), ("api", authority().issue("api.acme.test"))):
        file.with_name(f"{name}.pem").write_bytes(content)
        file.with_name(f"{name}.pem").chmod(0o600)
    done = run(file, "obtain", "--dry-run")
    assert (done.exit_code, done.output) == (0, "Every certificate by ACME is fine; see --all.\n")
    done = run(file, "obtain", "console.acme.test", "--dry-run")
    assert done.exit_code == 2
    assert done.output.startswith("would obtain calls.acme.test, console.acme.test (fine, ends ")
    assert len(run(file, "obtain", "--all", "--dry-run").output.splitlines()) == 2
    file.with_name("api.pem").unlink()
    assert run(file, "obtain", "--dry-run").output == "would obtain api.acme.test (missing) into file:api.pem\n"
    assert f"Next: callfleet certificates obtain {file} && callfleet apply {file}\n" in run(file).output
    refused = run(file, "obtain", "a.acme.test", "--dry-run")
    assert "not among tls.acme.names. There are: api.acme.test" in str(refused.exception)
    none = run(laid(tmp_path), "obtain")
    assert "no certificates by ACME; expected tls.acme" in str(none.exception)


def test_a_placeholder_lets_the_proxies_start_and_is_due_at_once(tmp_path: Path) -> None:
    """Only where there is no certificate; it counts as one that ends soon."""
    file = acme(tmp_path, calls="calls", api="api")
    kept = authority().issue("api.acme.test")
    file.with_name("api.pem").write_bytes(kept)
    file.with_name("api.pem").chmod(0o600)
    run(file, "authority")
    run(file, "issue")
    done = run(file, "obtain", "--placeholder")
    assert done.exit_code == 0, done.output
    assert f"Next: callfleet apply {file} --limit front --limit app, then callfleet certificates obtain" in done.output
    assert file.with_name("api.pem").read_bytes() == kept
    assert file.with_name("calls.pem").stat().st_mode & 0o777 == 0o600
    assert unusable(load_site(file)) == []
    answer = listed(file)
    (entry,) = (one for one in answer["certificates"] if one["for"] == "public: calls.acme.test")
    assert (answer["exit"], entry["state"], entry["source"], entry["issuer"]) == (2, "renew", "ACME", "placeholder")
    assert run(file, "obtain", "--dry-run").exit_code == 2


def test_a_newcomer_is_issued_what_it_is_missing_and_nothing_else(tmp_path: Path) -> None:
    """By the site's own authority, if it has one; never over a file that is there, of use or not."""
    file = laid(tmp_path, a=b"of no use")
    run(file, "authority")
    assert [(name, path.name) for name, path in issued(load_site(file), ("a", "b"))] == [("b", "b.pem")]
    assert file.with_name("a.pem").read_bytes() == b"of no use"
    assert "b" not in {name for name, state in states(listed(file)).items() if state == "missing"}
    file.with_name("b.pem").unlink()
    data = valid()
    assert list(issued(load_site(write_site(tmp_path, data)), ("b",))) == []
