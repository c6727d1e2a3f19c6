"""``make bench-copy``: migrator-copy beside the other tools that copy volumes, in one run.

For every case, the tools take turns, round after round; after every run the bytes are compared.  Every run ends with
an fsync of the destination, which is part of its time; a file on a disk is not in the page cache when a run begins.
The time of a run is that of the whole process, from its start to its end; that of the warm worker, which
the volume service keeps ready, begins with its order.  Prints tables; asserts nothing but that the
bytes are equal: machines are noisy, and a figure counts only beside the others of its run.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    loop,
    machine,
    run,
    same,
    settle,
)
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
}


#: What speaks NBD; with qemu-img's best flags only, since every row is measured against two servers.
NBD_TOOLS = {tool for tool in TOOLS if tool.startswith("ours")} | {"qemu-img -m16 -W", "nbdcopy"}
#: Over TCP and TLS the question is only what they cost, beside nbdcopy.
FAR_TOOLS = {"ours, bare", "ours, hash and checkpoints", "nbdcopy"}
#: Flags that tell nothing where there is next to nothing to be written.
RANDOM_ONLY = {"qemu-img", "qemu-img -t none -T none"}
#: Bytes a second at which a row moves, about, for the time that is foretold; with the comparison, and a start.
FORETOLD = {"random": 0.35e9, "zeros": 0.6e9, "tenth": 2e9, "empty": 4e9}
START_SECONDS = 0.5


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

    def size(self, size: int) -> int:
        """Zeros, and routes other than from file to file, have half the volume, to keep the whole run short."""
        return size if self.route == "file-file" and self.kind != "zeros" else size // 2 // 4096 * 4096

    def expected_seconds(self, size: int, rounds: int, tools: list[str]) -> float:
        """Roughly, on a disk that moves 1 GB/s."""
        return len(self.of(tools)) * rounds * (self.size(size) / FORETOLD[self.kind] + START_SECONDS)


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


@dataclass
class Samples:
    """What the rounds of one tool gave; ``note`` says why there is nothing."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: int = 0
    note: str = ""


def measure(argv: Argv, ends: Ends, samples: Samples) -> None:
    """Run a tool and sync what it wrote; raises Absent if it fails."""
    if shutil.which(argv[0]) is None:
        raise Absent(f"{argv[0]} is not installed")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        tool = subprocess.Popen(argv, stdout=said, stderr=said, env=environment)
        peak = _watch(tool.pid)
        _, status, usage = os.wait4(tool.pid, 0)
        tool.returncode = os.waitstatus_to_exitcode(status)
        if tool.returncode == 0:
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


def measure_case(case: Case, source: Path, size: int, rounds: int, tools: list[str]) -> dict[str, Samples]:
    """Let the tools take turns; every other round they do so backwards."""
    table = {tool: Samples() for tool in tools}
    with devices(case, source, size) as (origin, device):
        for number in range(rounds):
            for tool in tools if number % 2 == 0 else reversed(tools):
                samples = table[tool]
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
        if not same(source, ends.stored, size):
            raise SystemExit(f"{case.name}: what {tool} wrote differs from the source")


# --- the table -------------------------------------------------------------------------------------------------------


