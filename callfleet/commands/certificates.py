"""`callfleet certificates`: what a site's certificates are, and the making of those that callfleet can make."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from callfleet.authority import PEM, Authority
from callfleet.certificates import Declared, pair_findings
from callfleet.commands.common import DONE, FAILED, SITE, echo_json, json_option, open_site, show, table
from callfleet.commands.obtain import TO_RENEW, obtain
from callfleet.errors import CallfleetError, shown_path
from callfleet.renewal import (
    Held,
    Source,
    State,
    authority_certificate,
    authority_of,
    internal_certificates,
    open_authority,
    renewed,
    survey,
)
from callfleet.secrets import SecretError, file_path, store, write_private
from callfleet.site import Site


class Certificates(click.Group):
    """A group whose verb is `list` where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Certificates, subcommand_metavar="[COMMAND] SITE [ARGS]...")
def certificates() -> None:
    """Certificates of a site: list them, and make or renew those that callfleet can.

    Hosts get them by the next `callfleet apply`, which loads them without ending a call.

    \b
    callfleet certificates prod                 what each is for, who issued it, how long it lasts
    callfleet certificates authority prod       once: the site's own authority, for mutual TLS inside
    callfleet certificates issue prod           by that authority: what is missing or near its end
    callfleet certificates obtain prod          public ones by ACME: what is missing or near its end
    """


certificates.add_command(obtain)


@certificates.command("list")
@SITE
@json_option
def list_(site: str, as_json: bool) -> None:
    """List SITE's certificates: what for, names, issuer, days left, where they come from. Connects to nothing.

    \b
    Exit codes: 0 all fine, 2 some end within tls.renew_days, 1 one is missing or of no use, 64 usage.

    \b
    Examples:
      callfleet certificates prod
      callfleet certificates list prod --json
    """
    loaded, now = open_site(site), datetime.now(UTC)
    held = survey(loaded, now)
    code = exit_code(held)
    if as_json:
        echo_json(document(loaded, held, now, code))
    else:
        report(held, now)
        for line in next_steps(held, site):
            click.echo(f"Next: {line}")
    sys.exit(code)


def exit_code(held: list[Held]) -> int:
    """Of a list: failed for what is of no use, otherwise whether something is to be renewed."""
    states = {one.state for one in held}
    return FAILED if states & {State.WRONG, State.MISSING} else TO_RENEW if State.RENEW in states else DONE


def days_left(one: Held, now: datetime) -> int | None:
    """Whole days until its end, negative after it."""
    return None if one.until is None else (one.until - now).days


def document(site: Site, held: list[Held], now: datetime, code: int) -> dict[str, Any]:
    """The document of `--json`."""
    entries = [
        {
            "for": one.purpose,
            "reference": str(one.declared.reference),
            "names": list(one.names),
            "issuer": one.issuer,
            "not_after": one.until.isoformat() if one.until else None,
            "days_left": days_left(one, now),
            "source": str(one.source),
            "state": str(one.state),
            "problems": list(one.problems),
        }
        for one in held
    ]
    return {
        "schema": 1,
        "kind": "certificates",
        "site": site.name,
        "exit": code,
        "renew_days": site.tls.renew_days,
        "certificates": entries,
    }


def report(held: list[Held], now: datetime) -> None:
    """The certificates as a table, what is wrong with them below it."""
    rows = table("for", "names", "issuer", "days left", "source", "state")
    for one in held:
        days = days_left(one, now)
        left = "?" if days is None else str(days)
        rows.add_row(one.purpose, ", ".join(one.names), one.issuer, left, one.source, one.state)
    show(rows)
    for one in held:
        for problem in one.problems:
            click.echo(f"{one.purpose}: {problem}")


