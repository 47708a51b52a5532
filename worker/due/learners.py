"""Matches licenses of the same learner: same e-mail address or same LMS user id, at the same customer.

The match goes one step further, because the LMS unlinks by address. If any license with this address has a user id,
all licenses with that user id are the same learner's.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, or_, select, tuple_
from sqlalchemy.orm import aliased

from worker.db.license_manager_tables import CustomerAgreement as Agreement, License, SubscriptionPlan as Plan
from worker.db.sql import Among, Fingerprint, Mailbox, OneOf, Rows
from worker.due import conditions
from worker.due.scope import Scope

KNOWN_BY = ("user_email", "lms_user_id")  # either of these makes two licenses the same learner's

Which: TypeAlias = Callable[[Any, Any], Sequence[ColumnElement[bool]]]
"""Conditions on a license and its plan (aliases)."""


def is_learner_of(which: Sequence[Which], customers: Rows) -> ColumnElement[bool]:
    """Condition: the License's address belongs to a learner of one of the licenses `which`.

    `customers` selects the agreements to look at; only licenses of the same customer are compared.
    By `user_email`: one of the licenses `which` has the address. By `lms_user_id`: a license with the address has a
    user id that also stands in one of `which`, or in a license that shares an address with one of `which`.
    NULL and the empty address match nothing.

    The sets compared with do not depend on the License, so the database can read them once. The OFFSET and the CASE
    around the comparison keep it from reading them again for every license.
    """
    theirs, ids = _addresses_and_ids(which, customers)
    mine = tuple_(Plan.customer_agreement_id, _address(License))
    by_id = _read_once(_pairs(_of(customers), _address, _user_id, ids))
    return _hidden(and_(Mailbox(License.user_email) != "", or_(mine.in_(theirs), mine.in_(by_id))))


def licenses_of_learners(scope: Scope, licenses: Sequence[UUID], *columns: Any) -> Rows:
    """Select all licenses that the learners of these licenses have at the scope's enterprise.

    Includes the given licenses, even unassigned ones. `columns` as in `conditions.licenses`.
    """
    customer = Agreement.enterprise_customer_uuid == scope["enterprise"]
    these = OneOf(License.uuid, "licenses", licenses)
    which = [lambda license, _: (OneOf(license.uuid, "licenses", licenses),)]
    theirs = is_of_learner(which, select(Agreement.uuid).where(customer))
    of_customer = Among(License.subscription_plan_id, conditions.plans_where(customer))
    return conditions.licenses(*columns).where(of_customer, or_(these, theirs))


def alike(_: Scope, licenses: Sequence[UUID]) -> Rows:
    """Select the licenses that share an address or a user id with one of these, at any customer.

    Rows are (uuid, customer). The given licenses are included.
    """
    one = aliased(License)
    these = OneOf(one.uuid, "licenses", licenses)

    def shared(key: Callable[[Any], Any]) -> ColumnElement[bool]:
        theirs = _read_once(select(key(one).label("learner")).where(these, _has(one, key)))
        return and_(_has(License, key), key(License).in_(theirs))

    same = _hidden(or_(shared(_address), shared(_user_id)))
    found = conditions.licenses(License.uuid, Agreement.enterprise_customer_uuid)
    return found.where(or_(OneOf(License.uuid, "licenses", licenses), same))


def is_of_learner(which: Sequence[Which], customers: Rows) -> ColumnElement[bool]:
    """Condition: the License belongs to a learner of the licenses `which`, even if it has no address.

    The inverse of `is_learner_of`: with one license in `which`, finds the licenses whose learner has it.
    """
    _, ids = _addresses_and_ids(which, customers)
    mine = (Plan.customer_agreement_id, _user_id(License))
    return or_(is_learner_of(which, customers), _hidden(and_(_has(License, _user_id), tuple_(*mine).in_(ids))))


def _addresses_and_ids(which: Sequence[Which], customers: Rows) -> tuple[Any, Any]:
    """Select (agreement, address) of the licenses `which`, and (agreement, user id) of all with such an address."""
    theirs = _read_once(_all_of(*(_pairs(each, _address) for each in which)))
    own_ids = (_pairs(each, _user_id) for each in which)
    return theirs, _read_once(_all_of(*own_ids, _pairs(_of(customers), _user_id, _address, theirs)))


def _of(customers: Rows) -> Which:
    def which(license: Any, _: Any) -> Sequence[ColumnElement[bool]]:
        theirs = aliased(Plan)
        plans = select(theirs.uuid).where(theirs.customer_agreement_id.in_(customers))
        return (Among(license.subscription_plan_id, plans),)

    return which


def _address(license: Any) -> ColumnElement[Any]:
    return Fingerprint(Mailbox(license.user_email))


def _user_id(license: Any) -> ColumnElement[Any]:
    column: ColumnElement[Any] = license.lms_user_id
    return column


def _pairs(
    which: Which, key: Callable[[Any], Any], known: Callable[[Any], Any] | None = None, among: Any = None
) -> Any:
    """Select (agreement, key) of the licenses `which`, or of those only whose (agreement, known) is in `among`."""
    license, plan = aliased(License), aliased(Plan)
    rows = select(plan.customer_agreement_id, key(license).label("learner"))
    rows = rows.join_from(license, plan, plan.uuid == license.subscription_plan_id)
    rows = rows.where(_has(license, key), *which(license, plan))
    if known is None:
        return rows
    # A NULL matches nothing, but without this condition MySQL scans the whole set for each NULL.
    matches = and_(_has(license, known), tuple_(plan.customer_agreement_id, known(license)).in_(among))
    return rows.where(_hidden(matches))


def _has(license: Any, key: Callable[[Any], Any]) -> ColumnElement[bool]:
    return license.lms_user_id.is_not(None) if key is _user_id else Mailbox(license.user_email) != ""


def _all_of(first: Any, *more: Any) -> Any:
    return first.union_all(*more) if more else first


def _read_once(rows: Any) -> Any:
    return select(rows.offset(0).cte())


def _hidden(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Wrap the condition in a CASE, so that databases probe a set in memory instead of joining with it; never NULL."""
    return case((condition, 1), else_=0) == 1
