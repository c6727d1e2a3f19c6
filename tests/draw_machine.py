"""Draws the migration's machine from its table, for migrator/volume/README.rst; a test keeps the two equal.

``python -m tests.draw_machine`` prints the part of that page between the two comments that name it.
"""

from __future__ import annotations

from migrator.volume import states
from migrator.volume.states import Direction, Event, Order, Plan, Position, Stage, Step, Verdict

_HEADS = ("step", "runs at", "shown", "taken back by")
_LINE = "point of no return"

#: What an attempt ends in, and the event and verdict that stand for it, going forward and going back.
_CASES: dict[str, tuple[tuple[Event, Verdict], tuple[Event, Verdict]]] = {
    "did its work": ((Event.DONE, Verdict()), (Event.UNDONE, Verdict())),
    "did its work, but is cancelled": (
        (Event.DONE, Verdict(cancelled=True)),
        (Event.UNDONE, Verdict(cancelled=True)),
    ),
    "failed, attempts left": ((Event.FAILED, Verdict(retry=True)), (Event.FAILED, Verdict(retry=True))),
    "failed for good": ((Event.FAILED, Verdict()), (Event.FAILED, Verdict())),
}


def drawn() -> str:
    """Return the plans as pictures and the transitions as a table, reStructuredText."""
    parts = [f"``{plan.name}``::\n\n{_plan(plan)}" for plan in states.PLANS.values()]
    return "\n\n".join([*parts, _transitions(), _not_moved(), _orders()]) + "\n"


def _plan(plan: Plan) -> str:
    rows = [_HEADS, *(_step(step) for step in plan.steps)]
    widths = [max(len(row[column]) for each in states.PLANS.values() for row in [_HEADS, *map(_step, each.steps)])
              for column in range(len(_HEADS))]  # fmt: skip
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    bar = f" {_LINE} ".center(sum(widths) + 2 * (len(widths) - 1), "=")
    lines.insert(1, "-" * len(bar))
    lines.insert(2 + plan.line, bar)
    return "\n".join(f"    {line}" for line in lines)


def _step(step: Step) -> tuple[str, str, str, str]:
    undo = "never: repeated until done" if step.forever else step.undo or "nothing is left to take back"
    return step.name, step.runs_at.value, step.shown.value, undo


# --- transitions -----------------------------------------------------------------------------------------------------


def _transitions() -> str:
    """The table of all transitions, found by asking the machine at every step of every plan."""
    everywhere = [(plan, step) for plan in states.PLANS.values() for step in plan.steps]
    before = [(plan, step) for plan, step in everywhere if not plan.behind_line(step.name)]
    behind = [(plan, step) for plan, step in everywhere if plan.behind_line(step.name)]
    columns = {
        "forward, before the line": [_outcomes(before, Direction.FORWARD, forward) for forward, _ in _CASES.values()],
        "back": [_outcomes(before, Direction.BACK, back) for _, back in _CASES.values()],
        "forward, behind the line": [_outcomes(behind, Direction.FORWARD, forward) for forward, _ in _CASES.values()],
    }
    return _table([("an attempt that", *columns), *zip(_CASES, *columns.values(), strict=True)])


def _table(rows: list[tuple[str, ...]]) -> str:
    """Return rows, the first of them the heads, as a simple table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = " ".join("=" * width for width in widths)
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _outcomes(steps: list[tuple[Plan, Step]], direction: Direction, case: tuple[Event, Verdict]) -> str:
    told = [_outcome(Position(plan.name, step.name, direction), *case) for plan, step in steps]
    return " or ".join(dict.fromkeys(told))


def _outcome(at: Position, event: Event, verdict: Verdict) -> str:
    to = states.advance(at, event, verdict)
    if to.end is not None:
        return f"ends ``{to.end}``"
    if to == at:
        return "the same again"
    if to.direction is not at.direction:
        return "turns back here"
    return "the next step" if at.direction is Direction.FORWARD else "the step before"


def _not_moved() -> str:
    at = Position(states.ASSISTED.name, states.ASSISTED_MOVE.name, Direction.FORWARD)
    to = states.advance(at, Event.NOT_MOVED)
    return f"An ``{at.step}`` that ended without having moved anything goes on as ``{to.plan}`` at ``{to.step}``."


def _orders() -> str:
    """The table of what may be ordered where; a cell that would be empty has a dash, as reStructuredText asks."""
    rows = [(stage.value, *("yes" if order in states.ORDERS[stage] else "–" for order in Order)) for stage in Stage]
    table = _table([("a migration that is", *(order.value for order in Order)), *rows])
    return f"What may be ordered of it:\n\n{table}"


if __name__ == "__main__":
    print(drawn(), end="")
