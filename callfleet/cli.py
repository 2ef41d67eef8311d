"""The `callfleet` command: a thin layer over the same inventories, operations and deploy.py that pyinfra runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from callfleet import __version__
from callfleet.errors import CallfleetError
from callfleet.site import load_site
from callfleet.templates import ROOT
from lab.cli import lab

USAGE_ERROR = 64
click.UsageError.exit_code = USAGE_ERROR

SITE = click.argument("site")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="callfleet")
def cli() -> None:
    """Provision hosts that carry live phone calls, and change them without dropping one.

    \b
    callfleet lab up             three real throwaway hosts on this machine
    callfleet validate prod      is the site file right? connects to nothing
    pyinfra inventories/lab.py deploy.py --dry    what would change
    pyinfra inventories/lab.py deploy.py          change it
    """


@cli.command()
@SITE
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def validate(site: str, as_json: bool) -> None:
    """Check a whole site file. Connects to nothing, writes nothing, resolves no secret or certificate.

    \b
    Examples:
      callfleet validate prod
      callfleet validate inventories/staging.yml --json
    """
    loaded = load_site(site_path(site))
    to_edit = [str(problem) for problem in loaded.environment_refuses()]
    hosts = [
        {
            "name": host.name,
            "address": host.address,
            "roles": sorted(host.roles),
            "fleet": host.fleet,
            "workers": host.workers,
            "url": host.url,
        }
        for host in loaded.hosts
    ]
    if as_json:
        answer = {"schema": 1, "site": loaded.name, "release": loaded.release.release, "hosts": hosts}
        answer["to_edit"] = to_edit
        click.echo(json.dumps(answer, indent=2))
        return
    workers = sum(host.workers for host in loaded.hosts)
    click.echo(f"{loaded.name}: valid. {len(hosts)} hosts, {workers} call slots, release {loaded.release.release}.")
    for host in loaded.hosts:
        roles = ", ".join(sorted(host.roles))
        slots = f", {host.workers} workers" if host.workers else ""
        click.echo(f"  {host.name:<16} {host.address:<16} {roles}{slots}")
    if to_edit:
        click.echo("Before it can be applied, edit:")
        for line in to_edit:
            click.echo(f"  {line}")
    else:
        click.echo(f"Next: pyinfra inventories/{loaded.name}.py deploy.py --dry")


def site_path(site: str) -> Path:
    """The site file behind a name (`prod`) or a path."""
    path = Path(site)
    return path if path.suffix in (".yml", ".yaml") else ROOT / "inventories" / f"{site}.yml"


cli.add_command(lab)


def main() -> None:
    """Run the command; errors meant for the operator are printed without a traceback."""
    try:
        cli(prog_name="callfleet")
    except CallfleetError as error:
        click.secho(str(error), fg="red", err=True)
        sys.exit(1)
