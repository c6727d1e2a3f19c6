"""``make bench``: what the main job costs, in migrator-all and as separate services, side by side in one run.

Prints tables; asserts nothing: these machines are noisy, and a figure counts only beside the others of its run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import sqlalchemy as sa

from migrator.db.models import Volume, utcnow
from tests.bench import bench_scheduler
from tests.support.data import GIB, MIB, write_pattern
from tests.support.deployment import Deployment, database
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

ROUNDS = 15
MANY = 50
LISTED = 1000
VERY_MANY = 10_000


class KeepAlive(Rest):
    """A client that keeps its connection, as real ones do: what is timed is the service."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._connection = http.client.HTTPConnection(self._address, timeout=60)

    def request(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        payload = None if body is None else json.dumps(body)
        self._connection.request(method, f"/v3/{self.project}{path}", payload, self._headers)
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None


class Bed:
    """A running migrator with two backends, and what the benchmarks ask of it."""

    def __init__(
        self, name: str, url: str, hosts: tuple[str, str], pids: list[int], place: Callable[[str], Path], tables: str
    ) -> None:
        self.name, self.url, self.hosts, self.pids, self.place = name, url, hosts, pids, place
        #: The URL of the database.
        self.tables = tables
        self.rest = KeepAlive(url)

    def other(self, host: str) -> str:
        return self.hosts[1] if host == self.hosts[0] else self.hosts[0]

    def memory_mib(self) -> tuple[float, float]:
        """Memory of all services with their children: as each process has it, and with what they share counted once."""
        found = [process.memory_full_info() for process in self._processes()]
        return sum(each.rss for each in found) / MIB, sum(each.pss for each in found) / MIB

    def cpu_seconds(self) -> float:
        """What all services with their children have used of the processors: it says the same on a busy machine."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(time.user + time.system for time in times))

    def _processes(self) -> list[psutil.Process]:
        return [child for pid in self.pids for child in [psutil.Process(pid), *psutil.Process(pid).children(True)]]


@contextmanager
def embedded(directory: Path) -> Iterator[Bed]:
    service = AllInOne(directory)
    try:
        hosts = ("node@file1#pool1", "node@file2#pool2")
        tables = f"sqlite:///{service.state / 'migrator.sqlite'}"
        pids = [service.process.pid]
        yield Bed("migrator-all", service.url, hosts, pids, lambda o: service.path("file1", "pool1", o), tables)
    finally:
        service.process.end()


@contextmanager
def separate(directory: Path) -> Iterator[Bed]:
    with database("mariadb") as url:
        deployment = Deployment(directory, url)
        try:
            pids = [process.pid for process in deployment.processes.values()]
            hosts = ("hosta@file1#pool1", "hostb@file2#pool2")
            address = f"http://127.0.0.1:{deployment.port}"
            yield Bed("RabbitMQ+MariaDB", address, hosts, pids, lambda o: deployment.path("file1", "pool1", o), url)
        finally:
            deployment.end()


# --- what is measured ---


def milliseconds(samples: list[float]) -> str:
    """Median (smallest … largest) in milliseconds."""
    return f"{statistics.median(samples) * 1e3:.1f} ({min(samples) * 1e3:.1f} … {max(samples) * 1e3:.1f})"


def one_migration(bed: Bed, volume_id: str, forced: bool) -> tuple[float, float]:
    """Seconds of the POST, and from before the POST until a client sees success."""
    host = bed.other(bed.rest.volume(volume_id)["os-vol-host-attr:host"])
    began = time.perf_counter()
    status, answer = bed.rest.migrate(volume_id, host, force_host_copy=forced)
    answered = time.perf_counter() - began
    assert status == 202, answer

    def success() -> bool:
        shown = bed.rest.volume(volume_id)["migration_status"]
        assert shown != "error", bed.rest.migration_of(volume_id)
        return bool(shown == "success")

    until(success, "success", pause=0.005)
    return answered, time.perf_counter() - began


def single(bed: Bed) -> dict[str, str]:
    volume_id = bed.rest.create(1)["id"]
    one_migration(bed, volume_id, True)
    runs = {forced: [one_migration(bed, volume_id, forced) for _ in range(ROUNDS)] for forced in (True, False)}
    posts = [post for samples in runs.values() for post, _ in samples]
    return {
        "POST os-migrate_volume, ms": milliseconds(posts),
        "empty 1 GiB, host copy, POST to success, ms": milliseconds([wall for _, wall in runs[True]]),
        "empty 1 GiB, assisted, POST to success, ms": milliseconds([wall for _, wall in runs[False]]),
    }


def many(bed: Bed) -> dict[str, str]:
    ids = [volume["id"] for volume in (bed.rest.create(1) for _ in range(MANY))]
    homes = {volume_id: bed.rest.volume(volume_id)["os-vol-host-attr:host"] for volume_id in ids}
    began, used = time.perf_counter(), bed.cpu_seconds()

    def ask(volume_id: str) -> float:
        client, start = Rest(bed.url), time.perf_counter()
        status, answer = client.migrate(volume_id, bed.other(homes[volume_id]), force_host_copy=True)
        assert status == 202, answer
        return time.perf_counter() - start

    with ThreadPoolExecutor(10) as pool:
        posts = list(pool.map(ask, ids))

    def all_done() -> bool:
        open_ones = [bed.rest.ok("GET", f"/migrations?status={status}&limit=1") for status in ("queued", "running")]
        return not any(found["migrations"] for found in open_ones)

    until(all_done, "all of them end", 120, pause=0.1)
    wall, used = time.perf_counter() - began, bed.cpu_seconds() - used
    assert all(bed.rest.volume(volume_id)["migration_status"] == "success" for volume_id in ids)
    return {
        f"{MANY} empty host copies at once, s": f"{wall:.2f}",
        "CPU of all services for each of them, ms": f"{used / MANY * 1e3:.0f}",
        f"POST while {MANY} are asked for by 10 clients, ms": milliseconds(posts),
    }


def listing(bed: Bed) -> dict[str, str]:
    have = len(bed.rest.ok("GET", f"/volumes?limit={LISTED}")["volumes"])
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Rest(bed.url).create(1)["id"], range(LISTED - have)))
    assert len(made) == LISTED - have
    result = {}
    for name, path in {"list": "/volumes", "list in detail": "/volumes/detail"}.items():
        samples = []
        for _ in range(7):
            began = time.perf_counter()
            assert len(bed.rest.ok("GET", f"{path}?limit={LISTED}")["volumes"]) == LISTED
            samples.append(time.perf_counter() - began)
        result[f"{name} of {LISTED} volumes, ms"] = milliseconds(samples)
    resident, proportional = bed.memory_mib()
    result[f"memory of all services with {LISTED} volumes, MiB"] = f"{resident:.0f}"
    result["the same, shared pages counted once, MiB"] = f"{proportional:.0f}"
    return result


def pages(bed: Bed) -> dict[str, str]:
    """Paging by marker through very many volumes, whose rows are put beside those there are, and one of them."""
    have = bed.rest.ok("GET", "/volumes/summary")["volume-summary"]["total_count"]
    _insert_volumes(bed, VERY_MANY - have)
    result = {}
    for name, path in {"list": "/volumes", "list in detail": "/volumes/detail"}.items():
        samples: list[float] = []
        for _ in range(3):
            samples += _walk(bed, path)
        result[f"page of {LISTED} of {VERY_MANY} volumes, {name}, ms"] = milliseconds(samples)
    one = bed.rest.ok("GET", "/volumes?limit=1")["volumes"][0]["id"]
    singles = []
    for _ in range(200):
        began = time.perf_counter()
        bed.rest.volume(one)
        singles.append(time.perf_counter() - began)
    result[f"one of {VERY_MANY} volumes, ms"] = milliseconds(singles)
    return result


def _walk(bed: Bed, path: str) -> list[float]:
    """Seconds of each page from the first to the last."""
    samples, seen, query = [], 0, f"limit={LISTED}"
    while True:
        began = time.perf_counter()
        answer = bed.rest.ok("GET", f"{path}?{query}")
        samples.append(time.perf_counter() - began)
        seen += len(answer["volumes"])
        if seen >= VERY_MANY:
            return samples
        query = f"limit={LISTED}&marker={answer['volumes'][-1]['id']}"


def _insert_volumes(bed: Bed, count: int) -> None:
    engine = sa.create_engine(bed.tables)
    row: dict[str, object] = {"project_id": bed.rest.project, "user_id": "admin", "host": bed.hosts[0]}
    row |= {"availability_zone": "nova", "size": 1, "status": "available", "created_at": utcnow()}
    with engine.begin() as connection:
        for begin in range(0, count, 500):
            numbers = range(begin, min(count, begin + 500))
            rows = [{**row, "id": str(uuid.uuid4()), "display_name": f"volume {number}"} for number in numbers]
            connection.execute(sa.insert(Volume.__table__), rows)  # type: ignore[arg-type]
    engine.dispose()


def memory_of_a_copy(bed: Bed) -> dict[str, str]:
    """What the copy worker needs above its idle self, for volumes of several sizes."""
    result = {}
    for gib in (1, 8, 64):
        volume = bed.rest.create(gib)
        while bed.rest.volume(volume["id"])["os-vol-host-attr:host"] != bed.hosts[0]:
            volume = bed.rest.create(gib)
        write_pattern(bed.place(volume["id"]), gib * GIB, seed=gib, data_share=0.4 / gib)
        idle, most = _workers(bed), 0.0
        assert bed.rest.migrate(volume["id"], bed.hosts[1], force_host_copy=True)[0] == 202
        while bed.rest.volume(volume["id"])["migration_status"] not in ("success", "error"):
            most = max(most, _workers(bed))
        assert bed.rest.volume(volume["id"])["migration_status"] == "success"
        result[f"copy worker, volume of {gib} GiB, MiB above idle ({idle:.0f})"] = f"{most - idle:.1f}"
    return result


def _workers(bed: Bed) -> float:
    """Resident memory of the largest copy worker, MiB."""
    children = [child for pid in bed.pids for child in psutil.Process(pid).children(True)]
    sizes = [0.0]
    for child in children:
        try:
            if "migrator.volume.worker" in child.cmdline():
                sizes.append(child.memory_info().rss / MIB)
        except psutil.NoSuchProcess:
            continue
    return max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=["embedded", "separate"], help="one of the two ways to run")
    only = parser.parse_args().only
    beds = {"embedded": embedded, "separate": separate}
    columns: dict[str, dict[str, str]] = {}
    for name, opened in beds.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory(prefix="migrator-bench-") as directory, opened(Path(directory)) as bed:
                columns[bed.name] = {}
                for measure in (single, many, memory_of_a_copy, listing, pages):
                    columns[bed.name] |= measure(bed)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {ROUNDS} rounds;")
    print("median (smallest … largest)\n")
    rows = list(next(iter(columns.values())))
    rows = list(dict.fromkeys([row for column in columns.values() for row in column])) or rows
    width = max(map(len, rows))
    print(" " * width, *(f"{name:>26}" for name in columns))
    for row in rows:
        print(f"{row:<{width}}", *(f"{column.get(row, '-'):>26}" for column in columns.values()))
    bench_scheduler.main()


if __name__ == "__main__":
    main()