def next_steps(held: list[Held], site: str) -> list[str]:
    """A command or a sentence for each kind of certificate that is not fine."""
    found, due = [], [one for one in held if one.state is not State.FINE]
    ours = [one for one in due if one.source is Source.SITE]
    lost = [one for one in ours if one.declared.use is None and one.state is State.MISSING]
    if lost:
        found.append(f"callfleet certificates authority {site}")
    if any(one.source is Source.ACME for one in due):
        found.append(f"callfleet certificates obtain {site} && callfleet apply {site}")
    if any(one.declared.use is not None for one in ours):
        found.append(f"callfleet certificates issue {site} && callfleet apply {site}")
    by_hand = [one for one in due if one.source is Source.OWN]
    by_hand += [one for one in ours if one.declared.use is None and one not in lost]
    if by_hand:
        places = dict.fromkeys(str(one.declared.reference) for one in by_hand)
        found.append(f"put a new certificate at {', '.join(places)}, then callfleet apply {site}")
    return found


@certificates.command()
@SITE
def authority(site: str) -> None:
    """Create SITE's own authority, once: what tls.internal.authority names. Never overwrites one that is there.

    Its key stays on this machine: no host gets it, and only `certificates issue` reads it.

    \b
    Exit codes: 0 created, 1 not so, 64 usage.

    \b
    Examples:
      callfleet certificates authority prod
    """
    loaded = open_site(site)
    entry, path = authority_of(loaded), loaded.file(authority_certificate(loaded))
    if entry.key.scheme != "file":
        raise SecretError(
            f"{entry.key}: callfleet writes only what a file: reference names. Make it by your own means."
        )
    key = file_path(entry.key, loaded.base_dir)
    if there := [one for one in (key, path) if one.exists()]:
        raise CallfleetError(
            f"{' and '.join(map(shown_path, there))}: already there; an authority is never overwritten, because every "
            "certificate that it issued would be refused. Nothing was changed."
        )
    made = Authority.make(f"callfleet {loaded.name} internal")
    store(entry.key, loaded.base_dir, made.private())
    write_private(path, made.certificate.public_bytes(PEM))
    click.echo(f"created {shown_path(path)}, valid until {made.certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"created {shown_path(key)}: keep a copy in a safe place")
    click.echo(f"Next: callfleet certificates issue {site}")


@certificates.command()
@SITE
@click.argument("names", nargs=-1, metavar="[HOST|ingress]...")
@click.option("--all", "every", is_flag=True, help="Also those that are fine.")
def issue(site: str, names: tuple[str, ...], every: bool) -> None:
    """Make SITE's internal certificates by its own authority, each with a new key. Connects to nothing.

    Without names: those that are missing, of no use, or near their end. They are written where the site file's `file:`
    references point, for their owner alone; the one before stays beside it as NAME.old.

    \b
    Exit codes: 0 done or nothing to do, 1 failed, 64 usage.

    \b
    Examples:
      callfleet certificates issue prod
      callfleet certificates issue prod eu1-c ingress
      callfleet certificates issue prod --all
    """
    loaded = open_site(site)
    authority_of(loaded)
    chosen = internal_certificates(loaded, names, set(State) if every or names else set(State) - {State.FINE})
    if not chosen:
        click.echo("Every internal certificate is fine; --all renews them all the same.")
        return
    for name, path in make(loaded, chosen):
        click.echo(f"issued {name}: {shown_path(path)}")
    click.echo(f"Next: callfleet apply {site}")


def make(site: Site, chosen: list[tuple[str, Declared]]) -> Iterator[tuple[str, Path]]:
    """Issue these internal certificates, each as it is asked for: whom it is for, and where it lies now.

    CallfleetError, before the first is written, where a reference is no file.
    """
    if elsewhere := [each.reference for _, each in chosen if getattr(each.reference, "scheme", "") != "file"]:
        raise SecretError(
            f"{', '.join(map(str, elsewhere))}: callfleet writes only what file: references name; nothing was written. "
            "Name the other certificates on the command line, and make these by your own means."
        )
    opened = open_authority(site)
    for name, each in chosen:
        content = renewed(site, opened, each)
        assert each.use is not None and not isinstance(each.reference, str)  # noqa: S101, PT018 - chosen so
        now = datetime.now(UTC)
        if findings := list(pair_findings(content, now, each.use, each.names, opened.certificate.public_bytes(PEM))):
            raise CallfleetError(f"{name}: what was made is of no use: {findings[0].got}. Nothing was written for it.")
        yield name, store(each.reference, site.base_dir, content)
