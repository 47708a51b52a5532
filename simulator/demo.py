"""`make run`: everything that a night needs as real processes on this machine, and one night through them.

What is set in the environment is used as it is: CELERY_BROKER_URL, DATABASE_URL, LMS_URL. What is not set is
embedded: fakeredis's TCP server, an SQLite file with invented data, the simulated LMS.
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
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from simulator.data.rows import Data
from simulator.data.schema import create_tables
from simulator.data.showcase import Demo, demo, read_demo
from simulator.processes import Processes, StartError, free_port, listens
from worker.db.engine import cannot_be_used, make_engine
from worker.errors import LicenseExpiryError, Unusable, WrongSetting
from worker.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
FOLDER = Path(".demo")
FLOWER_LOGIN = "demo:demo"
# So that whoever breaks the LMS sees a step come again, and its run fail, within a minute or two.
IMPATIENCE = {"TASK_RETRY_SECONDS": "5", "TASK_MAX_RETRIES": "3"}
PYTHON = sys.executable
COMMAND = [PYTHON, "-c", "from worker.cli.main import main; main(prog_name='license-expiry')"]
out = Console(highlight=False)


@click.command()
@click.option("--once", is_flag=True, help="End after the night, with its exit status.")
def main(once: bool) -> None:
    """Start all that a night needs, run one night, show what it did, and stay until Ctrl-C."""
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, signal.default_int_handler)
    FOLDER.mkdir(exist_ok=True)
    try:
        with Processes(FOLDER.absolute(), ROOT) as processes:
            status = _everything(processes, once)
    except KeyboardInterrupt:
        out.print("\nStopped.")
        status = 130
    except (StartError, LicenseExpiryError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        status = 2
    raise SystemExit(status)


def _everything(processes: Processes, once: bool) -> int:
    embedded = _set_environment()
    shown = _prepare_database(load_settings(broker=True), real_lms="LMS_URL" not in embedded)
    for name, (command, port) in embedded.items():
        processes.start(name.lower(), command, lambda port=port: listens(port))  # type: ignore[misc]
    flower = _start_celery(processes)
    status = _night(shown)
    if not once:
        pages = _start_serve(processes)
        prometheus = _start_prometheus(processes, pages, flower)
        _invite(flower, pages, prometheus, "LMS_URL" in embedded)
        signal.pause()
    return status


def _set_environment() -> dict[str, tuple[list[str], int]]:
    """Fill in what the environment leaves open; return the servers to be embedded for it, with their ports."""
    embedded = {}
    os.environ.setdefault("DATABASE_URL", f"sqlite:///{FOLDER.absolute()}/license_manager.sqlite3")
    if not os.environ.get("CELERY_BROKER_URL"):
        port = free_port()
        os.environ["CELERY_BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
        serve = f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {port})).serve_forever()"
        embedded["CELERY_BROKER_URL"] = [PYTHON, "-c", serve], port
    if not os.environ.get("LMS_URL"):
        port = free_port(8000)
        os.environ["LMS_URL"] = f"http://127.0.0.1:{port}"
        key = os.environ["BACKEND_SERVICE_EDX_OAUTH2_KEY"] = "demo-key"
        secret = os.environ["BACKEND_SERVICE_EDX_OAUTH2_SECRET"] = "demo-secret"
        command = [PYTHON, "-m", "simulator", "serve", "--port", str(port), "--latency", "0.1"]
        command += ["--client-id", key, "--client-secret", secret, "--database", os.environ["DATABASE_URL"]]
        embedded["LMS_URL"] = command, port
        for name, value in IMPATIENCE.items():
            os.environ.setdefault(name, value)
    return embedded


def _prepare_database(settings: Settings, real_lms: bool) -> Demo | None:
    """Make data in an empty database, and the ledger's tables; return what the data shows, if it is the demo's."""
    engine = make_engine(settings.DATABASE_URL)
    try:
        if not real_lms and not inspect(engine).has_table("subscriptions_license"):
            out.print("Making the data of 15 enterprises ...")
            create_tables(engine)
            data = Data(engine)
            demo(data, datetime.now(UTC))
            data.flush()
        shown = read_demo(engine)
    except DBAPIError as error:
        raise Unusable(*cannot_be_used(engine, error)) from error
    finally:
        engine.dispose()
    if shown is None and not real_lms:
        raise WrongSetting(
            "DATABASE_URL: this database holds data that the demo did not make, and with a simulated LMS it would "
            "record downgrades that never happened",
            "Set LMS_URL too, or point DATABASE_URL at an empty database",
        )
    if subprocess.run([*COMMAND, "init-db"], stdout=subprocess.DEVNULL, check=False).returncode:
        raise StartError("license-expiry init-db has failed: see above")
    if shown is not None:
        listed = ",".join(map(str, shown.unlink_enabled))
        os.environ.setdefault("CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED", listed)
    return shown


def _start_celery(processes: Processes) -> str:
    """Start worker, beat and Flower; return Flower's address."""
    port = free_port(5555)
    os.environ.setdefault("FLOWER_BASIC_AUTH", FLOWER_LOGIN)
    celery = [PYTHON, "-m", "celery", "-A", "worker"]
    out.print("Starting worker, beat and Flower ...")
    flower = ["flower", "--address=127.0.0.1", f"--port={port}"]
    address = f"http://127.0.0.1:{port}"
    processes.start("flower", [*celery, *flower], lambda: listens(port))
    worker = ["worker", "--loglevel=INFO", "--concurrency=2"]
    processes.start("worker", [*celery, *worker], lambda: " ready." in processes.log("worker"))
    schedule = f"--schedule={FOLDER.absolute()}/celerybeat-schedule"
    processes.start("beat", [*celery, "beat", "--loglevel=INFO", schedule])
    return address


