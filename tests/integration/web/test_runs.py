"""The page of a run: its plans, the licenses that it took, who asked for it and why, and how to start it again."""

import re
from html import unescape
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, insert, update
from support.runs import ON_EACH, ON_SQLITE, Make, attempt, finish, lay, open_one, ready, unlinking

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import HeldLicense, Run
from worker.errors import BadArgument
from worker.ledger.order import DOWNGRADE
from worker.web import html as pages, runs


def plans_of(page: str) -> dict[str, list[int]]:
    """How many licenses of each plan, by its title, were downgraded, unlinked and are held."""
    rows = re.findall(r'<tr><th scope="row">([^<]+)<span class="id under">.*?</tr>', page)
    whole = re.findall(r'<tr><th scope="row">[^<]+<span class="id under">.*?</tr>', page)
    return {title: list(map(int, re.findall(r">(\d+)</td>", row))) for title, row in zip(rows, whole, strict=True)}


@ON_EACH
def test_a_run_has_its_plans_by_title_with_how_many_licenses_and_which(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    data = Data(engine)
    agreement = data.agreement(name="Elm")
    old, newer = (data.plan(agreement, expires=data.now - days * DAY, title=f"{days} days") for days in (200, 30))
    waiting = data.plan(agreement, expires=data.now - 150 * DAY, title="Waits")
    data.renewal(waiting, None)
    data.plan(agreement, title="Current")
    of_old, of_newer = ([data.license(plan) for _ in range(4)] for plan in (old, newer))
    alone, refused = data.license(waiting), of_newer[0]
    data.license(old, status="unassigned")
    ready(data, lms)
    enterprise = agreement.enterprise_customer_uuid
    deps = make_test_deps(**unlinking(enterprise))
    lms.faults(Fault(kind="downgrade", license=str(refused), status=422))
    run_id = open_one(deps, enterprise)
    finish(deps, enterprise, run_id)

    page = pages.run_page(deps.database, str(run_id))
    assert plans_of(page) == {"200 days": [4, 4, 0], "Waits": [1, 1, 0], "30 days": [3, 0, 1]}
    assert list(plans_of(page)) == ["200 days", "Waits", "30 days"], "the longest expired first"
    assert page.count('data-l="processed">no<') == 2
    assert str(refused) in page

    def listed(done: str, after: UUID | None = None) -> set[UUID]:
        shown = pages.licenses_page(deps.database, str(run_id), done, str(after or ""))
        return set(map(UUID, re.findall(r'<td class="id">([0-9a-f-]{36})<', shown)))

    assert listed("downgraded") == {*of_old, *of_newer[1:], alone}
    assert listed("unlinked") == {*of_old, alone}
    again = open_one(deps, enterprise, force=True, reason="once more")
    finish(deps, enterprise, again)
    assert plans_of(pages.run_page(deps.database, str(again)))["200 days"] == [4, 0, 0]
    assert runs.licenses(deps.database, again, runs.UNLINKED, None).licenses == []


@ON_EACH
def test_licenses_are_listed_page_by_page_by_key(
    engine: Engine, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_LISTED", 3)
    laid = lay(lms, licenses=7)
    deps = make_test_deps(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    finish(deps, laid.enterprise, run_id)
    for done in (runs.DOWNGRADED, runs.UNLINKED):
        found: list[UUID] = []
        while True:
            part = runs.licenses(deps.database, run_id, done, found[-1] if found else None)
            found += [uuid for uuid, _ in part.licenses]
            assert len(part.licenses) == (3 if part.more else 1)
            if not part.more:
                break
        assert found == laid.licenses
    shown = pages.licenses_page(deps.database, str(run_id), "unlinked")
    assert f'href="?after={laid.licenses[2]}">Next page' in shown
    for wrong in ("x", "1" * 500):
        with pytest.raises(BadArgument):
            pages.licenses_page(deps.database, str(run_id), "unlinked", wrong)
        with pytest.raises(BadArgument):
            pages.licenses_page(deps.database, wrong, "unlinked")


@ON_SQLITE
def test_a_run_tells_who_and_why_and_how_to_start_it_again(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps()
    why = "restored from <backup>; it's needed"
    run_id = open_one(
        deps, laid.enterprise, force=True, reason=why, triggered_by="ops@host", plan_uuids=[str(laid.plan)]
    )
    flower = "https://flower.example"
    live = pages.run_page(deps.database, str(run_id), flower)
    assert "Start it again" not in live, "it runs"
    finish(deps, laid.enterprise, run_id)
    page = pages.run_page(deps.database, str(run_id), flower)
    assert "<backup>" not in page
    assert f"by <b>ops@host</b>: {why}" in unescape(page)
    assert f'<a href="{flower}/license-expiry/start?again={run_id}">Start it again in Flower</a>' in page
    [line] = re.findall(r'<code class="copy">(.*?)</code>', page)
    assert f"--plan {laid.plan} --force --reason " in line
    assert "Start it again in Flower" not in pages.run_page(deps.database, str(run_id))


@ON_SQLITE
def test_a_run_that_waits_tells_the_tries_made_and_left(engine: Engine, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps(TASK_MAX_RETRIES=5)
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", status=503))
    assert attempt(deps, laid.enterprise, run_id, DOWNGRADE).retry
    with engine.begin() as connection:
        connection.execute(update(Run).values(tries=2, tries_left=3))
    page = pages.run_page(deps.database, str(run_id))
    assert re.search(r"<dt>Tries</dt><dd>2 failed tries, 3 left; fails at 20\S+ \S+ UTC if nothing changes</dd>", page)
    assert 'data-again="yes"' in page
    assert "Plans are counted after the run has ended." in page


@ON_SQLITE
def test_more_held_licenses_than_a_page_shows_are_said_to_be_more(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    held: dict[str, Any] = {"enterprise_customer_uuid": laid.enterprise, "run_id": run_id, "step": "unlink", "tries": 1}
    held |= {"reason": "http_400", "first_held_at": deps.database.now(), "as_of": deps.database.now()}
    for number, more in ((runs.MOST_HELD, False), (1, True)):
        rows = [{"license_uuid": uuid4(), **held} for _ in range(number)]
        with deps.database.engine.begin() as connection:
            connection.execute(insert(HeldLicense), rows)
        said = [pages.run_page(deps.database, str(run_id))]
        said.append(pages.enterprise_page(deps.database, lambda _: None, str(laid.enterprise)))
        assert ["There are more" in page for page in said] == [more] * 2
