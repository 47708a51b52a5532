"""`make run`: starts everything that a night needs as real processes on this machine, and runs one night.

The broker is fakeredis's TCP server, the database an SQLite file with invented data, the LMS the simulated one. The
demo and its processes ignore the settings in the environment, in files and in LICENSE_EXPIRY_CFG. Options can name
another database and another broker, but no other LMS. `.demo/env` has the settings: source it to use the command on
the demo.
"""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DBAPIError

from simulator.data.mark import Whose, mark, whose
from simulator.data.rows import Data
from simulator.data.schema import create_tables
from simulator.data.showcase import CASES, Demo, demo, read_demo
from simulator.processes import Interrupts, Processes, StartError, free_port, listens, lock
from simulator.sealed import close_secrets, environment
from worker.db.engine import address_of, cannot_be_used, make_engine
from worker.errors import LicenseExpiryError, Unusable, WrongSetting
from worker.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
FOLDER = Path(".demo")
FLOWER_LOGIN = "demo:demo"
# A user who breaks the LMS sees the step retried, and then its run fail, within two minutes.
IMPATIENCE = {"TASK_RETRY_SECONDS": "5", "TASK_MAX_RETRIES": "3"}
PYTHON = sys.executable
SEALED = [PYTHON, "-m", "simulator.sealed"]
COMMAND = [*SEALED, "license-expiry"]
LMS_KEY, LMS_SECRET = "demo-key", "demo-secret"
out = Console(highlight=False)


PORTS = {"lms": 8000, "flower": 5555, "serve": 8001, "prometheus": 9090}
"""The port of each, if it is free and no option names another"""


def _port_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, port in PORTS.items():
        text = f"{'the simulated LMS' if name == 'lms' else name}'s port on 127.0.0.1; {port} unless it is taken."
        kind = click.IntRange(1, 65535)
        command = click.option(f"--{name}-port", name, type=kind, help=text[0].upper() + text[1:])(command)
    return command


@click.command()
@click.option("--once", is_flag=True, help="Stop after the night, with its exit status.")
@click.option("--database", metavar="URL", help="An empty database, or one that the demo made earlier.")
@click.option("--broker", metavar="URL", help="A Redis or a RabbitMQ that no other worker uses.")
@click.option("--lms", "other_lms", metavar="URL", help="Refused: the demo's LMS is always its simulator.")
@_port_options
def main(
    once: bool, database: str | None, broker: str | None, other_lms: str | None, **wanted_ports: int | None
) -> None:
    """Start everything a night needs, run one night, show what it did, and keep running until Ctrl-C."""
    processes = Processes(FOLDER.absolute(), ROOT, Interrupts())
    harmless = environment(os.environ)
    os.environ.clear()
    os.environ.update(harmless)
    close_secrets()
    try:
        if other_lms:
            what = "LMS_URL: the demo never calls an LMS but its own simulator"
            raise WrongSetting(what, "Leave LMS_URL out; to run on a real LMS see docs/how-to/install.md")
        FOLDER.mkdir(exist_ok=True)
        with lock(FOLDER / "lock"), processes:
            status = _everything(processes, once, database, broker, _ports(wanted_ports))
    except KeyboardInterrupt:
        processes.stop_all()  # it may have come just as all was about to be stopped
        with suppress(OSError):
            os.write(1, b"Stopped.\n")
        status = 130
    except (StartError, LicenseExpiryError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        status = 2
    raise SystemExit(status)


def _ports(wanted: Mapping[str, int | None]) -> dict[str, int]:
    """Choose the ports: those of the options, otherwise the usual ones if they are free.

    Raises StartError if a port that an option names is taken.
    """
    ports: dict[str, int] = {}
    for name, usual in PORTS.items():
        given = wanted[name]
        others = {*ports.values(), *(port for other, port in wanted.items() if other != name)}
        free = free_port(given or usual)
        if given and (free != given or given in others):
            raise StartError(
                f"Port {given} is taken. Give another one: --{name}-port, or {name.upper()}_PORT of make run"
            )
        ports[name] = free_port() if free in others else free
        if ports[name] != (given or usual):
            out.print(f"Port {usual} is taken: {name} uses {ports[name]}. Choose one with --{name}-port.")
    return ports


def _everything(
    processes: Processes, once: bool, database: str | None, broker: str | None, ports: Mapping[str, int]
) -> int:
    broker_port = None if broker else free_port()
    lms_port, flower_port, pages_port = ports["lms"], ports["flower"], ports["serve"]
    settings = _settings(database, broker or f"redis://127.0.0.1:{broker_port}/0", lms_port)
    shown = _prepare_database(processes, settings)
    if broker_port:
        serve = f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {broker_port})).serve_forever()"
        processes.start("broker", [PYTHON, "-c", serve], lambda: listens(broker_port))
    command = [PYTHON, "-m", "simulator", "serve", "--port", str(lms_port), "--latency", "0.1"]
    command += ["--client-id", LMS_KEY, "--client-secret", LMS_SECRET, "--database", settings.DATABASE_URL]
    processes.start("lms", command, lambda: listens(lms_port))
    flower, pages = (f"http://127.0.0.1:{port}" for port in (flower_port, pages_port))
    os.environ.update(FLOWER_URL=flower, SERVE_URL=pages)
    _write_env()
    _start_celery(processes, flower_port)
    status = _night(processes, shown)
    if not once:
        processes.start("serve", [*COMMAND, "serve", f"--port={pages_port}"], lambda: listens(pages_port))
        prometheus = _start_prometheus(processes, pages, flower, ports["prometheus"])
        _invite(flower, pages, prometheus)
        while True:  # signal.pause() would miss a signal that came just before it
            time.sleep(1)
    return status


