"""Counts what happens to the candidates to be unlinked, plan by plan. Only for displays: a run uses `unlinks`.

Databases are slow to compare the learners of a million licenses. So each license is read once, and compared in Python
by the rules of `learners`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, String, and_, case, cast, func, literal, or_, select, type_coerce
from sqlalchemy.orm import Session

from worker.db.license_manager_tables import CustomerAgreement as Agreement, License, SubscriptionPlan as Plan
from worker.db.sql import OneOf, ReadMailbox, Rows, any_of, folded
from worker.db.transactions import Database
from worker.due import conditions, learners, plans, unlinks
from worker.due.scope import Scope
from worker.license_manager.marks import marked

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of enterprises done, and of all."""

# The most licenses in memory at a time (about 30 MB), unless one enterprise has more.
LICENSES_AT_ONCE = 100_000
ROWS_AT_ONCE = 10_000
_LEFT, _UNCONFIRMED, _HELD = 1, 2, 4
_Known: TypeAlias = tuple[str, str]
_BETWEEN = "\n"


@dataclass(frozen=True, eq=False)
class CountedPlan:
    """A plan of an enterprise with candidates to be unlinked; `judged` if the plan itself may have some."""

    agreement: Any
    uuid: UUID
    customer: UUID
    expired: Any
    processed: int
    current: int
    judged: int


@dataclass
class _Licenses:
    """The licenses of a plan, as lists of texts and numbers: a million tuples would slow the garbage collector."""

    addresses: list[str] = field(default_factory=list)
    user_ids: list[str] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)

    def known(self) -> Iterable[_Known]:
        return zip(self.addresses, self.user_ids, strict=True)

    def held(self) -> Iterable[_Known]:
        return (known for known, flags in zip(self.known(), self.flags, strict=True) if flags & _HELD)


def count_fates(database: Database, scope: Scope, progress: Progress) -> Iterator[tuple[CountedPlan, str, int]]:
    """Count the candidates to be unlinked: yields (plan, name of a count of PlanRow, number of licenses)."""
    sizes = database.transact(lambda session: session.execute(agreements_with_candidates(scope)).all())
    ended: set[UUID] = set()
    if sizes:
        ended = set(database.transact(lambda session: session.scalars(plans.plans_whose_chain_ended(scope)).all()))
    holding = bool(sizes and database.transact(lambda session: session.execute(unlinks.any_hold(scope)).all()))
    done = 0
    for chunk in _chunks(sizes):
        read = _reader(scope, chunk, ended, holding)
        for (plan, name), count in database.transact(read).items():
            yield plan, name, count
        done += len(chunk)
        progress(done, len(sizes))


def _reader(
    scope: Scope, agreements: Sequence[UUID], ended: Collection[UUID], holding: bool
) -> Callable[[Session], Counter[tuple[CountedPlan, str]]]:
    def read(session: Session) -> Counter[tuple[CountedPlan, str]]:
        connection = session.connection()
        of = {raw: CountedPlan(*rest) for raw, *rest in connection.execute(plans_of_agreements(scope, agreements))}
        alone = any(plan.judged and plan.uuid not in ended for plan in of.values())
        query = licenses_of_agreements(scope, agreements, alone, holding)
        rows = connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
        licenses: defaultdict[Any, _Licenses] = defaultdict(_Licenses)
        for text in rows.scalars():
            raw, flags, user_id, address = text.split(_BETWEEN, 3)
            of_plan = licenses[raw]
            of_plan.addresses.append(folded(address))
            of_plan.user_ids.append(user_id)
            of_plan.flags.append(int(flags))
        customers: defaultdict[Any, dict[CountedPlan, _Licenses]] = defaultdict(dict)
        for raw in licenses.keys() & of.keys():  # other plans were added since these were read
            customers[of[raw].agreement][of[raw]] = licenses[raw]
        counts: Counter[tuple[CountedPlan, str]] = Counter()
        for customer in customers.values():
            counts.update(_of_customer(customer, ended))
        return counts

    return read


def _of_customer(
    licenses: Mapping[CountedPlan, _Licenses], ended: Collection[UUID]
) -> Iterator[tuple[CountedPlan, str]]:
    """Yield (plan, name of a count) for each candidate among a customer's licenses and each count that includes it."""
    every = licenses.values()
    current = _known(every, [of_plan.known() for plan, of_plan in licenses.items() if plan.current])
    held = set().union(*_known(every, [of_plan.held() for of_plan in every]).values())
    for plan in filter(attrgetter("judged"), licenses):
        of_plan = licenses[plan]
        for address, flags in zip(of_plan.addresses, of_plan.flags, strict=True):
            if not flags & _LEFT:
                continue
            if not address:
                yield plan, "without_email"
            elif address not in held:
                known_by = [name for name, addresses in current.items() if address in addresses]
                yield plan, "protected" if known_by else "unlinks"
                for name in known_by:
                    yield plan, f"protected_by_{name}"
                if not known_by and flags & _UNCONFIRMED and plan.uuid not in ended:
                    yield plan, "downgrades"


