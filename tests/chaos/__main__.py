"""`python -m chaos --seed 1 --faults 50`: nights with faults until so many have struck.

Half of them strike PostgreSQL and half MariaDB, half Redis and half RabbitMQ: an odd seed plays PostgreSQL with Redis
beside MariaDB with RabbitMQ, an even one PostgreSQL with RabbitMQ beside MariaDB with Redis. --engine and --broker play
other pairs, MySQL's too.
"""

import logging
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import click
import pytest

from chaos.brokers import BROKERS, pairs
from chaos.faults import Scale, draw, to_json
from chaos.keep_logs import keep
from chaos.mysql import ENGINES
from chaos.night import Night, Report, calibrate
from chaos.servers import require
from chaos.session import ChaosSession
from chaos.totals import Totals

MOST_FAILURES = 5
SLOW_SECONDS = 60  # such a night is kept too: something took long to recover


@click.command(help=__doc__)
@click.option("--seed", default=1, show_default=True, help="What all faults are drawn from.")
@click.option("--faults", default=50, show_default=True, help="How many have to strike, on all engines together.")
@click.option("--engine", type=click.Choice([*ENGINES, "both"]), default="both", show_default=True)
@click.option("--broker", type=click.Choice(list(BROKERS)), help="Instead of the seed's own for this engine.")
@click.option("--night", type=int, help="Play this one night of the seed only; needs --engine.")
@click.option("--points", type=int, help="The points of an undisturbed night, as a failed night was drawn on.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where logs are kept; a new one in /tmp by default.")
def main(
    seed: int, faults: int, engine: str, broker: str | None, night: int | None, points: int | None, folder: Path | None
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the session's end, which stops what it started
    logging.getLogger("worker").setLevel(logging.CRITICAL)  # the undisturbed night's, in this process
    if night is not None and engine == "both":
        raise click.UsageError("--night needs --engine: the two engines have plans of their own")
    played = pairs(seed, None if engine == "both" else engine, broker)
    try:
        require(*{name for pair in played for name in pair})
    except (pytest.skip.Exception, pytest.fail.Exception) as absent:
        raise click.ClickException(str(absent)) from absent
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-seed-{seed}-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # the databases run as other users
    if len(played) == 1:
        sys.exit(one(*played[0], seed, faults, folder, night, points))
    named = " and ".join(f"{engine} with {broker}" for engine, broker in played)
    click.echo(f"chaos: seed {seed}, {faults} faults on {named}, logs in {folder}")
    sys.exit(side_by_side(played, seed, faults, folder))


def side_by_side(played: list[tuple[str, str]], seed: int, faults: int, folder: Path) -> int:
    """Play on two pairs at the same time, half of the faults on each; give the exit status."""
    half = str((faults + 1) // 2)
    command = [sys.executable, "-m", "chaos", "--seed", str(seed), "--faults", half, "--folder", str(folder)]
    playing = [subprocess.Popen([*command, "--engine", engine, "--broker", broker]) for engine, broker in played]
    try:
        statuses = [process.wait() for process in playing]
    finally:
        for process in playing:
            process.terminate()
            process.wait()
    kept = [path for pair in played if (path := folder / "-".join(pair) / "totals.json").exists()]
    whole = Totals.sum(kept)
    whole.write(folder / "totals.json")
    click.echo(f"\nchaos: seed {seed}\n{whole.table()}")
    for sentence in whole.failed:
        click.echo(f"FAILED {sentence}")
    failed = any(statuses) or len(kept) < len(played)
    click.echo(f"{'FAILED' if failed else 'all promises held'}; logs in {folder}")
    return int(failed)


def one(
    engine: str, broker: str, seed: int, faults: int, whole: Path, night: int | None = None, points: int | None = None
) -> int:
    """Play on one engine with one broker, with the logs in a folder of their own; give the exit status."""
    totals, folder = Totals(), whole / f"{engine}-{broker}"
    with ChaosSession(engine, broker, seed, folder) as session:
        report, scale = calibrate(session)
        _tell(session, report, "undisturbed")
        if report.broken:
            totals.failed.append(_failed(session, Night(session, 0, []), report, scale))
        scale = Scale(points or scale.points, scale.downgrades, scale.unlinks, scale.enterprises)
        for number in [night] if night is not None else count(1):
            _play(session, number, scale, totals)
            totals.write(folder / "totals.json")
            if totals.struck >= faults or len(totals.failed) >= MOST_FAILURES:
                break
    click.echo(f"{engine} with {broker}: {totals.struck} faults struck in {totals.nights} nights")
    if not totals.failed:
        for name in (engine, broker):
            shutil.rmtree(folder / name, ignore_errors=True)
    return int(bool(totals.failed))


def _play(session: ChaosSession, number: int, scale: Scale, totals: Totals) -> None:
    night = Night(session, number, draw(session.seed, session.engine_name, session.broker_name, number, scale))
    report = night.play()
    totals.add(report)
    _tell(session, report)
    if report.broken:
        totals.failed.append(_failed(session, night, report, scale))
    elif report.seconds > SLOW_SECONDS:
        click.echo(f"{session.name}, night {number} took long: {keep(session, report, night.logs)}")
    if any(sentence.startswith("Not settled") for sentence in report.broken):
        session.renew()


def _tell(session: ChaosSession, report: Report, verdict: str = "") -> None:
    verdict = "BROKEN" if report.broken else verdict or "ok"
    starved = f" (machine stood still {report.starved} times)" if report.starved else ""
    click.echo(
        f"{time.strftime('%H:%M:%S')} {session.engine_name:<11}{session.broker_name:<9} night {report.number:<4}"
        f" {len(report.struck):>3} faults {len(report.deeds):>2} deeds"
        f" {report.points:>6} points {report.seconds:>6.1f} s {report.extra:>2} further  {verdict}{starved}"
    )


def _failed(session: ChaosSession, night: Night, report: Report, scale: Scale) -> str:
    """Keep what tells why, and print it; give one line that sums it up."""
    folder = keep(session, report, night.logs)
    pair = f"ENGINE={session.engine_name} BROKER={session.broker_name}"
    replay = f"make chaos SEED={session.seed} {pair} NIGHT={report.number} POINTS={scale.points}"
    click.echo(f"{session.name}, seed {session.seed}, night {report.number}: {folder}; again: {shlex.quote(replay)}")
    for sentence in report.broken[:20]:
        click.echo(f"  {sentence}")
    for fault in to_json(report.plan):
        click.echo(f"    {fault}")
    return f"{session.name}, night {report.number}: {report.broken[0]} ({len(report.broken)} in all; {folder})"


if __name__ == "__main__":
    main()
