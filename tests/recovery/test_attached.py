"""The attached plan: crashes and failures at every point of it, with a compute service that follows a script.

The volume is in use by one server; the compute service copies when the script says, and every invariant is looked at at
every instant, as for the other plans.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session

from migrator import errors
from migrator.compute.base import Compute, Uses
from migrator.conf import Conf
from migrator.db import attachments, migrations, swaps, volumes
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.drivers import memory
from migrator.drivers.base import VolumeDriver
from migrator.drivers.faults import Fault
from migrator.rpc import VolumeClient
from migrator.volume import states
from migrator.volume.copiers import CopierPool
from migrator.volume.migration import Steps
from migrator.volume.states import Direction, End
from tests.recovery.checks import Broken
from tests.recovery.schedules import before_line, forward_points, has_changed_something, label, undo_points, worked
from tests.recovery.world import DATA, Plant, World
from tests.support import rows

PLAN = states.ATTACHED
SWAP = states.SWAP_BY_COMPUTE.name
SERVER = str(uuid.uuid4())
INFO = {"driver_volume_type": "fake"}
POWER = pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
UNDO_POINTS = [
    pytest.param(step.name, point, id=f"{step.name}-{point}")
    for step in before_line(PLAN)
    if step in worked(PLAN)
    for point in undo_points(PLAN, step)
]


class Script(Compute):
    """A compute service whose every step the test orders; its calls to block storage are made on the database."""

    def __init__(self, plant: Plant) -> None:
        super().__init__(plant.conf)
        self._plant = plant
        self.world: World
        self.calls = 0
        #: What is done as soon as it is asked.
        self.at_once: tuple[str, ...] = ("reserve", "connect", "copy", "arrive", "report")
        #: What the request ends in, once, and what the questions are answered with.
        self.fault: errors.MigratorError | None = None
        self.answer: Uses | errors.MigratorError = Uses.OLD

    def swap(self, server: str, old: str, new: str) -> None:
        self.calls += 1
        assert server == SERVER
        assert rows.volume(self._plant.db, old).migration_status == "migrating", "Nova looks for it (LP2112187)"
        for what in self.at_once:
            self.do(what)
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault

    def uses(self, server: str, old: str, new: str) -> Uses:
        if isinstance(self.answer, Uses):
            return self.answer
        raise self.answer

    def extended(self, server: str, volume_id: str, path: str | None, size: int) -> None:
        raise AssertionError("nothing grows here")

    def do(self, what: str) -> None:
        db, row = self._plant.db, self.world.row()
        old, new = row.volume_id, row.destination_volume_id
        if what == "copy":
            self._copy(old, new)
            return
        db.run(lambda session: self._write(session, what, old, new))

    def _write(self, session: Session, what: str, old: str, new: str) -> None:
        row = migrations.get(session, self.world.migration_id)
        if what == "reserve":
            if not attachments.awaits_compute(session, volumes.get(session, new)):
                raise errors.ComputeRefused(code=400, reason="block storage refused the attachment")
            values = {"instance_uuid": SERVER, "attach_status": "reserved"}
            attachments.insert(session, id=str(uuid.uuid4()), volume_id=new, **values)
            volumes.update_where(session, new, status="reserved")
        elif what in ("connect", "arrive"):
            (given,) = attachments.of_volume(session, new)
            mark = "attaching" if what == "connect" else "attached"
            attachments.connected(session, given.id, new, mark, connection_info=INFO, attached_host="compute1")
        elif what == "let go":
            (given,) = attachments.of_volume(session, new)
            attachments.detach(session, given)
        else:
            swaps.report(session, row, failed=what == "report failure")

    def _copy(self, old: str, new: str) -> None:
        """Copy from the one object to the other, by a process that does not die with ours: past the instants."""
        plant = self._plant
        source, destination = (
            memory.open_object(self._export(driver, f"volume-{name}", writable=driver is plant.drivers[1]))
            for driver, name in zip(plant.drivers, (old, new), strict=True)
        )
        for offset, length in DATA:
            data = bytearray(length)
            source.pread_into(offset, memoryview(data))
            destination.pwrite(offset, memoryview(bytes(data)))
        destination.flush()
        for driver, name in zip(plant.drivers, (old, new), strict=True):
            type(driver).revoke(driver, "pool1", f"volume-{name}")

    @staticmethod
    def _export(driver: VolumeDriver, name: str, *, writable: bool) -> str:
        return type(driver).export(driver, "pool1", name, writable=writable).path


class InUse(World):
    """A world whose volume a server uses."""

    def __init__(self, plant: Plant) -> None:
        self.script = Script(plant)
        script = self.script

        class Scripted(Steps):
            def __init__(
                self, conf: Conf, db: Database, driver: VolumeDriver, client: VolumeClient, pool: CopierPool
            ) -> None:
                super().__init__(conf, db, driver, client, pool, script)

        super().__init__(plant, Scripted)  # type: ignore[arg-type]
        self.script.world = self
        plant.conf.set_override("nova_poll_seconds", 5.0)
        plant.conf.set_override("swap_begin_seconds", 5.0)
        plant.conf.set_override("swap_timeout_seconds", 3600.0)
        self.own = str(uuid.uuid4())

        def use(session: Session) -> None:
            values = {"instance_uuid": SERVER, "attach_status": "attached", "mountpoint": "/dev/vdb"}
            attachments.insert(session, id=self.own, volume_id=self.volume_id, **values)
            volumes.update_where(session, self.volume_id, status="in-use", attach_status="attached")

        self.db.run(use)
        self.ask(PLAN.name)

    def go(self, rounds: int = 40) -> None:
        """As ever, with the time passed that somebody would wait; ends where nothing but an event goes on."""
        for _ in range(rounds):
            row = self.row()
            if row.end is not None or row.paused:
                return
            self.pass_time(row)
            self.plant.schedule()
            self.runner.sweep()
        raise Broken(f"8: no end after {rounds} rounds: {self.history()[-5:]}")

    def pass_time(self, row: Migration) -> None:
        """Let ten seconds pass for the migration."""
        moments = {name: getattr(row, name) for name in ("swap_called_at", "swap_seen_at")}
        earlier = {name: moment - 10 for name, moment in moments.items() if moment is not None}
        self.set_row(not_before=0.0, **earlier)

    def until_waiting(self) -> None:
        """Let the migration come to where the compute service was asked."""
        for _ in range(5):
            self.set_row(not_before=0.0)
            self.plant.schedule()
            self.runner.sweep()
        assert (self.row().step, self.row().owner, self.row().attempts) == (SWAP, None, 0)

    def users(self) -> list[str]:
        return [row.id for row in self.db.read(lambda session: attachments.of_volume(session, self.volume_id))]

    def in_use(self, *ends: End, **values: Any) -> None:
        """See that it ended so, and that one server uses the volume."""
        self.ended(*ends, status="in-use", **values)
        assert len(self.users()) == 1
        assert (self.users() == [self.own]) is (self.row().end != End.SUCCESS)
        assert (self.row().bytes_done == self.row().bytes_total) is (self.row().end == End.SUCCESS)
        assert self.row().swap_server is None


@pytest.fixture
def used(plant: Plant) -> Iterator[InUse]:
    yield InUse(plant)
    for driver in plant.drivers:
        driver.opened = None  # type: ignore[attr-defined]


def test_a_volume_in_use_moves(used: InUse) -> None:
    used.go()
    used.in_use(End.SUCCESS)
    assert used.script.calls == 1
    used.go()


@POWER
@pytest.mark.parametrize("point", forward_points(PLAN))
def test_a_crash_at_any_step_is_recovered_from(used: InUse, point: str, power: bool) -> None:
    used.power_cut = power
    trap = used.on(point, used.die)
    used.live()
    assert (trap.sprung, used.lives) == (1, 1)
    used.in_use(End.SUCCESS)
    assert used.script.calls == 1


def test_a_crash_at_any_instant_ends_it_whole_or_not_at_all(plant: Plant) -> None:
    """Between the intent and the call nobody knows whether the compute service was asked: it is not asked again."""
    whole = InUse(plant)
    whole.go()
    last = sum(map(has_changed_something, whole.instants.trail))
    for crash_at in range(last):
        world = InUse(plant)
        world.instants.trap(None, world.die, after=crash_at, only=has_changed_something)
        world.live()
        world.in_use(End.SUCCESS if world.script.calls else End.ERROR)
        assert world.script.calls <= 1


@pytest.mark.parametrize(("failing", "point"), UNDO_POINTS)
def test_a_crash_on_the_way_back_is_recovered_from(used: InUse, failing: str, point: str) -> None:
    used.script.at_once = ()
    used.fail(label(failing, Direction.FORWARD, "inside"), final=True)
    trap = used.on(point, used.die)
    if failing == states.SWITCH_VOLUME.name:
        used.script.at_once = ("reserve", "connect", "copy", "arrive", "report")
        used.live()
        used.in_use(End.SUCCESS)  # the server is there: going back ends in going forward
        return
    used.live()
    assert trap.sprung == 1
    used.in_use(End.ERROR)


@pytest.mark.parametrize("done", range(5))
def test_a_cancel_at_any_time_of_a_swap(used: InUse, done: int) -> None:
    """Until a host is connected it is obeyed; then the end of the copy decides."""
    order = ("reserve", "connect", "copy", "arrive", "report")
    used.script.at_once = order[:done]
    used.until_waiting()
    assert used.cancel()
    used.set_row(not_before=0.0)
    used.runner.sweep()
    if done < 2:
        used.go()
        used.in_use(End.CANCELLED)
        return
    for what in order[max(done, 2) :]:
        assert used.row().end is None
        used.script.do(what)
    used.go()
    used.in_use(End.SUCCESS)
    assert used.row().error_code is None


def test_a_copy_that_fails_after_a_cancel_is_taken_back(used: InUse) -> None:
    used.script.at_once = ("reserve", "connect")
    used.until_waiting()
    assert used.cancel()
    used.set_row(not_before=0.0)
    used.runner.sweep()
    assert ("swap_by_compute", "back", "waiting") in used.history()
    used.script.do("let go")
    used.script.do("report failure")
    used.go()
    used.in_use(End.CANCELLED)


def test_looks_make_one_row_of_history(used: InUse) -> None:
    used.script.at_once = ("reserve", "connect")
    used.until_waiting()
    for _ in range(5):
        used.set_row(not_before=0.0)
        used.runner.sweep()
    assert len(used.attempts(SWAP)) == 1


def test_what_was_given_up_and_happens_after_all_is_gone_on_with(used: InUse) -> None:
    """The report comes when the migration is stuck: the server lives at the new place, so the volume does."""
    given_up(used)
    for what in ("copy", "arrive", "report"):
        used.script.do(what)
    used.go()
    used.in_use(End.SUCCESS)


@pytest.mark.parametrize("last", [("let go", "report failure"), ("report failure",)], ids=str)
def test_what_was_given_up_and_fails_after_all_is_taken_back(used: InUse, last: tuple[str, ...]) -> None:
    """The compute service was slower than swap_timeout_seconds: nobody has to tell us again what it has reported."""
    given_up(used)
    opened(used, "old")
    for what in last:
        used.script.do(what)
    used.go()
    used.in_use(End.ERROR)


def test_a_late_report_decides_nothing_while_the_new_place_is_open(used: InUse) -> None:
    given_up(used)
    opened(used, "old", "new")
    used.script.do("report failure")
    used.go()
    used.ended(End.STUCK, status="in-use", left=True)


def given_up(used: InUse) -> None:
    """Let a swap last longer than it may, while its host may still copy."""
    used.script.at_once = ("reserve", "connect")
    used.until_waiting()
    used.plant.conf.set_override("swap_timeout_seconds", 60)
    used.go()
    used.ended(End.STUCK, status="in-use")
    assert used.row().error_code == "SwapUndecided"


# --- faults of our own calls to the compute service ------------------------------------------------------------------

NOTHING: tuple[str, ...] = ()
EVERYTHING = ("reserve", "connect", "copy", "arrive", "report")
REFUSALS = [
    *(errors.ComputeRefused(code=code, reason="no") for code in (400, 401, 403, 404, 409)),
    *(errors.ComputeFailed(code=code, reason="no") for code in (500, 503, 504)),
]
UNREACHABLE = errors.ComputeUnreachable(reason="connection refused")
SILENT = errors.ComputeSilent(reason="time-out")


@pytest.mark.parametrize("done", [NOTHING, EVERYTHING], ids=["not done", "done"])
@pytest.mark.parametrize("fault", [*REFUSALS, SILENT], ids=str)
def test_a_request_that_failed_is_not_sent_again(
    used: InUse, fault: errors.MigratorError, done: tuple[str, ...]
) -> None:
    """Whether it was followed all the same is seen by what was attached."""
    used.script.fault, used.script.at_once = fault, done
    used.go()
    used.in_use(End.SUCCESS if done else End.ERROR)
    assert used.script.calls == 1


def test_a_request_that_was_not_sent_is_sent_again(used: InUse) -> None:
    used.script.fault, used.script.at_once = UNREACHABLE, NOTHING
    used.until_waiting()
    for what in EVERYTHING:
        used.script.do(what)
    used.go()
    used.in_use(End.SUCCESS)
    assert used.script.calls == 2


@pytest.mark.parametrize("answer", [*REFUSALS, SILENT, UNREACHABLE], ids=str)
def test_a_question_that_is_not_answered_decides_nothing(used: InUse, answer: errors.MigratorError) -> None:
    used.script.answer, used.script.at_once = answer, ("reserve", "connect")
    used.until_waiting()
    for what in ("copy", "arrive"):
        used.script.do(what)
    used.go()
    used.in_use(End.SUCCESS)


@pytest.mark.parametrize("answer", [*REFUSALS, SILENT, UNREACHABLE], ids=str)
def test_what_was_never_begun_is_given_up_without_an_answer(used: InUse, answer: errors.MigratorError) -> None:
    used.script.answer, used.script.at_once = answer, NOTHING
    used.go()
    used.in_use(End.ERROR)


# --- reports that are wrong ------------------------------------------------------------------------------------------


def opened(used: InUse, *places: str) -> None:
    """Say which places a hypervisor has open."""
    row = used.row()
    names = {"old": f"volume-{row.volume_id}", "new": f"volume-{row.destination_volume_id}"}
    for driver in used.plant.drivers:
        driver.opened = {names[place] for place in places}  # type: ignore[attr-defined]


@pytest.mark.parametrize("left", [("let go", "report failure"), ("report failure",), ()], ids=str)
def test_a_server_that_lives_at_the_new_place_is_not_left_behind(used: InUse, left: tuple[str, ...]) -> None:
    """Only os-complete was lost: the report says failure, and the destination must not be removed."""
    used.script.at_once = ("reserve", "connect", "copy")
    used.until_waiting()
    opened(used, "new")
    for what in left:
        used.script.do(what)
    if not left:
        assert used.cancel()
    used.go()
    used.ended(End.SUCCESS, status="in-use")
    assert len(used.users()) == 1


def test_a_failure_whose_clean_up_was_lost_is_taken_back(used: InUse) -> None:
    used.script.at_once = ("reserve", "connect")
    used.until_waiting()
    opened(used, "old")
    used.script.do("report failure")
    used.go()
    used.in_use(End.ERROR)


@pytest.mark.parametrize("answer", [Uses.OLD, Uses.GONE])
def test_what_a_hypervisor_has_open_is_not_removed(used: InUse, answer: Uses) -> None:
    """Both places are open: the copy may still go on, whatever was reported."""
    used.script.at_once = ("reserve", "connect")
    used.until_waiting()
    used.script.answer = answer
    opened(used, "old", "new")
    used.plant.conf.set_override("swap_timeout_seconds", 60)
    if answer is Uses.OLD:
        used.script.do("let go")
    used.script.do("report failure")
    used.go()
    used.ended(End.STUCK, status="in-use", left=True)
    assert used.row().error_code == "SwapUndecided"


def test_the_host_is_cut_off_from_the_old_place(used: InUse) -> None:
    """The compute service's detach was lost: the connection is ended before the object goes, and that is retried."""

    def write(session: Session) -> None:
        assert attachments.update(session, used.own, connector={"host": "compute1"})

    used.db.run(write)
    faults = used.plant.drivers[0].faults  # type: ignore[attr-defined]
    before = faults.count("terminate_connection")
    faults.order("terminate_connection", Fault.error(errors.DriverError(backend="mem1", reason="ordered")))
    used.go()
    used.in_use(End.SUCCESS)
    assert faults.count("terminate_connection") == before + 2
    assert used.db.read(lambda session: attachments.unended(session, used.volume_id)) == []
