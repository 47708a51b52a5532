"""What a night would do, counted, and what would come of it: for `due` and `doctor`."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import select

from worker.models import CustomerAgreement as Agreement
from worker.policy import Rows


def purged_too_early(enterprises: frozenset[UUID], unlink_after: timedelta) -> Rows:
    """Of which of these enterprises may license-manager purge e-mails before they are due to be unlinked?

    (customer, license_duration_before_purge) Its retire_old_licenses clears the e-mail and revokes the license once
    the plan has been expired for longer than that.
    """
    return (
        select(Agreement.enterprise_customer_uuid, Agreement.license_duration_before_purge)
        .where(Agreement.enterprise_customer_uuid.in_(sorted(enterprises)))
        .where(Agreement.license_duration_before_purge <= unlink_after)
        .order_by(Agreement.enterprise_customer_uuid)
    )
