"""THE machine: every plan, every step and every transition of a migration, as data.

Read this first.  What comes next, what takes a step back, what recovery does and what the API shows are derived from
the tables here and written nowhere else.  Nothing here touches a database, a backend or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    """Where a step's work is done; steps at the destination are called from the source's runner."""

    SCHEDULER = "scheduler"
    SOURCE = "source"
    DESTINATION = "destination"


class Direction(StrEnum):
    FORWARD = "forward"
    BACK = "back"


class Event(StrEnum):
    """What an attempt of a step reports."""

    DONE = "done"
    UNDONE = "undone"
    FAILED = "failed"
    #: The assisted move ended cleanly without having moved anything.
    NOT_MOVED = "not_moved"
    #: It is somebody else's turn: the lease is given back until an event or the next look.
    WAITING = "waiting"
    #: Going back has found that the server lives at the destination already: only forward is left.
    SWAPPED = "swapped"


class End(StrEnum):
    """How a migration ended; the row's ``end`` is empty until then."""

    SUCCESS = "success"
    #: Rolled back after a failure; nothing left behind.
    ERROR = "error"
    #: Rolled back on request; nothing left behind.
    CANCELLED = "cancelled"
    #: An operator is needed; the data is safe and the leftovers are named in the row.
    STUCK = "stuck"


class Shown(StrEnum):
    """``migration_status`` of the volume: the words that clients know, and no others."""

    STARTING = "starting"
    MIGRATING = "migrating"
    COMPLETING = "completing"
    SUCCESS = "success"
    ERROR = "error"


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    ``undo`` says what taking it back does (None: nothing to take back).  ``forever`` marks a step that is retried
    until done, because the volume is already safe at its new place.  ``waits`` marks a step, in both directions, whose
    work is done by somebody who reports later.
    """

    name: str
    runs_at: Place
    shown: Shown
    undo: str | None = None
    forever: bool = False
    waits: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps in order; the first ``line`` of them can be taken back.

    The last of those is one database transaction, the point of no return: it happens as the row advances to the step
    behind it, or not at all.
    """

    name: str
    steps: tuple[Step, ...]
    line: int

    def index(self, step: str) -> int:
        return [s.name for s in self.steps].index(step)

    def step(self, name: str) -> Step:
        return self.steps[self.index(name)]

    def behind_line(self, step: str) -> bool:
        return self.index(step) >= self.line


PICK_DESTINATION = Step("pick_destination", Place.SCHEDULER, Shown.STARTING, undo="release the reservation")
CREATE_DESTINATION = Step("create_destination", Place.DESTINATION, Shown.MIGRATING, undo="delete the destination")
COPY_DATA = Step("copy_data", Place.SOURCE, Shown.MIGRATING, undo="stop the copier and revoke the export")
VERIFY_COPY = Step("verify_copy", Place.SOURCE, Shown.MIGRATING)
DISCONNECT = Step("disconnect", Place.DESTINATION, Shown.MIGRATING)
SWAP_BY_COMPUTE = Step(
    "swap_by_compute", Place.SOURCE, Shown.MIGRATING, undo="wait until the compute service let go", waits=True
)
ASSISTED_MOVE = Step("assisted_move", Place.SOURCE, Shown.MIGRATING, undo="take back what the backend moved")
SWITCH_VOLUME = Step("switch_volume", Place.SOURCE, Shown.COMPLETING)
RECORD_MOVE = Step("record_move", Place.SOURCE, Shown.COMPLETING)
DELETE_SOURCE = Step("delete_source", Place.SOURCE, Shown.COMPLETING, forever=True)

HOST_COPY = Plan(
    "host_copy",
    (PICK_DESTINATION, CREATE_DESTINATION, COPY_DATA, VERIFY_COPY, DISCONNECT, SWITCH_VOLUME, DELETE_SOURCE),
    line=6,
)
ATTACHED = Plan(
    "attached",
    (PICK_DESTINATION, CREATE_DESTINATION, SWAP_BY_COMPUTE, SWITCH_VOLUME, DELETE_SOURCE),
    line=4,
)
#: The backend makes the volume reachable at its new place; the old name goes only after the row names the new one.
ASSISTED = Plan("assisted", (PICK_DESTINATION, ASSISTED_MOVE, RECORD_MOVE, DELETE_SOURCE), line=3)

PLANS: dict[str, Plan] = {plan.name: plan for plan in (HOST_COPY, ATTACHED, ASSISTED)}
FIRST_STEP = PICK_DESTINATION.name


@dataclass(frozen=True)
class Position:
    """Where a migration stands; ``end`` set means that it is over."""

    plan: str
    step: str
    direction: Direction
    end: End | None = None


@dataclass(frozen=True)
class Verdict:
    """What a failed attempt leaves to decide by: may it be tried again, and was the migration cancelled."""

    retry: bool = False
    cancelled: bool = False


def advance(at: Position, event: Event, verdict: Verdict = Verdict()) -> Position:
    """Return where ``event`` takes a migration that stands ``at`` a step; the same position means: try again.

    Raises ValueError for an event that the position does not know.
    """
    plan = PLANS[at.plan]
    index = plan.index(at.step)
    match event, at.direction:
        case Event.DONE, Direction.FORWARD:
            # The last step before the line is the transition itself: cancelled, it has not happened.
            if verdict.cancelled and index < plan.line:
                return Position(at.plan, at.step, Direction.BACK)
            return _forward(plan, index + 1)
        case Event.UNDONE, Direction.BACK:
            return _back(plan, index - 1, verdict)
        case Event.NOT_MOVED, Direction.FORWARD if at.step == ASSISTED_MOVE.name:
            if verdict.cancelled:
                return _back(plan, index - 1, verdict)
            return Position(HOST_COPY.name, CREATE_DESTINATION.name, Direction.FORWARD)
        case Event.WAITING, _ if plan.step(at.step).waits:
            return at
        case Event.SWAPPED, Direction.BACK if at.step == SWAP_BY_COMPUTE.name:
            return _forward(plan, index + 1)
        case Event.FAILED, _:
            return _failed(at, plan, verdict)
    raise ValueError(f"{event} means nothing at {at.step} going {at.direction}")


