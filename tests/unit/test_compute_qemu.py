"""Guests of plain QEMU: crashes at every command that changes anything, against a real one that writes meanwhile."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from migrator import conf as config
from migrator import errors
from migrator.compute import qemu
from migrator.compute.base import Uses
from migrator.compute.qemu import Guest, Move, Qemu
from migrator.compute.qemu_monitor import Loop, Monitor
from migrator.db import attachments, migrations, transitions
from migrator.db.api import Database
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.drivers.faults import Died
from migrator.rpc import VolumeClient
from migrator.volume import states
from migrator.volume.driven import Driven
from migrator.volume.migration import committed_by_advance, nothing
from migrator.volume.runner import Function, Runner, Settings
from migrator.volume.states import Direction, Event
from tests.contract.mounts import tmpfs
from tests.support import rows
from tests.support.guest import NODE, RealGuest, StorageDaemon
from tests.support.waiting import until

SIZE = 4 << 20
SETTINGS = Settings(lease_seconds=30, sweep_seconds=5, attempts=3, retry_seconds=0.0, parallel=1)
#: Commands that change QEMU in a move, in order; blockdev-del closes the source's two nodes.
CHANGES = (
    *("blockdev-add", "blockdev-mirror", "job-complete", "job-finalize", "job-dismiss"),
    *("blockdev-del", "blockdev-del"),
)
INSTANTS = [(number, when) for number in range(len(CHANGES)) for when in ("before", "after")]
#: Those between which QEMU or the record differ.
FEW = [*((number, "before") for number in range(5)), (2, "after"), (3, "after")]


def name(death: tuple[int, str]) -> str:
    return f"{death[1]} {CHANGES[death[0]]} {death[0]}"


class Peer(VolumeClient):
    """Stands in for the destination's service."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def initialize_connection(self, *args: Any, **values: Any) -> dict[str, Any]:
        return {"driver_volume_type": "local", "data": {"device_path": str(self._path)}}

    def terminate_connection(self, *args: Any) -> None:
        """Nothing is to be ended."""


class Mortal(Qemu):
    """Dies, once, at the n-th command that changes anything, before or after it was done; or has a ``fault`` there."""

    def __init__(self, conf: config.Conf, death: tuple[int, str] | None = None, fault: Exception | None = None) -> None:
        super().__init__(conf)
        self.death = death
        self.fault = fault
        self.changes: list[str] = []

    @contextmanager
    def guest(self, server: str) -> Iterator[Guest]:
        with super().guest(server) as real:
            monitor = real._monitor
            yield Guest(_Counted(monitor, self))  # type: ignore[arg-type]


class _Counted:
    def __init__(self, monitor: Monitor, owner: Mortal) -> None:
        self._monitor, self._owner, self.process = monitor, owner, monitor.process

    def ask(self, command: str, **arguments: Any) -> Any:
        if command.startswith("query-"):
            return self._monitor.ask(command, **arguments)
        number = len(self._owner.changes)
        self._owner.changes.append(command)
        self._die((number, "before"))
        answer = self._monitor.ask(command, **arguments)
        self._die((number, "after"))
        return answer

    def _die(self, now: tuple[int, str]) -> None:
        if self._owner.death == now:
            self._owner.death = None
            raise self._owner.fault or Died


