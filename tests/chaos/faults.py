"""The kinds of faults, and the drawing of a night's plan: by its seed alone, on the scale of an undisturbed night."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from chaos.counter import Order
from simulator.lms.faults import Fault as LmsFault

LEASE_SECONDS = 4
FEWEST, MOST = 9, 16
FEWEST_DEEDS, MOST_DEEDS, MOST_TOUCHED = 6, 14, 5
STALE_POINTS = 12  # of a message of `queue_long`, about
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
WHERE = (
    "before call",
    "sending",
    "answered",
    "before commit",
    "after commit",
    "before publish",
    "after publish",
    "before acknowledgement",
    "after acknowledgement",
    "task start",
    "task end",
)


@dataclass(frozen=True)
class Fault:
    """One fault of a plan: it strikes when the count of points has come to `at`."""

    kind: str
    at: int
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Struck:
    """A fault that has struck: when, and where in which enterprise's task, if in one."""

    kind: str
    at: datetime
    enterprise: str | None = None
    point: str | None = None


@dataclass(frozen=True)
class Scale:
    """What an undisturbed night comes to: its points, and its LMS calls of each kind; and the enterprises."""

    points: int
    downgrades: int
    unlinks: int
    enterprises: tuple[str, ...]

    def calls(self, kind: str) -> int:
        """The calls of one kind, one at least."""
        return max(1, self.downgrades if kind == "downgrade" else self.unlinks)


Drawn = Callable[[Random, Scale], dict[str, Any]]


@dataclass(frozen=True)
class _Kind:
    """How often a kind is drawn against others, how many of it a night may have at most, and its particulars.

    `first` is how often it strikes before the night's first message.
    """

    weight: float
    most: int
    detail: Drawn = lambda rng, scale: {}
    first: float = 0.0


def _where(rng: Random, scale: Scale) -> dict[str, Any]:
    return {"where": rng.choice(WHERE) if rng.random() < 0.5 else None}


def _freeze(rng: Random, scale: Scale) -> dict[str, Any]:
    """Longer than the lease and a take-over; now and then longer than a transaction may lie idle (12 s).

    Half of them wake in the midst of the other's work, where only the fence keeps the two apart; many have stopped
    right after the guard had said yes.
    """
    seconds = 13.0 if rng.random() < 0.15 else LEASE_SECONDS + rng.uniform(2, 4)
    where = {"where": "sending"} if rng.random() < 0.3 else _where(rng, scale)
    return where | {"seconds": round(seconds, 1), "early": rng.random() < 0.5}


def _pick(most: int) -> Drawn:
    return lambda rng, scale: {"times": rng.randint(1, most), "pick": round(rng.random(), 4)}


def _seconds(least: float, most: float) -> Drawn:
    return lambda rng, scale: {"seconds": round(rng.uniform(least, most), 1)}


def _nth(rng: Random, most: int) -> int:
    """One of so many, by a share of the whole: another count, as on a slower day, leaves the rest of the plan alike."""
    return 1 + int(rng.random() * most)


def _call(**effect: Any) -> Drawn:
    """An effect on one call, or on some from one on, of a kind that is drawn; a callable value is drawn too."""

    def draw(rng: Random, scale: Scale) -> dict[str, Any]:
        kind = rng.choice(("downgrade", "unlink"))
        drawn = {name: value(rng) if callable(value) else value for name, value in effect.items()}
        return {"call": kind, "first": _nth(rng, scale.calls(kind)), "times": 1, **drawn}

    return draw


def _refusal(rng: Random, scale: Scale) -> dict[str, Any]:
    """Of one batch of two or more, which is split, or, as a redirect, of the run. One that stands alone is held."""
    return _call(status=lambda r: r.choice((302, 403, 404)))(rng, scale) | {
        "enterprise": rng.choice(scale.enterprises),
        "first": rng.randint(1, 3),
        "containing": '", "',
    }


def _too_long(rng: Random) -> float:
    return round(rng.uniform(1.3, 2.5), 1)  # the client's time-out is 1 s


def _worker(rng: Random, scale: Scale) -> dict[str, Any]:
    return {"worker": rng.randrange(2)}


def _skew(rng: Random, scale: Scale) -> dict[str, Any]:
    return _worker(rng, scale) | {"hours": rng.choice((-1, 1))}


def _outage(rng: Random, scale: Scale) -> dict[str, Any]:
    """The LMS is away for all, or throttles all: for minutes, as long as a lease is in these nights."""
    return _seconds(1, 8)(rng, scale) | {"status": rng.choice((429, 502, 503, None))}


def _long(rng: Random, scale: Scale) -> dict[str, Any]:
    return {"times": rng.randint(24, 200), "pick": round(rng.random(), 4)}


def _step(rng: Random, scale: Scale) -> dict[str, Any]:
    return _pick(3)(rng, scale) | {"step": rng.choice(("unlink_learners", "unlink_learners", "downgrade_enrollments"))}


