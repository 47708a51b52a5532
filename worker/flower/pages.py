"""The pages in Flower that start, stop and pause runs, behind Flower's own login."""

from datetime import datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

from kombu.exceptions import OperationalError
from sqlalchemy import select
from sqlalchemy.orm import Session
from tornado.web import authenticated, url

from worker.db.ledger_tables import Retry, Run
from worker.due.enterprises import name_of
from worker.errors import Away, BadArgument
from worker.flower import forms
from worker.flower.database import customers, opened
from worker.flower.forms import FLAGS, TEXTS, Form
from worker.flower.page import Page, who
from worker.ledger import runs, waits
from worker.logs import get_logger
from worker.masking import kind_of
from worker.runs.request import Request, parse_reason, parse_uuid
from worker.settings import RUN_ENTERPRISE, RUN_NIGHTLY
from worker.web.history import read_now
from worker.web.lines import note_of

log = get_logger(__name__)

MOST_SHOWN = 50  # customers found, and live runs
COMPLETED = 1000  # customers whose names the browser completes


def note(session: Session, run: Run) -> str:
    """The note on a run as it is now, as its page in `license-expiry serve` has it."""
    retries = session.scalars(select(Retry).where(Retry.run_id == run.id).order_by(Retry.at)).all()
    return note_of(run, retries, read_now(session))


class Choose(Page):
    """Choose an enterprise or the whole night; shows waits and live runs."""

    @authenticated
    async def get(self) -> None:
        """Show it; with `find`, the customers that match."""
        find = self.get_query_argument("find", "").strip()

        def work(session: Session) -> dict[str, Any]:
            live = select(Run).where(Run.live.is_not(None)).order_by(Run.opened_at.desc()).limit(MOST_SHOWN)
            named = customers(session)
            return {
                "found": forms.matching(named, find) if find else {},
                "names": named,
                "live": session.scalars(live).all(),
                "waits": [wait for wait, _ in waits.standing(session)],
            }

        read = await self.read(work)
        if len(read["found"]) == 1:
            self.redirect(f"{self.reverse_url('runs_start')}?enterprise={next(iter(read['found']))}")
            return
        self.show("runs_choose.html", find=find, most=MOST_SHOWN, completed=COMPLETED, **read)


class Start(Page):
    """The form, its preview, and the start."""

    @authenticated
    async def get(self) -> None:
        """Show the form: of an `enterprise`, of the night, or as the run to start `again` was."""
        again = self.get_query_argument("again", "")
        form = Form(self.enterprise(self.get_query_argument("enterprise", "")))
        if again:
            run = await self.read(lambda session: session.get(Run, parse_uuid("again", again)))
            if run is None:
                raise BadArgument(f"The ledger has no run {again}", "choose an enterprise instead")
            form = forms.form_of(run)
        await self.show_form(form, {})

    async def show_form(self, form: Form, complaints: dict[str, str]) -> None:
        """Show the form as it was typed, each complaint beside its field, and this enterprise's due work."""
        enterprise = form.enterprise
        settings, database = await self.in_thread(opened)
        if enterprise is None:
            self.show("runs_form.html", form=form, complaints=complaints, plans=[], now=None)
            return
        now = await self.in_thread(lambda: forms.preview(database, settings, enterprise, Request()))
        plans = await self.read(lambda session: forms.expired_plans(session, enterprise))
        self.show("runs_form.html", form=form, complaints=complaints, plans=plans, now=now)

    @authenticated
    async def post(self) -> None:
        """Preview the request, or start it if nothing changed since its preview."""
        form = Form(
            self.enterprise(self.typed("enterprise")),
            self.get_body_arguments("plan"),
            {name: self.typed(name) for name in TEXTS},
            {name for name in FLAGS if self.typed(name)},
        )
        if self.typed("change"):
            await self.show_form(form, {})
            return
        try:
            request = form.request(who(self))
            settings, database = await self.in_thread(opened)
            trigger = str(parse_uuid("trigger", self.typed("trigger") or uuid4()))
            if await self.read(lambda session: forms.started(session, trigger, form.enterprise)):
                self.to_started(trigger, form, again=True)  # the button was pressed twice, or the preview is an old one
                return
            shown = await self.in_thread(lambda: forms.preview(database, settings, form.enterprise, request))
        except BadArgument as error:
            self.set_status(400)
            await self.show_form(form, dict(error.complaints) or {"": str(error)})
            return
        seen = self.typed("seen")
        if seen == shown.digest:
            await self.in_thread(lambda: self.send(trigger, form.enterprise, request))
            self.to_started(trigger, form)
            return
        self.show("runs_preview.html", form=form, preview=shown, changed=bool(seen), trigger=trigger)

    def send(self, trigger: str, enterprise: UUID | None, request: Request) -> None:
        """Send the task, whose id is this trigger. Raises Away when the broker does not answer."""
        name = RUN_NIGHTLY if enterprise is None else RUN_ENTERPRISE
        given = forms.arguments(enterprise, request) | {"judged_by": opened()[0].judged_by}
        try:
            self.capp.send_task(name, kwargs=given, task_id=trigger)
        except OperationalError as error:
            broker, cause = self.capp.connection_for_write().as_uri(), kind_of(error.__cause__ or error)
            what = f"nothing was started: the broker {broker} took no message ({cause})"
            raise Away(what, "check CELERY_BROKER_URL and the broker, then go back and start it again") from None

    def to_started(self, trigger: str, form: Form, *, again: bool = False) -> None:
        """Send the browser on, so that a reload starts nothing; `again` if this preview was started before."""
        of = {"enterprise": str(form.enterprise)} if form.enterprise else {}
        asked = urlencode(of | ({"again": "yes"} if again else {}))
        self.redirect(f"{self.reverse_url('runs_started', trigger)}?{asked}", status=303)


