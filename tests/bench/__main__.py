"""`make bench`: nights of any size on real processes, as tables and as JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench import due, profile
from bench.data import finish, lay_down
from bench.night import ROOT, Asked, license_manager, measure, settings_of
from simulator.processes import Processes, listens

Figures = list[dict[str, Any]]


class Size(click.ParamType[tuple[int, int]]):
    """ENTERPRISESxLICENSES, such as 100x1000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read the two numbers."""
        try:
            enterprises, licenses = map(int, str(value).split("x"))
        except ValueError:
            self.fail(f"{value} is not like 100x1000", param, ctx)
        return enterprises, licenses


@click.command(context_settings={"show_default": True})
@click.option("--night", "nights", multiple=True, type=Size(), default=["10x1000", "100x1000"], help="Repeatable.")
@click.option(
    "--large", default=0, help="Licenses of the first enterprise of each night, if not as many as the others."
)
@click.option("--chains", default=10_000, help="Enterprises whose chains are published; 0: that is not measured.")
@click.option(
    "--due", "of_due", type=Size(), default="10000x100", help="What is looked for in a database; 0x0: nothing."
)
@click.option("--latency", default=0.05, help="Seconds that each LMS call takes.")
@click.option("--in-flight", default=8, help="LMS calls in flight at once, of a run and of the host.")
@click.option("--concurrency", default=8, help="Processes of the worker.")
@click.option("--profile", "profiles", is_flag=True, help="Sample the worker with py-spy, which slows it down.")
@click.option("--engine", "kinds", multiple=True, default=["postgresql", "mariadb"], help="Repeatable.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".bench"), help="For logs and bench.json.")
def main(
    nights: list[tuple[int, int]],
    large: int,
    chains: int,
    of_due: tuple[int, int],
    latency: float,
    in_flight: int,
    concurrency: int,
    profiles: bool,
    kinds: list[str],
    folder: Path,
) -> None:
    """Measure whole nights, half of whose licenses are due: what the LMS costs, and what we cost besides."""
    folder = folder.resolve()
    results: dict[str, Figures] = {"nights": [], "chains": [], "due": []}
    for kind in kinds:
        for enterprises, licenses in nights:
            click.echo(f"{kind}: a night of {enterprises} enterprises with {licenses} licenses each ...")
            at = folder / f"{kind}-{enterprises}x{licenses}"
            asked = Asked(kind, enterprises, licenses, latency, concurrency, in_flight, large, profiles)
            results["nights"].append(measure(asked, at))
            for what, entries in (profile.top(at / "stacks.txt") if profiles else {}).items():
                _show([{what: name, "%": share} for name, share in entries], upright=False)
        if chains:
            click.echo(f"{kind}: {chains} chains ...")
            results["chains"].append({"database": kind} | _chains(kind, chains, folder / f"{kind}-chains"))
        if of_due[0]:
            click.echo(f"{kind}: what is due in {of_due[0]} enterprises with {of_due[1]} licenses each ...")
            results["due"] += [{"database": kind} | each for each in _due(kind, *of_due, folder / f"{kind}-due")]
        (folder / "bench.json").write_text(json.dumps(results, indent=2))
    for figures in results.values():
        _show(figures)
    click.echo(f"Logs and bench.json are in {folder}.")


def _chains(kind: str, count: int, folder: Path) -> dict[str, Any]:
    with (
        license_manager(kind, folder) as (engine, url),
        Processes(folder, ROOT) as processes,
        settings_of(folder, url, lay_down(engine, count, 2)) as redis,
    ):
        processes.start("redis", ["redis-server", "--port", str(redis), "--save", ""], lambda: listens(redis))
        command = [sys.executable, "-m", "bench.chains", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures | {"ratio": round(figures["chains_per_second"] / figures["plain_chains_per_second"], 2)}


def _due(kind: str, enterprises: int, licenses: int, folder: Path) -> Figures:
    found = []
    for protected in (False, True):
        with license_manager(kind, folder) as (engine, _):
            listed = lay_down(engine, enterprises, licenses, protected=protected)
            found.append({"everybody is": "protected" if protected else "due"} | due.find(engine, listed))
            if not protected:
                finish(engine)
                found.append({"everybody is": "unlinked"} | due.find(engine, listed))
    return found


def _show(figures: Figures, *, upright: bool = True) -> None:
    if not figures:
        return
    shown = Table(box=None, show_header=not upright)
    if upright:  # a column for each
        for name in figures[0]:
            shown.add_row(name, *(str(each[name]) for each in figures))
    else:
        for name in figures[0]:
            shown.add_column(name)
        for each in figures:
            shown.add_row(*map(str, each.values()))
    Console().print(shown)


if __name__ == "__main__":
    main()