IN_A_PROCESS = {
    "kill_child": _Kind(5, 4, _where),
    "kill_worker": _Kind(2, 2, _where),
    "freeze_child": _Kind(3, 2, _freeze),
    "freeze_worker": _Kind(2, 1, _freeze),
    "commit_lost": _Kind(4, 3),
}
BY_THE_DRIVER = {
    "duplicate_message": _Kind(4, 3, _pick(3)),
    "replay_message": _Kind(4, 3, _pick(2)),
    "queue_long": _Kind(2, 1, _long, first=0.5),
    "queue_slow": _Kind(2, 1, _seconds(1, 6)),
    "broker_flush": _Kind(2, 1),
    "broker_restart": _Kind(2, 1, _seconds(0, 1.5)),
    "broker_freeze": _Kind(1.5, 1, _seconds(1, 4)),
    "broker_reset": _Kind(2, 2),
    "database_restart": _Kind(2, 1, _seconds(0, 1)),
    "database_reset": _Kind(3, 2),
    "worker_term": _Kind(3, 2, _worker),
    "beat_kill": _Kind(2, 1, _seconds(1, 2)),
    "two_beats": _Kind(1.5, 1),
    "trigger_enterprise": _Kind(3, 2, _pick(20)),
    "trigger_night": _Kind(3, 2, _pick(20)),
    "trigger_reconcile": _Kind(2, 1, _pick(20)),
    "trigger_step": _Kind(4, 3, _step),
    "skewed_worker": _Kind(2, 1 if FAKETIME else 0, _skew),
    "forget_tokens": _Kind(2, 2),
    "outage": _Kind(3, 2, _outage),
    "pause": _Kind(2, 1, _seconds(1, 6)),
    "stop": _Kind(2, 2, _pick(1)),
}
AT_THE_LMS = {
    "lms_429": _Kind(2, 2, _call(status=429, headers={"Retry-After": "1"})),
    "lms_500": _Kind(2, 1, _call(status=500)),  # a second one might fall on a license that stands alone, and hold it
    "lms_503": _Kind(2.5, 2, _call(status=503, times=lambda rng: rng.randint(1, 4))),
    "lms_refuses": _Kind(1.5, 1, _refusal),
    "lms_reset": _Kind(3, 2, _call(drop=lambda rng: rng.choice(("before", "after")))),
    "lms_timeout_before": _Kind(2, 1, _call(delay=_too_long)),
    "lms_timeout_after": _Kind(2, 1, _call(delay=_too_long, after_work=True)),
    "lms_truncated": _Kind(2, 2, _call(truncate=True)),
}
# How often each is drawn against the others; each strikes one of a few enterprises of the night, or none.
PEOPLE = {
    "plan_extended": 3,
    "plan_cut": 3,
    "marked_plan_moved": 1,
    "plan_flipped": 2,
    "renewal_made": 2,
    "renewal_processed": 2,
    "renewal_cancelled": 1,
    "license_revoked": 3,
    "enterprise_purged": 2,
    "license_reassigned": 3,
    "license_deleted": 3,
    "license_moved": 3,
    "license_given": 4,
}
NIGHT_MISSED = "night_missed"
KINDS = {**IN_A_PROCESS, **BY_THE_DRIVER, **AT_THE_LMS}


def draw(seed: int, engine: str, broker: str, night: int, scale: Scale) -> list[Fault]:
    """The plan of a night, in the order of its numbers."""
    rng = Random(f"{seed}:{engine}:{broker}:{night}")
    plan = [Fault(NIGHT_MISSED, 0)] if rng.random() < 0.2 else []
    drawn = Counter[str]()
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    wanted = rng.randint(FEWEST, MOST)
    while len(plan) < wanted:
        (name,) = rng.choices(names, weights)
        at, detail = _nth(rng, scale.points), KINDS[name].detail(rng, scale)
        at = 0 if rng.random() < KINDS[name].first else at
        if drawn[name] < KINDS[name].most:
            drawn[name] += 1
            plan.append(Fault(name, at, detail))
    people = _draw_people(Random(f"{seed}:{engine}:{broker}:{night}:people"), scale)
    return sorted(_stretched(plan + people, scale), key=lambda fault: fault.at)


def _stretched(plan: list[Fault], scale: Scale) -> list[Fault]:
    """A long queue has points of its own, before the night's: spread the faults over all of them."""
    more = STALE_POINTS * sum(fault.detail["times"] for fault in plan if fault.kind == "queue_long")
    return [replace(fault, at=round(fault.at * (1 + more / scale.points))) for fault in plan]


def _draw_people(rng: Random, scale: Scale) -> list[Fault]:
    """What people do in two nights of three. They keep to a few enterprises: the others are as undisturbed as ever."""
    if rng.random() < 1 / 3:
        return []
    enterprises = rng.sample(scale.enterprises, min(MOST_TOUCHED, len(scale.enterprises)))
    kinds = rng.choices(list(PEOPLE), list(PEOPLE.values()), k=rng.randint(FEWEST_DEEDS, MOST_DEEDS))
    return [
        Fault(kind, _nth(rng, scale.points), {"enterprise": rng.choice(enterprises), "pick": rng.getrandbits(30)})
        for kind in kinds
    ]


def order(fault: Fault) -> Order:
    """A fault in a process, as the count of points takes it."""
    where = "after commit" if fault.kind == "commit_lost" else fault.detail["where"]
    return Order(fault.at, fault.kind, where, fault.detail.get("seconds", 0.0), fault.detail.get("early", False))


def lms_fault(fault: Fault) -> LmsFault:
    """A fault at the LMS, as the simulator takes it."""
    return LmsFault(
        kind=fault.detail["call"], **{name: value for name, value in fault.detail.items() if name != "call"}
    )


def to_json(plan: list[Fault]) -> list[dict[str, Any]]:
    """A plan as it is printed and kept."""
    return [asdict(fault) for fault in plan]