def _forward(plan: Plan, index: int) -> Position:
    if index == len(plan.steps):
        return Position(plan.name, plan.steps[-1].name, Direction.FORWARD, End.SUCCESS)
    return Position(plan.name, plan.steps[index].name, Direction.FORWARD)


def _back(plan: Plan, index: int, verdict: Verdict) -> Position:
    if index < 0:
        end = End.CANCELLED if verdict.cancelled else End.ERROR
        return Position(plan.name, plan.steps[0].name, Direction.BACK, end)
    return Position(plan.name, plan.steps[index].name, Direction.BACK)


def _failed(at: Position, plan: Plan, verdict: Verdict) -> Position:
    forward = at.direction is Direction.FORWARD
    before_line = not plan.behind_line(at.step)
    if plan.step(at.step).forever:
        return at
    if verdict.retry and not (verdict.cancelled and forward and before_line):
        return at
    if forward and before_line:
        return Position(at.plan, at.step, Direction.BACK)
    return Position(at.plan, at.step, at.direction, End.STUCK)


# --- orders ----------------------------------------------------------------------------------------------------------


class Order(StrEnum):
    """What somebody may ask of a migration; the words are those of the API."""

    CANCEL = "cancel"
    #: A copy stops at once, any other step at its end; nobody claims the row until it is resumed.
    PAUSE = "pause"
    RESUME = "resume"
    #: Begin again after a failure or a cancel; when stuck, try to take it back once more.
    RETRY = "retry"
    SET_RATE = "set_rate"
    #: Put the volume back on the source that was kept.
    UNDO = "undo"


class Stage(StrEnum):
    """Where a migration stands as far as orders go."""

    BEFORE_LINE = "before the point of no return"
    GOING_BACK = "going back"
    BEHIND_LINE = "past the point of no return"
    MOVED = "ended success"
    TAKEN_BACK = "ended error or cancelled"
    STUCK = "stuck"


#: Which orders are honoured where; resume moreover asks for a pause, and undo for a source that was kept.
ORDERS: dict[Stage, frozenset[Order]] = {
    Stage.BEFORE_LINE: frozenset({Order.CANCEL, Order.PAUSE, Order.RESUME, Order.SET_RATE}),
    Stage.GOING_BACK: frozenset({Order.CANCEL, Order.SET_RATE}),
    Stage.BEHIND_LINE: frozenset({Order.SET_RATE}),
    Stage.MOVED: frozenset({Order.UNDO}),
    Stage.TAKEN_BACK: frozenset({Order.RETRY}),
    Stage.STUCK: frozenset({Order.RETRY}),
}

_STAGE_AT_END: dict[End, Stage] = {
    End.SUCCESS: Stage.MOVED,
    End.ERROR: Stage.TAKEN_BACK,
    End.CANCELLED: Stage.TAKEN_BACK,
    End.STUCK: Stage.STUCK,
}


def stage(at: Position) -> Stage:
    """Return where a migration stands as far as orders go."""
    if at.end is not None:
        return _STAGE_AT_END[at.end]
    if PLANS[at.plan].behind_line(at.step):
        return Stage.BEHIND_LINE
    return Stage.BEFORE_LINE if at.direction is Direction.FORWARD else Stage.GOING_BACK


def may(order: Order, at: Position) -> bool:
    """Tell whether an order is honoured where a migration stands."""
    return order in ORDERS[stage(at)]


def may_cancel(at: Position) -> bool:
    """Tell whether a cancel can still be honoured: before the line, and not over."""
    return may(Order.CANCEL, at)


def commits(at: Position) -> bool:
    """Tell whether the step, once done, crosses the line: a pause that came meanwhile keeps it from being done."""
    plan = PLANS[at.plan]
    return at.end is None and at.direction is Direction.FORWARD and plan.index(at.step) == plan.line - 1


def first_plan(force_host_copy: bool) -> Plan:
    """Return the plan that the migration of a volume not in use begins with: the backend is asked, unless forbidden."""
    return HOST_COPY if force_host_copy else ASSISTED


# --- what is shown ---------------------------------------------------------------------------------------------------

#: ``migration_status`` of a volume by how its last migration ended.
SHOWN_AT_END: dict[End, Shown] = {
    End.SUCCESS: Shown.SUCCESS,
    End.ERROR: Shown.ERROR,
    End.CANCELLED: Shown.ERROR,
    End.STUCK: Shown.ERROR,
}


def shown(at: Position) -> Shown:
    """Return the volume's ``migration_status`` for a migration that stands ``at`` a step."""
    if at.end is not None:
        return SHOWN_AT_END[at.end]
    if at.direction is Direction.BACK:
        return Shown.MIGRATING
    return PLANS[at.plan].step(at.step).shown


def status(at: Position, owned: bool, paused: bool = False) -> str:
    """Return the ``status`` of the migration's own resource."""
    if at.end is not None:
        return at.end.value
    if paused:
        return "paused"
    return "running" if owned or at.step != FIRST_STEP else "queued"
