"""`make run`: everything that a night needs as real processes on this machine, and one night through them.

Everything is embedded: fakeredis's TCP server, an SQLite file with invented data, the simulated LMS. Settings of the
environment, of files and of LICENSE_EXPIRY_CFG are ignored, by all that the demo starts as well: only a database and a
broker that are named as options take the place of the embedded ones. The LMS is always the simulated one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
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
from simulator.data.showcase import Demo, demo, read_demo
from simulator.processes import Processes, StartError, free_port, listens
from simulator.sealed import close_secrets, environment
from worker.db.engine import address_of, cannot_be_used, make_engine
from worker.errors import LicenseExpiryError, Unusable, WrongSetting
from worker.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
FOLDER = Path(".demo")
FLOWER_LOGIN = "demo:demo"
# So that whoever breaks the LMS sees a step come again, and its run fail, within a minute or two.
IMPATIENCE = {"TASK_RETRY_SECONDS": "5", "TASK_MAX_RETRIES": "3"}
PYTHON = sys.executable
SEALED = [PYTHON, "-m", "simulator.sealed"]
COMMAND = [*SEALED, "license-expiry"]
LMS_KEY, LMS_SECRET = "demo-key", "demo-secret"
out = Console(highlight=False)


@click.command()
@click.option("--once", is_flag=True, help="End after the night, with its exit status.")
@click.option("--database", metavar="URL", help="An empty database, or one that the demo has made before.")
@click.option("--broker", metavar="URL", help="A Redis or a RabbitMQ that no other worker uses.")
@click.option("--lms", metavar="URL", help="Refused: the demo's LMS is always its simulator.")
def main(once: bool, database: str | None, broker: str | None, lms: str | None) -> None:
    """Start all that a night needs, run one night, show what it did, and stay until Ctrl-C."""
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, signal.default_int_handler)
    harmless = environment(os.environ)
    os.environ.clear()
    os.environ.update(harmless)
    close_secrets()
    try:
        if lms:
            what = "LMS_URL: the demo never calls an LMS but its own simulator"
            raise WrongSetting(what, "Leave LMS_URL out; to run on a real LMS see docs/how-to/install.md")
        FOLDER.mkdir(exist_ok=True)
        with Processes(FOLDER.absolute(), ROOT) as processes:
            status = _everything(processes, once, database, broker)
    except KeyboardInterrupt:
        out.print("\nStopped.")
        status = 130
    except (StartError, LicenseExpiryError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        status = 2
    raise SystemExit(status)


def _everything(processes: Processes, once: bool, database: str | None, broker: str | None) -> int:
    broker_port, lms_port = None if broker else free_port(), free_port(8000)
    settings = _settings(database, broker or f"redis://127.0.0.1:{broker_port}/0", lms_port)
    shown = _prepare_database(settings)
    if broker_port:
        serve = f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {broker_port})).serve_forever()"
        processes.start("broker", [PYTHON, "-c", serve], lambda: listens(broker_port))
    command = [PYTHON, "-m", "simulator", "serve", "--port", str(lms_port), "--latency", "0.1"]
    command += ["--client-id", LMS_KEY, "--client-secret", LMS_SECRET, "--database", settings.DATABASE_URL]
    processes.start("lms", command, lambda: listens(lms_port))
    flower_port, pages_port = free_port(5555), free_port(8001)
    flower, pages = (f"http://127.0.0.1:{port}" for port in (flower_port, pages_port))
    os.environ.update(FLOWER_URL=flower, SERVE_URL=pages)
    _start_celery(processes, flower_port)
    status = _night(shown)
    if not once:
        processes.start("serve", [*COMMAND, "serve", f"--port={pages_port}"], lambda: listens(pages_port))
        prometheus = _start_prometheus(processes, pages, flower)
        _invite(flower, pages, prometheus)
        signal.pause()
    return status


def _settings(database: str | None, broker: str, lms_port: int) -> Settings:
    """Set the environment of everything that is started, and return the settings in it."""
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


def _prepare_database(settings: Settings) -> Demo:
    """Make data in an empty database, and the ledger's tables; return what the data shows.

    Raises WrongSetting before it writes anything when the database holds what the demo did not make.
    """
    engine = make_engine(settings.DATABASE_URL)
    try:
        found = whose(engine)
        if found is Whose.NOBODYS:
            out.print("Making the data of 15 enterprises ...")
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
        raise WrongSetting(what, "Name an empty database, or none: make run; where it is the demo's own, make clean")
    # The simulator may have had another port the last time.
    init = [*COMMAND, "init-db", "--lms-url", settings.LMS_URL]
    if subprocess.run(init, stdout=subprocess.DEVNULL, check=False).returncode:
        raise StartError("license-expiry init-db has failed: see above")
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


def _start_prometheus(processes: Processes, pages: str, flower: str) -> str | None:
    """Start a Prometheus with our rules and return its address, where this machine has one."""
    found, rules = shutil.which("prometheus"), ROOT / "deploy/prometheus"
    if found is None or not rules.is_dir():
        return None
    port, folder = free_port(9090), FOLDER.absolute() / "prometheus"
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


def _night(shown: Demo) -> int:
    """Run the command license-expiry for a night, then tell what the data was there to show; return the exit status."""
    out.print("\n[bold]The night begins:[/bold] license-expiry run")
    runs, held = _told("run")["runs"], _told("held")["held"]
    out.print(_summary(runs, shown) if runs else "Nothing is due.")
    for license in held:
        out.print(
            f"Held: license {license['license_uuid']}, {license['step']} refused by the LMS with {license['reason']}, "
            f"tried {license['tries']}x; tried again next night.",
            soft_wrap=True,
        )
    out.print("make clean makes new data.")
    # What the demo's data plants to be held is no failure.
    unplanted = {UUID(license["license_uuid"]) for license in held} - shown.planted_held
    return 1 if unplanted or any(run["phase"] != "finished" for run in runs) else 0


def _told(command: str) -> Any:
    """What a command of license-expiry prints with --json; its progress and its errors are shown. Raises StartError."""
    told = subprocess.run([*COMMAND, command, "--json"], stdout=subprocess.PIPE, check=False).stdout
    if not told:
        raise StartError(f"license-expiry {command} has failed: see above")
    return json.loads(told)


def _summary(runs: list[dict[str, Any]], shown: Demo) -> Table:
    known = {str(enterprise.uuid): enterprise for enterprise in shown.enterprises}
    table = Table(box=None, pad_edge=False, title="What this data is there to show", title_justify="left")
    for heading in ("enterprise", "down-\ngraded", "un-\nlinked", "pro-\ntected", "held", "why"):
        table.add_column(heading, justify="left" if heading in ("enterprise", "why") else "right")
    counts = ("licenses_downgraded", "learners_unlinked", "learners_protected", "licenses_held")
    for run in runs:
        uuid = run["enterprise_customer_uuid"]
        run |= {"name": known[uuid].name, "why": known[uuid].shows} if uuid in known else {"name": uuid, "why": ""}
    for run in sorted(runs, key=lambda run: run["name"]):
        why = run["error"] or (run["why"] if run["phase"] == "finished" else run["phase"])
        table.add_row(run["name"], *(str(run[count]) for count in counts), why)
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
    out.print("Break the LMS, and mend it:")
    out.print(f"""  {faults} '[{{"status": 503}}]'\n  {faults} '[]'""", **plain)
    out.print(f"Logs are in {FOLDER.absolute()}. Ctrl-C ends everything.", soft_wrap=True)


if __name__ == "__main__":
    main()
