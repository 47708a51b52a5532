"""`make bench`: nights of any size on real processes, as tables and as JSON."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench import due, profile
from bench.data import Layout, finish, lay_down
from bench.figures import in_short
from bench.fleet import Fleet, measure_fleet
from bench.machines import why_not
from bench.night import Asked, measure
from bench.servers import server
from bench.shapes import SHAPES, measure_shape
from bench.stand import REALISTIC, ROOT, STRESS, Pace, license_manager, stand

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


class Night(click.ParamType[tuple[int, int, Pace]]):
    """ENTERPRISESxLICENSES@SECONDS/IN_FLIGHT/PROCESSES, such as 20x1000@1/16/20."""

    name = "night"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, Pace]:
        """Read the numbers; without those after the @, the LMS is a realistic one."""
        if isinstance(value, tuple):
            return value
        size, _, pace = str(value).partition("@")
        enterprises, licenses = Size().convert(size, param, ctx)
        if not pace:
            return enterprises, licenses, REALISTIC
        try:
            latency, in_flight, processes = pace.split("/")
            return enterprises, licenses, Pace(float(latency), int(in_flight), int(processes))
        except ValueError:
            self.fail(f"{value} is not like 20x1000@1/16/20", param, ctx)


NIGHTS = [f"20x1000@{REALISTIC}", f"100x1000@{STRESS}"]
MACHINES = [1, 2, 4]


@click.command(context_settings={"show_default": True})
@click.option("--night", "nights", multiple=True, type=Night(), help="Such as 20x1000@1/16/20. Repeatable.")
@click.option(
    "--large", default=0, help="Licenses of each night's first enterprise. For machines 0 is 20 times the others."
)
@click.option("--loop/--no-loop", default=True, help="Whether each night is repeated as license-manager's two jobs.")
@click.option("--chains", default=0, help="Enterprises whose chains are published.")
@click.option("--due", "of_due", type=Size(), help="What is looked for in a database of this size.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice([*SHAPES]), help="And a tenth of it. Repeatable.")
@click.option("--smaller", default=1, help="Divides the size of each shape.")
@click.option("--machines", multiple=True, type=int, help="Workers in so many network namespaces (root). Repeatable.")
@click.option("--of", "shared", type=Size(), default="40x1000", help="The night that these machines share.")
@click.option("--all", "everything", is_flag=True, help="The usual nights, all shapes, 1, 2 and 4 machines: an hour.")
@click.option("--profile", "profiles", is_flag=True, help="Sample the worker with py-spy, which slows it down.")
@click.option("--engine", "kinds", multiple=True, default=["postgresql", "mariadb"], help="Repeatable.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".bench"), help="For logs and bench.json.")
def main(
    nights: list[tuple[int, int, Pace]],
    large: int,
    loop: bool,
    chains: int,
    of_due: tuple[int, int] | None,
    shapes: list[str],
    smaller: int,
    machines: list[int],
    shared: tuple[int, int],
    everything: bool,
    profiles: bool,
    kinds: list[str],
    folder: Path,
) -> None:
    """Measure whole nights, half of whose licenses are due. Without options: two nights, chains, and what is due."""
    if everything or not (nights or chains or of_due or shapes or machines):
        nights = [Night().convert(each, None, None) for each in NIGHTS]
        chains, of_due = 10_000, (10_000, 100)
    if everything:
        shapes, machines = [*SHAPES], MACHINES
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM")
    )  # so that processes and namespaces go as well
    folder = folder.resolve()
    results: dict[str, Figures] = {}
    for kind in kinds:
        with server(kind, folder / f"{kind}-server") as url:
            bench = Bench(kind, url, folder, results)
            for enterprises, licenses, pace in nights:
                bench.night(Asked(kind, url, Layout(enterprises, licenses, large=large), pace, profiles, loop))
            for name in shapes:
                bench.shape(name, smaller)
            bench.fleets(machines, Layout(*shared, large=large or 20 * shared[1]))
            if chains:
                bench.chains(chains)
            if of_due:
                bench.due(*of_due)
    for figures in results.values():
        _show(figures)
    click.echo(f"Logs and bench.json are in {folder}.")


class Bench:
    """What is measured on one kind of database; the figures are kept as they come."""

    def __init__(self, kind: str, server: str, folder: Path, results: dict[str, Figures]) -> None:
        """Take the database server, the folder of all logs, and where the figures go."""
        self.kind, self.server, self.folder, self.results = kind, server, folder, results

    def night(self, asked: Asked) -> None:
        """Measure a night, and say what took the worker's time if that was sampled."""
        at = self._begin(f"a night of {asked.layout}, {asked.pace}")
        self._keep("nights", measure(asked, at))
        for what, entries in (profile.top(at / "stacks.txt") if asked.profile else {}).items():
            _show([{what: name, "%": share} for name, share in entries], upright=False)

    def shape(self, name: str, smaller: int) -> None:
        """Measure a shape and a tenth of it."""
        both, grown = measure_shape(self.kind, self.server, name, smaller, self._begin(f"the shape {name}"))
        self._keep("shapes", *both)
        self._keep("growth", grown)

    def fleets(self, counts: list[int], layout: Layout) -> None:
        """Measure a night on so many machines each, then on the most of them with one killed half way."""
        if counts and why_not():
            click.echo(f"More machines are not measured: {why_not()}.")
            return
        lost = [(max(counts), True)] if counts and max(counts) > 1 else []
        for count, is_lost in [*((count, False) for count in counts), *lost]:
            at = self._begin(f"a night of {layout} on {count} machines{', one killed' if is_lost else ''}")
            self._keep("machines", measure_fleet(Fleet(self.kind, self.server, layout, count, is_lost), at))

    def chains(self, count: int) -> None:
        """Measure how fast chains are opened and published."""
        at = self._begin(f"{count} chains")
        with (
            license_manager(self.server, at) as (engine, _),
            stand(self.kind, engine, lay_down(engine, count, 2), STRESS, at),
        ):
            command = [sys.executable, "-m", "bench.chains", str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        figures = json.loads(done.stdout)
        ratio = in_short(figures["chains_per_second"] / figures["plain_chains_per_second"])
        self._keep("chains", {"database": self.kind} | figures | {"ratio": ratio})

    def due(self, enterprises: int, licenses: int) -> None:
        """Measure how long it takes to find what is due."""
        at = self._begin(f"what is due in {enterprises} enterprises with {licenses} licenses each")

        def keep(everybody: str, figures: dict[str, float]) -> None:
            self._keep("due", {"database": self.kind, "everybody is": everybody} | figures)

        for protected in (False, True):
            with license_manager(self.server, at) as (engine, _):
                listed = lay_down(engine, enterprises, licenses, protected=protected)
                keep("protected" if protected else "due", due.find(engine, listed))
                if not protected:
                    finish(engine)
                    keep("unlinked", due.find(engine, listed))

    def _begin(self, what: str) -> Path:
        click.echo(f"{self.kind}: {what} ...")
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{self.kind} {what}")
        return self.folder / name

    def _keep(self, name: str, *figures: dict[str, Any]) -> None:
        self.results.setdefault(name, []).extend(figures)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "bench.json").write_text(json.dumps(self.results, indent=2))


def _show(figures: Figures, *, upright: bool = True) -> None:
    """Print figures as a table: each a column, or with `upright` false each a row."""
    names = list(dict.fromkeys(name for each in figures for name in each))
    shown = Table(box=None, show_header=not upright)
    console = Console()
    console.width = max(console.width, 24 * (1 + len(figures)) if upright else 0)  # a file takes any width
    if upright:
        for name in names:
            shown.add_row(name, *(str(each.get(name, "")) for each in figures))
    else:
        for name in names:
            shown.add_column(name)
        for each in figures:
            shown.add_row(*map(str, each.values()))
    console.print(shown)


if __name__ == "__main__":
    main()
