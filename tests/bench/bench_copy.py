"""``make bench-copy``: migrator-copy beside the other tools that copy volumes, in one run.

For every case, the tools take turns, round after round; after every run the bytes are compared.  Every run ends with
an fsync of the destination, which is part of its time; a file on a disk is not in the page cache when a run begins.
The time of a run is that of the whole process, from its start to its end; that of the warm worker, which
the volume service keeps ready, begins with its order.  Prints tables, and at the end ours beside the fastest of the
others; asserts nothing but that the bytes are equal: machines are noisy, and a figure counts only beside the others
of its run.  Whatever ends it, an interrupt too, it takes its servers, mounts, devices and files away.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from migrator import machine as machine_id
from migrator.drivers.base import Connection
from migrator.volume.worker_copier import WorkerCopier
from tests.bench import copy_latency
from tests.bench.copy_beds import (
    KINDS,
    PLACES,
    SERVERS,
    Absent,
    Server,
    fill_empty,
    gib,
    is_random,
    loop,
    machine,
    run,
    same,
    settle,
)
from tests.bench.copy_progress import Progress
from tests.bench.copy_table import READS, Measured, Samples, Start, Table, lines, summary
from tests.support.data import GIB

ROOT = Path(__file__).parents[2]
#: Seconds between two looks at the memory of a tool.
LOOK_SECONDS = 0.01


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Ends:
    """What is copied where in one case."""

    source: Path
    #: What the tool is given, and where the bytes are then found.
    destination: str
    stored: Path
    size: int
    scratch: Path

    @property
    def is_nbd(self) -> bool:
        return "://" in self.destination

    @property
    def is_device(self) -> bool:
        return self.stored.is_block_device()


Argv = list[str]


def ours(*options: str) -> Callable[[Ends], Argv]:
    def argv(ends: Ends) -> Argv:
        words = [sys.executable, "-m", "migrator.cmd.copy", str(ends.source), ends.destination, "--quiet"]
        if ends.is_device or ends.is_nbd:
            words.append("--destination-is-zero")
        state = ["--resume", str(ends.scratch / "state")] if "none" not in options else []
        return [*words, *options, *state]

    return argv


def dd(*options: str) -> Callable[[Ends], Argv]:
    return lambda ends: ["dd", f"if={ends.source}", f"of={_local(ends)}", "bs=1M", "status=none", *options]


def cp(ends: Ends) -> Argv:
    if ends.is_device:
        raise Absent("cp makes no holes in a device")
    # A reflink shares blocks and copies nothing: another thing than what is measured here.
    return ["cp", "--sparse=always", "--reflink=never", str(ends.source), _local(ends)]


def qemu(*options: str) -> Callable[[Ends], Argv]:
    def argv(ends: Ends) -> Argv:
        there = ["-n", "--target-is-zero"] if ends.is_device or ends.is_nbd else []
        if ends.destination.startswith("nbds:"):
            raise Absent("qemu-img takes no TLS key in an address")
        return ["qemu-img", "convert", "-f", "raw", "-O", "raw", *options, *there, str(ends.source), ends.destination]

    return argv


def nbdcopy(ends: Ends) -> Argv:
    return ["nbdcopy", "--flush", "--destination-is-zero", str(ends.source), ends.destination]


def _local(ends: Ends) -> str:
    if ends.is_nbd:
        raise Absent("speaks no NBD")
    return ends.destination


def read_only(ends: Ends) -> Argv:
    return ["dd", f"if={ends.source}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]


def warm(ends: Ends) -> Argv:
    raise AssertionError("a worker is no command")


TOOLS: dict[str, Callable[[Ends], Argv]] = {
    "ours, warm worker": warm,
    "ours, bare": ours("--verify", "none", "--checkpoint-seconds", "1e6"),
    "ours, hash and checkpoints": ours("--verify", "inline"),
    "ours, read back": ours("--verify", "readback"),
    "dd bs=1M direct": dd("iflag=direct", "oflag=direct"),
    "dd conv=sparse": dd("conv=sparse"),
    "cp --sparse=always": cp,
    "qemu-img": qemu(),
    "qemu-img -m16 -W": qemu("-m", "16", "-W"),
    "qemu-img -t none -T none": qemu("-t", "none", "-T", "none"),
    "nbdcopy": nbdcopy,
    READS: read_only,
}


#: What speaks NBD; with qemu-img's best flags only, since every row is measured against two servers.
NBD_TOOLS = {tool for tool in TOOLS if tool.startswith("ours")} | {"qemu-img -m16 -W", "nbdcopy"}
#: Over TCP and TLS the question is only what they cost, beside nbdcopy.
FAR_TOOLS = {"ours, bare", "ours, hash and checkpoints", "ours, read back", "nbdcopy"}
#: Flags that tell nothing where there is next to nothing to be written.
RANDOM_ONLY = {"qemu-img", "qemu-img -t none -T none", READS}
#: Bytes a second at which a row moves, about, for the time that is foretold; with the comparison, and a start.
FORETOLD = {"random": 0.5e9, "zeros": 0.8e9, "tenth": 2.5e9, "empty": 8e9}
#: Memory is so many times as fast as a disk, and what is encrypted as slow.
FORETOLD_FACTORS = {"tmpfs": 2.5, "tls": 0.5}
START_SECONDS = 0.4
#: What a place has more than a source and a destination, bytes.
ROOM = 256 << 20


@dataclass(frozen=True)
class Case:
    """A place, a route and a kind of volume."""

    place: str
    route: str
    kind: str
    server: Server | None = None

    @property
    def name(self) -> str:
        over = f" {self.server.program} {self.server.over}" if self.server else ""
        return f"{self.place} {self.route}{over} {self.kind}"

    def of(self, tools: list[str]) -> list[str]:
        """Those of the tools that are measured in this case."""
        if self.server is None:
            return [tool for tool in tools if self.kind == "random" or tool not in RANDOM_ONLY]
        return [tool for tool in tools if tool in (NBD_TOOLS if self.server.over == "unix" else FAR_TOOLS)]

    def size(self, size: int, other_size: int) -> int:
        """Devices and what goes over NBD have the other size, to keep the whole run short."""
        return size if self.route == "file-file" else other_size

    def expected_seconds(self, size: int) -> float:
        """What one run of one tool takes, roughly, on a disk that moves 1 GB/s, to a volume of so many bytes."""
        rate = FORETOLD[self.kind]
        for word in (self.place, self.server.over if self.server else ""):
            rate *= FORETOLD_FACTORS.get(word, 1.0)
        return size / rate + START_SECONDS


def cases() -> Iterator[Case]:
    for place in PLACES:
        for kind in KINDS:
            yield Case(place, "file-file", kind)
    for route in ("file-block", "block-block"):
        for kind in ("random", "tenth"):
            yield Case("disk", route, kind)
    for server in SERVERS:
        yield Case("disk", "file-nbd", "random", server)
    # What the wire adds, without a disk; and what holes cost, where the way to the server costs least.
    for server in SERVERS:
        if server.over == "unix":
            yield Case("tmpfs", "file-nbd", "random", server)
            yield Case("disk", "file-nbd", "tenth", server)


# --- one run of a tool -----------------------------------------------------------------------------------------------


def measure(argv: Argv, ends: Ends, samples: Samples) -> None:
    """Run a tool and sync what it wrote; raises Absent if it fails."""
    if shutil.which(argv[0]) is None:
        raise Absent(f"{argv[0]} is not installed")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        tool = subprocess.Popen(argv, stdout=said, stderr=said, env=environment)
        try:
            peak = _watch(tool.pid)
            _, status, usage = os.wait4(tool.pid, 0)
        except BaseException:
            # Nobody else would end it, and it would keep the file system busy.
            tool.kill()
            tool.wait()
            raise
        tool.returncode = os.waitstatus_to_exitcode(status)
        if tool.returncode == 0 and ends.stored.exists():
            _sync(ends.stored)
        seconds = time.perf_counter() - began
        if tool.returncode:
            said.seek(0)
            raise Absent(f"failed: {said.read(300).decode(errors='replace').strip()}")
    samples.seconds.append(seconds)
    samples.cpu.append(usage.ru_utime + usage.ru_stime)
    samples.rss = max(samples.rss, peak)


@functools.cache
def worker() -> WorkerCopier:
    """A process that is up already, as the volume service keeps them."""
    copier = WorkerCopier()
    atexit.register(copier.close)
    return copier


def measure_worker(ends: Ends, samples: Samples) -> None:
    """Copy as a migration does: with checksum and checkpoints, in a process that waits for work."""
    copier = worker()
    assert copier.identity is not None
    process = psutil.Process(int(copier.identity["pid"]))
    source = _connection("file", str(ends.source), ends.size, False)
    destination = _connection("nbd" if ends.is_nbd else "file", ends.destination, ends.size, True)
    if not ends.is_nbd and not ends.stored.exists():
        fill_empty(ends.stored, ends.size)
    before, began = process.cpu_times(), time.perf_counter()
    copier.copy(source, destination, [], {}, lambda event: None, lambda: False)
    samples.seconds.append(time.perf_counter() - began)
    after = process.cpu_times()
    samples.cpu.append(after.user + after.system - before.user - before.system)
    text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    samples.rss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))


def _connection(kind: str, path: str, size: int, writable: bool) -> dict[str, Any]:
    return Connection(kind, path, machine_id.boot_id(), size, is_zero=True, writable=writable).as_dict()


def _watch(pid: int) -> int:
    """Wait for the end of a process; return the most memory that it had, in KiB.

    The kernel's own figure for a child (ru_maxrss) counts what its parent had when it was started.
    """
    peak = 0
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            peak = max(peak, next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")))
        if poll.poll(LOOK_SECONDS * 1000):
            os.close(descriptor)
            return peak


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# --- one case --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fresh(case: Case, source: Path, size: int, device: Path | None) -> Iterator[Ends]:
    """A new, empty destination for one run, and a source that is not cached."""
    directory = source.parent
    target = directory / "destination"
    settle(source)
    if case.route == "file-file":
        yield Ends(source, str(target), target, size, directory)
    elif case.server is not None:
        fill_empty(target, size)
        with case.server.serve(target, directory) as address:
            yield Ends(source, address, target, size, directory)
    else:
        assert device is not None, "routes to devices have one"
        run("blkdiscard", "-z", device)
        settle(device)
        yield Ends(source, str(device), device, size, directory)
    target.unlink(missing_ok=True)


@contextlib.contextmanager
def devices(case: Case, source: Path, size: int) -> Iterator[tuple[Path, Path | None]]:
    """The source as the route has it, and the device to be written."""
    if "block" not in case.route:
        yield source, None
        return
    image = source.parent / "device.img"
    fill_empty(image, size)
    with contextlib.ExitStack() as stack:
        stack.callback(image.unlink)
        from_device = stack.enter_context(loop(source)) if case.route == "block-block" else source
        yield from_device, stack.enter_context(loop(image))


def measure_case(case: Case, source: Path, size: int, rounds: int, tools: list[str], progress: Progress) -> Table:
    """Let the tools take turns; every other round they do so backwards."""
    table = {tool: Samples() for tool in tools}
    expected = case.expected_seconds(size)
    with devices(case, source, size) as (origin, device):
        for number in range(rounds):
            for tool in tools if number % 2 == 0 else reversed(tools):
                samples = table[tool]
                progress.step(f"{case.name}, round {number + 1}/{rounds}: {tool}", expected)
                if samples.note:
                    continue
                try:
                    _one(case, source, origin, device, size, tool, samples)
                except Absent as absent:
                    samples.note = str(absent)
    return table


def _one(case: Case, source: Path, origin: Path, device: Path | None, size: int, tool: str, samples: Samples) -> None:
    with fresh(case, source, size, device) as ends:
        ends.source = origin
        if origin != source:
            settle(origin)
        if TOOLS[tool] is warm:
            measure_worker(ends, samples)
        else:
            measure(TOOLS[tool](ends), ends, samples)
        if tool != READS and not equals(case, source, ends.stored, size):
            raise SystemExit(f"{case.name}: what {tool} wrote differs from the source")


def equals(case: Case, source: Path, stored: Path, size: int) -> bool:
    """Compare all bytes; those that are random with what was written into the source, which is not read again."""
    return is_random(stored, size) if case.kind == "random" else same(source, stored, size)


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is measured: bytes of the volumes, how often, by which tools."""

    wanted: list[Case]
    late: list[copy_latency.Late]
    tools: list[str]
    rounds: int
    size: int
    other_size: int

    @property
    def late_size(self) -> int:
        return copy_latency.size_of(self.size)

    @property
    def late_tools(self) -> dict[str, copy_latency.Tool]:
        """What is measured against a target that answers late: the processes that speak NBD."""
        named = ("ours, hash and checkpoints", "qemu-img -m16 -W", "nbdcopy")
        return {tool: _late_command(tool) for tool in self.tools if tool in named}

    def size_of(self, case: Case) -> int:
        return case.size(self.size, self.other_size)

    def seconds_of(self, case: Case) -> float:
        return len(case.of(self.tools)) * self.rounds * case.expected_seconds(self.size_of(case))

    def seconds(self) -> float:
        late = copy_latency.expected_seconds(self.late, len(self.late_tools), self.rounds, self.late_size)
        return late + sum(self.seconds_of(case) for case in self.wanted)


