"""The memory driver's own: storage that behaves like bytes, power cuts, and faults that strike as ordered."""

from __future__ import annotations

import inspect
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.drivers import faults, memory
from migrator.drivers.base import VolumeDriver
from migrator.drivers.faults import Died, Fault
from migrator.drivers.memory import MemoryDriver, MemoryObject, open_object
from migrator.drivers.sparse import BLOCK, Sparse
from migrator.errors import ConfigError, DriverError, NoSpace
from tests.contract.worlds import new_name, options

PATIENCE_SECONDS = 10


@pytest.fixture
def driver() -> Iterator[MemoryDriver]:
    memory.reset()
    driver = MemoryDriver("hosta@mem", options(memory_pools=["pool1", "pool2"]))
    driver.start()
    yield driver
    memory.reset()


@pytest.fixture
def name(driver: MemoryDriver) -> str:
    name = new_name()
    driver.create("pool1", name, 3 * BLOCK)
    return name


@pytest.fixture
def opened(driver: MemoryDriver, name: str) -> MemoryObject:
    return open_object(driver.export("pool1", name, writable=True).path)


def content(opened: MemoryObject) -> bytes:
    buffer = bytearray(opened.size)
    assert opened.pread_into(0, buffer) == opened.size
    return bytes(buffer)


# --- storage against a plain bytearray -------------------------------------------------------------------------------

SIZE = 3 * BLOCK + 17
offsets = st.one_of(
    st.integers(0, SIZE + 9), st.sampled_from([0, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK, SIZE - 1, SIZE])
)
lengths = st.one_of(st.integers(0, 300), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, SIZE]))
writes = st.tuples(st.just("write"), offsets, lengths)
zeros = st.tuples(st.just("zero"), offsets, lengths)
flushes = st.tuples(st.sampled_from(["flush", "power_cut"]), st.just(0), st.just(0))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(writes, zeros, flushes), max_size=12))
def test_sparse_storage_behaves_like_bytes_with_a_volatile_cache(steps: list[tuple[str, int, int]]) -> None:
    sparse, model = Sparse(SIZE), bytearray(SIZE)
    durable = bytes(model)
    for number, (kind, offset, length) in enumerate(steps):
        kept = max(0, min(length, SIZE - offset))
        if kind == "write":
            data = random.Random(number).randbytes(length)
            assert sparse.write(offset, data) == kept
            model[offset : offset + kept] = data[:kept]
        elif kind == "zero":
            sparse.zero(offset, length)
            model[offset : offset + kept] = bytes(kept)
        elif kind == "flush":
            sparse.flush()
            durable = bytes(model)
        else:
            sparse.power_cut()
            model[:] = durable
        _compare(sparse, model)


def _compare(sparse: Sparse, model: bytearray) -> None:
    """Compare the whole, an odd piece, and what the extents say."""
    for start, length in [(0, SIZE), (BLOCK - 3, BLOCK + 7)]:
        buffer = bytearray(length)
        assert sparse.read(start, buffer) == length
        assert buffer == model[start : start + length]
        at, before = start, None
        for begin, count, is_data in sparse.extents(start, length):
            assert begin == at
            assert count > 0
            assert is_data is not before, "neighbours of one kind must be merged"
            assert is_data or not any(model[begin : begin + count])
            at, before = begin + count, is_data
        assert at == start + length


def test_eight_terabytes_cost_what_was_written() -> None:
    size = 8 * 1024**4
    sparse = Sparse(size)
    sparse.write(size - 1, b"x")
    assert list(sparse.extents(0, size)) == [(0, size - BLOCK, False), (size - BLOCK, BLOCK, True)]
    sparse.zero(0, size)
    assert list(sparse.extents(0, size)) == [(0, size, False)]
    assert sparse.allocated == 0


def test_a_copy_is_independent_of_its_source() -> None:
    sparse = Sparse(BLOCK)
    sparse.write(0, b"before")
    copy = sparse.copy(2 * BLOCK)
    sparse.write(0, b"after!")
    sparse.power_cut()
    buffer = bytearray(2 * BLOCK)
    assert copy.read(0, buffer) == 2 * BLOCK
    assert buffer.rstrip(b"\0") == b"before"