def _write_env() -> None:
    """Write the settings to a file that a shell can source. Only its owner can read it: a URL may have a password."""
    settings = {name: value for name, value in os.environ.items() if name not in environment(os.environ)}
    path = FOLDER / "env"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(settings.items())))


def _settings(database: str | None, broker: str, lms_port: int) -> Settings:
    """Set the environment of all processes, and return the settings in it."""
    os.environ.update(
        DATABASE_URL=database or f"sqlite:///{FOLDER.absolute()}/license_manager.sqlite3",
        CELERY_BROKER_URL=broker,
        LMS_URL=f"http://127.0.0.1:{lms_port}",
        BACKEND_SERVICE_EDX_OAUTH2_KEY=LMS_KEY,
        BACKEND_SERVICE_EDX_OAUTH2_SECRET=LMS_SECRET,
        FLOWER_BASIC_AUTH=FLOWER_LOGIN,
        **IMPATIENCE,
    )
    return load_settings(broker=True)


def _prepare_database(processes: Processes, settings: Settings) -> Demo:
    """Fill an empty database with data, create the ledger's tables, and return what the data shows.

    Raises WrongSetting, before it writes anything, if the database holds something that the demo did not make.
    """
    engine = make_engine(settings.DATABASE_URL)
    try:
        found = whose(engine)
        if found is Whose.NOBODYS:
            out.print(f"Making the data of {len(CASES)} enterprises ...")
            mark(engine)
            create_tables(engine)
            data = Data(engine)
            demo(data, datetime.now(UTC))
            data.flush()
        shown = None if found is Whose.OTHERS else read_demo(engine)
        address = address_of(engine)
    except DBAPIError as error:
        raise Unusable(*cannot_be_used(engine, error)) from error
    finally:
        engine.dispose()
    if shown is None:
        what = f"DATABASE_URL: {address} holds tables or customers that the demo did not make; it has changed nothing"
        raise WrongSetting(
            what, "Name an empty database, or none: make run; if it is the demo's own, run make clean first"
        )
    # The simulator may have had another port last time.
    init = [*COMMAND, "init-db", "--lms-url", settings.LMS_URL]
    status, _ = processes.run("init-db", init)
    if status:
        raise StartError("license-expiry init-db failed: see above")
    os.environ["CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"] = ",".join(map(str, shown.unlink_enabled))
    return shown


def _start_celery(processes: Processes, port: int) -> None:
    """Start worker, beat and, on this port, Flower."""
    celery = [*SEALED, "celery", "-A", "worker"]
    out.print("Starting worker, beat and Flower ...")
    flower = ["flower", "--address=127.0.0.1", f"--port={port}"]
    processes.start("flower", [*celery, *flower], lambda: listens(port))
    worker = ["worker", "--loglevel=INFO", "--concurrency=2"]
    processes.start("worker", [*celery, *worker], lambda: " ready." in processes.log("worker"))
    schedule = f"--schedule={FOLDER.absolute()}/celerybeat-schedule"
    processes.start("beat", [*celery, "beat", "--loglevel=INFO", schedule])


