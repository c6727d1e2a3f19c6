"""The points at which schedules strike, generated from the machine's table."""

from __future__ import annotations

from migrator.volume import states
from migrator.volume.states import Direction, Plan, Step

#: Plans whose steps the volume service does by itself.  In the attached one the compute service copies.
PLANS = (states.HOST_COPY, states.ASSISTED)

#: Where a process may die in a step: before its function, behind its effect but before the report, behind the report.
WHENS = ("before", "inside", "after")
#: Between "after" and the next step's "before" nothing happens, so one of the two will do where many are combined.
CHANGES = ("inside", "after")


def label(step: Step | str, direction: Direction, when: str) -> str:
    return f"{step if isinstance(step, str) else step.name} {direction} {when}"


def has_changed_something(label: str) -> bool:
    """Tell whether anything can have happened between the instant before this one and this one."""
    return not label.endswith("before")


def forward_points(plan: Plan, whens: tuple[str, ...] = WHENS) -> list[str]:
    """Every point of a migration that goes well, in order."""
    return [label(step, Direction.FORWARD, when) for step in plan.steps for when in whens]


def before_line(plan: Plan) -> tuple[Step, ...]:
    """The steps that can be taken back."""
    return plan.steps[: plan.line]


def worked(plan: Plan) -> tuple[Step, ...]:
    """The steps that the runner works on: all but the scheduler's."""
    return tuple(step for step in plan.steps if step.runs_at is not states.Place.SCHEDULER)


def undo_points(plan: Plan, step: Step) -> list[str]:
    """Every point of the way back from ``step``, in order, at which something has changed."""
    undone = plan.steps[plan.index(step.name) :: -1]
    return [label(one, Direction.BACK, when) for one in undone for when in CHANGES]
