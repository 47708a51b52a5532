"""`make soak`: plays the nights, prints the table and the verdict."""

import json
import sys
from pathlib import Path

import click

from soak.nights import play
from soak.verdict import as_markdown, growing


@click.command(context_settings={"show_default": True})
@click.option("--nights", default=30, help="How many; for a verdict on growth, 14 at least.")
@click.option("--enterprises", default=200, help="Each has four licenses due in each night, and later six unlinks.")
@click.option("--engine", "kinds", multiple=True, default=["postgresql", "mariadb"], help="Repeatable.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".soak"), help="For logs and soak.json.")
def main(nights: int, enterprises: int, kinds: list[str], folder: Path) -> None:
    """Play nights in a row: what grows, and does everything due get done, in order, with nobody harmed?"""
    folder, results, wrong = folder.resolve(), {}, False
    for kind in kinds:
        click.echo(f"{kind}: {nights} nights of {enterprises} enterprises ...")
        figures, broken = play(kind, nights, enterprises, folder / kind)
        try:
            found = growing(figures)
            click.echo(f"{kind}: {'; '.join(found) or 'flat from night 5 on'}")
        except ValueError as error:
            found = []
            click.echo(f"{kind}: {error}")
        click.echo("".join(f"{kind}: {each}\n" for each in broken) or f"{kind}: every promise was kept")
        click.echo(as_markdown(figures))
        results[kind] = {"nights": figures, "growing": found, "broken": broken}
        (folder / "soak.json").write_text(json.dumps(results, indent=2))
        wrong |= bool(found or broken)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
