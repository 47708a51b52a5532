"""Opening runs: one live run an enterprise, whoever comes first."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from sqlalchemy import Engine
from support.claims import AS_OF, ENDS, end_well, open_run, seconds_left, set_run
from support.runs import LONGEST, ON_EACH, ON_SQLITE, lost_commit_answer, opened_run, rows, run_of, together

from worker.db.ledger_tables import Run
from worker.db.transactions import Database
from worker.errors import LicenseExpiryError
from worker.ledger import runs as opening, stalled
from worker.ledger.order import Phase
from worker.ledger.runs import Opened
from worker.ledger.stalled import QUEUED_SECONDS
from worker.runs import request as start

# Opening


def test_twenty_triggers_at_once_open_one_run_and_all_learn_its_id(database: Database, engine: Engine) -> None:
    enterprise = uuid4()
    opened = together(20, lambda _: opened_run(database, enterprise, AS_OF))
    [run] = rows(engine, Run)
    assert [each for each in opened if isinstance(each, LicenseExpiryError)] == []
    assert {each.run_id for each in opened if isinstance(each, Opened)} == {run["id"]}
    assert sum(each.new for each in opened if isinstance(each, Opened)) == 1


def test_an_opened_run_holds_what_was_asked_for(database: Database) -> None:
    plan, enterprise = uuid4(), uuid4()
    request = start.parse_request(
        force=True, reason="restored — Ærø", plan_uuids=[plan], expired_after="2025-01-01"
    ).model_dump() | {"plan_uuids": [str(plan)], "expired_before": AS_OF.astimezone(timezone(5 * timedelta(hours=1)))}
    run = open_run(database, enterprise, **request)
    assert (run.phase, run.live, run.as_of) == (Phase.QUEUED, enterprise, AS_OF)
    assert (run.dry_run, run.force, run.reason, run.plan_uuids) == (False, True, "restored — Ærø", [str(plan)])
    assert (run.expired_after, run.expired_before) == (datetime(2025, 1, 1, tzinfo=UTC), AS_OF)
    assert (run.owner, run.fence, run.publications, run.retries, run.recorded) == (None, 0, 0, 0, 0)
    assert abs((run.opened_at - database.now()).total_seconds()) < 60
    assert seconds_left(database, run) == pytest.approx(QUEUED_SECONDS, abs=60)


@ON_EACH
def test_an_ended_run_makes_room_for_the_next_one(database: Database, engine: Engine) -> None:
    enterprise = uuid4()
    for phase, end in ENDS.items():
        run = open_run(database, enterprise)
        assert opened_run(database, enterprise, AS_OF) == Opened(enterprise, run.id, new=False)
        end(database, run)
        ended = run_of(database, run.id)
        assert (ended.phase, ended.live, ended.owner, ended.lease_until) == (phase, None, None, None)
        assert ended.ended_at is not None
    assert len(rows(engine, Run)) == len(ENDS)
    assert opened_run(database, enterprise, AS_OF).new


@ON_EACH
def test_a_run_is_new_although_the_answer_to_its_commit_was_lost(database: Database, engine: Engine) -> None:
    with lost_commit_answer(engine) as lost:
        opened = opened_run(database, uuid4(), AS_OF)
    assert lost
    assert [(row["id"], opened.new) for row in rows(engine, Run)] == [(opened.run_id, True)]


@ON_SQLITE
def test_a_refusal_is_a_failed_run_that_stands_in_nobodys_way(database: Database) -> None:
    enterprise = uuid4()
    run = run_of(database, opening.record_refusal(database, enterprise, AS_OF, "no agreement"))
    assert (run.phase, run.live, run.error, run.lease_until) == (Phase.FAILED, None, "no agreement", None)
    assert run.ended_at is not None
    assert opened_run(database, enterprise, AS_OF).new
    assert stalled.release_stalled(database, LONGEST, 0) == ([], [])


@ON_EACH
def test_the_next_trigger_ends_a_run_that_is_too_old_and_opens_its_own(database: Database, engine: Engine) -> None:
    old = open_run(database)
    set_run(database, old, opened_at=database.now() - timedelta(hours=21))
    assert old.live is not None
    again = opened_run(database, old.live, AS_OF)
    assert again.new
    assert (run_of(database, old.id).phase, run_of(database, again.run_id).phase) == (Phase.ABANDONED, Phase.QUEUED)


@ON_EACH
def test_a_night_that_finds_a_run_of_another_kind_live_is_remembered(database: Database, engine: Engine) -> None:
    tonight = datetime(2026, 6, 2, 2, 0, tzinfo=UTC)
    by_hand = open_run(database, dry_run=True)
    of_tonight = open_run(database, scheduled_for=tonight)
    ended = open_run(database)
    end_well(database, ended)
    others = [run.enterprise_customer_uuid for run in (by_hand, of_tonight, ended)]
    opened = opening.open_runs(database, others, AS_OF, tonight)
    assert [each.new for each in opened] == [False, False, True]
    waits = [run_of(database, run.id).night_after for run in (by_hand, of_tonight, ended)]
    assert waits == [tonight, None, None]
    opened_run(database, others[1], AS_OF)
    assert run_of(database, of_tonight.id).night_after is None, "a trigger by hand is told, and does not wait"
