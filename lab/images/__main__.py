"""`python -m lab.images CACHE_DIR`: build the images there and print the OCI layout's directory."""

from __future__ import annotations

from pathlib import Path

import click

from lab.images.build import BuildError, build


@click.command()
@click.argument("cache_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Build the base again, with the mirror's packages of now.")
def main(cache_dir: Path, force: bool) -> None:
    """Build the stand-in images."""
    try:
        click.echo(build(cache_dir, force=force))
    except BuildError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