class World:
    """One guest, its volume and a migration of it."""

    def __init__(self, db: Database, directory: Path, guest: StorageDaemon) -> None:
        self.db, self.guest = db, guest
        self.old, self.new = Path(guest.path), directory / "new"
        self.server = str(uuid.uuid4())
        self.conf = config.load("tests", [], [])
        config.register_qemu(self.conf)
        self.conf.set_override("qmp_sockets", {self.server: str(guest.qmp_path)}, "qemu")
        self.conf.set_override("qmp_timeout_seconds", 5.0, "qemu")
        self.mode = "ro" if guest.read_only else "rw"
        rows.add_services(db)
        self.volume = rows.add_volume(db, status="in-use", attach_status="attached")
        info = {"driver_volume_type": "local", "device_path": str(self.old)}
        values = {"instance_uuid": self.server, "attach_status": "attached", "attach_mode": self.mode}
        db.run(
            lambda session: attachments.insert(
                session, id=str(uuid.uuid4()), volume_id=self.volume, connection_info=info, **values
            )
        )
        self.id = rows.add_migration(db, self.volume, plan=states.ATTACHED.name).id
        db.run(lambda session: migrations.claim(session, self.row(), "scheduler", 30.0, owner_is_dead=False))
        picked = Outcome(Event.DONE, values={"destination_host": rows.DESTINATION})
        row = self.row()
        db.run(lambda session: transitions.advance(session, row, picked, attempts_allowed=3, retry_seconds=0.0))

    def row(self) -> Migration:
        return rows.migration(self.db, self.id)

    def set_row(self, **values: Any) -> None:
        self.db.run(lambda session: session.execute(sa.update(Migration).values(**values)))

    def runner(self, hypervisor: Qemu) -> Runner:
        driven = Driven(self.conf, self.db, hypervisor, Peer(self.new), None)
        forward: dict[str, Function] = {
            "create_destination": self._create,
            "swap_by_compute": driven.swap,
            "switch_volume": committed_by_advance,
            "delete_source": self._delete_source,
        }
        back: dict[str, Function] = {
            "pick_destination": nothing,
            "create_destination": self._remove,
            "swap_by_compute": driven.take_back,
            "switch_volume": nothing,
        }
        table = {(step, Direction.FORWARD): function for step, function in forward.items()}
        table |= {(step, Direction.BACK): function for step, function in back.items()}
        return Runner(self.db, table, lambda: sa.true(), SETTINGS)

    def _create(self, migration: Migration) -> Outcome:
        if not self.new.exists():
            self.new.touch()
            os.truncate(self.new, SIZE)
        return Outcome(Event.DONE)

    def _remove(self, migration: Migration) -> Outcome:
        assert not self.has_open(self.new), "a destination is removed that QEMU has open"
        self.new.unlink(missing_ok=True)
        return Outcome(Event.UNDONE)

    def _delete_source(self, migration: Migration) -> Outcome:
        assert not self.has_open(self.old), "a source is removed that QEMU has open"
        self.old.rename(self.old.with_name("deleted"))
        return Outcome(Event.DONE)

    def has_open(self, path: Path) -> bool:
        return self.guest.popen.poll() is None and str(path) in self.guest.files()

    def live(self, hypervisor: Qemu) -> str:
        """Let it go on to its end; returns that."""
        runner = self.runner(hypervisor)

        def over() -> str | None:
            self.set_row(not_before=0.0)
            runner.run(self.id)
            return self.row().end

        return until(over, "the migration ends") or ""

    def die(self, death: tuple[int, str]) -> None:
        """Let it go on until its process is killed at that instant."""
        with pytest.raises(Died):
            self.live(Mortal(self.conf, death))
        self.set_row(owner=None, lease_until=0.0)

    def check(self, end: str) -> None:
        """See that record, guest and files agree, and that no acknowledged write is lost."""
        moved = end == "success"
        assert rows.volume(self.db, self.volume).host == (rows.DESTINATION if moved else rows.SOURCE)
        here, gone = (self.new, self.old) if moved else (self.old, self.new)
        assert here.exists()
        assert not gone.exists()
        lives = self.guest.popen.poll() is None
        if lives:
            self.guest.writers[0].goes_on()
            assert self.has_open(here)
            assert self.guest.qmp("query-jobs") == []
        self.guest.writers[0].check(here, self.old.with_name("deleted") if moved and lives else None)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[StorageDaemon]:
    path = tmp_path / "old"
    path.write_bytes(os.urandom(1 << 20) + bytes(SIZE - (1 << 20)))
    with StorageDaemon(path) as running:
        yield running


@pytest.fixture
def world(db: Database, tmp_path: Path, guest: StorageDaemon) -> World:
    guest.start_writer()
    return World(db, tmp_path, guest)


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_the_changes_of_a_move(world: World) -> None:
    """What the crashes below are put in between."""
    hypervisor = Mortal(world.conf)
    world.check(world.live(hypervisor))
    assert tuple(hypervisor.changes) == CHANGES


@pytest.mark.parametrize("death", INSTANTS, ids=name)
def test_a_crash_at_any_command_is_gone_on_from(world: World, death: tuple[int, str]) -> None:
    world.die(death)
    assert world.live(Mortal(world.conf)) == "success"
    world.check("success")


@pytest.mark.parametrize("death", FEW, ids=name)
def test_a_crash_and_a_cancel(world: World, death: tuple[int, str]) -> None:
    """Until the change-over is recorded the cancel is obeyed; then the guest lives at the new place."""
    world.die(death)
    assert world.db.run(lambda session: migrations.request_cancel(session, world.id))
    recorded = death[0] >= CHANGES.index("job-finalize")
    end = world.live(Mortal(world.conf))
    assert end == ("success" if recorded else "cancelled")
    world.check(end)


