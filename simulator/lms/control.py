"""HTTP control of the simulated LMS, under /_simulator/, for tests and the demo."""

import json
from collections.abc import Callable
from typing import Any

from tornado.web import RequestHandler

from simulator.lms.core import Lms
from simulator.lms.faults import Fault
from simulator.lms.seeding import seed_from_json


class ControlHandler(RequestHandler):
    """Shows and changes the state of the simulator."""

    def initialize(self, lms: Lms) -> None:
        """Take the LMS to control."""
        self.lms = lms

    def get(self, name: str) -> None:
        """Show the journal, the state or the counts."""
        lms = self.lms
        shown: dict[str, Callable[[], Any]] = {
            "journal": lambda: {"entries": [entry.to_json() for entry in lms.journal.entries]},
            "state": lms.state.to_json,
            "counts": lambda: {**lms.journal.counts(), **lms.state.counts()},
            "faults": lambda: [fault.to_json() for fault in lms.faults],
        }
        self._answer(shown.get(name))

    def post(self, name: str) -> None:
        """Change the LMS's behavior or state."""
        lms = self.lms
        done: dict[str, Callable[[], Any]] = {
            "faults": self._set_faults,
            "throttle": self._set_throttle,
            "latency": self._set_latency,
            "staff": self._set_staff,
            "atomic": self._set_atomic,
            "change-email": self._change_email,
            "forget-tokens": lms.tokens.clear,
            "release": lms.release,
            "seed": lambda: seed_from_json(lms.state, self._content()),
            "reseed": lms.reseed,
            "reset": lms.journal.clear,
        }
        self._answer(done.get(name))

    def _answer(self, act: Callable[[], Any] | None) -> None:
        try:
            if act is None:
                self.set_status(404)
                self.finish({"error": "the simulator has no such control"})
                return
            answer = act()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.set_status(400)
            self.finish({"error": f"{type(error).__name__}: {error}"})
        else:
            self.set_header("Content-Type", "application/json")
            self.finish(json.dumps(answer if answer is not None else {}))

    def _content(self) -> Any:
        return json.loads(self.request.body or b"null")

    def _set_faults(self) -> None:
        self.lms.faults = [Fault.from_json(each) for each in self._content()]

    def _set_throttle(self) -> None:
        content = self._content()
        if content and "whom" in content:
            self.lms.throttle(whom=content["whom"])
        elif content:
            self.lms.throttle(int(content["calls"]), float(content["seconds"]))
        else:
            self.lms.throttle()

    def _set_latency(self) -> None:
        self.lms.latency = float(self._content()["seconds"])

    def _set_staff(self) -> None:
        self.lms.staff = bool(self._content()["staff"])

    def _set_atomic(self) -> None:
        self.lms.atomic = bool(self._content()["atomic"])

    def _change_email(self) -> None:
        content = self._content()
        self.lms.state.change_email(int(content["user_id"]), str(content["email"]))
