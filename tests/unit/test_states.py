"""The machine's tables, walked: every step of every plan, every event, both directions."""

from __future__ import annotations

import itertools

import pytest

from migrator.volume import states
from migrator.volume.states import Direction, End, Event, Order, Plan, Position, Stage, Verdict

PLAN_STEPS = [(plan, step) for plan in states.PLANS.values() for step in plan.steps]
IDS = [f"{plan.name}-{step.name}" for plan, step in PLAN_STEPS]


def at(plan: Plan, step: str, direction: Direction = Direction.FORWARD) -> Position:
    return Position(plan.name, step, direction)


@pytest.mark.parametrize("plan", states.PLANS.values(), ids=lambda plan: plan.name)
def test_a_plan_that_goes_well_visits_every_step_once_and_ends_in_success(plan: Plan) -> None:
    position, visited = at(plan, states.FIRST_STEP), []
    while position.end is None:
        visited.append(position.step)
        position = states.advance(position, Event.DONE)
    assert visited == [step.name for step in plan.steps]
    assert position.end is End.SUCCESS


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_a_final_failure_turns_back_before_the_line_and_never_behind_it(plan: Plan, step: states.Step) -> None:
    after = states.advance(at(plan, step.name), Event.FAILED)
    if step.forever:
        assert after == at(plan, step.name)
    else:
        assert plan.index(step.name) < plan.line
        assert after == at(plan, step.name, Direction.BACK)


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_going_back_undoes_every_earlier_step_and_ends_in_error(plan: Plan, step: states.Step) -> None:
    if plan.behind_line(step.name):
        return
    position, undone = at(plan, step.name, Direction.BACK), []
    while position.end is None:
        undone.append(position.step)
        position = states.advance(position, Event.UNDONE)
    assert undone == [s.name for s in reversed(plan.steps[: plan.index(step.name) + 1])]
    assert position.end is End.ERROR


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_a_cancel_is_honoured_exactly_before_the_line(plan: Plan, step: states.Step) -> None:
    cancelled = Verdict(retry=True, cancelled=True)
    here = at(plan, step.name)
    before = plan.index(step.name) < plan.line
    assert states.may_cancel(here) is before
    for event in (Event.DONE, Event.FAILED):
        after = states.advance(here, event, cancelled)
        if before:
            assert after == at(plan, step.name, Direction.BACK)
        else:
            assert after.direction is Direction.FORWARD


def test_a_cancelled_migration_ends_cancelled() -> None:
    first = at(states.HOST_COPY, states.FIRST_STEP, Direction.BACK)
    assert states.advance(first, Event.UNDONE, Verdict(cancelled=True)).end is End.CANCELLED


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_a_failure_with_attempts_left_tries_the_same_again(plan: Plan, step: states.Step) -> None:
    for direction in Direction:
        here = at(plan, step.name, direction)
        assert states.advance(here, Event.FAILED, Verdict(retry=True)) == here


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_an_undo_that_fails_for_good_is_stuck(plan: Plan, step: states.Step) -> None:
    if step.forever:
        return
    assert states.advance(at(plan, step.name, Direction.BACK), Event.FAILED).end is End.STUCK


def test_an_assisted_move_that_moved_nothing_becomes_a_host_copy() -> None:
    here = at(states.ASSISTED, "assisted_move")
    assert states.advance(here, Event.NOT_MOVED) == at(states.HOST_COPY, "create_destination")
    back = states.advance(here, Event.NOT_MOVED, Verdict(cancelled=True))
    assert back == at(states.ASSISTED, "pick_destination", Direction.BACK)


def test_no_other_step_may_say_that_nothing_moved() -> None:
    for plan, step in PLAN_STEPS:
        if step.name != "assisted_move":
            with pytest.raises(ValueError, match="means nothing"):
                states.advance(at(plan, step.name), Event.NOT_MOVED)


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_a_step_that_waits_looks_again_where_it_stands_and_no_other_may(plan: Plan, step: states.Step) -> None:
    for direction, cancelled in itertools.product(Direction, (False, True)):
        here = at(plan, step.name, direction)
        if step.waits:
            assert states.advance(here, Event.WAITING, Verdict(cancelled=cancelled)) == here
        else:
            with pytest.raises(ValueError, match="means nothing"):
                states.advance(here, Event.WAITING, Verdict(cancelled=cancelled))