def _known(every: Collection[_Licenses], which: Iterable[Iterable[_Known]]) -> dict[str, set[str]]:
    """Return the addresses of the learners of `which`, by each of KNOWN_BY, matched as in `is_learner_of`."""
    addresses: set[str] = set()
    ids: set[str] = set()
    for address, user_id in chain.from_iterable(which):
        addresses.add(address)
        ids.add(user_id)
    addresses.discard("")
    for of_plan in every if addresses else ():
        ids.update(user_id for address, user_id in of_plan.known() if address in addresses)
    ids.discard("")
    by_id: set[str] = set()
    for of_plan in every if ids else ():
        by_id.update(address for address, user_id in of_plan.known() if user_id in ids)
    return dict(zip(learners.KNOWN_BY, (addresses, by_id), strict=True))


def _chunks(sizes: Iterable[Any]) -> Iterator[list[UUID]]:
    """Yield groups of agreements with at most LICENSES_AT_ONCE licenses together; a larger agreement is alone."""
    chunk: list[UUID] = []
    licenses = 0
    for agreement, size in sizes:
        if chunk and licenses + size > LICENSES_AT_ONCE:
            yield chunk
            chunk, licenses = [], 0
        chunk.append(agreement)
        licenses += size
    if chunk:
        yield chunk


def _left(scope: Scope) -> ColumnElement[bool]:
    """Condition: the License is a candidate to be unlinked, with or without an e-mail address."""
    return and_(*(rule for name, rule in unlinks.not_unlinked(scope).items() if name != "email"))


def agreements_with_candidates(scope: Scope) -> Rows:
    """Select the agreements with a candidate to be unlinked: (uuid, number of all its licenses)."""
    of_agreement = Plan.customer_agreement_id == Agreement.uuid
    theirs = select(literal(1)).join_from(License, Plan, Plan.uuid == License.subscription_plan_id).where(of_agreement)
    left = any_of(theirs.where(_left(scope), *conditions.asked_for(scope).values()).correlate(Agreement))
    number = theirs.with_only_columns(func.count()).correlate(Agreement).scalar_subquery()
    return select(Agreement.uuid, number).where(scope.lists("customers", Agreement.enterprise_customer_uuid), left)


def plans_of_agreements(scope: Scope, agreements: Sequence[UUID]) -> Rows:
    """Select the plans of these agreements: the UUID as the database writes it, and the fields of CountedPlan."""
    old = and_(Plan.expiration_date < scope["old_before"], *conditions.asked_for(scope).values())
    return conditions.plans_where(
        OneOf(Agreement.uuid, "agreements", agreements),
        columns=(
            _raw(Plan.uuid),
            Agreement.uuid,
            Plan.uuid.label("plan"),
            Agreement.enterprise_customer_uuid,
            conditions.readable(Plan.expiration_date),
            case((marked(), 1), else_=0),
            case((and_(*unlinks.current(scope, Plan)), 1), else_=0),
            case((old, 1), else_=0),
        ),
    )


def licenses_of_agreements(scope: Scope, agreements: Sequence[UUID], alone: bool, holding: bool) -> Rows:
    """Select the licenses of these agreements: plan, flags, user id and address as one text.

    Flags: left; unconfirmed, if `alone`; held, if `holding`. One text, because PyMySQL is slow for each column.
    """
    unconfirmed = case((~conditions.confirmed(scope), _UNCONFIRMED), else_=0) if alone else literal(0)
    flags: ColumnElement[int] = case((_left(scope), _LEFT + unconfirmed), else_=0)
    if holding:
        flags += case((conditions.held(scope), _HELD), else_=0)
    columns = (cast(flags, String), cast(License.lms_user_id, String), ReadMailbox(License.user_email))
    text = _raw(License.subscription_plan_id)
    for column in columns:
        text = text.concat(_BETWEEN).concat(func.coalesce(column, ""))
    known = or_(License.user_email.is_not(None), License.lms_user_id.is_not(None), License.status != "unassigned")
    of_plan = Plan.uuid == License.subscription_plan_id
    theirs = OneOf(Plan.customer_agreement_id, "agreements", agreements)
    return select(text).join_from(License, Plan, of_plan).where(theirs, known)


def _raw(column: Any) -> ColumnElement[Any]:
    """Select a UUID as the database writes it: parsing one for each license takes longer than reading it."""
    return cast(type_coerce(column, String()), String)
