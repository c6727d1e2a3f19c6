"""The NBD endpoint against a polite server: ranges, block sizes, extents, flushes, connections, poorer servers."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from migrator.volume.endpoints import Endpoint
from migrator.volume.extents import Extent
from migrator.volume.nbd import protocol as p
from migrator.volume.nbd.endpoint import NbdEndpoint
from tests.support.nbd_script import (
    FLAGS,
    GRANULE,
    Manners,
    Request,
    ScriptedServer,
    data_chunk,
    error_chunk,
    hole_chunk,
    simple,
    status_chunk,
)
from tests.support.waiting import until

SIZE = 64 * GRANULE


def read(endpoint: Endpoint, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        count = endpoint.pread_into(offset, view)
        assert count > 0
        offset, view = offset + count, view[count:]
    return bytes(buffer)


def write(endpoint: Endpoint, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = endpoint.pwrite(offset, view)
        assert count > 0
        offset, view = offset + count, view[count:]


@pytest.fixture
def opened() -> Iterator[Callable[..., tuple[ScriptedServer, NbdEndpoint]]]:
    """Open endpoints of servers with given manners; all are closed, and no thread of a server is left."""
    things: list[ScriptedServer | NbdEndpoint] = []

    def open_(manners: Manners, **options: object) -> tuple[ScriptedServer, NbdEndpoint]:
        server = ScriptedServer(manners)
        things.append(server)
        endpoint = NbdEndpoint(server.uri, **{"writable": True, "timeout": 5.0, **options})  # type: ignore[arg-type]
        things.append(endpoint)
        return server, endpoint

    yield open_
    for thing in reversed(things):
        thing.close()


Opened = Callable[..., tuple[ScriptedServer, NbdEndpoint]]
POOR = {
    "no structured replies": {"unknown": frozenset({p.OPT_STRUCTURED_REPLY})},
    "no extents": {"unknown": frozenset({p.OPT_SET_META_CONTEXT})},
    "no block sizes": {"sizes": None},
    "no GO": {"unknown": frozenset({p.OPT_GO})},
    "no GO, and padding": {
        "unknown": frozenset({p.OPT_GO}),
        "greeting": Manners.greeting[:-1] + bytes([p.FLAG_FIXED_NEWSTYLE]),
    },
    "nothing": {"unknown": frozenset({p.OPT_GO, p.OPT_STRUCTURED_REPLY, p.OPT_SET_META_CONTEXT})},
    "no zeroing": {"flags": FLAGS & ~p.SEND_WRITE_ZEROES},
    "no trimming": {"flags": FLAGS & ~p.SEND_TRIM},
    "no flush": {"flags": FLAGS & ~p.SEND_FLUSH},
    "one connection": {"flags": FLAGS & ~p.CAN_MULTI_CONN},
    "everything": {},
}


@pytest.mark.parametrize("lack", POOR)
def test_a_poorer_server_is_used_for_what_it_can(opened: Opened, lack: str) -> None:
    server, endpoint = opened(Manners(**POOR[lack]))  # type: ignore[arg-type]
    data = random.Random(1).randbytes(3 * GRANULE)
    write(endpoint, 5 * GRANULE, data)
    endpoint.zero(6 * GRANULE, GRANULE)
    endpoint.trim(0, GRANULE)
    endpoint.flush()
    wanted = data[:GRANULE] + bytes(GRANULE) + data[2 * GRANULE :]
    assert read(endpoint, 5 * GRANULE, 3 * GRANULE) == wanted == bytes(server.content[5 * GRANULE : 8 * GRANULE])
    knows_holes = lack not in ("no structured replies", "no extents", "nothing")
    assert len(list(endpoint.extents(0, SIZE))) == (5 if knows_holes else 1)
    assert endpoint.capabilities.zeroes_cheaply == (lack != "no zeroing")
    assert server.count(p.CMD_TRIM) == (lack != "no trimming")
    assert server.count(p.CMD_FLUSH) == (lack != "no flush")
    if lack == "no flush":
        assert all(r.flags & p.CMD_FLAG_FUA for r in server.requests if r.command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES))


@pytest.mark.parametrize(("flags", "code"), [(p.READ_ONLY, errno.EROFS), (0, errno.EOPNOTSUPP)])
def test_a_server_that_cannot_keep_what_is_written_is_for_reading(opened: Opened, flags: int, code: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        opened(Manners(flags=1 | flags))
    assert caught.value.errno == code
    _, endpoint = opened(Manners(flags=1 | flags), writable=False)
    assert read(endpoint, 0, 10) == bytes(10)
    with pytest.raises(OSError, match="for reading"):
        endpoint.pwrite(0, memoryview(b"x"))


@pytest.mark.parametrize(("minimum", "maximum"), [(1, 4096), (512, 4096), (4096, 8192), (4096, 0xFFFFFFFF), (64, 64)])
def test_any_range_is_served_in_the_blocks_that_the_server_wants(opened: Opened, minimum: int, maximum: int) -> None:
    server, endpoint = opened(Manners(sizes=(minimum, 4096, maximum), flags=FLAGS & ~p.SEND_FLUSH))
    assert endpoint.capabilities.alignment == minimum
    assert endpoint.capabilities.block <= maximum
    chance, model = random.Random(minimum), bytearray(SIZE)
    for _ in range(40):
        start = chance.randrange(SIZE)
        length = min(chance.choice([1, 100, 4096, 20_000]), SIZE - start)
        data = bytes(length) if chance.random() < 0.4 else chance.randbytes(length)
        model[start : start + length] = data
        write(endpoint, start, data) if any(data) else endpoint.zero(start, length)
        assert read(endpoint, max(0, start - 7), 50) == model[max(0, start - 7) :][:50] if start < SIZE - 50 else True
    assert server.content == model
    assert next(endpoint.extents(17, 5)).length == 5
    for request in server.requests:
        assert request.offset % minimum == request.length % minimum == 0
        assert request.length <= maximum or request.command == p.CMD_BLOCK_STATUS
        assert (request.command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES)) == bool(request.flags & p.CMD_FLAG_FUA)


def test_threads_that_share_a_block_do_not_undo_each_other(opened: Opened) -> None:
    server, endpoint = opened(Manners(sizes=(4096, 4096, 4096)))

    def fill(offset: int) -> None:
        for place in range(offset, GRANULE, 4):
            write(endpoint, place, bytes([offset + 1]))

    threads = [threading.Thread(target=fill, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.content[:GRANULE] == b"\1\2\3\4" * (GRANULE // 4)


def test_the_end_reads_as_the_end_and_cannot_be_passed(opened: Opened) -> None:
    _, endpoint = opened(Manners(size=1000))
    assert endpoint.pread_into(1000, memoryview(bytearray(5))) == 0
    assert endpoint.pread_into(990, memoryview(bytearray(50))) == 10
    assert endpoint.pwrite(990, memoryview(bytes(50))) == 10
    for call in (lambda: endpoint.pwrite(1000, memoryview(b"x")), lambda: endpoint.zero(999, 2)):
        with pytest.raises(OSError, match="ends at 1000") as caught:
            call()
        assert caught.value.errno == errno.ENOSPC


def test_extents_tile_what_was_asked_for(opened: Opened) -> None:
    """Short answers, ones that reach too far, and holes that do not promise zeros."""

    def answer(request: Request) -> bytes | None:
        if request.command != p.CMD_BLOCK_STATUS:
            return None
        if request.offset < 10_000:
            return status_chunk(request.cookie, [(1000, 0), (999, 3), (1001, 2), (1000, 1)])  # 1: a hole, not zeros
        return status_chunk(request.cookie, [(1 << 31, 3)])

    _, endpoint = opened(Manners(answer=answer))
    extents = list(endpoint.extents(500, 20_000))
    assert extents[:3] == [Extent(500, 1000, True), Extent(1500, 2000, False), Extent(3500, 1000, True)]
    assert [one.end for one in extents[:-1]] == [one.start for one in extents[1:]]
    assert extents[-1].end == 20_500
    assert not extents[-1].is_data
    assert list(endpoint.extents(5, 0)) == []


def test_a_read_may_come_in_pieces_of_any_order(opened: Opened) -> None:
    def answer(request: Request) -> bytes | None:
        if request.command != p.CMD_READ:
            return None
        cookie, offset = request.cookie, request.offset
        return (
            data_chunk(cookie, offset + 20, b"c" * (request.length - 20), done=False)
            + hole_chunk(cookie, offset + 10, 10, done=False)
            + data_chunk(cookie, offset, b"a" * 10, done=False)
            + p.CHUNK_START.pack(p.STRUCTURED_REPLY_MAGIC, p.CHUNK_DONE, p.CHUNK_NONE, cookie)
            + bytes(4)
        )

    _, endpoint = opened(Manners(answer=answer))
    buffer = bytearray(b"x" * 30)
    assert endpoint.pread_into(100, memoryview(buffer)) == 30
    assert buffer == b"a" * 10 + bytes(10) + b"c" * 10


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(
    ("sent", "got"), [(5, errno.EIO), (28, errno.ENOSPC), (108, errno.ESHUTDOWN), (200, errno.EIO)]
)
def test_an_error_reply_is_an_error_and_the_connection_goes_on(
    opened: Opened, structured: bool, sent: int, got: int
) -> None:
    def answer(request: Request) -> bytes | None:
        if request.offset != GRANULE:
            return None
        return error_chunk(request.cookie, sent, b"be\x1bcause") if structured else simple(request.cookie, sent)

    server, endpoint = opened(Manners(answer=answer))
    buffer = memoryview(bytearray(10))
    calls: list[Callable[[], object]] = [
        lambda: endpoint.pread_into(GRANULE, buffer),
        lambda: endpoint.pwrite(GRANULE, buffer),
        lambda: endpoint.zero(GRANULE, 10),
        lambda: list(endpoint.extents(GRANULE, 10)),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r"failed to .*be\?cause" if structured else "failed to") as caught:
            call()
        assert caught.value.errno == got
    assert read(endpoint, 0, 10) == bytes(10)
    assert server.most_connections == 1


def test_zeroing_that_is_announced_but_not_supported_is_written(opened: Opened) -> None:
    server, endpoint = opened(
        Manners(answer=lambda r: simple(r.cookie, 95) if r.command == p.CMD_WRITE_ZEROES else None)
    )
    server.content[:] = b"x" * SIZE
    endpoint.zero(100, SIZE - 200)
    assert server.content == b"x" * 100 + bytes(SIZE - 200) + b"x" * 100
    assert server.count(p.CMD_WRITE_ZEROES) == 1


def test_space_is_kept_where_it_must_not_be_freed(opened: Opened) -> None:
    for may_punch in (True, False):
        server, endpoint = opened(Manners(), may_punch=may_punch)
        endpoint.zero(0, GRANULE)
        assert server.requests[-1].flags == (0 if may_punch else p.CMD_FLAG_NO_HOLE)


# --- several connections ---------------------------------------------------------------------------------------------


def in_parallel(count: int, call: Callable[[int], object]) -> list[BaseException]:
    """Run ``call`` in so many threads; return what they raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            call(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return errors


def meeting(count: int, seconds: float = 10) -> Callable[[Request], bytes | None]:
    """Answer writes when so many are there at the same time, which takes so many connections, or after a while."""
    barrier = threading.Barrier(count)

    def answer(request: Request) -> bytes | None:
        if request.command == p.CMD_WRITE:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(seconds)
        return None

    return answer


def test_each_thread_has_a_connection_and_a_flush_goes_to_all_that_wrote(opened: Opened) -> None:
    server, endpoint = opened(Manners(answer=meeting(4)), connections=4)
    assert not in_parallel(4, lambda number: write(endpoint, number * GRANULE, b"x" * GRANULE))
    assert server.most_connections == 4
    endpoint.flush()
    assert server.count(p.CMD_FLUSH) == 4
    endpoint.flush()
    assert server.count(p.CMD_FLUSH) == 5


@pytest.mark.parametrize("flags", [FLAGS, FLAGS & ~p.CAN_MULTI_CONN])
def test_no_more_connections_than_allowed(opened: Opened, flags: int) -> None:
    server, endpoint = opened(Manners(flags=flags), connections=3)
    model = random.Random(3).randbytes(SIZE)
    assert not in_parallel(
        8, lambda n: write(endpoint, n * 8 * GRANULE, model[n * 8 * GRANULE : (n + 1) * 8 * GRANULE])
    )
    assert bytes(server.content) == model
    assert server.most_connections <= (3 if flags == FLAGS else 1)


def test_a_server_that_lets_further_connections_wait_is_used_with_those_it_has(opened: Opened) -> None:
    server, endpoint = opened(Manners(connections=2), timeout=0.5)
    began = time.monotonic()

    def write_often(number: int) -> None:
        for _ in range(300):
            write(endpoint, number * GRANULE, bytes([number + 1]) * 512)

    assert not in_parallel(6, write_often)
    assert time.monotonic() - began < 5
    assert [server.content[n * GRANULE] for n in range(6)] == [1, 2, 3, 4, 5, 6]
    assert len(server.waiting) <= 4  # nobody tries a second time


def test_after_a_lost_connection_nothing_works_any_more(opened: Opened) -> None:
    """A server that was started again has lost what was not flushed: neither a flush nor a write may succeed there."""
    server, endpoint = opened(Manners(answer=meeting(3)), connections=4)
    assert not in_parallel(3, lambda number: write(endpoint, number * GRANULE, b"x"))
    server.hang_up()
    for call in (endpoint.flush, endpoint.flush, lambda: read(endpoint, 0, 1), lambda: write(endpoint, 0, b"x")):
        with pytest.raises(OSError, match=r"NBD server") as caught:
            call()
        assert caught.value.errno == errno.ECONNRESET
    assert server.count(p.CMD_FLUSH) == 0


def test_one_broken_connection_is_the_end_of_all(opened: Opened) -> None:
    barrier = threading.Barrier(2)

    def answer(request: Request) -> bytes | None:
        if request.command == p.CMD_READ:
            barrier.wait(10)
        if request.offset == GRANULE:
            raise EOFError
        return None

    server, endpoint = opened(Manners(answer=answer))
    errors = in_parallel(2, lambda number: read(endpoint, number * GRANULE, 10))
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.ECONNRESET]
    with pytest.raises(OSError, match="broke before"):
        write(endpoint, 0, b"x")
    with pytest.raises(OSError, match="broke before"):
        endpoint.flush()
    assert server.most_connections == 2
    assert server.count(p.CMD_WRITE) == server.count(p.CMD_FLUSH) == 0