def _start_serve(processes: Processes) -> str:
    """Start license-expiry serve; return its address."""
    port = free_port(8001)
    processes.start("serve", [*COMMAND, "serve", f"--port={port}"], lambda: listens(port))
    return f"http://127.0.0.1:{port}"


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


def _night(shown: Demo | None) -> int:
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
    planted = shown.planted_held if shown else set()
    unplanted = {UUID(license["license_uuid"]) for license in held} - planted
    return 1 if unplanted or any(run["phase"] != "finished" for run in runs) else 0


def _told(command: str) -> Any:
    """What a command of license-expiry prints with --json; its progress and its errors are shown. Raises StartError."""
    told = subprocess.run([*COMMAND, command, "--json"], stdout=subprocess.PIPE, check=False).stdout
    if not told:
        raise StartError(f"license-expiry {command} has failed: see above")
    return json.loads(told)


def _summary(runs: list[dict[str, Any]], shown: Demo | None) -> Table:
    known = {str(enterprise.uuid): enterprise for enterprise in shown.enterprises} if shown else {}
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


def _invite(flower: str, pages: str, prometheus: str | None, simulated: bool) -> None:
    own = os.environ["FLOWER_BASIC_AUTH"] != FLOWER_LOGIN
    login = "USER:PASSWORD" if own else FLOWER_LOGIN
    plain: Any = {"markup": False, "soft_wrap": True}  # lines to copy
    out.print(f"\n[bold]The night as a page[/bold] is at {pages}")
    if prometheus:
        out.print(f"[bold]Prometheus[/bold] with our alerts is at {prometheus}")
    out.print(f"[bold]Flower[/bold] is at {flower} (user and password: {login}). Start an enterprise again from it:")
    post = f"curl -u {login} {flower}/api/task/async-apply/license_expiry"
    again = {"enterprise_customer_uuid": "…", "force": True, "reason": "to see it again"}
    out.print(f"  {post}.run_enterprise -d '{json.dumps({'kwargs': again}, ensure_ascii=False)}'", **plain)
    if simulated:
        faults = f"curl -X POST {os.environ['LMS_URL']}/_simulator/faults -d"
        out.print("Break the LMS, and mend it:")
        out.print(f"""  {faults} '[{{"status": 503}}]'\n  {faults} '[]'""", **plain)
    out.print(f"Logs are in {FOLDER.absolute()}. Ctrl-C ends everything.", soft_wrap=True)


if __name__ == "__main__":
    main()
