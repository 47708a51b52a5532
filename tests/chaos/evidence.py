"""What the judge judges by: the simulated LMS's journal and state, and the database. Never Celery."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import Engine
from support.runs import Row, rows

from chaos.data import LaidData
from chaos.timeline import Rows, read
from simulator.lms.journal import Entry
from simulator.lms.server import Simulator
from simulator.lms.state import State
from worker.db.ledger_tables import Downgrade, HeldLicense, Run
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE

Step = Literal["downgrade", "unlink"]
REFUSALS = (400, 403, 404, 422, 500)


@dataclass(frozen=True)
class License:
    """A license with what it takes to tell whose it is."""

    uuid: UUID
    plan: UUID
    enterprise: UUID
    email: str | None
    lms_user_id: int | None
    learners: bool
    expired: bool
    sent: bool

    @property
    def mailbox(self) -> str:
        """The address as the LMS takes it, but for case: that does not make another learner."""
        return (self.email or "").strip().lower()


def confirms(entry: Entry) -> bool:
    """Was this a checked success: done, and told in an answer that came whole to a client that was there?"""
    return entry.status == 200 and entry.worked and entry.dropped is None and not entry.client_gone


def named(entry: Entry) -> list[str]:
    """The licenses, or the e-mails, that a request is about."""
    return list(map(str, entry.licenses if entry.kind == "downgrade" else entry.emails))


class Evidence:
    """The rows and requests of a night, read once, and the questions that several promises ask of them."""

    def __init__(
        self, laid_data: LaidData, engine: Engine, lms: Simulator, touched: Collection[UUID] = frozenset()
    ) -> None:
        self.laid_data = laid_data
        self.untouched = [each for each in laid_data.enterprises if each not in touched]
        self.state: State = lms.state
        calls = lms.calls("downgrade") + lms.calls("unlink")
        self.entries = sorted((each for each in calls if not _concerns_nobody(each)), key=lambda entry: entry.start)
        self.plans = {row["uuid"]: row for row in rows(engine, "subscriptionplan")}
        customers = {row["uuid"]: row["enterprise_customer_uuid"] for row in rows(engine, "customeragreement")}
        self.licenses = {
            row["uuid"]: self._license(row, customers[self.plans[row["subscription_plan_id"]]["customer_agreement_id"]])
            for row in rows(engine, "license")
        }
        self._engine = engine
        self._customers: dict[UUID, UUID] = customers
        self.plan_history = _in_order(rows(engine, "historicalsubscriptionplan"))
        self.license_history = _in_order(rows(engine, "historicallicense"))
        self.events = rows(engine, "licenseevent")
        self.held = rows(engine, HeldLicense)
        self.downgrades = rows(engine, Downgrade)
        self.runs = sorted(rows(engine, Run), key=lambda row: (row["opened_at"], str(row["id"])))
        self._answers = [each for each in lms.calls("learners") if confirms(each)]
        self._confirmations: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in filter(confirms, self.entries):
            for name in named(entry):
                for enterprise in entry.enterprises:
                    self._confirmations[enterprise, name].append(entry)

    def _license(self, row: Row, enterprise: UUID) -> License:
        assert self.laid_data.laid_at is not None
        plan = self.plans[row["subscription_plan_id"]]
        learners = row["status"] in ("assigned", "activated")
        expired = plan["expiration_date"] <= self.laid_data.laid_at
        own = (row["user_email"], row["lms_user_id"])
        revoked_since = row["status"] == "revoked" and row["revoked_date"] >= plan["expiration_date"]
        known = {"learners": learners, "expired": expired, "sent": learners or revoked_since}
        return License(row["uuid"], plan["uuid"], enterprise, *own, **known)

    def calls(self, enterprise: UUID, step: Step | None = None) -> list[Entry]:
        """The requests for an enterprise, by their start; probes, which concern nobody, are none."""
        return [each for each in self.entries if step in (None, each.kind) and str(enterprise) in each.enterprises]

    def confirmations(self, enterprise: UUID, name: str) -> list[Entry]:
        """The checked successes for a license (a UUID as text) or an e-mail address, by their start."""
        return self._confirmations.get((str(enterprise), name), [])

    def unlinked_by(self, enterprise: UUID, emails: Collection[str], user: int | None) -> list[Entry]:
        """The answers that told that a learner is unlinked, known by these addresses and this user's number, if any.

        The LMS takes the unlink; or it says later that the user is not linked, because of a call whose answer was lost.
        """
        took = [each for email in sorted(emails) for each in self.confirmations(enterprise, email)]
        lost = [each for each in self.calls(enterprise, "unlink") if each.worked and {*named(each)} & {*emails}]
        asked = [each for each in self._answers if user in each.user_ids and str(enterprise) in each.enterprises]
        first = min((each.start for each in lost), default=None)
        return took + [each for each in asked if first is not None and first < (each.end or 0)]

    def addresses(self, user: int | None) -> set[str]:
        """The addresses under which the LMS knows a user, or has known it."""
        return self.state.emails_of(user) if user in self.state.accounts else set()

    def settled(self, enterprise: UUID, license: str, before: int, since: int = 0) -> bool:
        """Was a downgrade that began after `since` confirmed, or its license held, before a number of the journal?

        That a license was held by then shows in its having been refused alone; the ledger has no such moment.
        """
        confirmed = self.confirmations(enterprise, license)
        if any(each.start > since and each.end is not None and each.end < before for each in confirmed):
            return True
        on_list = any(str(row["license_uuid"]) == license and row["step"] == "downgrade" for row in self.held)
        refused = (each for each in self.calls(enterprise, "downgrade") if each.status in REFUSALS)
        return on_list and any(named(each) == [license] and (each.end or before) < before for each in refused)

    def learners_licenses(self, enterprise: UUID, email: str) -> list[License]:
        """All licenses of the learner with this address, found by it or by the user's number, under this customer."""
        own = [each for each in self.licenses.values() if each.enterprise == enterprise]
        mailbox = email.strip().lower()
        users = {each.lms_user_id for each in own if each.mailbox == mailbox} - {None}
        return [each for each in own if each.mailbox == mailbox or each.lms_user_id in users]

    def of_plan(self, plan: UUID) -> list[License]:
        """The licenses of a plan that learners had when it expired: those that a downgrade is about."""
        return [each for each in self.licenses.values() if each.plan == plan and each.sent]

    def runs_of(self, enterprise: UUID) -> list[Row]:
        """An enterprise's runs, in the order in which they were opened."""
        return [run for run in self.runs if run["enterprise_customer_uuid"] == enterprise]

    def processed(self) -> list[UUID]:
        """The plans that were marked as processed in this night."""
        marked = (uuid for uuid, row in self.plans.items() if row["expiration_processed"])
        return [uuid for uuid in marked if uuid not in self.laid_data.processed]

    def enterprise_with(self, plan: UUID) -> UUID | None:
        """The customer of a plan, by its agreement; None when it is not there any more."""
        return self._customers[self.plans[plan]["customer_agreement_id"]] if plan in self.plans else None

    def rows_of(self, enterprise: UUID) -> Rows:
        """An enterprise's rows of license-manager's tables, as they are in the end."""
        with self._engine.connect() as connection:
            return read(self._engine, connection, enterprise)

    def of_the_night(self, event_name: str) -> list[tuple[License, datetime]]:
        """The licenses with such an event that were laid without one, each with the event's moment."""
        found = [row for row in self.events if row["event_name"] == event_name]
        return [
            (self.licenses[row["license_id"]], row["created"])
            for row in found
            if row["license_id"] not in self.laid_data.unlinked
        ]


def _in_order(history: list[Row]) -> list[Row]:
    return sorted(history, key=lambda row: (row["history_date"], row["history_id"]))


def _concerns_nobody(entry: Entry) -> bool:
    return named(entry) in ([str(NOBODYS_LICENSE)], [NOBODYS_EMAIL])


def numbers(entries: Iterable[Entry]) -> str:
    """Requests as the sentences name them."""
    return ", ".join(f"#{entry.start}" for entry in entries)