@pytest.mark.parametrize(("plan", "step"), PLAN_STEPS, ids=IDS)
def test_a_swap_that_has_happened_turns_forward_again_and_nothing_else_does(plan: Plan, step: states.Step) -> None:
    for direction, cancelled in itertools.product(Direction, (False, True)):
        here = at(plan, step.name, direction)
        if (step.name, direction) == ("swap_by_compute", Direction.BACK):
            assert states.advance(here, Event.SWAPPED, Verdict(cancelled=cancelled)) == at(plan, "switch_volume")
        else:
            with pytest.raises(ValueError, match="means nothing"):
                states.advance(here, Event.SWAPPED, Verdict(cancelled=cancelled))


def test_every_step_that_leaves_something_says_how_it_is_taken_back() -> None:
    pure = {"verify_copy", "disconnect", "switch_volume", "record_move"}
    for plan, step in PLAN_STEPS:
        if plan.index(step.name) < plan.line:
            assert (step.undo is None) == (step.name in pure), step.name


def test_clients_see_only_words_they_know() -> None:
    words = {"starting", "migrating", "completing", "success", "error"}
    for (plan, step), direction in itertools.product(PLAN_STEPS, Direction):
        assert states.shown(at(plan, step.name, direction)) in words
    for end in End:
        assert states.shown(Position("host_copy", "copy_data", Direction.FORWARD, end)) in words


def test_the_volume_is_exactly_migrating_for_as_long_as_compute_may_look() -> None:
    assert states.shown(at(states.ATTACHED, "swap_by_compute")) == "migrating"


def test_the_line_lies_behind_the_one_transaction_that_switches() -> None:
    last = {plan.steps[plan.line - 1].name for plan in states.PLANS.values()}
    assert last == {"switch_volume", "record_move"}


def test_status_words_of_the_resource() -> None:
    first = at(states.HOST_COPY, states.FIRST_STEP)
    assert states.status(first, owned=False) == "queued"
    assert states.status(first, owned=True) == "running"
    assert states.status(first, owned=False, paused=True) == "paused"
    assert states.status(at(states.HOST_COPY, "copy_data"), owned=False) == "running"
    assert states.status(Position("host_copy", "copy_data", Direction.BACK, End.STUCK), owned=True) == "stuck"


# --- orders ----------------------------------------------------------------------------------------------------------


def everywhere() -> list[Position]:
    """Every position that a migration can come to."""
    going = [
        at(plan, step.name, direction)
        for plan, step in PLAN_STEPS
        for direction in Direction
        if direction is Direction.FORWARD or not plan.behind_line(step.name)
    ]
    return going + [Position("host_copy", "pick_destination", Direction.BACK, end) for end in End]


def test_every_stage_has_its_orders_and_every_order_is_honoured_somewhere() -> None:
    assert set(states.ORDERS) == set(Stage)
    assert {states.stage(position) for position in everywhere()} == set(Stage)
    for order in Order:
        assert any(states.may(order, position) for position in everywhere()), order


@pytest.mark.parametrize("position", everywhere(), ids=str)
def test_what_may_be_ordered_follows_from_where_the_migration_stands(position: Position) -> None:
    over = position.end is not None
    behind = states.PLANS[position.plan].behind_line(position.step)
    forward = position.direction is Direction.FORWARD
    allowed = {order for order in Order if states.may(order, position)}
    assert (Order.CANCEL in allowed) == (not over and not behind)
    assert (Order.PAUSE in allowed) == (Order.RESUME in allowed) == (not over and not behind and forward)
    assert (Order.SET_RATE in allowed) == (not over)
    assert (Order.RETRY in allowed) == (over and position.end is not End.SUCCESS)
    assert (Order.UNDO in allowed) == (position.end is End.SUCCESS)


def test_the_step_that_commits_is_the_last_one_before_the_line() -> None:
    committing = {(p.plan, p.step) for p in everywhere() if states.commits(p)}
    assert committing == {(plan.name, plan.steps[plan.line - 1].name) for plan in states.PLANS.values()}
    for plan, step in committing:
        after = states.advance(at(states.PLANS[plan], step), Event.DONE)
        assert states.stage(after) is Stage.BEHIND_LINE
        assert not states.commits(at(states.PLANS[plan], step, Direction.BACK))


def test_the_first_plan_asks_the_backend_unless_a_copy_is_forced() -> None:
    assert (states.first_plan(True).name, states.first_plan(False).name) == ("host_copy", "assisted")
