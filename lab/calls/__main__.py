"""`python -m lab.calls`: the call driver's command line."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lab.calls.call import RATE
from lab.calls.held import burst, hold
from lab.calls.report import Summary
from lab.calls.starts import attach_burst


def parse_resolve(entries: tuple[str, ...]) -> dict[tuple[str, int], tuple[str, int]]:
    """`HOST:PORT:ADDRESS[:PORT]` entries; the last part is the address' own port, by default the same.

    An IPv6 address stands in brackets.
    """
    table: dict[tuple[str, int], tuple[str, int]] = {}
    for entry in entries:
        host, _, rest = entry.partition(":")
        port, _, address = rest.partition(":")
        bare, bracket, own_port = address.removeprefix("[").partition("]" if address.startswith("[") else ":")
        own_port = own_port.removeprefix(":") if bracket else ""
        if not (host and port.isdigit() and bare and (own_port or port).isdigit()):
            raise click.BadParameter(f"{entry}: expected HOST:PORT:ADDRESS", param_hint="--resolve")
        table[host, int(port)] = (bare, int(own_port or port))
    return table


def trust(ca: Path | None) -> ssl.SSLContext:
    """Trust the system's authorities, or only those in `ca`."""
    return ssl.create_default_context(cafile=str(ca) if ca else None)


def parse_headers(entries: tuple[str, ...]) -> dict[str, str]:
    """`Name: value` entries."""
    pairs = (entry.partition(":") for entry in entries)
    return {name.strip(): value.strip() for name, _, value in pairs}


def common(command: Any) -> Any:
    """The arguments that every command takes."""
    for decorate in (
        click.argument("url"),
        click.option("--calls", default=1, show_default=True, help="How many at once."),
        click.option("--seconds", default=10.0, show_default=True, help="How long each call lasts."),
        click.option("--ca", type=click.Path(exists=True, path_type=Path), help="Trust only this authority."),
        click.option("--resolve", multiple=True, metavar="HOST:PORT:ADDR", help="Where a name leads to."),
        click.option("--uds", help="Connect to this Unix socket instead."),
        click.option("--header", multiple=True, metavar="NAME:VALUE", help="Send this header too."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    ):
        command = decorate(command)
    return command


@click.group()
def cli() -> None:
    """Drive calls at a fleet.  Exit code 1 when a check fails."""


@cli.command("hold")
@common
@click.option("--rate", default=RATE, show_default=True, help="Frames per second and call.")
def hold_command(
    url: str,
    calls: int,
    seconds: float,
    ca: Path | None,
    resolve: tuple[str, ...],
    uds: str | None,
    header: tuple[str, ...],
    as_json: bool,
    rate: float,
) -> None:
    """Hold calls; fails when one does not open, has a gap or is closed by the other side."""
    headers, table = parse_headers(header), parse_resolve(resolve)
    summary = asyncio.run(hold(url, trust(ca), calls, seconds, headers, rate, resolve=table, uds=uds))
    show(summary, as_json)
    sys.exit(0 if summary.clean else 1)


@cli.command("burst")
@common
def burst_command(
    url: str,
    calls: int,
    seconds: float,
    ca: Path | None,
    resolve: tuple[str, ...],
    uds: str | None,
    header: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start calls at once and hold the accepted ones; fails only when a call got no answer at all."""

    async def run() -> Summary:
        headers, table = parse_headers(header), parse_resolve(resolve)
        async with burst(url, calls, trust(ca), headers, resolve=table, uds=uds) as summary:
            await asyncio.sleep(seconds)
        return summary

    summary = asyncio.run(run())
    show(summary, as_json)
    sys.exit(1 if 0 in summary.refused else 0)


@cli.command("attach")
@common
def attach_command(
    url: str,
    calls: int,
    seconds: float,
    ca: Path | None,
    resolve: tuple[str, ...],
    uds: str | None,
    header: tuple[str, ...],
    as_json: bool,
) -> None:
    """POST background starts at once; fails only when one got no answer at all."""
    headers, table = parse_headers(header), parse_resolve(resolve)
    started = asyncio.run(attach_burst(url, calls, seconds, trust(ca), headers, resolve=table, uds=uds))
    statuses = dict(Counter(one.status for one in started))
    if as_json:
        click.echo(json.dumps({"statuses": statuses, "starts": [asdict(one) for one in started]}))
    else:
        click.echo(f"answers by status: {statuses}, slowest {max(one.answer_seconds for one in started):.3f} s")
    sys.exit(1 if 0 in statuses else 0)


def show(summary: Summary, as_json: bool) -> None:
    """Print a run: one line, then one line for each thing that went wrong."""
    if as_json:
        click.echo(json.dumps(summary.as_json()))
        return
    click.echo(
        f"{summary.opened} of {len(summary.calls)} calls opened, refused {summary.refused or 'none'}, "
        f"{len(summary.gaps)} gaps, {len(summary.closed_early)} closed by the other side, "
        f"longest round trip {summary.worst_round_trip * 1000:.0f} ms, driver lag {summary.driver_lag * 1000:.0f} ms"
    )
    for gap in summary.gaps:
        click.echo(f"  {gap}")
    for call in summary.closed_early:
        click.echo(f"  {call.session}: closed by the other side with {call.close_code}")
    for call in summary.calls:
        if call.error:
            click.echo(f"  {call.session}: {call.error}")


if __name__ == "__main__":
    cli()