def test_after_a_failed_flush_none_succeeds(opened: Opened) -> None:
    """Whoever keeps the data may forget what it could not write, and call the next flush a success."""
    errors = [5]

    def answer(request: Request) -> bytes | None:
        return simple(request.cookie, errors.pop()) if request.command == p.CMD_FLUSH and errors else None

    server, endpoint = opened(Manners(answer=answer))
    write(endpoint, 0, b"x")
    with pytest.raises(OSError, match="failed to flush"):
        endpoint.flush()
    with pytest.raises(OSError, match="failed before"):
        endpoint.flush()
    assert server.count(p.CMD_FLUSH) == 1


def test_a_further_connection_to_something_else_is_an_error(opened: Opened) -> None:
    server, endpoint = opened(Manners(answer=meeting(2, 0.3)), connections=2)
    server.manners.size += GRANULE
    errors = in_parallel(2, lambda number: write(endpoint, number * GRANULE, b"x"))
    assert errno.EPROTO in [error.errno for error in errors if isinstance(error, OSError)]


def test_closing_ends_the_calls_that_are_under_way(opened: Opened) -> None:
    server, endpoint = opened(Manners(answer=lambda request: b""), timeout=30)
    errors: list[BaseException] = []
    thread = threading.Thread(target=lambda: errors.extend(in_parallel(1, lambda n: read(endpoint, 0, 10))))
    thread.start()
    until(lambda: server.count(p.CMD_READ), "the request is there")
    endpoint.close()
    endpoint.close()
    thread.join(5)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [p.Disconnected]
    with pytest.raises(OSError, match="closed"):
        endpoint.flush()


