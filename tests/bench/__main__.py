"""`make bench`: nights of any size on real processes, as a table and as JSON."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.night import Asked, measure


@click.command(context_settings={"show_default": True})
@click.option("--enterprises", default=100, help="Enterprises with work due.")
@click.option("--licenses", default=1000, help="Licences of each; half of them are due, to both steps.")
@click.option("--latency", default=0.05, help="Seconds that each LMS call takes.")
@click.option("--concurrency", default=2, help="Processes of the worker.")
@click.option("--parallel", default=4, help="LMS_PARALLEL_REQUESTS.")
@click.option("--engine", "kinds", multiple=True, default=["postgresql", "mariadb"], help="Repeatable.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".bench"), help="For logs and bench.json.")
def main(
    enterprises: int, licenses: int, latency: float, concurrency: int, parallel: int, kinds: list[str], folder: Path
) -> None:
    """Measure a whole night: what the LMS costs, and what we cost besides."""
    folder = folder.resolve()
    figures = []
    for kind in kinds:
        click.echo(f"{kind}: {enterprises} enterprises with {licenses} licences each ...")
        figures.append(measure(Asked(kind, enterprises, licenses, latency, concurrency, parallel), folder / kind))
    (folder / "bench.json").write_text(json.dumps(figures, indent=2))
    shown = Table(box=None)
    for heading in ("", *(each["database"] for each in figures)):
        shown.add_column(heading, justify="right" if heading else "left")
    for name in figures[0]:
        if name != "database":
            shown.add_row(name, *(str(each[name]) for each in figures))
    Console().print(shown)
    click.echo(f"Logs and bench.json are in {folder}.")


if __name__ == "__main__":
    main()
