"""license-manager's tables, with only the columns that we use."""

from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.db.types import DjangoDuration, DjangoUUID, UTCDateTime

DOWNGRADED_EVENT = "edx.server.license-manager.expired.license.downgraded"
UNLINKED_EVENT = "edx.server.license-manager.expired.license.unlinked"


class LicenseManager(DeclarativeBase):
    """Base of license-manager's tables: read, rarely written, never altered. All date-times are UTC."""

    type_annotation_map: ClassVar[Any] = {UUID: DjangoUUID(), datetime: UTCDateTime()}


class CustomerAgreement(LicenseManager):
    """A customer agreement; one per enterprise customer."""

    __tablename__ = "subscriptions_customeragreement"

    uuid: Mapped[UUID] = mapped_column(primary_key=True)
    enterprise_customer_uuid: Mapped[UUID]
    enterprise_customer_name: Mapped[str | None]
    license_duration_before_purge: Mapped[timedelta] = mapped_column(DjangoDuration())


class SubscriptionPlan(LicenseManager):
    """A subscription plan. It has expired from its `expiration_date` on."""

    __tablename__ = "subscriptions_subscriptionplan"

    uuid: Mapped[UUID] = mapped_column(primary_key=True)
    title: Mapped[str]
    modified: Mapped[datetime]
    start_date: Mapped[datetime]
    expiration_date: Mapped[datetime]
    is_active: Mapped[bool]
    expiration_processed: Mapped[bool]
    customer_agreement_id: Mapped[UUID] = mapped_column(ForeignKey(CustomerAgreement.uuid))


class SubscriptionPlanRenewal(LicenseManager):
    """The renewal of a prior plan by the plan that follows it, which may not exist yet."""

    __tablename__ = "subscriptions_subscriptionplanrenewal"

    id: Mapped[int] = mapped_column(primary_key=True)
    prior_subscription_plan_id: Mapped[UUID] = mapped_column(ForeignKey(SubscriptionPlan.uuid))
    renewed_subscription_plan_id: Mapped[UUID | None] = mapped_column(ForeignKey(SubscriptionPlan.uuid))
    effective_date: Mapped[datetime]
    processed: Mapped[bool]


class License(LicenseManager):
    """A license of a plan, assigned to a learner or not."""

    __tablename__ = "subscriptions_license"

    uuid: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]
    lms_user_id: Mapped[int | None]
    user_email: Mapped[str | None]
    subscription_plan_id: Mapped[UUID] = mapped_column(ForeignKey(SubscriptionPlan.uuid))
    renewed_to_id: Mapped[UUID | None]
    assigned_date: Mapped[datetime | None]
    revoked_date: Mapped[datetime | None]


class LicenseEvent(LicenseManager):
    """license-manager's record of an action on a license."""

    __tablename__ = "subscriptions_licenseevent"

    id: Mapped[int] = mapped_column(primary_key=True)
    created: Mapped[datetime]
    modified: Mapped[datetime]
    event_name: Mapped[str]
    license_id: Mapped[UUID] = mapped_column(ForeignKey(License.uuid))


class HistoricalSubscriptionPlan(LicenseManager):
    """A plan as it was from `history_date` on. license-manager adds a row each time it saves the plan.

    In its rows, `modified` is slightly earlier than `history_date`; in ours both are equal.
    """

    __tablename__ = "subscriptions_historicalsubscriptionplan"

    history_id: Mapped[int] = mapped_column(primary_key=True)
    history_date: Mapped[datetime]
    history_type: Mapped[str]
    uuid: Mapped[UUID]
    modified: Mapped[datetime]
    expiration_processed: Mapped[bool]


class Histories(DeclarativeBase):
    """Base of license-manager's tables that we read only if the database account is allowed to."""

    type_annotation_map: ClassVar[Any] = {UUID: DjangoUUID(), datetime: UTCDateTime()}


class HistoricalLicense(Histories):
    """A license as it was from `history_date` on."""

    __tablename__ = "subscriptions_historicallicense"

    history_id: Mapped[int] = mapped_column(primary_key=True)
    history_date: Mapped[datetime]
    uuid: Mapped[UUID]
    subscription_plan_id: Mapped[UUID | None]