# --- objects ---------------------------------------------------------------------------------------------------------


def test_a_power_cut_loses_what_was_not_flushed_and_ends_exports(
    driver: MemoryDriver, name: str, opened: MemoryObject
) -> None:
    opened.pwrite(0, b"flushed")
    opened.flush()
    opened.pwrite(0, b"lost!!!")
    driver.power_cut()
    with pytest.raises(PermissionError):
        opened.pwrite(0, b"late")
    again = open_object(driver.export("pool1", name, writable=False).path)
    assert content(again).rstrip(b"\0") == b"flushed"


def test_a_power_cut_by_chance_keeps_whole_blocks_of_either_time(
    driver: MemoryDriver, name: str, opened: MemoryObject
) -> None:
    outcomes = set()
    for seed in range(20):
        opened = open_object(driver.export("pool1", name, writable=True).path)
        opened.zero(0, 3 * BLOCK)
        opened.flush()
        opened.pwrite(0, b"x" * 3 * BLOCK)
        driver.power_cut(random.Random(seed))
        left = content(open_object(driver.export("pool1", name, writable=False).path))
        outcomes.add(bytes(left[at] for at in range(0, 3 * BLOCK, BLOCK)))
        assert all(left[at : at + BLOCK] in (b"x" * BLOCK, bytes(BLOCK)) for at in range(0, 3 * BLOCK, BLOCK))
    assert len(outcomes) > 2


def test_an_object_ends_where_its_size_says(opened: MemoryObject) -> None:
    size = opened.size
    assert opened.pwrite(size - 2, b"abcd") == 2
    with pytest.raises(OSError, match="No space left"):
        opened.pwrite(size, b"a")
    buffer = bytearray(4)
    assert opened.pread_into(size - 2, buffer) == 2
    assert opened.pread_into(size, buffer) == 0


def test_a_read_only_export_refuses_writes(driver: MemoryDriver, name: str) -> None:
    opened = open_object(driver.export("pool1", name, writable=False).path)
    calls: list[Callable[[], object]] = [lambda: opened.pwrite(0, b"x"), lambda: opened.zero(0, 1)]
    for call in calls:
        with pytest.raises(PermissionError):
            call()


def test_what_is_not_exported_cannot_be_opened(driver: MemoryDriver, name: str) -> None:
    path = driver.export("pool1", name, writable=True).path
    driver.revoke("pool1", name)
    with pytest.raises(PermissionError):
        open_object(path)
    driver.delete("pool1", name)
    with pytest.raises(FileNotFoundError):
        open_object(path)


def test_deleting_an_object_ends_its_exports(driver: MemoryDriver, name: str, opened: MemoryObject) -> None:
    driver.delete("pool1", name)
    with pytest.raises(PermissionError):
        opened.pwrite(0, b"x")


def test_a_closed_object_refuses_everything(opened: MemoryObject) -> None:
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        opened.pread_into(0, bytearray(1))


def test_a_write_that_hung_while_the_export_was_revoked_changes_nothing(
    driver: MemoryDriver, name: str, opened: MemoryObject
) -> None:
    """What fencing is for: a copier that was paused between its check and its write."""
    hang = driver.faults.order("pwrite", Fault.hang())
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(opened.pwrite, 0, b"late")
        assert hang.struck.wait(PATIENCE_SECONDS)
        driver.revoke("pool1", name)
        hang.released.set()
        with pytest.raises(PermissionError):
            late.result(PATIENCE_SECONDS)
    again = open_object(driver.export("pool1", name, writable=True).path)
    assert not any(content(again))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"memory_pools": []}, "at least one"),
        ({"memory_pools": ["a", "a"]}, "twice"),
        ({"memory_pools": ["a#b"]}, "cannot be the name"),
    ],
)
def test_a_wrong_configuration_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"memory_pools: .*{said}"):
        MemoryDriver("hosta@wrong", options(**values))


