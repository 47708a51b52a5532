"""Handles each request: enters it in the journal, applies faults, does the work, answers.

Nothing here prints or logs the content of a request, because it has e-mail addresses. Only the journal has it.
"""

import asyncio
import json
import logging
from typing import Any
from urllib.parse import parse_qsl, urlencode

from tornado.web import RequestHandler

from simulator.lms.core import Lms
from simulator.lms.faults import Fault, pick
from simulator.lms.journal import Entry, Kind
from simulator.lms.state import Answer, json_answer

log = logging.getLogger(__name__)

# Django REST Framework's default page size, and the LMS's largest.
SHORT_PAGE, LONGEST_PAGE = 10, 100
SIGN_IN = "<!DOCTYPE html><html><title>Sign in</title></html>"


class Handler(RequestHandler):
    """Enters a request in the journal, applies faults, and answers."""

    kind: Kind = "other"
    entry: Entry | None = None

    def initialize(self, lms: Lms) -> None:
        """Take the LMS to simulate."""
        self.lms = lms

    async def prepare(self) -> None:
        """Handle the whole request here, whatever its method and path."""
        lms = self.lms
        self.entry = entry = lms.journal.begin(self.kind, self.request.path, **self.about())
        fault = pick(lms.faults, entry, self.request.body) or Fault()
        answer: Answer | None = None
        try:
            await lms.delay(0 if fault.after_work else fault.delay)
            if fault.drop != "before":
                answer = await self.answer(entry, fault)
            await lms.delay(fault.delay if fault.after_work else 0)
        finally:
            # Before the answer is sent: a client that has it finds its end in the journal.
            dropped = fault.drop or ("truncated" if answer and fault.truncate else None)
            lms.journal.finish(entry, answer.status if answer and not fault.drop else None, dropped)
        if answer is None or fault.drop:
            self.detach().close()
        elif fault.truncate:
            await self.send_truncated(answer)
        else:
            self.send(answer)

    async def answer(self, entry: Entry, fault: Fault) -> Answer:
        """Do the work, unless the fault or a refusal prevents it; return the answer."""
        instead = _instead(fault) if fault.status else None
        if instead and not fault.after_work:
            return instead
        answer = await self.work()
        entry.worked = answer.status in (200, 422)
        return instead or answer

    def about(self) -> dict[str, Any]:
        """Return the journal's fields for this request."""
        return {}

    async def work(self) -> Answer:
        """Answer any other path: the sign-in page that a redirect leads to, or 404."""
        page = Answer(200, SIGN_IN.encode(), {"Content-Type": "text/html"})
        return page if self.request.path == "/login" else Answer(404)

    def send(self, answer: Answer) -> None:
        """Send an answer as it is."""
        self.set_status(answer.status)
        self.clear_header("Content-Type")  # Tornado's own
        for name, value in answer.headers.items():
            self.set_header(name, value)
        self.finish(answer.body)

    async def send_truncated(self, answer: Answer) -> None:
        """Announce a longer body than is sent, then close the connection."""
        head = f"HTTP/1.1 {answer.status} OK\r\nContent-Length: {len(answer.body) + 1000}\r\n\r\n"
        stream = self.detach()
        await stream.write(head.encode() + answer.body)
        stream.close()

    def on_connection_close(self) -> None:
        """Record that the client did not wait for the answer."""
        if self.entry is not None:
            self.lms.journal.leave(self.entry)

    def log_exception(self, *_: Any) -> None:
        """Log an error in the simulator, without the content of the request."""
        log.exception("The simulator broke on %s", self.request.path)


class TokenHandler(Handler):
    """POST /oauth2/access_token."""

    kind: Kind = "token"

    async def work(self) -> Answer:
        """Return a token for the right credentials."""
        if self.request.method != "POST":
            return Answer(405)
        return self.lms.token({name: values[-1].decode() for name, values in self.request.arguments.items()})