@pytest.mark.parametrize("death", FEW, ids=name)
def test_service_and_hypervisor_die_at_the_same_time(world: World, death: tuple[int, str]) -> None:
    """The record alone decides where everything acknowledged is."""
    world.die(death)
    world.guest.kill()
    end = world.live(Mortal(world.conf))
    assert end == ("success" if death[0] >= CHANGES.index("job-finalize") else "error")
    world.check(end)


def test_a_late_order_of_a_runner_that_was_paused_changes_nothing(world: World) -> None:
    """It was stopped before blockdev-add, and wakes up when everything is taken back and the place is another's."""
    world.die((0, "before"))
    world.db.run(lambda session: migrations.request_cancel(session, world.id))
    assert world.live(Mortal(world.conf)) == "cancelled"
    world.new.write_bytes(bytes(SIZE))
    move = Move(world.row().destination_volume_id, str(world.old), str(world.new))
    with Qemu.guest(Mortal(world.conf), world.server) as late:
        with pytest.raises(errors.ComputeRefused):
            late.begin(move, 0)
        assert late.job(move) is None or late.job(move).status == "concluded"  # type: ignore[union-attr]
    assert world.new.read_bytes() == bytes(SIZE)
    assert not world.has_open(world.new)


# --- a command fails ---

REFUSED = errors.ComputeRefused(code="GenericError", reason="on purpose")
SILENT = errors.ComputeSilent(reason="no answer in time")
#: What may become of a command: it is refused, it is lost on its way, or its answer is.
LOSSES = [("before", REFUSED), ("before", SILENT), ("after", SILENT)]


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=lambda number: f"{CHANGES[number]} {number}")
@pytest.mark.parametrize(("when", "fault"), LOSSES, ids=["refused", "lost", "answer lost"])
def test_a_command_that_fails_once(world: World, number: int, when: str, fault: errors.MigratorError) -> None:
    """A refusal takes it back, until the change-over is recorded; what nobody knows of is looked at again."""
    hypervisor = Mortal(world.conf, (number, when), fault)
    end = world.live(hypervisor)
    assert hypervisor.death is None, "it happened"
    recorded = number >= CHANGES.index("job-finalize")
    assert end == ("error" if fault is REFUSED and not recorded else "success")
    world.check(end)


