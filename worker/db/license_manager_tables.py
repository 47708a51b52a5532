"""license-manager's tables: the columns that we use."""

from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.db.types import DjangoDuration, DjangoUUID, UTCDateTime

DOWNGRADED_EVENT = "edx.server.license-manager.expired.license.downgraded"
UNLINKED_EVENT = "edx.server.license-manager.expired.license.unlinked"


class LicenseManager(DeclarativeBase):
    """Tables that belong to license-manager: read, seldom written, never migrated."""

    type_annotation_map: ClassVar[Any] = {UUID: DjangoUUID(), datetime: UTCDateTime()}


class CustomerAgreement(LicenseManager):
    """One per enterprise customer."""

    __tablename__ = "subscriptions_customeragreement"

    uuid: Mapped[UUID] = mapped_column(primary_key=True)
    enterprise_customer_uuid: Mapped[UUID]
    enterprise_customer_name: Mapped[str | None]
    license_duration_before_purge: Mapped[timedelta] = mapped_column(DjangoDuration())


class SubscriptionPlan(LicenseManager):
    """A plan; at its `expiration_date` it has expired."""

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
    """Ties a prior plan to the plan that follows it, which may not exist yet."""

    __tablename__ = "subscriptions_subscriptionplanrenewal"

    id: Mapped[int] = mapped_column(primary_key=True)
    prior_subscription_plan_id: Mapped[UUID] = mapped_column(ForeignKey(SubscriptionPlan.uuid))
    renewed_subscription_plan_id: Mapped[UUID | None] = mapped_column(ForeignKey(SubscriptionPlan.uuid))
    effective_date: Mapped[datetime]
    processed: Mapped[bool]


class License(LicenseManager):
    """A learner's license under a plan."""

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
    """license-manager's own generic record that something was done for a license."""

    __tablename__ = "subscriptions_licenseevent"

    id: Mapped[int] = mapped_column(primary_key=True)
    created: Mapped[datetime]
    modified: Mapped[datetime]
    event_name: Mapped[str]
    license_id: Mapped[UUID] = mapped_column(ForeignKey(License.uuid))


class HistoricalSubscriptionPlan(LicenseManager):
    """A plan as it was from `history_date` on; license-manager adds a row whenever it saves the plan.

    Its `modified` is then a moment earlier than `history_date`; in a row of ours both are the same.
    """

    __tablename__ = "subscriptions_historicalsubscriptionplan"

    history_id: Mapped[int] = mapped_column(primary_key=True)
    history_date: Mapped[datetime]
    history_type: Mapped[str]
    uuid: Mapped[UUID]
    modified: Mapped[datetime]
    expiration_processed: Mapped[bool]


class Histories(DeclarativeBase):
    """A table of license-manager that its owner need not let us read: then we know less."""

    type_annotation_map: ClassVar[Any] = {UUID: DjangoUUID(), datetime: UTCDateTime()}


class HistoricalLicense(Histories):
    """A license as it was from `history_date` on."""

    __tablename__ = "subscriptions_historicallicense"

    history_id: Mapped[int] = mapped_column(primary_key=True)
    history_date: Mapped[datetime]
    uuid: Mapped[UUID]
    subscription_plan_id: Mapped[UUID | None]
