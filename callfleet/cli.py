"""The `callfleet` command: a thin layer over the same inventories, operations and deploy.py that pyinfra runs."""

from __future__ import annotations

import importlib
import sys

import click
from click import shell_completion

from callfleet import __version__
from callfleet.commands.common import SITE, echo_json, json_option, open_site
from callfleet.errors import CallfleetError

USAGE_ERROR, INTERRUPTED = 64, 130
click.UsageError.exit_code = USAGE_ERROR


VERBS = {
    "apply": "callfleet.commands.plan:apply",
    "certificates": "callfleet.commands.certificates:certificates",
    "doctor": "callfleet.commands.doctor:doctor",
    "exec": "callfleet.commands.remote:exec_",
    "explain": "callfleet.commands.status:explain",
    "fleet": "callfleet.commands.fleets:fleet",
    "history": "callfleet.commands.history:history",
    "host": "callfleet.commands.hosts:host",
    "import": "callfleet.commands.adopt:import_",
    "lab": "lab.cli:lab",
    "logs": "callfleet.commands.remote:logs",
    "plan": "callfleet.commands.plan:plan",
    "status": "callfleet.commands.status:status",
}


class Verbs(click.Group):
    """Imports a verb when it is used: what connects takes half a second to load."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *VERBS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        module, _, name = VERBS[cmd_name].partition(":")
        found: click.Command = getattr(importlib.import_module(module), name)
        return found


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="callfleet")
def cli() -> None:
    """Provision hosts that carry live phone calls, and change them without dropping one.

    \b
    callfleet lab up             three real throwaway hosts on this machine
    callfleet validate prod      is the site file right? connects to nothing
    callfleet plan lab           what would change, and the calls it touches
    callfleet apply lab          change it; the same as: pyinfra inventories/lab.py deploy.py
    """


@cli.command()
@SITE
@json_option
def validate(site: str, as_json: bool) -> None:
    """Check a whole site file. Connects to nothing, writes nothing, resolves no secret or certificate.

    \b
    Examples:
      callfleet validate prod
      callfleet validate inventories/staging.yml --json
    """
    loaded = open_site(site)
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
        echo_json(answer)
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
        click.echo(f"Next: callfleet plan {site}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete verbs, options, sites, hosts, fleets and slots. Connects to nothing.

    \b
    Examples:
      eval "$(callfleet completion bash)"                  in ~/.bashrc; bash 4.4 or newer
      eval "$(callfleet completion zsh)"                   in ~/.zshrc, after compinit
      callfleet completion fish > ~/.config/fish/completions/callfleet.fish
    """
    maker = shell_completion.get_completion_class(shell)
    assert maker is not None  # noqa: S101 - one of the three
    click.echo(maker(cli, {}, "callfleet", "_CALLFLEET_COMPLETE").source())


def main() -> None:
    """Run the command; errors meant for the operator are printed without a traceback. Ctrl-C ends with 130."""
    try:
        code = cli.main(prog_name="callfleet", standalone_mode=False)
    except CallfleetError as error:
        click.secho(str(error), fg="red", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Ended; nothing more is done.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
