"""SIGSTOP: a service that stands still for longer than its lease, or than its peers wait for it, and then goes on."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.support.bed import Bed
from tests.support.waiting import until

_EXPIRED = "SELECT 1 FROM migrations WHERE id = :id AND lease_until < UNIX_TIMESTAMP(SYSDATE(6))"
_ATTEMPTS = "SELECT 1 FROM migration_steps WHERE migration_id = :id AND step = :step AND result = 'failed'"


def forget(bed: Bed, volume_id: str) -> None:
    """Make room for the next test."""
    bed.rest.delete(volume_id)
    del bed.wanted[volume_id]
    bed.settle()


def done_once(bed: Bed, migration_id: str) -> None:
    """Fail if any step was done twice: a late runner would have repeated what its successor did."""
    query = "SELECT step, direction FROM migration_steps WHERE migration_id = :id AND result = 'done'"
    done = Counter((row["step"], row["direction"]) for row in bed.audit.rows(query, id=migration_id))
    assert not [step for step, count in done.items() if count > 1], done


@pytest.mark.parametrize("step", ["create_destination", "copy_data", "verify_copy"])
def test_the_sources_service_stands_still_past_its_lease(shared: Bed, chance: random.Random, step: str) -> None:
    """A paused process that wakes up behind its lease must not act twice: the lease is judged by the database."""
    volume_id = shared.volume(chance, 200)
    row = shared.copying(volume_id, step)
    with shared.stopped("hosta"):
        until(lambda: shared.audit.rows(_EXPIRED, id=row["id"]), "its lease is over", 30, pause=0.05)
    shared.settle()
    ended = shared.audit.newest(volume_id)
    assert (ended["id"], ended["end"]) == (row["id"], "success"), ended
    done_once(shared, row["id"])
    forget(shared, volume_id)


@pytest.mark.parametrize(("step", "before"), [("create_destination", ""), ("disconnect", "verify_copy")])
@pytest.mark.parametrize("patient", [True, False], ids=["one attempt fails", "every attempt fails"])
def test_the_destinations_service_stands_still_in_a_call(
    shared: Bed, chance: random.Random, step: str, before: str, patient: bool
) -> None:
    """field.md hazard b: what answered after the timeout was forgotten on its backend."""
    volume_id = shared.volume(chance, 150)
    if before:
        shared.copying(volume_id, before)
    with shared.stopped("hostb"):
        if not before:
            assert shared.rest.migrate(volume_id, shared.other(volume_id), force_host_copy=True)[0] == 202
        row = shared.audit.newest(volume_id)

        def noticed() -> bool:
            if not patient:
                return bool(shared.audit.migration(row["id"])["end"])
            return bool(shared.audit.rows(_ATTEMPTS, id=row["id"], step=step))

        until(noticed, "the caller noticed", 60, pause=0.05)
    shared.settle()
    ended = shared.audit.migration(row["id"])
    assert ended["end"] == ("success" if patient else "error"), ended
    done_once(shared, row["id"])
    forget(shared, volume_id)


def test_the_destinations_service_stands_still_when_an_export_is_asked_for(shared: Bed, chance: random.Random) -> None:
    volume_id = shared.volume(chance, 200)
    row = shared.copying(volume_id, "copy_data")
    shared.kill("hosta")
    step = shared.audit.migration(row["id"])["step"]
    with shared.stopped("hostb"):
        shared.start("hosta")
        shared.ready("hosta")
        until(lambda: shared.audit.rows(_ATTEMPTS, id=row["id"], step=step), "the caller noticed", 60, pause=0.05)
    shared.settle()
    assert shared.audit.migration(row["id"])["end"] == "success"
    forget(shared, volume_id)
