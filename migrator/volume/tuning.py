"""How many requests are under way, how large, and by which way: found by measured throughput while the work is done.

A job begins with two requests of 1 MiB past the page cache, the cheapest way and the fastest on many a local disk.  A
target that answers late and a target that is busy look alike from one measurement; from two they do not: with twice as
many requests under way, the first moves twice as much, the second no more.  So one setting after another is tried for a
moment against the one in use::

    base ──> trial ──> no gain: back to base, try the next move
               └────> gain: base once more ──> no gain: chance had its hand in it, try the next move
                                           └─> gain: the trial becomes the base, try the same move again

But direct I/O cuts its requests at a few hundred pages and waits for each; a disk that answers one request at a time,
as many virtual ones do, moves twice as much when the kernel reads ahead and writes behind in pieces of several MiB.  To
begin with that gains nothing: measured, data takes as long, and zeros longer.

A gain too large for chance is taken without the second look.  When no move helps, the setting rests; after a while all
moves are tried again, for a target may change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat

from migrator.volume.extents import BLOCK
from migrator.volume.page_cache import WINDOW

#: Memory that the buffers of one job may take together.
MAX_BUFFERS = 32 * BLOCK
MAX_DEPTH = 32
SMALLEST, LARGEST = BLOCK // 4, 4 * BLOCK
#: A setting is measured for so long, and over so many pieces of work for each one under way.
WINDOW_SECONDS = 0.1
PIECES = 2
#: What a costlier setting must gain: enough that chance seldom looks like it, and little enough that the last doubling
#: left out costs an eighth of the bandwidth at most.
GAIN, CERTAIN_GAIN = 1.15, 1.6
#: So many bytes, read and written, pass at the speed of memory when the cache comes in; they are not measured.
UNSETTLED = 2 * WINDOW
#: A cheaper setting need not be faster.
NO_LOSS = 1.0
#: Seconds between two rounds of moves: the first pause, and the longest; each is twice the one before.
REST_SECONDS, LONGEST_REST_SECONDS = 4.0, 64.0


@dataclass(frozen=True)
class Setting:
    """So many requests under way, of so many bytes, through the page cache or past it."""

    depth: int = 2
    block: int = BLOCK
    cached: bool = False


Move = tuple[Callable[[Setting], Setting], float]
_DEEPER: Move = (lambda now: replace(now, depth=now.depth * 2), GAIN)
_LARGER: Move = (lambda now: replace(now, block=now.block * 4), GAIN)
_SMALLER: Move = (lambda now: replace(now, block=now.block // 4), GAIN)
_SHALLOWER: Move = (lambda now: replace(now, depth=now.depth // 2), NO_LOSS)
# Smaller requests lose what the cache gains, and cost more time of the processor.
_CACHED: Move = (lambda now: replace(now, block=LARGEST, cached=True), GAIN)
_DIRECT: Move = (lambda now: replace(now, cached=False), NO_LOSS)
FIRST_ROUND = (_CACHED, _DEEPER, _LARGER, _SMALLER)
LATER_ROUNDS = (_SHALLOWER, _DIRECT, _CACHED, _DEEPER, _LARGER, _SMALLER)


class Tuner:
    """Chooses the setting of one job; used by all of its threads."""

    def __init__(
        self, *, depth: int | None = None, block: int | None = None, buffers: int = 1, may_cache: bool = False
    ) -> None:
        """A ``depth`` or ``block`` that is given stays; each thread has ``buffers`` of one block.

        ``may_cache``: an end can do both.  Raises ValueError for what does not fit into memory.
        """
        self._buffers = buffers
        self._may_cache = may_cache
        self._fixed = (depth is not None, block is not None)
        start = Setting(2 if depth is None else depth, BLOCK if block is None else block)
        if start.depth < 1 or start.block < 1 or start.depth * start.block * buffers > MAX_BUFFERS:
            raise ValueError(f"{start.depth} threads with {start.block} bytes each")
        #: In use now; a trial at times.
        self.setting = start
        self._base = start
        self._phase = self._measure_base
        self._speed = 0.0
        self._gained = 0.0
        self._lock = threading.Lock()
        self._rest = REST_SECONDS
        self._rounds = chain([FIRST_ROUND], repeat(LATER_ROUNDS))
        self._moves: Iterator[Move] = iter(next(self._rounds))
        self._move: Move | None = None
        self._resume_at = 0.0
        self._seen = self._moved = self._unsettled = 0
        self._since = 0.0

    def finished(self, moved: int, now: float) -> None:
        """Count a finished piece of work that moved so many bytes; ``now`` is a monotonic time in seconds."""
        if all(self._fixed) or now < self._resume_at:
            return
        with self._lock:
            self._seen += 1
            if self._seen <= self.setting.depth or self._unsettled > 0:  # begun before the setting was in force
                self._unsettled -= moved
                self._since, self._moved = now, 0
                return
            self._moved += moved
            seconds = now - self._since
            if seconds >= WINDOW_SECONDS and self._seen > self.setting.depth * (1 + PIECES):
                speed = self._moved / seconds
                self._forget()
                self._phase(speed, now)

    def disturb(self) -> None:
        """Throw away what is being measured: something else slowed the work down."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._seen = self._moved = 0
        self._since = 0.0

    # --- the phases; each is given the speed that was measured in it

    def _measure_base(self, speed: float, now: float) -> None:
        self._speed = speed
        self._try_next(now)

    def _try_next(self, now: float) -> None:
        """Begin the trial of the next move that is possible; rest when there is none."""
        for move in self._moves if self._move is None else chain([self._move], self._moves):
            setting = move[0](self._base)
            if self._is_possible(setting):
                self._use(setting)
                self._move, self._phase = move, self._measure_trial
                return
        self._use(self._base)
        self._move, self._phase = None, self._measure_base
        self._moves = iter(next(self._rounds))
        self._resume_at, self._rest = now + self._rest, min(2 * self._rest, LONGEST_REST_SECONDS)

    def _use(self, setting: Setting) -> None:
        self._unsettled = UNSETTLED if setting.cached and not self.setting.cached else 0
        self.setting = setting

    def _is_possible(self, setting: Setting) -> bool:
        memory = setting.depth * setting.block * self._buffers
        keeps = (setting.depth == self._base.depth, setting.block == self._base.block)
        return (
            setting != self._base
            and (self._may_cache or not setting.cached)
            and 1 <= setting.depth <= MAX_DEPTH
            and SMALLEST <= setting.block <= LARGEST
            and memory <= MAX_BUFFERS
            and all(kept or not fixed for kept, fixed in zip(keeps, self._fixed, strict=True))
        )

    def _measure_trial(self, speed: float, now: float) -> None:
        assert self._move is not None, "a trial is that of a move"
        wanted = self._move[1]
        if speed >= self._speed * max(wanted, CERTAIN_GAIN):
            self._accept(speed, now)
            return
        self._use(self._base)
        if speed < self._speed * wanted:
            self._move, self._phase = None, self._measure_base
        else:
            self._gained, self._phase = speed, self._measure_again

    def _measure_again(self, speed: float, now: float) -> None:
        assert self._move is not None, "what is confirmed is a move"
        if self._gained >= speed * self._move[1]:
            self._accept(self._gained, now)
            return
        self._move, self._speed = None, speed
        self._try_next(now)

    def _accept(self, speed: float, now: float) -> None:
        assert self._move is not None, "what is accepted is a move"
        self._base, self._speed = self._move[0](self._base), speed
        self._try_next(now)
