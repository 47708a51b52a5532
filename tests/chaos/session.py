"""All that the nights on one database and one broker share: servers, LMS, processes, data, and the folder of logs."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from sqlalchemy import Engine, create_engine, select

from chaos import data
from chaos.broker import Broker
from chaos.brokers import BROKERS
from chaos.counter import EPOCH_VARIABLE, FOLDER_VARIABLE, Counter
from chaos.databases import DatabaseServer
from chaos.faults import LEASE_SECONDS
from chaos.mysql import ENGINES
from chaos.processes import ROOT, Processes
from simulator.data.schema import create_tables
from simulator.lms.server import Simulator
from worker.db.engine import make_engine
from worker.db.ledger_tables import Run
from worker.ledger import migrations

LATENCY = 0.12
# All processes wait for whoever writes to the count: a disk that is busy for seconds would freeze them all.
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
SETTINGS = {
    **data.BATCHES,
    "BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": "1",
    "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "TASK_TIME_LIMIT_SECONDS": "10",
    "VISIBILITY_TIMEOUT_SECONDS": "16",
    "TASK_RETRY_SECONDS": "1",
    "TASK_MAX_RETRIES": "2",
    "NIGHTLY_SCHEDULE": "* * * * *",
}


class ChaosSession:
    """Everything up and running on one pair, with nothing laid yet; ends all of it on leaving."""

    def __init__(self, engine_name: str, broker_name: str, seed: int, folder: Path) -> None:
        self.engine_name, self.broker_name, self.seed, self.folder = engine_name, broker_name, seed, folder
        self.name = f"{engine_name} with {broker_name}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._set()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _set(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.broker: Broker = BROKERS[self.broker_name](self.folder)
        self._stack.callback(self.broker.close)
        self.broker.start()
        self.database: DatabaseServer = ENGINES[self.engine_name](self.folder)
        self._stack.callback(self.database.close)
        self.database.prepare()
        self.engine: Engine = make_engine(self.database.url)
        self.watching = create_engine(self.database.url, pool_pre_ping=True)  # looked through twenty times a second
        create_tables(self.engine)
        migrations.upgrade(self.engine)
        self.laid_data = data.LaidData(self.seed)
        self.undisturbed = data.undisturbed(self.laid_data, self.database.url)
        self.lms = self._stack.enter_context(Simulator(self.engine, latency=LATENCY))
        self._staff()

    def _staff(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir()
        points = Path(self._stack.enter_context(TemporaryDirectory(prefix="chaos-points-", dir=IN_MEMORY)))
        self.counter = Counter(points)
        self.counter.disarm()
        os.environ["CELERY_BROKER_URL"] = self.broker.url  # for celeryconfig, which is read in this process
        self.messages = self.broker.messages()
        env = {**os.environ, "PYTHONPATH": f"{ROOT}/tests:{ROOT}", "PYTHONUNBUFFERED": "1"}
        env |= SETTINGS | self.laid_data.settings() | self._addresses() | {FOLDER_VARIABLE: str(points)}
        env |= {EPOCH_VARIABLE: repr(time.time() - time.monotonic())}
        self.processes = Processes(logs, env)
        self._stack.callback(self.processes.stop)
        self.processes.start()

    def _addresses(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.database.url,
            "CELERY_BROKER_URL": self.broker.url,
            "CELERY_RESULT_BACKEND": "",
            "LMS_URL": self.lms.url,
            "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "",
            "BACKEND_SERVICE_EDX_OAUTH2_KEY": self.lms.client_id,
            "BACKEND_SERVICE_EDX_OAUTH2_SECRET": self.lms.client_secret,
        }

    def renew(self) -> None:
        """Begin with fresh processes and no messages, after a night that did not come to rest."""
        self.processes.stop()
        self.broker.kill()
        self.broker.start()
        self.messages.reconnect()
        self.broker.flush()
        self.database.kill()
        self.database.start()
        self.engine.dispose()
        self.processes.start()

    def runs(self) -> list[Any]:
        """All runs of the ledger, as rows."""
        with self.watching.connect() as connection:
            return list(connection.execute(select(*Run.__table__.columns).order_by(Run.opened_at)))

    def taken(self, run_id: str) -> tuple[int, str | None]:
        """A run's fencing number, and who has it."""
        with self.watching.connect() as connection:
            row = connection.execute(select(Run.fence, Run.owner).where(Run.id == UUID(run_id))).first()
        return (row.fence, row.owner) if row else (0, None)

    def live(self) -> set[UUID]:
        """The enterprises that have a live run."""
        with self.watching.connect() as connection:
            return {live for live in connection.scalars(select(Run.live)) if live is not None}
