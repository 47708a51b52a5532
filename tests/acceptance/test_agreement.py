"""What the pages, Flower and the command say of one run at one moment agrees: read from all three, in ten states."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Any

import pytest
import requests
from sqlalchemy import Engine
from support.claims import AS_OF, AWAY, claim, end_well, open_run, set_run
from support.processes import COMMAND, OPERATOR, WORKER_SQLITE
from support.runs import run_of

from simulator.data.rows import Data
from simulator.processes import Processes, free_port, listens
from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.ledger.order import UNLINK, Phase
from worker.ledger.runs import COUNTS, stop_run

Make = Callable[[Database, Run], object]
LOST = "its worker was lost (w1"
REFUSED = "the LMS answered 403: give the application the role [http_403]"
UNAPPROVED = "1,200 learners are to be unlinked: approve them [needs_approval]"


@dataclass(frozen=True)
class State:
    """A state: how a run comes into it, its phase, and what all three say of it besides."""

    make: Make
    phase: Phase
    said: tuple[str, ...] = ()


def _fail(error: str) -> Make:
    return lambda database, run: claim(database, run).fail(error)


def _downgrade(database: Database, run: Run) -> None:
    claim(database, run).advance()


def _begin_to_unlink(database: Database, run: Run) -> None:
    _downgrade(database, run)
    claim(database, run, UNLINK)


def _hold(database: Database, run: Run) -> None:
    end_well(database, run)
    set_run(database, run, licenses_held=3)


def _lose(database: Database, run: Run) -> None:
    claim(database, run)
    set_run(database, run, lease_until=DatabaseNow(-1))


STATES = {
    "queued": State(lambda *_: None, Phase.QUEUED),
    "waiting for its turn": State(_downgrade, Phase.DOWNGRADED),
    "in a step": State(_begin_to_unlink, Phase.UNLINKING),
    "waiting for the LMS": State(
        lambda database, run: claim(database, run).wait(600, AWAY, tries=1, left=4, gives_up_at=AS_OF),
        Phase.DOWNGRADING,
        ("http_503", "{again}"),
    ),
    "worker lost": State(_lose, Phase.DOWNGRADING, (LOST,)),
    "held": State(_hold, Phase.FINISHED),
    "needs approval": State(_fail(UNAPPROVED), Phase.FAILED, (UNAPPROVED,)),
    "stopped": State(lambda database, run: stop_run(database, run.id, "ada on host", "a mistake"), Phase.STOPPED),
    "failed": State(_fail(REFUSED), Phase.FAILED, (REFUSED,)),
    "finished": State(end_well, Phase.FINISHED),
}


@pytest.mark.long
@WORKER_SQLITE
def test_what_the_pages_flower_and_the_command_say_of_a_run_agrees(
    engine: Engine, data: Data, environment: Any, flower: str, processes: Processes
) -> None:
    database = Database(engine)
    made: dict[str, Run] = {}
    for name, state in STATES.items():
        agreement = data.agreement(name=f"Customer {name}")
        run = open_run(database, agreement.enterprise_customer_uuid, triggered_by="ada in Flower", reason="a trial")
        set_run(database, run, plans_processed=11, licenses_downgraded=12, learners_unlinked=13, learners_protected=14)
        state.make(database, run)
        made[name] = run_of(database, run.id)
    data.flush()
    port = free_port()
    processes.start("serve", [*COMMAND, "serve", "--port", str(port)], lambda: listens(port))
    listed = {run["run_id"]: run for run in json.loads(command("status", "--json"))["runs"]}
    for name, state in STATES.items():
        run = made[name]
        page = text_of(f"http://127.0.0.1:{port}/runs/{run.id}")
        flowers = text_of(f"{flower}/license-expiry/stop?run={run.id}")
        table = " ".join(command("status", "--enterprise", str(run.enterprise_customer_uuid)).split())
        assert listed[str(run.id)]["phase"] == state.phase == run.phase, name
        waits = {"again": f"{run.queued_at:%H:%M:%S}"}
        for where, text in {"page": page, "Flower": flowers, "status": table}.items():
            said = [state.phase, f"Customer {name}", "ada in Flower", "a trial", *state.said]
            if where != "status":  # whose table has only the code, and `--json` the moment
                said = [words.replace("http_503", "the LMS answered 503") for words in said]
            else:
                said = [words for words in said if words != "{again}"]
            for words in said:
                assert words.format(**waits) in text, (name, where, words, text)
            others = {"lost": LOST, "waits": "waits: "}
            lost = LOST in state.said
            assert (others["lost"] in text) == lost, (name, where)
            assert (others["waits"] in text) == ("http_503" in state.said), (name, where)
        if "http_503" in state.said:
            assert listed[str(run.id)]["waits_for"] == "http_503"
            assert listed[str(run.id)]["again_at"] == run.queued_at.isoformat()
        counts_agree(name, listed[str(run.id)], page, flowers, table)


def counts_agree(name: str, listed: dict[str, Any], page: str, flowers: str, table: str) -> None:
    counts = {count: listed[count] for count in COUNTS}
    ours = re.search(r"plans processed (\d+) downgraded (\d+) unlinked (\d+) protected (\d+) held (\d+)", page)
    order = ("plans_processed", "licenses_downgraded", "learners_unlinked", "learners_protected", "licenses_held")
    assert ours, page
    assert dict(zip(order, map(int, ours.groups()), strict=True)) == counts, name
    theirs = re.search(
        r"icenses downgraded: (\d+)\. Held: (\d+)\. Learners unlinked: (\d+)\. Protected: (\d+)\.", flowers
    )
    assert theirs, flowers
    assert dict(zip(COUNTS[1:], map(int, theirs.groups()), strict=True)) == {each: counts[each] for each in COUNTS[1:]}
    assert re.search(r" ".join(str(number) for number in counts.values()), table), (name, table)


def text_of(address: str) -> str:
    """What is to be read on a page."""
    answer = requests.get(address, auth=OPERATOR, timeout=20)
    answer.raise_for_status()
    shown = re.sub(r"(?s)<(style|script|nav|datalist).*?</\1>", "", answer.text)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", shown)).split())


def command(*arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout
