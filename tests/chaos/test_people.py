"""Each hand finds something to do in the data of a night, and does it as license-manager would, on each database."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from support.runs import rows

from chaos.data import LaidData
from chaos.hands import HANDS
from chaos.people import People
from chaos.timeline import Timeline
from simulator.lms.server import Simulator

CHANGED = {"plan_extended", "plan_cut", "marked_plan_moved", "plan_flipped"}
OF_LICENSES = {"renewal_processed", "license_revoked", "enterprise_purged", "license_reassigned", "license_deleted"}
OF_LICENSES |= {"license_moved", "license_given"}


class Office:
    """Data of a night, and people at work on it."""

    def __init__(self, engine: Engine, lms: Simulator) -> None:
        self.engine, self.lms = engine, lms
        self.laid_data, self.timeline = LaidData(1), Timeline()
        self.laid_data.restore(engine, lms)
        self.timeline.begin(engine, self.laid_data)
        url = engine.url.render_as_string(hide_password=False)
        self.people = People(url, lms, self.timeline, HANDS)

    def do(self, kind: str) -> None:
        """Do a deed at the first enterprise that has something for it."""
        assert any(self.people.do(kind, str(each), 7) for each in self.laid_data.enterprises), kind

    def license(self, uuid: UUID) -> dict[str, Any]:
        [row] = [row for row in rows(self.engine, "license") if row["uuid"] == uuid]
        return row

    def history(self, of: str) -> list[dict[str, Any]]:
        return sorted(rows(self.engine, f"historical{of}"), key=lambda row: (row["history_date"], row["history_id"]))


@pytest.fixture
def office(engine: Engine, lms: Simulator) -> Office:
    return Office(engine, lms)


def test_every_hand_has_work_in_the_data_of_a_night_and_notes_it(office: Office) -> None:
    for kind in HANDS:
        plans, licenses = len(office.history("subscriptionplan")), len(office.history("license"))
        began = datetime.now(UTC)
        office.do(kind)
        deed = office.timeline.deeds[-1]
        assert deed.kind == kind
        assert began <= deed.began <= deed.ended <= datetime.now(UTC)
        if kind in CHANGED:
            assert len(office.history("subscriptionplan")) == plans + 1
        if kind in OF_LICENSES:
            assert len(office.history("license")) > licenses
    assert len(office.timeline.deeds) == len(HANDS)
    now = datetime.now(UTC)
    for enterprise in office.timeline.touched:
        [newest] = office.timeline.between(enterprise, now, now)
        known = {row["uuid"]: row for row in newest.rows.licenses}
        assert known == {row["uuid"]: row for row in rows(office.engine, "license") if row["uuid"] in known}


def test_a_transfer_leaves_modified_alone_and_shows_both_plans_in_the_history(office: Office) -> None:
    before = {row["uuid"]: row for row in rows(office.engine, "license")}
    office.do("license_moved")
    [uuid] = office.timeline.deeds[-1].about
    moved, was = office.license(uuid), before[uuid]
    assert moved["modified"] == was["modified"]
    assert moved["subscription_plan_id"] != was["subscription_plan_id"]
    first, last = [row for row in office.history("license") if row["uuid"] == uuid]
    assert (first["history_type"], first["subscription_plan_id"]) == ("+", was["subscription_plan_id"])
    assert first["history_date"] == was["created"]
    assert (last["history_type"], last["subscription_plan_id"]) == ("~", moved["subscription_plan_id"])


def test_a_purge_clears_addresses_keeps_numbers_and_revokes(office: Office) -> None:
    before = {row["uuid"]: row for row in rows(office.engine, "license")}
    office.do("enterprise_purged")
    about = office.timeline.deeds[-1].about
    assert about
    for uuid in about:
        purged = office.license(uuid)
        assert (purged["status"], purged["user_email"]) == ("revoked", None)
        assert purged["revoked_date"] is not None
        assert purged["lms_user_id"] == before[uuid]["lms_user_id"]


def test_a_plan_that_is_moved_keeps_its_mark_in_its_history(office: Office) -> None:
    office.do("marked_plan_moved")
    [plan] = office.timeline.deeds[-1].about
    row = office.history("subscriptionplan")[-1]
    assert (row["uuid"], row["expiration_processed"]) == (plan, True)
    assert (plan, row["history_date"]) in office.timeline.history


def test_the_same_number_does_the_same_to_the_same_rows(office: Office) -> None:
    """So that a night can be played again."""
    office.do("license_given")
    office.laid_data.restore(office.engine, office.lms)
    office.timeline.begin(office.engine, office.laid_data)
    office.do("license_given")
    first, second = office.timeline.deeds
    assert first.about == second.about
