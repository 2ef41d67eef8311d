"""`callfleet fleet add` and `remove`: fleets of the site file. Neither connects to anything."""

from __future__ import annotations

import re

import click

from callfleet.commands.common import complete, echo_json, fleets, json_option, on, open_site, site_option, site_path
from callfleet.document import nearest
from callfleet.errors import CallfleetError
from callfleet.site import edit


@click.group()
def fleet() -> None:
    """Fleets: fleet hosts that belong together.

    \b
    callfleet fleet add us1                     an empty one; `host add --fleet us1` fills it
    callfleet fleet remove us1                  refused while it has hosts
    """


@fleet.command()
@click.argument("name")
@site_option
@click.option("--public-name", default="", help="A name of its own at the ingress, for this fleet's calls alone.")
@json_option
def add(name: str, site: str, public_name: str, as_json: bool) -> None:
    """Add an empty fleet NAME to the site file.

    \b
    Exit codes: 0 done, 1 refused, 64 usage.

    \b
    Examples:
      callfleet fleet add us1
      callfleet fleet add us1 --public-name us1.calls.example.com
    """
    loaded, path = open_site(site), site_path(site)
    if name in [one.name for one in loaded.fleets]:
        raise CallfleetError(f"{loaded.name} has a fleet {name} already")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise CallfleetError(f"{name!r} is no name of a fleet: expected lower-case letters, digits and hyphens")
    before = path.read_text("utf-8")
    edit.replace_file(path, before, edit.add_fleet(before, name, public_name))
    done(
        "fleet add", loaded.name, name, f"callfleet host add NAME ADDRESS --fleet {name} --workers N{on(site)}", as_json
    )


@fleet.command()
@click.argument("name", shell_complete=complete(fleets))
@site_option
@json_option
def remove(name: str, site: str, as_json: bool) -> None:
    """Remove the empty fleet NAME from the site file.

    \b
    Exit codes: 0 done, 1 refused: it has hosts, or there is none, 64 usage.

    \b
    Examples:
      callfleet fleet remove us1
    """
    loaded, path = open_site(site), site_path(site)
    found = next((one for one in loaded.fleets if one.name == name), None)
    if found is None:
        known = [one.name for one in loaded.fleets]
        raise CallfleetError(f"{loaded.name} has no fleet {name}. {nearest(name, known)}")
    if found.hosts:
        hosts = ", ".join(found.hosts)
        first = f"callfleet host remove {found.hosts[0]}{on(site)}"
        raise CallfleetError(f"{name} has hosts: {hosts}. First, for each: {first}")
    before = path.read_text("utf-8")
    edit.replace_file(path, before, edit.remove_fleet(before, name))
    then = f"callfleet apply {site}" if found.public_name else ""
    done("fleet remove", loaded.name, name, then, as_json)


def done(kind: str, site: str, name: str, then: str, as_json: bool) -> None:
    """The end of either."""
    if as_json:
        echo_json({"schema": 1, "kind": kind, "site": site, "fleet": name, "exit": 0, "next": then})
        return
    click.echo(f"{site}: {kind.partition(' ')[2]} fleet {name}, done.")
    if then:
        click.echo(f"Next: {then}")