class Started(Page):
    """The progress of a start: the trigger, then the run and its steps."""

    @authenticated
    async def get(self, trigger: str) -> None:
        """Show it as it is now."""
        parse_uuid("trigger", trigger)
        enterprise = self.enterprise(self.get_query_argument("enterprise", ""))

        def work(session: Session) -> dict[str, Any]:
            found = forms.started(session, trigger, enterprise)
            live = () if found or enterprise is None else session.scalars(select(Run).where(Run.live == enterprise))
            one = found[0] if found and enterprise else None
            return {
                "runs": found,
                "others": list(live),
                "name": name_of(session, enterprise) or str(enterprise) if enterprise else "",
                "note": one and note(session, one),
            }

        task = self.application.events.state.tasks.get(trigger)
        again = bool(self.get_query_argument("again", ""))
        known = {"task": task, "trigger": trigger, "enterprise": enterprise, "again": again}
        self.show("runs_started.html", **known, **await self.read(work))


class Stop(Page):
    """Stops a run, with a reason."""

    @authenticated
    async def get(self) -> None:
        """Ask for the reason."""
        await self.ask(self.get_query_argument("run", ""), "")

    async def ask(self, run_id: str, complaint: str, reason: str = "") -> None:
        """Show the run, and ask for the reason to stop it."""
        wanted = parse_uuid("run", run_id)

        def work(session: Session) -> dict[str, Any]:
            run = session.get(Run, wanted)
            if run is None:
                raise BadArgument(f"The ledger has no run {wanted}", "choose one of the live runs")
            enterprise = run.enterprise_customer_uuid
            return {"run": run, "name": name_of(session, enterprise) or str(enterprise), "note": note(session, run)}

        self.show("runs_stop.html", complaint=complaint, reason=reason, **await self.read(work))

    @authenticated
    async def post(self) -> None:
        """Stop it."""
        text = self.typed("reason")
        try:
            reason = parse_reason(text)
        except BadArgument as error:
            self.set_status(400)
            await self.ask(self.typed("run"), str(error), text)
            return
        run_id, by = parse_uuid("run", self.typed("run")), who(self)
        await self.in_thread(lambda: runs.stop_run(opened()[1], run_id, by, reason))
        self.redirect(f"{self.reverse_url('runs_stop')}?run={run_id}", status=303)


class Pause(Page):
    """Pauses everything, with a reason; and ends the pause."""

    @authenticated
    async def post(self) -> None:
        """Pause or resume as the button says, then show the page again."""
        by = who(self)
        if self.typed("resume"):
            try:
                since = datetime.fromisoformat(self.typed("resume"))
            except ValueError:
                raise BadArgument("resume must be the moment of the pause", "go back, and press the button") from None
            ended = await self.in_thread(lambda: waits.resume(opened()[1], since))
            log.warning("pause ended", by=by, pause=ended and waits.told_of_pause(ended))
        else:
            reason = parse_reason(self.typed("reason"))
            await self.in_thread(lambda: waits.pause(opened()[1], by, reason))
        self.redirect(self.reverse_url("runs"), status=303)


HANDLERS = [
    url(r"/license-expiry", Choose, name="runs"),
    url(r"/license-expiry/start", Start, name="runs_start"),
    url(r"/license-expiry/started/([0-9a-f-]+)", Started, name="runs_started"),
    url(r"/license-expiry/stop", Stop, name="runs_stop"),
    url(r"/license-expiry/pause", Pause, name="runs_pause"),
]