def test_a_flush_is_not_kept_waiting_by_writers(opened: Opened) -> None:
    server, endpoint = opened(Manners(flags=FLAGS & ~p.CAN_MULTI_CONN))
    stop = threading.Event()

    def keep_writing(number: int) -> None:
        for place in itertools.cycle(range(8)):
            if stop.is_set():
                return
            write(endpoint, (8 * number + place) * GRANULE, b"x")

    writers = threading.Thread(target=lambda: in_parallel(3, keep_writing))
    writers.start()
    try:
        until(lambda: server.count(p.CMD_WRITE) > 10, "writes are under way")
        for _ in range(20):
            before = len(server.requests)
            endpoint.flush()
            waited = [request.command for request in server.requests[before:]].index(p.CMD_FLUSH)
            assert waited <= 3  # what was under way, and who came just before
    finally:
        stop.set()
        writers.join(20)
    assert server.count(p.CMD_FLUSH) == 20


def test_one_export_under_two_names_is_one_place(opened: Opened) -> None:
    server, endpoint = opened(Manners())
    port = server.uri.rpartition(":")[2].strip("/")
    for uri, same in ((f"nbd://localhost:{port}", True), (f"nbd://127.0.0.1:{port}/other", False)):
        other = NbdEndpoint(uri, writable=False, timeout=5)
        assert (other.place == endpoint.place) == same
        other.close()
