"""`callfleet certificates obtain`: public certificates by ACME, while the proxies in front answer its challenges."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import click
from cryptography.x509.oid import ExtendedKeyUsageOID

from callfleet.acme_account import Account, account_key
from callfleet.certificates import pair_findings
from callfleet.commands.common import DONE, FAILED, SITE, note, open_site
from callfleet.desired.ingress import challenge_script
from callfleet.errors import CallfleetError, shown_path
from callfleet.pyinfra_remote import StepError
from callfleet.pyinfra_session import Session
from callfleet.renewal import Order, State, acme_of, orders, placeholder
from callfleet.secrets import file_path, store
from callfleet.site import Site

TO_RENEW = 2
"""Exit code: fine today, and something is to be renewed; the same as a plan with changes."""
PROBE = "callfleet"
"""A token that no authority gives out: theirs are longer."""


@click.command()
@SITE
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Also those that are fine.")
@click.option("--dry-run", is_flag=True, help="Only say what would be obtained; connects to nothing.")
@click.option(
    "--placeholder", "first", is_flag=True, help="Where there is none: one that nobody trusts, to begin with."
)
def obtain(site: str, names: tuple[str, ...], every: bool, dry_run: bool, first: bool) -> None:
    """Obtain SITE's public certificates by ACME, each with a new key: those of tls.acme.names.

    Without names: those that are missing, of no use, or near their end. The authority asks each name over HTTP, at port
    80; the proxies in front answer meanwhile, without a reload. A certificate is written where its `file:` reference
    points, for its owner alone; the one before stays beside it as NAME.old. What fails is left as it was.

    The proxies must run to answer. On bare hosts: `obtain --placeholder`, apply those in front, then obtain.

    \b
    Exit codes: 0 done or nothing to do, 1 failed, 64 usage; with --dry-run 2 when there is something to obtain.

    \b
    Examples:
      callfleet certificates obtain prod
      callfleet certificates obtain prod calls.example.com
      callfleet certificates obtain prod --dry-run
    """
    loaded = open_site(site)
    chosen = orders(loaded, names, every=every)
    if first:
        chosen = [order for order in chosen if order.state is State.MISSING]
    if not chosen:
        click.echo("No certificate by ACME is missing." if first else "Every certificate by ACME is fine; see --all.")
        return
    if dry_run:
        for order in chosen:
            what = "write a placeholder for" if first else "obtain"
            click.echo(f"would {what} {', '.join(order.names)} ({order.why}) into {order.reference}")
        sys.exit(TO_RENEW)
    if first:
        write_placeholders(loaded, chosen, site)
        return
    failed = place_orders(loaded, chosen)
    if len(failed) < len(chosen):
        click.echo(f"Next: callfleet apply {site}")
    if failed:
        fronts = ", ".join(host.name for host in loaded.front_hosts)
        note(
            f"{len(failed)} of {len(chosen)} not obtained; their files are as they were. A name must lead to {fronts}, "
            f"or to its own fleet host, with port 80 open to everybody. Next: callfleet certificates obtain {site}"
        )
    sys.exit(FAILED if failed else DONE)


def write_placeholders(site: Site, chosen: list[Order], named: str) -> None:
    """A placeholder for each order, and what comes next."""
    for order in chosen:
        path = store(order.reference, site.base_dir, placeholder(order))
        click.echo(f"placeholder for {', '.join(order.names)}: {shown_path(path)}")
    limits = " ".join(f"--limit {host.name}" for host in site.front_hosts)
    click.echo(f"Next: callfleet apply {named} {limits}, then callfleet certificates obtain {named}")


def place_orders(site: Site, chosen: list[Order]) -> list[Order]:
    """Obtain and store each; those that failed, with the reason told. CallfleetError where none can succeed."""
    acme = acme_of(site)
    failed = []
    with Session(site, [host.name for host in site.front_hosts], credentials=False) as session:
        fronts = reached_fronts(session)
        # First whether they can answer at all: an authority limits how often it is asked in vain.
        with answering(session, fronts, {PROBE: PROBE}):
            account = Account(acme.directory, key_of(site), acme.contact, str(site.file(acme.ca)) if acme.ca else None)
        for order in chosen:
            note(f"asking {acme.directory} for {', '.join(order.names)}")
            try:
                content = account.obtain(order.names, partial(answering, session, fronts))
                refuse_unfit(order, content)
                path = store(order.reference, site.base_dir, content)
            except CallfleetError as error:
                note(f"not obtained: {error}")
                failed.append(order)
            else:
                click.echo(f"obtained {', '.join(order.names)}: {shown_path(path)}")
    return failed


def key_of(site: Site) -> bytes:
    """The account's key; made and stored where the file that is to have it is not there."""
    reference = acme_of(site).account_key
    if reference.scheme == "file" and not file_path(reference, site.base_dir).exists():
        path = store(reference, site.base_dir, account_key())
        note(f"created the account's key: {shown_path(path)}; keep a copy in a safe place")
    return site.resolve(reference).reveal().encode()


def reached_fronts(session: Session) -> list[str]:
    """The hosts that answer challenges. CallfleetError where none is reached."""
    fronts = [host.name for host in session.hosts]
    for name, why in session.unreached.items():
        note(f"{name}: not reached, so it answers no challenge: {why}")
    if not fronts:
        raise CallfleetError("no host that answers challenges is reached; nothing was asked for and nothing changed")
    return fronts


@contextmanager
def answering(session: Session, fronts: list[str], answers: Mapping[str, str]) -> Iterator[None]:
    """Every front answers these challenges meanwhile. StepError, with none of them answering, where one does not."""
    asked: list[str] = []
    try:
        for host in fronts if answers else ():
            asked.append(host)
            try:
                session.ask(host, challenge_script(["set", *(f"{token}={text}" for token, text in answers.items())]))
            except StepError as error:
                site = session.site.name
                hint = (
                    f"Next: callfleet apply {site} --limit {host}. Where a certificate is missing, first: "
                    f"callfleet certificates obtain {site} --placeholder"
                )
                said = str(error).splitlines()[-1].removeprefix(f"{host}: ")
                raise StepError(f"{host} does not answer challenges: {said}. {hint}") from None
        yield
    finally:
        for host in asked:
            with suppress(StepError):  # what stays is gone with the next reload, and nobody asks for it
                session.ask(host, challenge_script(["clear", *answers]))


def refuse_unfit(order: Order, content: bytes) -> None:
    """CallfleetError for a certificate that could not serve: it is not written."""
    if findings := list(pair_findings(content, datetime.now(UTC), ExtendedKeyUsageOID.SERVER_AUTH, order.names)):
        raise CallfleetError(f"{order.names[0]}: what the authority sent is of no use: {findings[0].got}")
