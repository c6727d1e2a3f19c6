"""The file driver killed at every step of every call: what is left is whole, and the next start and call repair it.

A forked child makes the call and kills itself with SIGKILL at its first, second, … use of the file system, until it
comes to the end of the call.  After each death a new driver starts, as the service would, and repeats the call.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrator.drivers.directory import OBJECTS, TEMPORARY
from migrator.drivers.file import FileDriver
from migrator.errors import MigratorError
from tests.contract.mounts import mounted, xfs
from tests.contract.worlds import new_name, options, read, write

CONTENT = b"0123456789" * 9999
GROWN = 2 * len(CONTENT)
#: Uses of the file system that the interpreter announces to audit hooks.
STEPS = {"open", "os.link", "os.rename", "os.remove", "os.truncate", "os.mkdir", "fcntl.flock", "fcntl.ioctl"}


@dataclass
class Stage:
    """Two backends, a volume on the first, and a call that is going to be interrupted."""

    source_directory: Path
    destination_directory: Path
    volume: str = field(default_factory=new_name)
    name: str = field(default_factory=new_name)

    def driver(self) -> FileDriver:
        return self._make("hosta@one", self.source_directory)

    def other(self) -> FileDriver:
        return self._make("hosta@two", self.destination_directory)

    def _make(self, backend: str, directory: Path) -> FileDriver:
        driver = FileDriver(backend, options(file_pools={"p": str(directory)}))
        driver.start()
        return driver

    def set_up(self) -> None:
        driver = self.driver()
        driver.create("p", self.volume, len(CONTENT))
        write(driver.export("p", self.volume, writable=True), 0, CONTENT)

    def there(self) -> dict[str, Any]:
        return self.other().report()[0].location

    def content(self, driver: FileDriver, name: str) -> bytes | None:
        """Return what an object holds, None if it is not there."""
        return read(driver.export("p", name, writable=False)) if driver.exists("p", name) else None


def move(stage: Stage) -> None:
    stage.driver().move("p", stage.volume, stage.there(), stage.volume, lambda _done, _total: None)


def lay_stray(stage: Stage) -> None:
    (stage.source_directory / "stray.img").write_bytes(CONTENT)


@dataclass(frozen=True)
class Call:
    """A call, what must be prepared for it, and what objects hold after it and may hold in the middle of it."""

    make: Callable[[Stage], object]
    after: Callable[[Stage], dict[str, bytes]]
    #: Contents that the object that is being made may be found with after the crash.
    meanwhile: tuple[bytes | None, ...]
    prepare: Callable[[Stage], object] = lambda stage: None
    volume_stays: bool = True


def both(stage: Stage, content: bytes) -> dict[str, bytes]:
    return {stage.volume: CONTENT, stage.name: content}


CALLS: dict[str, Call] = {
    "create": Call(
        lambda s: s.driver().create("p", s.name, GROWN),
        lambda s: both(s, bytes(GROWN)),
        (None, b"", bytes(GROWN)),
    ),
    "delete": Call(
        lambda s: s.driver().delete("p", s.name),
        lambda s: {s.volume: CONTENT},
        (None, bytes(9)),
        lambda s: s.driver().create("p", s.name, 9),
    ),
    "extend": Call(
        lambda s: s.driver().extend("p", s.name, GROWN),
        lambda s: both(s, CONTENT + bytes(GROWN - len(CONTENT))),
        (CONTENT, CONTENT + bytes(GROWN - len(CONTENT))),
        lambda s: s.driver().clone("p", s.volume, s.name, 0),
    ),
    "create_snapshot": Call(
        lambda s: s.driver().create_snapshot("p", s.volume, s.name),
        lambda s: both(s, CONTENT),
        (None, CONTENT),
    ),
    "clone": Call(
        lambda s: s.driver().clone("p", s.volume, s.name, GROWN),
        lambda s: both(s, CONTENT + bytes(GROWN - len(CONTENT))),
        (None, CONTENT + bytes(GROWN - len(CONTENT))),
    ),
    "adopt": Call(
        lambda s: s.driver().adopt("p", {"source-name": "stray.img"}, s.name),
        lambda s: both(s, CONTENT),
        (None, CONTENT),
        lay_stray,
    ),
}
#: The object is looked for at the destination.
MOVES: dict[str, Call] = {
    "can_assist": Call(lambda s: s.driver().can_assist("p", s.volume, s.there()), lambda s: {}, (None,)),
    "move": Call(move, lambda s: {s.volume: CONTENT}, (None, CONTENT)),
    "unmove": Call(
        lambda s: s.driver().unmove("p", s.volume, s.there(), s.volume),
        lambda s: {},
        (None, CONTENT),
        move,
    ),
}


def killed_at(step: int, call: Callable[[], object], steps: Collection[str] = STEPS) -> bool:
    """Make the call in a child that kills itself at its step number ``step``; tell whether it came to that."""
    pid = os.fork()
    if pid == 0:
        _die_at(step, steps)
        try:
            call()
        except MigratorError:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the call failed in the child, exit code {code}"
    return code != 0


def _die_at(step: int, steps: Collection[str]) -> None:
    left = step

    def hook(event: str, _arguments: object) -> None:
        nonlocal left
        if event in steps:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def each_step(directory: Path, call: Call, stage_at: Callable[[Path], Stage]) -> list[Stage]:
    """Kill the call at each of its steps, every time on a new stage; return the stages as the crash left them."""
    stages: list[Stage] = []
    while True:
        stage = stage_at(directory / str(len(stages)))
        stage.set_up()
        call.prepare(stage)
        if not killed_at(len(stages), lambda stage=stage: call.make(stage)):  # type: ignore[misc]
            assert len(stages) >= 3, "the call does nothing that can be interrupted"
            return stages
        stages.append(stage)


def on_one_disk(directory: Path) -> Stage:
    return Stage(directory / "a", directory / "b")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_was_killed_at_any_step_leaves_whole_objects_and_can_be_repeated(tmp_path: Path, name: str) -> None:
    call = CALLS[name]
    for stage in each_step(tmp_path, call, on_one_disk):
        driver = stage.driver()
        assert stage.content(driver, stage.volume) == CONTENT
        assert stage.content(driver, stage.name) in call.meanwhile
        call.make(stage)
        expected = call.after(stage)
        assert {each: stage.content(driver, each) for each in driver.objects("p")} == expected
        assert set(os.listdir(stage.source_directory)) == {*expected, OBJECTS}


@pytest.mark.parametrize("name", ["create", "delete", "create_snapshot", "clone"])
def test_a_call_that_was_killed_at_any_step_can_be_given_up(tmp_path: Path, name: str) -> None:
    """What a rollback does: delete, without ever repeating the call."""
    for stage in each_step(tmp_path, CALLS[name], on_one_disk):
        driver = stage.driver()
        driver.delete("p", stage.name)
        assert driver.objects("p") == [stage.volume]
        assert set(os.listdir(stage.source_directory)) == {stage.volume, OBJECTS}
        assert stage.content(driver, stage.volume) == CONTENT


def check_move(call: Call, stage: Stage) -> None:
    driver, other = stage.driver(), stage.other()
    assert stage.content(driver, stage.volume) == CONTENT
    assert stage.content(other, stage.volume) in call.meanwhile
    call.make(stage)
    assert {each: stage.content(other, each) for each in other.objects("p")} == call.after(stage)
    driver.unmove("p", stage.volume, stage.there(), stage.volume)
    assert other.objects("p") == []
    for directory in (stage.source_directory, stage.destination_directory):
        assert [each for each in os.listdir(directory) if each.startswith(TEMPORARY)] == []
    assert stage.content(driver, stage.volume) == CONTENT


@pytest.mark.parametrize("name", MOVES)
def test_a_move_by_hard_link_that_was_killed_at_any_step_can_go_on_or_back(tmp_path: Path, name: str) -> None:
    for stage in each_step(tmp_path, MOVES[name], on_one_disk):
        check_move(MOVES[name], stage)


@pytest.mark.parametrize("name", MOVES)
def test_a_move_by_shared_blocks_that_was_killed_at_any_step_can_go_on_or_back(tmp_path: Path, name: str) -> None:
    with ExitStack() as mounts:
        disk = mounts.enter_context(xfs(tmp_path / "xfs"))
        second = mounts.enter_context(mounted(tmp_path / "second", "--bind", str(disk)))
        numbers = iter(range(10**6))

        def on_two_mounts(_directory: Path) -> Stage:
            number = next(numbers)
            return Stage(disk / f"{number}a", second / f"{number}b")

        for stage in each_step(tmp_path, MOVES[name], on_two_mounts):
            check_move(MOVES[name], stage)