class CallHandler(Handler):
    """Base class of the calls: checks the token, reads the JSON body, adds the latency."""

    content: Any = None
    method = "POST"

    def about(self) -> dict[str, Any]:
        """Read the body; return the journal's fields of it."""
        try:
            self.content = json.loads(self.request.body)
        except ValueError:
            self.content = None
        return self.asked(self.content if isinstance(self.content, dict) else {})

    def asked(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the journal's fields for a request's content."""
        raise NotImplementedError

    def call(self) -> Answer:
        """Do the work and return the answer."""
        raise NotImplementedError

    async def work(self) -> Answer:
        """Refuse the call, or wait for the latency and do the work."""
        if self.request.method != self.method:
            return Answer(405)
        refusal = self.lms.refusal(self.request.headers.get("Authorization", ""), self.kind)
        if refusal:
            return refusal
        if self.lms.latency:  # the work's own time counts toward the latency
            await asyncio.sleep(self.lms.latency - self.request.request_time())
        return self.call() if self.content is not None else json_answer(400, {"detail": "JSON parse error"})


class DowngradeHandler(CallHandler):
    """POST …/bulk_licensed_enrollments_expiration/."""

    kind: Kind = "downgrade"

    def asked(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the licenses, their enterprises and the date."""
        licenses = _list(content.get("expired_license_uuids"))
        return {
            "licenses": licenses,
            "enterprises": self.lms.state.enterprises_of(licenses),
            "ignore_enrollments_modified_after": content.get("ignore_enrollments_modified_after"),
        }

    def call(self) -> Answer:
        """Downgrade the enrollments of the licenses."""
        return self.lms.state.downgrade(self.content, self.lms.atomic)


class UnlinkHandler(CallHandler):
    """POST …/enterprise-customer/{uuid}/unlink_users/."""

    kind: Kind = "unlink"

    def asked(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the enterprise, the e-mails and whether they may be linked again."""
        return {
            "enterprises": [self.path_args[0]],
            "emails": _list(content.get("user_emails")),
            "is_relinkable": content.get("is_relinkable"),
        }

    def call(self) -> Answer:
        """Unlink the e-mails; a service user that is not staff sees no enterprise."""
        if not self.lms.staff:
            return json_answer(404, {"detail": "No EnterpriseCustomer matches the given query."})
        return self.lms.state.unlink(self.path_args[0], self.content)


class LearnersHandler(CallHandler):
    """GET …/enterprise-learner/: which of some users are linked to an enterprise, page by page."""

    kind: Kind = "learners"
    method = "GET"

    def about(self) -> dict[str, Any]:
        """Return the enterprise and the users asked for."""
        self.content = {}  # a GET has no body
        listed = self.get_query_argument("user_ids", "").split(",")
        self.user_ids = [int(user_id) for user_id in listed if user_id.strip().isdecimal()]
        self.enterprise = self.get_query_argument("enterprise_customer_uuid", "")
        return {"enterprises": [self.enterprise], "user_ids": self.user_ids}

    def call(self) -> Answer:
        """List the linked ones among the users. A service user that is not staff gets an empty list."""
        linked = self.lms.state.learners(self.enterprise, self.user_ids) if self.lms.staff else []
        page, size = self._number("page", 1, 0), self._number("page_size", SHORT_PAGE, SHORT_PAGE)
        size = min(size, LONGEST_PAGE) if size > 0 else SHORT_PAGE
        last = max(1, -(-len(linked) // size))
        if not 1 <= page <= last:
            return json_answer(404, {"detail": "Invalid page."})
        shown = linked[(page - 1) * size : page * size]
        content = {
            "count": len(linked),
            "next": self._page(page + 1) if page < last else None,
            "previous": self._page(page - 1) if page > 1 else None,
            "results": [self._learner(user_id, email) for user_id, email in shown],
        }
        return json_answer(200, content)

    def _number(self, name: str, missing: int, malformed: int) -> int:
        given = self.get_query_argument(name, str(missing))
        return int(given) if given.isdecimal() else malformed

    def _page(self, number: int) -> str:
        others = [(name, value) for name, value in parse_qsl(self.request.query) if name != "page"]
        return (
            f"{self.request.protocol}://{self.request.host}{self.request.path}?{urlencode([*others, ('page', number)])}"
        )

    def _learner(self, user_id: int, email: str) -> dict[str, Any]:
        customer = {"uuid": self.enterprise, "name": "An enterprise", "slug": "an-enterprise", "active": True}
        user = {"id": user_id, "username": f"learner-{user_id}", "email": email, "is_active": True}
        return {"id": user_id, "enterprise_customer": customer, "active": True, "user_id": user_id, "user": user}


def _instead(fault: Fault) -> Answer:
    """Return the answer that a fault gives instead of the LMS's, with a content type that fits its body."""
    start = fault.body.lstrip()[:1]
    kind = "text/html" if start == "<" else "application/json" if start in ("{", "[", '"') else "text/plain"
    headers = {"Content-Type": f"{kind}; charset=UTF-8"} if fault.body else {}
    return Answer(fault.status or 200, fault.body.encode(), headers | fault.headers)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