def test_a_full_pool_takes_nothing_more_and_the_limit_says_so(driver: MemoryDriver) -> None:
    small = MemoryDriver("hosta@small", options(memory_pool_gib=1))
    small.start()
    name = new_name()
    small.create("pool1", name, 2 * 1024**3)
    connection = small.export("pool1", name, writable=True)
    assert connection.limit == 1024**3
    opened = open_object(connection.path)
    block = bytes(BLOCK)
    # The same block of zeros again and again: it takes no memory, but counts.
    small_content = opened._held.content
    small_content._blocks.update(dict.fromkeys(range(1024**3 // BLOCK), block))
    with pytest.raises(NoSpace):
        small.create("pool1", new_name(), 1)
    assert small.report()[0].free_gib == 0
    assert small.export("pool1", name, writable=True).limit == 1024**3


def test_assist_can_be_switched_off(driver: MemoryDriver, name: str) -> None:
    there = driver.report()[1].location
    assert driver.can_assist("pool1", name, there).yes
    driver.assists = False
    assert not driver.can_assist("pool1", name, there).yes


# --- faults ----------------------------------------------------------------------------------------------------------

CONTRACT = [name for name, _ in inspect.getmembers(VolumeDriver, inspect.isfunction) if not name.startswith("_")]


def call_of_contract(driver: MemoryDriver, call: str, name: str, there: dict[str, object]) -> object:
    arguments: dict[str, tuple[object, ...]] = {
        **dict.fromkeys(("start", "pools", "report"), ()),
        **dict.fromkeys(("delete", "exists", "allocated", "disown", "export", "revoke", "is_open"), ("pool1", name)),
        "can_assist": ("pool1", name, there),
        "unmove": ("pool1", name, there, name),
        **dict.fromkeys(("objects", "adoptable", "exports"), ("pool1",)),
        **dict.fromkeys(("initialize_connection", "terminate_connection"), ("pool1", name, {})),
        "create": ("pool1", new_name(), 1),
        "extend": ("pool1", name, 1),
        "create_snapshot": ("pool1", name, new_name("snapshot")),
        "delete_snapshot": ("pool1", name, new_name("snapshot")),
        "clone": ("pool1", name, new_name(), 1),
        "adopt": ("pool1", {"source-name": "stray"}, new_name()),
        "move": ("pool1", name, there, name, lambda _done, _total: None),
    }
    keywords = {"writable": True} if call in ("export", "initialize_connection") else {}
    return getattr(driver, call)(*arguments[call], **keywords)


@pytest.mark.parametrize("call", CONTRACT)
def test_every_call_of_the_contract_can_be_made_to_fail(driver: MemoryDriver, name: str, call: str) -> None:
    assert set(CONTRACT) < faults.CALLS
    driver.lay("pool1", "stray", b"x")
    there = driver.report()[1].location
    before = driver.faults.count(call)
    driver.faults.order(call, Fault.error(DriverError(backend="b", reason="ordered")))
    with pytest.raises(DriverError, match="ordered"):
        call_of_contract(driver, call, name, there)
    assert driver.faults.count(call) == before + 1
    call_of_contract(driver, call, name, there)


@pytest.mark.parametrize("call", ["pread", "pwrite", "zero", "extents", "flush"])
def test_every_call_of_an_object_can_be_made_to_fail(driver: MemoryDriver, opened: MemoryObject, call: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "pread": lambda: opened.pread_into(0, bytearray(1)),
        "pwrite": lambda: opened.pwrite(0, b"x"),
        "zero": lambda: opened.zero(0, 1),
        "extents": lambda: opened.extents(0, 1),
        "flush": opened.flush,
    }
    driver.faults.order(call, Fault.error(OSError(5, "ordered")), times=2)
    for _ in range(2):
        with pytest.raises(OSError, match="ordered"):
            calls[call]()
    calls[call]()


def test_a_fault_for_a_call_that_does_not_exist_is_refused(driver: MemoryDriver) -> None:
    with pytest.raises(ValueError, match="creat"):
        driver.faults.order("creat", Fault.hang())


def test_faults_strike_in_the_order_given_after_those_let_pass_and_no_longer(driver: MemoryDriver) -> None:
    driver.faults.order("create", Fault.error(NoSpace(where="p", reason="first")), times=2, after=1)
    driver.faults.order("create", Fault.error(DriverError(backend="b", reason="second")))
    outcomes = []
    for _ in range(5):
        try:
            driver.create("pool1", new_name(), 1)
            outcomes.append("done")
        except (NoSpace, DriverError) as error:
            outcomes.append(error.code)
    assert outcomes == ["done", "NoSpace", "NoSpace", "DriverError", "done"]


def test_a_late_fault_strikes_when_the_work_is_done(driver: MemoryDriver) -> None:
    name = new_name()
    driver.faults.order("create", Fault.error(DriverError(backend="b", reason="answer lost")), late=True)
    with pytest.raises(DriverError, match="answer lost"):
        driver.create("pool1", name, 1)
    assert driver.exists("pool1", name)


def test_a_fault_for_ever_lasts_until_it_is_released_and_outlives_a_restart(driver: MemoryDriver) -> None:
    driver.faults.order("delete", Fault.error(DriverError(backend="b", reason="ordered")), times=None)
    again = MemoryDriver("hosta@mem", options())
    for _ in range(5):
        with pytest.raises(DriverError):
            again.delete("pool1", new_name())
    again.faults.release()
    driver.delete("pool1", new_name())


def test_short_reads_and_writes_move_what_was_ordered(driver: MemoryDriver, opened: MemoryObject) -> None:
    driver.faults.order("pwrite", Fault.short(3))
    driver.faults.order("pread", Fault.short(2))
    assert opened.pwrite(0, b"abcdef") == 3
    buffer = bytearray(6)
    assert opened.pread_into(0, buffer) == 2
    assert buffer == b"ab\0\0\0\0"
    assert opened.pread_into(0, buffer) == 6
    assert buffer == b"abc\0\0\0"


@pytest.mark.parametrize("fault", [Fault.hang, lambda: Fault.delay(3600.0)], ids=["hang", "delay"])
def test_a_call_that_hangs_goes_on_when_released(driver: MemoryDriver, fault: Callable[[], Fault]) -> None:
    ordered = driver.faults.order("create", fault())
    name = new_name()
    thread = threading.Thread(target=driver.create, args=("pool1", name, 1))
    thread.start()
    assert ordered.struck.wait(PATIENCE_SECONDS)
    assert not driver.exists("pool1", name)
    driver.faults.release()
    thread.join(PATIENCE_SECONDS)
    assert driver.exists("pool1", name)


def test_a_short_delay_ends_by_itself(driver: MemoryDriver) -> None:
    driver.faults.order("create", Fault.delay(0.01))
    name = new_name()
    driver.create("pool1", name, 1)
    assert driver.exists("pool1", name)


def test_die_in_process_passes_every_handler_of_errors(driver: MemoryDriver) -> None:
    driver.faults.order("create", Fault.die(in_process=True))
    name = new_name()
    with pytest.raises(Died), suppress(Exception):
        driver.create("pool1", name, 1)
    assert not driver.exists("pool1", name)


def test_die_kills_the_process_on_the_spot(driver: MemoryDriver) -> None:
    pid = os.fork()
    if pid == 0:
        driver.faults.order("create", Fault.die())
        driver.create("pool1", new_name(), 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_reset_forgets_everything_and_lets_go_what_hangs(driver: MemoryDriver, name: str, opened: MemoryObject) -> None:
    hang = driver.faults.order("pwrite", Fault.hang())
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(opened.pwrite, 0, b"late")
        assert hang.struck.wait(PATIENCE_SECONDS)
        memory.reset()
        assert isinstance(late.exception(PATIENCE_SECONDS), PermissionError)
    with pytest.raises(PermissionError):
        opened.pwrite(0, b"late")
    fresh = MemoryDriver("hosta@mem", options())
    fresh.start()
    assert not fresh.exists("pool1", name)