def show(case: Case, table: dict[str, Samples], size: int) -> None:
    print(f"\n{case.name}, {size / GIB:g} GiB")
    print(f"  {'':<28}{'median s':>9}{'MB/s':>8}{'least':>8}{'most':>8}{'CPU s/GiB':>11}{'MiB':>6}")
    best = min((statistics.median(s.seconds) for s in table.values() if s.seconds), default=0.0)
    for tool, samples in table.items():
        if not samples.seconds:
            print(f"  {tool:<28}{'-':>9}  {samples.note or 'no round'}")
            continue
        median = statistics.median(samples.seconds)
        cpu = statistics.median(samples.cpu) * GIB / size
        marks = " *" if median <= best else ""
        note = f"  {samples.note}" if samples.note else ""
        print(
            f"  {tool:<28}{median:>9.2f}{size / 1e6 / median:>8.0f}{min(samples.seconds):>8.2f}"
            f"{max(samples.seconds):>8.2f}{cpu:>11.2f}{samples.rss / 1024:>6.0f}{marks}{note}",
            flush=True,
        )


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-copy", description=__doc__)
    parser.add_argument("--size", type=gib, default=4.0, metavar="GIB", help="size of the volumes, such as 4G or 64M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help="cases with all of these words")
    parser.add_argument("--tools", action="append", default=[], metavar="WORDS", help="tools with these words")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk that is measured")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    return parser.parse_args(argv)


def main() -> None:
    arguments = arguments_of()

    def is_wanted(name: str) -> bool:
        return not arguments.only or any(set(words.split()) <= set(name.split()) for words in arguments.only)

    wanted = [case for case in cases() if is_wanted(case.name)]
    late = [case for case in copy_latency.LATE if is_wanted(case.name)]
    if arguments.list:
        print("\n".join([case.name for case in wanted] + [case.name for case in late]))
        return
    tools = [tool for tool in TOOLS if not arguments.tools or any(words in tool for words in arguments.tools)]
    size, rounds = int(arguments.size * GIB) // 4096 * 4096, arguments.rounds
    seconds = sum(case.expected_seconds(size, rounds, tools) for case in wanted)
    seconds += copy_latency.expected_seconds(late, len(late_tools(tools)), rounds, copy_latency.size_of(size))
    with tempfile.TemporaryDirectory(prefix="migrator-bench-", dir=arguments.directory) as directory:
        print(f"{machine(Path(directory))}, {rounds} rounds; * the fastest; expected to take {seconds / 60:.0f} min")
        sys.stdout.flush()
        measure_all(wanted, tools, Path(directory), size, rounds)
        if late:
            measure_late(late, late_tools(tools), size, rounds)


def late_tools(tools: list[str]) -> dict[str, copy_latency.Tool]:
    """What is measured against a target that answers late: the processes that speak NBD."""

    def command(tool: str) -> copy_latency.Tool:
        def argv(source: Path, address: str) -> Argv:
            size = source.stat().st_size
            return TOOLS[tool](Ends(source, address, source.parent / "late", size, source.parent))

        return argv

    named = ("ours, hash and checkpoints", "qemu-img -m16 -W", "nbdcopy")
    return {tool: command(tool) for tool in tools if tool in named}


def measure_late(late: list[copy_latency.Late], tools: dict[str, copy_latency.Tool], size: int, rounds: int) -> None:
    """The latency table; on tmpfs, so that nothing but the server's delay and rate counts."""
    size = copy_latency.size_of(size)
    try:
        with PLACES["tmpfs"](Path(), 3 * size) as at:
            source = at / "source"
            KINDS["random"](source, size)
            for one in late:
                copy_latency.show(one, copy_latency.measure(one, source, size, rounds, tools), size)
    except Absent as absent:
        print(f"\nlatency: {absent}")


def measure_all(wanted: list[Case], tools: list[str], directory: Path, size: int, rounds: int) -> None:
    for place in dict.fromkeys(case.place for case in wanted):
        try:
            with PLACES[place](directory, 3 * size) as at:
                here = [case for case in wanted if case.place == place]
                for kind, length in dict.fromkeys((case.kind, case.size(size)) for case in here):
                    source = at / "source"
                    KINDS[kind](source, length)
                    for case in here:
                        if (case.kind, case.size(size)) == (kind, length):
                            measure_one(case, source, length, rounds, case.of(tools))
                    source.unlink()
        except Absent as absent:
            print(f"\n{place}: {absent}")


def measure_one(case: Case, source: Path, size: int, rounds: int, tools: list[str]) -> None:
    try:
        show(case, measure_case(case, source, size, rounds, tools), size)
    except Absent as absent:
        print(f"\n{case.name}: {absent}")


if __name__ == "__main__":
    main()
