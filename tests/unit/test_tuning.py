"""The tuner against devices that are simulated: busy, far away, slow, noisy, changing."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from migrator.volume import tuning
from migrator.volume.extents import BLOCK
from migrator.volume.tuning import MAX_BUFFERS, MAX_DEPTH, Setting, Tuner

MIB = 1 << 20


class Device:
    """Answers a request after ``latency`` seconds, and moves at most ``bandwidth`` bytes per second in all.

    ``gain``: so many times as fast through the page cache, once that has taken its ``burst`` at the speed of memory.
    """

    def __init__(
        self,
        latency: float,
        bandwidth: float,
        noise: float = 0.0,
        crowd: float = 0.0,
        *,
        gain: float = 1.0,
        burst: int = 0,
    ) -> None:
        self.latency, self.bandwidth, self.noise = latency, bandwidth, noise
        self.gain, self.burst, self._left = gain, burst, burst
        #: How much each request beyond two slows all down.
        self.crowd = crowd
        self.chance = random.Random(1)
        self._busy_until = 0.0
        #: Bytes that were asked for through the cache (True), and past it.
        self.through: Counter[bool] = Counter()

    def answer(self, now: float, setting: Setting) -> float:
        """When a request that goes out now comes back."""
        slower = 1 + self.crowd * max(0, setting.depth - 2) + self.noise * self.chance.uniform(-1, 1)
        self.through[setting.cached] += setting.block
        if setting.cached:
            slower /= self.gain if self._left <= 0 else 10.0
            self._left -= setting.block
        else:
            self._left = self.burst
        self._busy_until = max(self._busy_until, now) + setting.block / self.bandwidth * slower
        return max(now + self.latency, self._busy_until)


def simulate(
    tuner: Tuner, device: Device, until: Callable[[float, int], bool], began: float = 0.0
) -> tuple[float, int, list[Setting]]:
    """Work with as many hands as the tuner wants; returns the time, the bytes moved and the settings used."""
    under_way: list[float] = []
    now, moved, settings = began, 0, [tuner.setting]
    while not until(now, moved):
        while len(under_way) < tuner.setting.depth:
            heapq.heappush(under_way, device.answer(now, tuner.setting))
        now = heapq.heappop(under_way)
        moved += tuner.setting.block
        tuner.finished(tuner.setting.block, now)
        if tuner.setting != settings[-1]:
            settings.append(tuner.setting)
    return now, moved, settings


@pytest.mark.parametrize("latency", [0.001, 0.005, 0.02, 0.04])
@pytest.mark.parametrize("bandwidth", [100e6, 400e6, 1e9])
def test_a_far_target_is_kept_as_busy_as_its_bandwidth_allows(latency: float, bandwidth: float) -> None:
    """Four fifths of what the rate allows, or of what the bounded memory does, the way there included."""
    device = Device(latency, bandwidth)
    _, _, settings = simulate(tuner := Tuner(), device, lambda now, moved: now > 3)
    began, moved_before = 0.0, 0
    seconds, moved, _ = simulate(tuner, Device(latency, bandwidth), lambda now, moved: now > 10)
    reachable = min(bandwidth, MAX_BUFFERS / latency)
    assert (moved - moved_before) / (seconds - began) > 0.8 * reachable
    assert settings[0] == Setting(2, BLOCK)
    assert all(one.depth * one.block <= MAX_BUFFERS and one.depth <= MAX_DEPTH for one in settings)


def test_the_way_to_the_right_depth_is_short() -> None:
    tuner = Tuner()
    seconds, moved, _ = simulate(tuner, Device(0.02, 400e6), lambda now, moved: moved >= 4 << 30)
    assert moved / seconds > 0.8 * 400e6
    assert tuner.setting.depth >= 8


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_local_disk_loses_next_to_nothing_to_the_trials(noise: float) -> None:
    """It is fastest with two requests of 1 MiB; a copy of 4 GiB that never tried anything else is the measure."""
    times = []
    for tuner in (Tuner(depth=2, block=BLOCK), Tuner()):
        device = Device(0.0005, 1.8e9, noise, crowd=0.08)
        times.append(simulate(tuner, device, lambda now, moved: moved >= 8 << 30)[0])
    assert times[1] < times[0] * 1.05


def test_a_setting_that_was_chosen_by_chance_is_left_again() -> None:
    tuner, device = Tuner(), Device(0.02, 1e9)
    simulate(tuner, device, lambda now, moved: now > 2)
    assert tuner.setting.depth >= 8
    near = Device(0.0005, 1e9, crowd=0.1)  # the same device, from now on nearer
    seconds, _, _ = simulate(tuner, near, lambda now, moved: now > 60)
    assert seconds > 60
    assert tuner.setting.depth < 8


@pytest.mark.parametrize("fixed", [{"depth": 3, "block": 65536}, {"depth": 1}, {"block": 4 * MIB}, {"depth": 16}])
def test_what_is_given_stays(fixed: dict[str, Any]) -> None:
    tuner = Tuner(**fixed)
    _, _, settings = simulate(tuner, Device(0.02, 1e9), lambda now, moved: now > 10)
    for name, value in fixed.items():
        assert {getattr(setting, name) for setting in settings} == {value}


def test_two_buffers_for_each_request_halve_what_fits() -> None:
    tuner = Tuner(buffers=2)
    _, _, settings = simulate(tuner, Device(0.1, 1e10), lambda now, moved: now > 30)
    assert max(one.depth * one.block for one in settings) * 2 == MAX_BUFFERS


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"block": 0}, {"depth": 64}, {"block": 64 * MIB}, {"depth": -1}])
def test_what_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="threads"):
        Tuner(**wrong)


def test_work_that_was_disturbed_is_not_measured() -> None:
    tuner = Tuner()
    now = 0.0
    for _ in range(1000):
        now += 0.01
        tuner.finished(BLOCK, now)
        tuner.disturb()
    assert tuner.setting == Setting()


def test_when_nothing_helps_the_setting_rests() -> None:
    """Trials must be rare: each may cost something."""
    tuner, device = Tuner(), Device(0.0001, 1e9)
    trials = 0
    now, before = 0.0, tuner.setting
    while now < 40:
        now = device.answer(now, tuner.setting)
        tuner.finished(BLOCK, now)
        trials += tuner.setting not in (before, Setting())
        before = tuner.setting
    assert 3 <= trials <= 3 + 4 * 4
    assert 10 * tuning.WINDOW_SECONDS * len(tuning.FIRST_ROUND) <= tuning.REST_SECONDS


@pytest.mark.parametrize(("gain", "cached"), [(2.0, True), (1.3, True), (1.0, False), (0.6, False)])
@pytest.mark.parametrize("burst", [0, 64 * MIB])
def test_the_page_cache_is_used_where_it_gains(gain: float, cached: bool, burst: int) -> None:
    """What it takes at the speed of memory before a disk has to follow is no gain."""
    assert settled(Tuner(may_cache=True), gain, burst) is cached
    _, _, settings = simulate(Tuner(), Device(0.0005, 800e6, gain=gain), lambda now, moved: now > 30)
    assert not any(setting.cached for setting in settings), "an end cannot do it"


def test_the_page_cache_is_left_when_it_gains_no_more_and_taken_again_when_it_does() -> None:
    """It costs time of the processor, so it has to be worth it."""
    tuner = Tuner(may_cache=True)
    found = [settled(tuner, gain, began=began) for gain, began in ((2.0, 0), (0.9, 301), (2.0, 602))]
    assert found == [True, False, True]


def settled(tuner: Tuner, gain: float, burst: int = 0, began: float = 0.0) -> bool:
    """Work for 300 s; tell whether most of the later half goes through the cache, or most of it past it."""
    device = Device(0.0005, 800e6, crowd=0.1, gain=gain, burst=burst)
    for _ in range(2):
        device.through.clear()
        began, _, _ = simulate(tuner, device, lambda now, moved, end=began + 150: now > end, began)  # type: ignore[misc]
    shares = {cached: device.through[cached] / device.through.total() for cached in (True, False)}
    assert max(shares.values()) > 0.9
    return shares[True] > 0.5


def test_a_block_that_is_given_stays_past_the_cache_unless_it_is_large() -> None:
    for block, cached in ((BLOCK, False), (tuning.LARGEST, True)):
        tuner = Tuner(block=block, may_cache=True)
        _, _, settings = simulate(tuner, Device(0.0005, 800e6, gain=2.0), lambda now, moved: now > 3)
        assert {setting.block for setting in settings} == {block}
        assert any(setting.cached for setting in settings) is cached