def _late_command(tool: str) -> copy_latency.Tool:
    def argv(source: Path, address: str) -> Argv:
        size = source.stat().st_size
        return TOOLS[tool](Ends(source, address, source.parent / "late", size, source.parent))

    return argv


class Run:
    """One run of a plan; prints each table as soon as it is there."""

    def __init__(self, plan: Plan, directory: Path, progress: Progress) -> None:
        self._plan, self._directory, self._progress = plan, directory, progress
        self._measured: list[Measured] = []
        self._left_out: list[str] = []

    def go(self) -> None:
        """Measure all of it, and say at the end what it comes to and what was left out."""
        try:
            # What answers late needs no disk, and little time: it comes first, so that it is never left out.
            self._measure_late()
            for place in dict.fromkeys(case.place for case in self._plan.wanted):
                self._measure_place(place)
        finally:
            self._progress.clear()
            self._say(*summary(self._measured, start()))
            if self._left_out:
                self._say(f"\nnot measured, the time was too short: {'; '.join(self._left_out)}")

    def _fits(self, case: Case) -> bool:
        return self._progress.fits(self._plan.seconds_of(case))

    def _say(self, *text: str) -> None:
        self._progress.clear()
        print(*text, sep="\n", flush=True)

    def _measure_late(self) -> None:
        """The latency table; on tmpfs, so that nothing but the server's delay and rate counts."""
        plan, size = self._plan, self._plan.late_size
        if not plan.late:
            return
        expected = copy_latency.expected_seconds(plan.late[:1], len(plan.late_tools), plan.rounds, size)
        try:
            with PLACES["tmpfs"](Path(), 2 * size + ROOM) as at:
                source = at / "source"
                KINDS["random"](source, size)
                for one in plan.late:
                    self._progress.step(one.name, expected)
                    table = copy_latency.measure(one, source, size, plan.rounds, plan.late_tools)
                    self._say(*copy_latency.lines(one, table, size))
        except Absent as absent:
            self._say(f"\nlatency: {absent}")

    def _measure_place(self, place: str) -> None:
        plan = self._plan
        here = [case for case in plan.wanted if case.place == place]
        if not any(self._fits(case) for case in here):
            self._left_out += [case.name for case in here]
            return
        room = 2 * max(plan.size_of(case) for case in here) + ROOM
        try:
            with PLACES[place](self._directory, room) as at:
                for kind, size in dict.fromkeys((case.kind, plan.size_of(case)) for case in here):
                    self._measure_volume(
                        [case for case in here if (case.kind, plan.size_of(case)) == (kind, size)], at / "source", size
                    )
        except Absent as absent:
            self._say(f"\n{place}: {absent}")

    def _measure_volume(self, cases_of_it: list[Case], source: Path, size: int) -> None:
        """Make one volume and measure what is done with it."""
        kind = cases_of_it[0].kind
        self._progress.say(f"{cases_of_it[0].place}: writing {size / GIB:g} GiB, {kind}")
        KINDS[kind](source, size)
        for case in cases_of_it:
            if not self._fits(case):
                self._left_out.append(case.name)
                continue
            try:
                tools = case.of(self._plan.tools)
                table = measure_case(case, source, size, self._plan.rounds, tools, self._progress)
                self._measured.append(Measured(case.name, size, table))
                self._say(*lines(self._measured[-1]))
            except Absent as absent:
                self._say(f"\n{case.name}: {absent}")
        source.unlink()


