"""The sentences of `explain`: what happens to a license, and the rules behind that."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from worker.db.ledger_tables import Run, Wait
from worker.due.explain import Explained, Outcome
from worker.due.scope import Scope
from worker.ledger.held import HOLD_FOR
from worker.ledger.order import DOWNGRADE, ENDED, UNLINK, Phase, Step

LIST = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
DONE = {DOWNGRADE: "downgraded", UNLINK: "unlinked"}
STILL = {DOWNGRADE: "not downgraded", UNLINK: "still linked"}
UNLESS = {
    DOWNGRADE: "unless its plan is extended or renewed by then",
    UNLINK: "unless another license protects the learner by then",
}


DAY = timedelta(days=1)


@dataclass(frozen=True)
class Blocked:
    """The obstacles to an enterprise's next run.

    The pause that stands, its newest run, and how many unlinks are due where these are more than `limit`.
    """

    enterprise: UUID
    pause: Wait | None
    newest: Run | None
    too_many: int
    limit: int

    def notes(self) -> list[str]:
        """Notes on the enterprise, in sentences."""
        return list(self._notes())

    def but(self, step: Step) -> str:
        """The condition for the next night to do this step, as the end of a verdict; "" if there is none."""
        approval = "once somebody has approved the number of unlinks" if self.too_many and step is UNLINK else ""
        said = [part for part in ("once the pause is over" if self.pause else "", approval) if part]
        return f", but only {' and '.join(said)}" if said else ""

    def _notes(self) -> Iterator[str]:
        if run := self.newest:
            stopped = f", stopped by {run.stopped_by}: {run.stop_reason}" if run.stopped_by else ""
            if run.phase not in ENDED:
                yield f"run {run.id} is {run.phase} since {in_utc(run.opened_at)}{stopped}; it may do so now"
            elif run.phase != Phase.FINISHED:
                yield f"its newest run {run.id} is {run.phase}: {run.error or 'no reason was kept'}"
        if self.too_many:
            yield (
                f"{self.too_many} learners are due to be unlinked, UNLINK_LIMIT is {self.limit}: license-expiry run "
                f"--enterprise {self.enterprise} --approve-unlinks {self.too_many} --reason TEXT"
            )


def in_utc(moment: datetime | None) -> str:
    """A moment for people."""
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "a date that cannot be read"


def verdict(one: Explained, scope: Scope, blocked: Blocked) -> str:
    """For both steps: when it was done, which night will do it, or why none will."""
    steps = {DOWNGRADE: one.downgrade, UNLINK: one.unlink}
    said = "; ".join(_said(one, scope, step, outcome, blocked) for step, outcome in steps.items())
    to_come = any(outcome.state in ("next", "later") for outcome in steps.values())
    refused = " What to do: the run-book LicenseExpiryHeldGrowing." if one.hold and to_come else ""
    return f"{said[0].upper()}{said[1:]}.{refused}"


def _said(one: Explained, scope: Scope, step: Step, outcome: Outcome, blocked: Blocked) -> str:
    done = DONE[step]
    if outcome.state == "done":
        return f"was {done}{_when(outcome)}"
    comes = outcome.state == "next" or (outcome.state, outcome.why) == ("later", "held")
    if one.hold and comes and (step is UNLINK or one.hold.step == step.name):
        refused = f"{STILL[step]} because the LMS refused the {one.hold.step} ({one.hold.reason})"
        return f"{refused}; {_again(one)} (night of {in_utc(outcome.at)}){blocked.but(step)}"
    if outcome.state == "next":
        tonight = outcome.at is not None and outcome.at - scope.as_of <= DAY
        run = "tonight's run" if tonight else "the next night's run"
        return f"will be {done} in {run}, {in_utc(outcome.at)}{blocked.but(step)}"
    why = _WHY[outcome.why](one, scope, step)
    if outcome.state == "later":
        return f"will be {done} on or after {in_utc(outcome.at)} ({why}), {UNLESS[step]}"
    return f"will never be {done}: {why}"


def _when(outcome: Outcome) -> str:
    run = f" in run {outcome.run}" if outcome.run else ", not by a run of license-expiry"
    return f" on {in_utc(outcome.at)}{run}" if outcome.at else ""


def _status(one: Explained, _: Scope, step: Step) -> str:
    if one.facts.status == "unassigned":
        return "it is nobody's"
    if step is DOWNGRADE and one.facts.status == "revoked":
        return "it was revoked before its plan expired"
    return f"it is {one.facts.status}"


def _mark(one: Explained, _: Scope, __: Step) -> str:
    late = " before the license came into it" if not one.facts.confirmed else ""
    return f"its plan was marked as processed{late}"


def _renewals(one: Explained, _: Scope, __: Step) -> str:
    if not one.renewals:
        return "its renewal chain has not ended"
    last = one.renewals[-1]
    if last.following in {link.prior for link in one.renewals}:
        return "the renewals of its plan form a cycle"
    if last.following is None:
        return f"its plan waits for a renewal that {_processed(last)}"
    return f"its plan is renewed by one that expires on {in_utc(last.expires)}"


def _held(one: Explained, _: Scope, __: Step) -> str:
    if one.hold:
        return f"the LMS refuses it ({one.hold.reason})"
    return f"the LMS refuses license {one.held_by[0].uuid} of the same learner" if one.held_by else "it was held"


def _protected(one: Explained, _: Scope, __: Step) -> str:
    by = "; ".join(f"license {by.uuid}, in a plan until {in_utc(by.expires)}" for by in (one.protected_by or ())[:1])
    return f"the learner is protected by {by}"


def _age(one: Explained, scope: Scope, _: Step) -> str:
    if one.facts.expires is None or one.facts.expires > scope.as_of:
        return f"its plan expires on {in_utc(one.facts.expires)}"
    return f"its plan has not been expired for more than {scope.unlink_after.days} days"


_WHY: dict[str, Callable[[Explained, Scope, Step], str]] = {
    "status": _status,
    "date": lambda *_: "the expiration date of its plan cannot be read",
    "mark": _mark,
    "confirmed": lambda *_: "the LMS has confirmed its downgrade",
    "expired": lambda one, *_: f"its plan expires on {in_utc(one.facts.expires)}",
    "renewals": _renewals,
    "list": lambda *_: f"the customer is not on the list {LIST}",
    "renewed": lambda one, *_: f"it was renewed as license {one.facts.renewed_to}",
    "email": lambda *_: "no e-mail",
    "unlinked": lambda *_: "its learner was unlinked",
    "age": _age,
    "held": _held,
    "protected": _protected,
}
"""By the names of outlook.RULES, and what else explain.Outcome has: why a license is not done, in words."""


def rules(one: Explained, scope: Scope) -> Iterator[tuple[str, str]]:
    """Name and value of each rule that decides on a license, in their order."""
    facts = one.facts
    dates = (f"{name} {in_utc(at)}" for name, at in (("assigned", facts.assigned), ("revoked", facts.revoked)) if at)
    yield "status", ", ".join((facts.status, *dates))
    active = "active" if facts.is_active else "not active"
    yield "plan", f"{facts.plan}, from {in_utc(facts.starts)} to {in_utc(facts.expires)}, {active}"
    yield "renewals", "; ".join(map(_renewal, one.renewals)) or "none"
    yield "mark", _marked(facts)
    yield "downgraded", _done(one.downgrade)
    yield "held", _holds(one)
    yield "list", f"{'on' if facts.enterprise in scope.unlink_enabled else 'not on'} {LIST}"
    yield "renewed as", f"license {facts.renewed_to}" if facts.renewed_to else "no"
    yield "e-mail", "has one" if facts.addressed else "has none"
    yield "expired", _expired(one, scope)
    yield "protected", _protectors(one)
    yield "unlinked", _done(one.unlink)


def _protectors(one: Explained) -> str:
    if one.protected_by is None:
        return "not checked: another rule already decides"
    told = (f"by license {by.uuid}, in plan {by.plan} until {in_utc(by.expires)}" for by in one.protected_by)
    return "; ".join(told) or "no"


def _done(outcome: Outcome) -> str:
    return _when(outcome).strip() or "yes" if outcome.state == "done" else "no"


def _renewal(link: Any) -> str:
    by = f"by plan {link.following} until {in_utc(link.expires)}" if link.following else "by no plan yet"
    return f"{by}, {_processed(link)}"


def _processed(link: Any) -> str:
    if link.processed:
        return f"was processed on {in_utc(link.effective)}"
    when = f"was to be processed on {in_utc(link.effective)}, and was not"
    return when if link.stale else f"is to be processed on {in_utc(link.effective)}"


def _marked(facts: Any) -> str:
    if not facts.processed:
        return "not marked as processed"
    if not facts.marked:
        return "marked as processed for an earlier expiration date, which does not count"
    late = "" if facts.confirmed else "; that does not count for this license, which came into the plan after it"
    return f"marked as processed{f' on {in_utc(facts.marked_at)}' if facts.marked_at else ''}{late}"


def _holds(one: Explained) -> str:
    said = [f"its learner is kept by held license {by.uuid}" for by in one.held_by or () if by.uuid != one.facts.uuid]
    if hold := one.hold:
        tries = f"{hold.tries} {'try' if hold.tries == 1 else 'tries'}"
        since = in_utc(hold.first_held_at)
        said.insert(0, f"{hold.step} refused since {since} ({hold.reason}, {tries}), {_again(one)}")
    return "; ".join(said) or "no"


def _again(one: Explained) -> str:
    held = one.hold and one.facts.held
    return f"tried again not before {in_utc(one.hold.as_of + HOLD_FOR)}" if one.hold and held else "tried again"


def _expired(one: Explained, scope: Scope) -> str:
    expires, days = one.facts.expires, scope.unlink_after.days
    if expires is None:
        return "cannot be read"
    ago = (scope.as_of - expires).days
    told = f"{ago} {'day' if ago == 1 else 'days'} ago" if expires <= scope.as_of else "not yet"
    return f"{told}; its learner is unlinked after more than {days} days"
