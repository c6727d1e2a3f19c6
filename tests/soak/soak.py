"""Users, blows and quiet points, in turn, until the time is over."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.soak import operations, owners
from tests.soak.asking import Bench, Violation
from tests.soak.model import Tally, User, Volume, reconcile
from tests.soak.operations import OPERATIONS
from tests.soak.plants import Plant
from tests.support.waiting import until

USERS = 3
#: Work between two quiet points, seconds; and the longest that all may take to come to rest.
ROUND_SECONDS, SETTLE_SECONDS = 20.0, 90.0
#: Between two requests of one user, and between two blows, seconds at most.
PAUSE_SECONDS, BLOW_SECONDS = 0.4, 8.0


class Soak:
    """One run; ``violations`` is what it found, empty if all is well."""

    def __init__(self, plant: Plant, seed: int, say: Callable[[str], None] = print) -> None:
        self._plant = plant
        self._chance = random.Random(seed)
        self._say = say
        self._users = [User(f"user{number}", random.Random(f"{seed} {number}")) for number in range(USERS)]
        self.tally = Tally()
        self.violations: list[str] = []
        self._lock = threading.Lock()

    def run(self, seconds: float) -> None:
        """Work for so long; ends early at the first violation, since what follows it means nothing."""
        operations.make_types(self._plant.rest())
        began = time.monotonic()
        number = 0
        while not self.violations and (left := began + seconds - time.monotonic()) > 0:
            number += 1
            self._work(min(ROUND_SECONDS, left))
            settled = self._settle()
            found = self._plant.audit.rows("SELECT COUNT(*) AS n FROM migrations")[0]["n"]
            self._say(
                f"{time.monotonic() - began:6.1f} s, quiet point {number} after {settled:.1f} s: {found} migrations, "
                f"{self.tally.count('blow')} blows, {len(self.violations)} violations"
            )
        for row in self._plant.audit.rows("SELECT plan, {end} AS ended, COUNT(*) AS n FROM migrations GROUP BY 1, 2"):
            self.tally.note(f"migration by {row['plan']}", str(row["ended"]), row["n"])

    # --- work ---

    def _work(self, seconds: float) -> None:
        over = threading.Event()
        with ThreadPoolExecutor(USERS) as pool:
            threads = [pool.submit(self._use, user, over) for user in self._users]
            try:
                self._strike(seconds, over)
            finally:
                over.set()
            for thread in threads:
                thread.result()

    def _strike(self, seconds: float, over: threading.Event) -> None:
        """Let one thing go wrong after the other: in this thread, which outlives the processes that it starts."""
        deadline = time.monotonic() + seconds
        while not over.wait(min(self._chance.uniform(0, BLOW_SECONDS), max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
            name = self._chance.choice(sorted(self._plant.blows))
            self._plant.blows[name]()
            self.tally.note("blow", name)
            self._plant.wait_ready()

    def _use(self, user: User, over: threading.Event) -> None:
        bench = Bench(self._plant, self._plant.rest(), user)
        while not over.wait(user.chance.uniform(0, PAUSE_SECONDS)):
            try:
                self._one(bench)
            except Exception as error:  # the top of a user: told, and the run ends
                self._violated(f"{user.name}: {type(error).__name__} {error}")
                over.set()

    def _one(self, bench: Bench) -> None:
        """Do one of the operations that make sense for one of the user's volumes."""
        user = bench.user
        usable = [each for each in user.volumes if each.id and not each.is_gone and not each.is_unknown]
        volume = user.chance.choice(usable) if usable else Volume("none")
        fitting = [each for each in OPERATIONS if each.fits(user, volume)] if usable else [CREATE]
        operation = user.chance.choices(fitting, [each.weight for each in fitting])[0]
        self.tally.note(operation.name, operation.act(bench, volume))

    def _violated(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)

    # --- quiet points ---

    def _settle(self) -> float:
        """Let all come to rest and compare; return how long that took."""
        began = time.monotonic()
        self._plant.wait_ready()
        try:
            until(self._tidy, "users leave nothing halfway", SETTLE_SECONDS, pause=0.2)
        except (AssertionError, Violation) as error:
            self.violations.append(str(error))
        restless: list[str] = []

        def quiet() -> bool:
            restless[:] = [*self._plant.audit.restless(), *self._plant.left_behind()]
            return not restless

        try:
            until(quiet, "all is at rest", SETTLE_SECONDS, pause=0.05)
        except AssertionError:
            self.violations += [f"not at rest after {SETTLE_SECONDS:g} s: {each}" for each in restless]
        seconds = time.monotonic() - began
        if not restless:
            self._compare()
        return seconds

    def _tidy(self) -> bool:
        benches = [Bench(self._plant, self._plant.rest(), user) for user in self._users]
        return all(owners.tidy(bench, volume) for bench in benches for volume in bench.user.volumes)

    def _compare(self) -> None:
        volumes = self._plant.audit.rows("SELECT * FROM volumes WHERE deleted_at IS NULL")
        snapshots = self._plant.audit.rows("SELECT * FROM snapshots WHERE deleted_at IS NULL")
        wanted: dict[str, str | None] = {}
        for user in self._users:
            reconcile(user.volumes, volumes, snapshots)
            for volume in user.volumes:
                wanted[str(volume.id)] = volume.content
                wanted |= {str(each.id): each.content for each in volume.snapshots}
        self.violations += self._plant.audit.violations(wanted)
        for row in [*volumes, *snapshots]:
            if row["status"].startswith("error"):
                self.violations.append(f"{row['id']} is {row['status']}")
        self._compare_types()
        stuck = self._plant.audit.rows("SELECT id, error_message FROM migrations WHERE {end} = 'stuck'")
        self.violations += [f"migration {row['id']} is stuck: {row['error_message']}" for row in stuck]

    def _compare_types(self) -> None:
        """A volume lies where its type allows it."""
        for row in self._plant.audit.rows(_TYPES):
            backend = operations.TYPES.get(row["name"], {}).get("volume_backend_name")
            if backend is not None and f"@{backend}#" not in row["host"]:
                self.violations.append(f"{row['id']} of type {row['name']} lies on {row['host']}")


_TYPES = (
    "SELECT v.id, v.host, t.name FROM volumes v JOIN volume_types t ON t.id = v.volume_type_id "
    "WHERE v.deleted_at IS NULL AND v.host IS NOT NULL"
)
CREATE = next(each for each in OPERATIONS if each.act is operations.create)

__all__ = ["Soak", "Violation"]
