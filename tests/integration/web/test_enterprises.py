"""The page of an enterprise, and the grid of enterprises and nights: who fails every night is seen at once."""

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine, update
from support.past_nights import lay_past
from support.runs import ON_SQLITE

from worker.db.ledger_tables import Run
from worker.db.transactions import Database
from worker.errors import BadArgument
from worker.ledger.order import Phase
from worker.web import enterprises, html as pages


def test_the_grid_and_an_enterprise_are_read_on_each_engine(engine: Engine) -> None:
    past = lay_past(engine, 8, nights=3, trouble=0)
    database = Database(engine)
    worst, bad, *_, fine = past.enterprises
    with engine.begin() as connection:
        of = update(Run).values(phase=Phase.FAILED, error="the LMS answered 403 [http_403]")
        connection.execute(of.where(Run.enterprise_customer_uuid == worst))
        connection.execute(of.where(Run.enterprise_customer_uuid == bad, Run.scheduled_for < past.last))
    seen = enterprises.grid(database)
    assert seen.nights == [past.last - timedelta(days=days) for days in range(3)]
    assert [(row.enterprise, row.failures) for row in seen.rows[:3]] == [
        (worst, 3),
        (bad, 2),
        (seen.rows[2].enterprise, 0),
    ]
    assert [bool(row.failed) for row in seen.rows[:2]] == [True, False], "the other one's newest run finished"
    assert all(set(row.runs) == set(seen.nights) for row in seen.rows)
    one = enterprises.one_enterprise(database, worst)
    assert [run.opened_at for run in one.runs] == sorted((run.opened_at for run in one.runs), reverse=True)
    assert len(one.runs) == 3
    assert one.name
    assert enterprises.one_enterprise(database, fine).held == []


@ON_SQLITE
def test_the_grid_leaves_out_who_had_no_trouble_until_it_is_asked_for(engine: Engine) -> None:
    past = lay_past(engine, 30, nights=2, trouble=0)
    database, failing = Database(engine), past.enterprises[7]
    with engine.begin() as connection:
        wrong = {"phase": Phase.FAILED, "error": "the LMS answered 403 [http_403]"}
        connection.execute(update(Run).where(Run.enterprise_customer_uuid == failing).values(wrong))
    page = pages.grid_page(database)
    assert re.findall(r'<tr><th scope="row"><a href="enterprises/([^"]+)"', page) == [str(failing)]
    assert page.count('class="cell f" href="runs/') == 2
    assert '<b class="bad">failed</b>' in page
    assert "29 enterprises without problems in these nights" in page
    assert pages.grid_page(database, every="1").count('<tr><th scope="row">') == 30
    found = pages.grid_page(database, find=str(past.enterprises[3])[:13].upper())
    assert found.count('<tr><th scope="row">') == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "MOST_FOUND", 5)
        cut = pages.grid_page(database, find="o&")
        assert "No enterprise has" in cut
        cut = pages.grid_page(database, find="a")
        assert cut.count('<tr><th scope="row">') == 5
        assert re.search(r'The first 5\. <a href="\?find=a&amp;every=1">Show all \d+</a>', cut)
    assert "No enterprise has" in pages.grid_page(database, find="<nobody>")
    assert "&lt;nobody&gt;" in pages.grid_page(database, find="<nobody>")


@ON_SQLITE
def test_an_enterprise_has_its_runs_what_is_held_and_the_next_night(engine: Engine) -> None:
    past = lay_past(engine, 1, nights=4, trouble=1)
    database, [enterprise] = Database(engine), past.enterprises
    flower = "https://flower.example"
    page = pages.enterprise_page(database, lambda now: now + timedelta(hours=4), str(enterprise), flower)
    assert page.count('<tr><th scope="row">') == 4
    assert "The newest run failed" in page
    assert "Start it again in Flower" in page
    assert f"license-expiry run --enterprise {enterprise}" in page
    assert "in 4 h:" in page
    for wrong in ("x", "1" * 500, str(uuid4())):
        with pytest.raises(BadArgument):
            pages.enterprise_page(database, lambda _: None, wrong)