@pytest.mark.parametrize("refused", ["blockdev-add", "blockdev-mirror", "job-complete"])
def test_a_command_that_is_always_refused(world: World, refused: str) -> None:
    """It is taken back, and says QEMU's reason."""

    class Refusing(_Counted):
        def ask(self, command: str, **arguments: Any) -> Any:
            if command == refused and arguments.get("driver") != "null-co":
                raise REFUSED
            return super().ask(command, **arguments)

    class Hypervisor(Mortal):
        @contextmanager
        def guest(self, server: str) -> Iterator[Guest]:
            with Qemu.guest(self, server) as real:
                yield Guest(Refusing(real._monitor, self))  # type: ignore[arg-type]

    assert world.live(Hypervisor(world.conf)) == "error"
    assert "on purpose" in str(world.row().error_message)
    world.check("error")


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_full_destination_ends_it_and_the_guest_goes_on(world: World, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=512k") as small:
        world.new = small / "new"
        assert world.live(Qemu(world.conf)) == "error"
        assert "No space left" in str(world.row().error_message)
        world.check("error")


def test_a_destination_of_another_size_is_refused(world: World) -> None:
    world.new.touch()
    os.truncate(world.new, SIZE * 2)
    assert world.live(Qemu(world.conf)) == "error"
    assert f"has {SIZE} bytes and its destination {SIZE * 2}" in str(world.row().error_message)
    world.check("error")


def test_two_attachments_are_refused(world: World) -> None:
    values = {"instance_uuid": str(uuid.uuid4()), "attach_status": "attached"}
    made = str(uuid.uuid4())
    world.db.run(lambda session: attachments.insert(session, id=made, volume_id=world.volume, **values))
    assert world.live(Qemu(world.conf)) == "error"
    assert "attached 2 times" in str(world.row().error_message)
    world.check("error")


def test_somebody_else_ends_the_mirror(world: World) -> None:
    """An operator's block-job-cancel: the guest stayed, and so does the volume."""
    world.die((2, "before"))
    (job,) = world.guest.qmp("query-block-jobs")
    world.guest.qmp("block-job-cancel", device=job["device"], force=True)
    assert world.live(Qemu(world.conf)) == "error"
    assert "Operation canceled" in str(world.row().error_message)
    world.check("error")


def test_a_source_that_something_in_qemu_has_open_is_kept(world: World) -> None:
    """Until it is closed there."""
    world.die((5, "before"))
    world.guest.qmp("block-export-add", **{"type": "nbd", "id": "e1", "node-name": NODE, "name": "backup"})
    runner = world.runner(Qemu(world.conf))
    for _ in range(3):
        world.set_row(not_before=0.0)
        runner.run(world.id)
        assert (world.row().step, world.old.exists()) == ("swap_by_compute", True)
    world.guest.qmp("block-export-del", id="e1")
    assert world.live(Qemu(world.conf)) == "success"
    world.check("success")


# --- the monitor -----------------------------------------------------------------------------------------------------


def test_nobody_listens(world: World) -> None:
    world.guest.kill()
    assert world.live(Qemu(world.conf)) == "error"
    assert world.row().error_code == "ComputeUnreachable"
    assert world.row().attempts <= SETTINGS.attempts


def silent(world: World) -> Callable[[], None]:
    """Put a listener that never says a word in the place of the guest's monitor; returns what ends that."""
    path = world.guest.qmp_path
    path.rename(path.with_name("kept"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)

    def end() -> None:
        listener.close()
        path.with_name("kept").rename(path)

    return end


def test_a_monitor_that_hangs_decides_nothing(world: World) -> None:
    """Neither forward nor back: nothing is removed while the guest may be at either place."""
    world.die((1, "after"))
    world.conf.set_override("qmp_timeout_seconds", 0.2, "qemu")
    end = silent(world)
    runner = world.runner(Qemu(world.conf))
    for _ in range(2):
        world.set_row(not_before=0.0)
        runner.run(world.id)
    assert world.row().end is None
    world.db.run(lambda session: migrations.request_cancel(session, world.id))
    for _ in range(2):
        world.set_row(not_before=0.0)
        runner.run(world.id)
    assert world.row().direction == "back"
    assert world.new.exists()
    end()
    world.conf.set_override("qmp_timeout_seconds", 5.0, "qemu")
    assert world.live(Qemu(world.conf)) == "cancelled"
    world.check("cancelled")


def test_a_monitor_that_hangs_for_ever_leaves_both_places(world: World) -> None:
    world.die((1, "after"))
    world.conf.set_override("qmp_timeout_seconds", 0.2, "qemu")
    end = silent(world)
    world.set_row(swap_called_at=1.0, cancel_requested=True)
    assert world.live(Qemu(world.conf)) == "stuck"
    assert world.row().error_code == "SwapUndecided"
    assert world.old.exists()
    assert world.new.exists()
    end()


def test_a_size_that_is_told_late_cuts_nothing_off(tmp_path: Path) -> None:
    """Of two extends the first one's news may come second: QEMU would truncate the file."""
    path = tmp_path / "disk"
    path.write_bytes(b"\1" * SIZE)
    with RealGuest(path) as guest:
        guest.qmp("block-export-del", id="e0")
        with Monitor(Loop(), str(guest.qmp_path), 5.0) as monitor:
            spoken = Guest(monitor)
            os.truncate(path, 2 * SIZE)
            spoken.resize(str(path), 2 * SIZE)
            spoken.resize(str(path), SIZE)
            (disk,) = (each["inserted"] for each in monitor.ask("query-block") if each.get("inserted"))
    assert disk["image"]["virtual-size"] == 2 * SIZE
    assert path.stat().st_size == 2 * SIZE


def test_names_of_nodes_keep_to_qemus_rule() -> None:
    names = {Move(str(uuid.uuid4()), "/a", "/b").name for _ in range(100)}
    assert len(names) == 100
    assert all(len(f"{name}-f") <= 31 and name[0].isalpha() and name.isascii() for name in names)


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ("/a/b", ["/a/b"]),
        ('json:{"driver":"raw","file":{"driver":"file","filename":"/a/b"}}', ["/a/b"]),
        ("json:{", []),
        ("", [""]),
    ],
)
def test_how_qemu_shows_a_file(shown: str, names: list[str]) -> None:
    assert list(qemu._names(shown)) == names


def test_a_relative_path_of_a_monitor_is_none(world: World) -> None:
    world.conf.set_override("qmp_sockets", {}, "qemu")
    world.conf.set_override("qmp_socket_template", "%s.qmp", "qemu")
    with pytest.raises(errors.ComputeUnreachable, match="no absolute path"), Qemu(world.conf).guest(world.server):
        pass


def test_where_a_disk_is(world: World) -> None:
    move = Move(str(uuid.uuid4()), str(world.old), str(world.new))
    with Qemu(world.conf).guest(world.server) as spoken:
        assert spoken.uses(move) is Uses.OLD
        assert spoken.uses(Move(move.twin_id, "/nowhere", str(world.new))) is Uses.NEITHER