@functools.cache
def start() -> Start:
    """Measure what our program takes to do nothing: the least of some."""
    found = []
    for _ in range(5):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        run(sys.executable, "-m", "migrator.cmd.copy", "--version")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append(Start(time.perf_counter() - began, cpu))
    return min(found)


# --- the command -----------------------------------------------------------------------------------------------------


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-copy", description=__doc__)
    add = parser.add_argument
    add("--size", type=gib, default=4.0, metavar="GIB", help="size of the volumes, such as 4G or 64M")
    add("--other-size", type=gib, metavar="GIB", help="that of devices and over NBD: size / 2")
    add("--rounds", type=int, default=5)
    add("--only", action="append", default=[], metavar="WORDS", help="cases with all of these words; repeatable")
    add("--tools", action="append", default=[], metavar="WORDS", help="tools with these words; repeatable")
    add("--minutes", type=float, metavar="N", help="leave out and name the cases that would not end within so many")
    add("--directory", type=Path, default=None, help="on the disk that is measured")
    add("--quiet", action="store_true", help="show no progress on stderr")
    add("--list", action="store_true", help="print the names of the cases and how long each takes, about")
    return parser.parse_args(argv)


def plan_of(arguments: argparse.Namespace) -> Plan:
    def is_wanted(name: str) -> bool:
        return not arguments.only or any(set(words.split()) <= set(name.split()) for words in arguments.only)

    size = int(arguments.size * GIB) // 4096 * 4096
    other = arguments.size / 2 if arguments.other_size is None else arguments.other_size
    return Plan(
        wanted=[case for case in cases() if is_wanted(case.name)],
        late=[late for late in copy_latency.LATE if is_wanted(late.name)],
        tools=[tool for tool in TOOLS if not arguments.tools or any(words in tool for words in arguments.tools)],
        rounds=arguments.rounds,
        size=size,
        other_size=int(other * GIB) // 4096 * 4096,
    )


def stop_once() -> None:
    """Let the first interrupt or termination end the run in order, and no second one disturb the tidying up."""

    def stop(number: int, frame: object) -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)


def main() -> None:
    arguments = arguments_of()
    plan = plan_of(arguments)
    if arguments.list:
        for case in plan.wanted:
            print(f"{case.name:<40}{plan.size_of(case) / GIB:>8g} GiB{plan.seconds_of(case) / 60:>7.1f} min")
        print("\n".join(late.name for late in plan.late))
        return
    stop_once()
    limit = None if arguments.minutes is None else arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="migrator-bench-", dir=arguments.directory) as directory:
        words = f"{machine(Path(directory))}, {plan.rounds} rounds; * the fastest; about {plan.seconds() / 60:.0f} min"
        print(words, flush=True)
        progress = Progress(plan.seconds(), limit, shows=not arguments.quiet)
        Run(plan, Path(directory), progress).go()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing is left behind")
