"""`license-expiry doctor`: checks everything a night needs. Changes nothing; its LMS calls concern nobody."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Any

from redis.exceptions import RedisError

from worker.cli.broker import celery_app
from worker.cli.checks.database import check_database
from worker.cli.checks.findings import NAMED, Finding, clock_finding, explained, wrong
from worker.cli.checks.lms import check_calls, check_owner
from worker.cli.checks.serve import check_serve
from worker.deps import make_lms_client
from worker.errors import Unusable
from worker.ledger.identity import ledger_at
from worker.lms.patience import Patience
from worker.settings import CelerySettings, DatabaseSettings, Settings, load_settings
from worker.settings.network import exposed
from worker.settings.sources import load, origins

NEEDED = ("settings", "database", "ledger", "rights", "broker")  # to find the ledger of the workers on the broker
ANSWER_SECONDS = 2.0  # for workers: their main process runs no step, so it answers at once


def examine() -> list[Finding]:
    """Run all checks in order; skip those that depend on one that failed."""
    both = [*_look("database", DatabaseSettings, check_database), *_look("broker", CelerySettings, _broker)]
    if not any(finding.status == "wrong" and finding.subject in NEEDED for finding in both):
        both += _look("broker", DatabaseSettings, _ledgers)
    found = chain(_settings(), both, _look("LMS", Settings, _lms))
    return list(dict.fromkeys(found))  # a wrong schedule is found twice


def examine_serve() -> list[Finding]:
    """Check only what `license-expiry serve` needs: its settings and its database account."""
    try:
        settings = load(DatabaseSettings)
    except Unusable as error:
        return list(wrong("settings", error))
    return list(explained("database", check_serve(settings)))


def _settings() -> Iterator[Finding]:
    try:
        settings = load_settings(broker=True)
        celery_app()
        yield Finding("settings", "ok", f"all {len(Settings.model_fields)} can be used")
        calls = max(settings.BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS, settings.BULK_UNLINK_REQUEST_TIMEOUT_SECONDS)
        ends = (calls, settings.LEASE_SECONDS, settings.TASK_TIME_LIMIT_SECONDS, settings.VISIBILITY_TIMEOUT_SECONDS)
        in_order = "the time-outs of call, lease, task and message are in order: {} < {} < {} < {} s".format(*ends)
        yield Finding("settings", "ok", in_order)
        *places, (_, defaults) = origins(Settings).items()
        for place, names in places:
            yield Finding("settings", "ok", f"from {place}: {', '.join(names) or 'none'}")
        yield Finding("settings", "ok", f"not set, so at their defaults: {len(defaults)}")
        for what, remedy in exposed(dict(settings)):
            yield Finding("settings", "warning", what, remedy)
    except Unusable as error:
        yield from wrong("settings", error)


def _look(subject: str, model: Any, look: Callable[[Any], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        settings = load(model)
    except Unusable:  # reported with the others
        return
    yield from explained(subject, look(settings))


def _broker(settings: CelerySettings) -> Iterator[Finding]:
    if not settings.CELERY_BROKER_URL:
        return
    from tasks.broker import check_broker

    app = celery_app()
    check_broker(app)
    with app.connection_for_write() as connection:
        yield Finding("broker", "ok", f"{connection.as_uri()} takes messages and hands them on")
        if connection.transport.driver_type == "redis":
            yield from _redis(connection.default_channel.client)


def _ledgers(settings: DatabaseSettings) -> Iterator[Finding]:
    """Check that all workers on this broker use this database's ledger. No finding when none answers."""
    if not settings.CELERY_BROKER_URL:
        return
    from tasks import OTHER_LEDGER
    from tasks.control import takes_nothing_from

    ours = str(ledger_at(settings.DATABASE_URL))
    answers = celery_app().control.broadcast("license_expiry_ledger", reply=True, timeout=ANSWER_SECONDS) or []
    told_by = {host: told for answer in answers for host, told in answer.items() if "ledger" in told}
    ledgers = {host: told["ledger"] for host, told in told_by.items()}
    if others := {host: ledger for host, ledger in ledgers.items() if ledger != ours}:
        named = ", ".join(f"{host} ({ledger})" for host, ledger in sorted(others.items())[:NAMED])
        what = f"workers of another ledger than this database's ({ours}) take tasks from it: {named}"
        yield Finding("broker", "warning", what, OTHER_LEDGER)
    elif ledgers:
        yield Finding("broker", "ok", f"the {len(ledgers)} workers that answer are of this database's ledger")
    for host, told in sorted(told_by.items())[:NAMED]:
        if missing := told["missing"]:
            yield Finding("broker", "warning", *takes_nothing_from(host, missing))


def _redis(client: Any) -> Iterator[Finding]:
    try:
        policy, kept = client.info("memory")["maxmemory_policy"], client.info("persistence")["aof_enabled"]
    except (RedisError, KeyError) as error:
        what = f"INFO of Redis fails, so maxmemory-policy and appendonly are not checked ({type(error).__name__})"
        yield Finding("broker", "warning", what, "allow its account INFO, or check both in redis.conf")
        return
    if policy == "noeviction":
        yield Finding("broker", "ok", "Redis evicts no keys (noeviction)")
    else:
        what = f"Redis evicts keys when its memory is full ({policy}), and tasks are lost with them"
        yield Finding("broker", "wrong", what, "set maxmemory-policy to noeviction in redis.conf")
    if kept:
        yield Finding("broker", "ok", "Redis keeps an append-only file")
    else:
        what = "Redis keeps no append-only file: its restart loses tasks, and their runs wait for reconcile"
        yield Finding("broker", "warning", what, "set appendonly to yes in redis.conf")


def _lms(settings: Settings) -> Iterator[Finding]:
    owner = list(check_owner(settings))
    yield from owner
    if any(finding.status == "wrong" for finding in owner):
        return
    # Two tries, because a slow LMS may take the whole time-out of a call.
    client = make_lms_client(settings, patience=Patience(tries=2))
    try:
        date = client.lms_now()
        yield Finding("LMS", "ok", f"{settings.LMS_URL} answers and gives a token")
        if date:
            yield clock_finding("the LMS's", lambda: date + timedelta(seconds=0.5))  # a Date is to the second
        yield from check_calls(client, settings)
    finally:
        client.close()