def _start_prometheus(processes: Processes, pages: str, flower: str, port: int) -> str | None:
    """Start Prometheus with our rules and return its address; None if this machine has no Prometheus."""
    found, rules = shutil.which("prometheus"), ROOT / "deploy/prometheus"
    if found is None or not rules.is_dir():
        return None
    folder = FOLDER.absolute() / "prometheus"
    folder.mkdir(exist_ok=True)
    shutil.copy(rules / "rules.yml", folder)
    config = (rules / "prometheus.yml").read_text().replace("30s", "5s").replace("20s", "4s")
    for name, address in (("serve:8001", pages), ("flower:5555", flower)):
        config = config.replace(name, address.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(config)
    address = f"127.0.0.1:{port}"
    command = [found, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    processes.start("prometheus", [*command, f"--web.listen-address={address}"], lambda: listens(port))
    return f"http://{address}"


def _night(processes: Processes, shown: Demo) -> int:
    """Run a night with the command license-expiry, print what it did and why, and return the exit status."""
    out.print("\n[bold]The night begins:[/bold] license-expiry run")
    runs, held = _told(processes, "run")["runs"], _told(processes, "held")["held"]
    out.print(_summary(runs, shown) if runs else "Nothing is due.")
    for license in held:
        out.print(
            f"Held: license {license['license_uuid']}, {license['step']} refused by the LMS with {license['reason']}, "
            f"tried {license['tries']}x; tried again next night.",
            soft_wrap=True,
        )
    out.print("To start with new data: make clean")
    # A license that the demo's data makes the LMS refuse is no failure.
    unplanted = {UUID(license["license_uuid"]) for license in held} - shown.planted_held
    return 1 if unplanted or any(run["phase"] != "finished" for run in runs) else 0


def _told(processes: Processes, command: str) -> Any:
    """Return what a command of license-expiry prints with --json. Raises StartError if it prints nothing."""
    _, told = processes.run(command, [*COMMAND, command, "--json"])
    if not told:
        raise StartError(f"license-expiry {command} failed: see above")
    return json.loads(told)


def _summary(runs: list[dict[str, Any]], shown: Demo) -> Table:
    """Return a table of all enterprises: what their runs did, or that they had none."""
    known = {str(enterprise.uuid): enterprise for enterprise in shown.enterprises}
    table = Table(box=None, pad_edge=False, title="What this data shows", title_justify="left")
    for heading in ("enterprise", "down-\ngraded", "un-\nlinked", "pro-\ntected", "held", "why"):
        table.add_column(heading, justify="left" if heading in ("enterprise", "why") else "right")
    counts = ("licenses_downgraded", "learners_unlinked", "learners_protected", "licenses_held")
    for run in runs:
        uuid = run["enterprise_customer_uuid"]
        run |= {"name": known[uuid].name, "why": known[uuid].shows} if uuid in known else {"name": uuid, "why": ""}
    ran = {run["enterprise_customer_uuid"] for run in runs}
    idle = [
        {"name": one.name, "phase": "finished", "error": None, "why": one.shows}
        for one in shown.enterprises
        if str(one.uuid) not in ran
    ]
    for run in sorted([*runs, *idle], key=lambda run: run["name"]):
        why = run["error"] or (run["why"] if run["phase"] == "finished" else run["phase"])
        table.add_row(run["name"], *(str(run.get(count, "-")) for count in counts), why)
    return table


def _invite(flower: str, pages: str, prometheus: str | None) -> None:
    plain: Any = {"markup": False, "soft_wrap": True}  # lines to copy
    out.print(f"\n[bold]The night as a page[/bold] is at {pages}")
    if prometheus:
        out.print(f"[bold]Prometheus[/bold] with our alerts is at {prometheus}")
    out.print(f"[bold]Flower[/bold] is at {flower} (user and password: {FLOWER_LOGIN}). Start an enterprise again:")
    post = f"curl -u {FLOWER_LOGIN} {flower}/api/task/async-apply/license_expiry"
    again = {"enterprise_customer_uuid": "…", "force": True, "reason": "to see it again"}
    out.print(f"  {post}.run_enterprise -d '{json.dumps({'kwargs': again}, ensure_ascii=False)}'", **plain)
    faults = f"curl -X POST {os.environ['LMS_URL']}/_simulator/faults -d"
    out.print("Break the LMS, then repair it:")
    out.print(f"""  {faults} '[{{"status": 503}}]'\n  {faults} '[]'""", **plain)
    command = Path(os.path.relpath(PYTHON)).with_name("license-expiry")
    out.print("Use the command on the demo, in another terminal in this folder:")
    out.print(f"  set -a; . {FOLDER}/env; set +a\n  {command} status", **plain)
    out.print(f"Logs are in {FOLDER.absolute()}. Ctrl-C stops everything.", soft_wrap=True)


if __name__ == "__main__":
    main()
