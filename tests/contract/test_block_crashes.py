"""The block driver killed at every step of every call, and in the middle of a wipe.

After each death a new driver starts, as the service would: volumes are whole, the call can be repeated, and no byte of
a volume that was deleted is ever on a device that is free.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from migrator.drivers.block import BlockDriver
from migrator.drivers.block_cleaner import PIECE, ChangedMeanwhileError, Cleaner, Wipe
from migrator.drivers.block_records import Record, Records, State
from migrator.drivers.devices import discover
from tests.contract.blocks import MIB, Bench, head, is_all_zero, poke, volume
from tests.contract.loops import Loop
from tests.contract.test_file_crashes import killed_at
from tests.contract.worlds import new_name, read, settled, write
from tests.support.waiting import until

#: What changes anything: records are renamed into place, devices are zeroed by ioctls.
STEPS = frozenset({"os.rename", "os.remove", "fcntl.flock", "fcntl.ioctl"})
CONTENT = b"0123456789" * 3000
SIZE = 256 * 1024


@dataclass
class Stage:
    """A volume, and devices on which a call is going to be interrupted."""

    bench: Bench
    volume: str = ""
    name: str = field(default_factory=new_name)
    loops: list[Loop] = field(default_factory=list)

    def driver(self) -> BlockDriver:
        return self.bench.driver()

    def set_up(self) -> None:
        self.loops = [self.bench.loop(f"disk{number}", SIZE) for number in range(2)]
        self.volume = volume(self.driver(), len(CONTENT), CONTENT)

    def prepare_other(self) -> None:
        driver = self.driver()
        driver.create("p", self.name, len(CONTENT))
        write(driver.export("p", self.name, writable=True), 0, b"SECRET" * 5000)

    def plug_in(self, content: bytes) -> Loop:
        loop = self.bench.loop("new", SIZE, content=content)
        self.loops.append(loop)
        return loop


def delete_and_wipe(stage: Stage) -> None:
    driver = stage.driver()
    driver.delete("p", stage.name)
    settled(driver)


@dataclass(frozen=True)
class Call:
    """A call, what must be prepared for it, and what its object holds afterwards, None if it is to be gone."""

    make: Callable[[Stage], object]
    after: bytes | None
    prepare: Callable[[Stage], object] = lambda stage: None


CALLS: dict[str, Call] = {
    "create": Call(lambda s: s.driver().create("p", s.name, SIZE), bytes(SIZE)),
    "delete": Call(delete_and_wipe, None, Stage.prepare_other),
    "extend": Call(
        lambda s: s.driver().extend("p", s.name, SIZE),
        (b"SECRET" * 5000).ljust(SIZE, b"\0"),
        Stage.prepare_other,
    ),
    "adopt": Call(
        lambda s: s.driver().adopt("p", {"source-name": f"{s.bench.directory}/dev/p/new"}, s.name),
        CONTENT.ljust(SIZE, b"\0"),
        lambda s: s.plug_in(CONTENT),
    ),
    "start": Call(lambda s: s.driver(), None, lambda s: s.plug_in(b"")),
}


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[[], Bench]]:
    made: list[Bench] = []

    def make() -> Bench:
        made.append(Bench(tmp_path / str(len(made))))
        return made[-1]

    yield make
    for bench in made:
        bench.loops.end()


def each_step(benches: Callable[[], Bench], call: Call) -> Iterator[Stage]:
    """Kill the call at each of its steps, every time on a new stage; yield the stages as the crash left them."""
    step = 0
    while True:
        stage = Stage(benches())
        stage.set_up()
        call.prepare(stage)
        if not killed_at(step, lambda stage=stage: call.make(stage), STEPS):  # type: ignore[misc]
            assert step >= 3, "the call does nothing that can be interrupted"
            return
        yield stage
        step += 1


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_was_killed_at_any_step_can_be_repeated(benches: Callable[[], Bench], name: str) -> None:
    call = CALLS[name]
    for stage in each_step(benches, call):
        driver = stage.driver()
        assert read(driver.export("p", stage.volume, writable=False)) == CONTENT
        call.make(stage)
        expected = {stage.volume, stage.name} if call.after is not None else {stage.volume}
        assert set(driver.objects("p")) == expected
        if call.after is not None:
            assert read(driver.export("p", stage.name, writable=False)) == call.after
        check_free_devices(stage)


@pytest.mark.parametrize("name", ["create", "delete", "extend"])
def test_a_call_that_was_killed_at_any_step_can_be_given_up(benches: Callable[[], Bench], name: str) -> None:
    """What a rollback does: delete, without ever repeating the call."""
    for stage in each_step(benches, CALLS[name]):
        driver = stage.driver()
        driver.delete("p", stage.name)
        settled(driver)
        assert driver.objects("p") == [stage.volume]
        check_free_devices(stage)


def check_free_devices(stage: Stage) -> None:
    """LP2045431: a device may be free only without a byte of what it held."""
    records = stage.bench.records()
    assert len(records) == len(stage.loops)
    for loop in stage.loops:
        if records[loop.node.name].state == State.FREE:
            assert is_all_zero(loop)
    free = [record for record in records.values() if record.state == State.FREE]
    used = [record for record in records.values() if record.state == State.USED]
    assert len(free) + len(used) == len(stage.loops)


class CarefulCleaner(Cleaner):
    """Records how far it came after each piece."""

    checkpoint_seconds = 0.0


@pytest.mark.parametrize("wipe", [Wipe.ZERO, Wipe.DISCARD])
def test_a_wipe_that_was_killed_goes_on_where_it_was_and_frees_nothing_before(
    benches: Callable[[], Bench], wipe: Wipe
) -> None:
    bench = benches()
    loop = bench.loop(size=4 * PIECE + 512)
    driver = bench.driver()
    name = volume(driver, 4 * PIECE, b"SECRET")
    for piece in range(4):
        poke(loop, piece * PIECE + MIB, b"SECRET")
    records = Records(str(bench.state))
    (used,) = records.all().values()
    assert records.change(used, replace(used, state=State.WIPING, name="", size=0))

    def wipe_all(limit: int) -> None:
        """Wipe as after a restart; die before the record says more than ``until`` bytes."""
        (record,) = records.all().values()
        (device,), _ = discover([str(loop.node)])
        cleaner = CarefulCleaner(driver.backend, Mortal(records.directory, limit), dict, wipe, 1)
        cleaner.work(record, device)

    assert died(lambda: wipe_all(2 * PIECE))
    (record,) = records.all().values()
    assert (record.state, record.done) == (State.WIPING, 2 * PIECE)
    assert name not in driver.objects("p")
    poke(loop, MIB, b"not wiped twice")
    poke(loop, 3 * PIECE, b"SECRET")
    wipe_all(10**12)
    (record,) = records.all().values()
    assert (record.state, record.zero) == (State.FREE, True)
    assert head(loop, MIB + 15)[MIB:] == b"not wiped twice"
    poke(loop, MIB, bytes(15))
    assert is_all_zero(loop)


class Mortal(Records):
    """Records of a process that dies when more than ``limit`` bytes were wiped."""

    def __init__(self, directory: str, limit: int) -> None:
        super().__init__(directory)
        self._limit = limit

    def change(self, old: Record | None, new: Record) -> Record | None:
        if new.done > self._limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().change(old, new)


def died(call: Callable[[], object]) -> bool:
    pid = os.fork()
    if pid == 0:
        call()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


def test_a_device_that_another_process_wipes_is_left_to_it(benches: Callable[[], Bench]) -> None:
    """One that was paused in a wipe must not find the device a volume again when it goes on."""
    bench = benches()
    loop = bench.loop()
    volume(bench.driver(), MIB, b"SECRET")
    records = Records(str(bench.state))
    (used,) = records.all().values()
    assert records.change(used, replace(used, state=State.WIPING, name="", size=0))
    (device,), _ = discover([str(loop.node)])
    with device.open(write=True, alone=True):
        driver = bench.driver(settle=False)
        until(lambda: not threads_of(driver), "it has tried")
        assert records.all()[used.identity].state == State.WIPING
        assert driver.report()[0].free_gib == 0
        assert head(loop, 6) == b"SECRET"
    settled(driver)
    assert is_all_zero(loop)


def test_a_cleaner_that_comes_late_does_not_wipe_the_next_volume(benches: Callable[[], Bench]) -> None:
    """It read the record before another process wiped the device and gave it to a volume."""
    bench = benches()
    loop = bench.loop()
    volume(bench.driver(), MIB, b"SECRET")
    records = Records(str(bench.state))
    (used,) = records.all().values()
    stale = records.change(used, replace(used, state=State.WIPING, name="", size=0))
    assert stale is not None
    driver = bench.driver()
    name = volume(driver, MIB, b"the next one")
    (device,), _ = discover([str(loop.node)])
    late = Cleaner(driver.backend, records, dict, Wipe.ZERO, 1)
    with pytest.raises(ChangedMeanwhileError):
        late.work(stale, device)
    assert read(driver.export("p", name, writable=False), 0, 12) == b"the next one"


def threads_of(driver: BlockDriver) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == f"cleaner of {driver.backend}"]
