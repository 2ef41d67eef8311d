"""What several verbs share: the site argument, the hosts they act on, tables, and how a run is confirmed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from callfleet.errors import CallfleetError
from callfleet.site import Site, load_site
from callfleet.templates import ROOT

DEFAULT_SITE, SITE_VARIABLE = "prod", "CALLFLEET_SITE"
DONE, FAILED, PENDING = 0, 1, 3
"""Exit codes of what acts: done, failed, some of it waits for the end of calls."""


def _sites(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the sites of this checkout, for the shell's completion."""
    found = (path.stem for path in (ROOT / "inventories").glob("*.yml") if not path.stem.endswith(".release"))
    return sorted(name for name in found if name.startswith(incomplete))


def complete(words: Callable[[Site], Iterable[str]]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completion by what the site of the command line has; nothing where its file cannot be read."""

    def found(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        # Behind an option that waits for its value, click leaves what came before it unread.
        unread = [word for one in ctx.command.params if one.name == "site" and one.param_type_name == "argument"
                  for word in ctx.args[:1]]  # fmt: skip
        named = ctx.params.get("site") or next(iter(unread), os.environ.get(SITE_VARIABLE, DEFAULT_SITE))
        try:
            site = open_site(named)
        except CallfleetError:
            return []
        return [word for word in dict.fromkeys(words(site)) if word.startswith(incomplete)]

    return found


def fleet_hosts(site: Site) -> list[str]:
    """Names of the hosts that carry calls."""
    return [host.name for host in site.fleet_hosts]


def fleets(site: Site) -> list[str]:
    """Names of the fleets."""
    return [fleet.name for fleet in site.fleets]


def hosts_fleets_roles(site: Site) -> list[str]:
    """Everything that a limit may name."""
    return [*(host.name for host in site.hosts), *fleets(site), "fleet", "ingress", "app"]


SITE = click.argument("site", shell_complete=_sites)
site_option = click.option(
    "--site",
    "-s",
    default=DEFAULT_SITE,
    envvar=SITE_VARIABLE,
    show_default=True,
    help="Site name or file.",
    show_envvar=True,
    shell_complete=_sites,
)
limit_option = click.option(
    "--limit",
    "-l",
    multiple=True,
    metavar="NAME",
    help="Only this host, fleet or role; may be repeated.",
    shell_complete=complete(hosts_fleets_roles),
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")

html_option = click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also as one page for a browser."
)


def site_path(site: str) -> Path:
    """The site file behind a name (`prod`) or a path."""
    path = Path(site)
    return path if path.suffix in (".yml", ".yaml") else ROOT / "inventories" / f"{site}.yml"


def open_site(site: str) -> Site:
    """The checked site behind a name or a path."""
    return load_site(site_path(site))


def echo_json(value: Any) -> None:
    """One document on standard output."""
    click.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """A line about the work itself, on standard error, so that standard output stays the answer."""
    click.echo(text, err=True)


def save(path: Path, text: str) -> None:
    """Write what was seen for its owner alone: it holds no secret, but what the hosts look like.

    CallfleetError when it cannot be written.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CallfleetError(f"{path} cannot be written: {error.strerror}; expected a file that may be") from None


def now() -> str:
    """The time as pages show it."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


UNFOLDED = 2000
"""Columns enough for any row."""


def table(*headings: str) -> Table:
    """A table as all verbs draw it."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def console() -> Console:
    """Where tables go: colours only on a terminal, and into a pipe each row on one line."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else UNFOLDED)


def show(made: Table) -> None:
    """Print a table."""
    console().print(made)


def confirm_site(site: Site, what: str) -> None:
    """Ask for the site's name. CallfleetError when nobody can be asked, or for another answer."""
    if not sys.stdin.isatty():
        raise CallfleetError("nobody can be asked here and --yes was not given; nothing was changed")
    said = click.prompt(f"{what} Type the site's name to go on", default="", show_default=False, err=True)
    if said != site.name:
        raise CallfleetError(f"expected {site.name}, got {said!r}; nothing was changed")


def on(site: str) -> str:
    """The option by which a next command means the same site; empty where it does so without."""
    return "" if site == os.environ.get(SITE_VARIABLE, DEFAULT_SITE) else f" --site {shlex.quote(site)}"
