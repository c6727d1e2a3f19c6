"""Two minutes of the soak, and that it would notice.

MIGRATOR_SOAK_SECONDS makes it longer or shorter, MIGRATOR_SOAK_SEED throws the same dice.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.plants import PLANTS, Plant
from tests.soak.soak import Soak
from tests.support.audit import told

#: Of wall time, for both deployments together.
SECONDS = float(os.environ.get("MIGRATOR_SOAK_SECONDS") or 120)


@pytest.mark.parametrize("deployment", PLANTS)
def test_nothing_is_violated(tmp_path: Path, deployment: str) -> None:
    """field.md pains 1 to 3 and hazards a to h at random: crash, cancel, the owner's requests, in any order."""
    seed = int(os.environ.get("MIGRATOR_SOAK_SEED") or random.randrange(2**32))
    print(f"MIGRATOR_SOAK_SEED={seed}")
    with PLANTS[deployment](tmp_path) as plant:
        soak = Soak(plant, seed)
        soak.run(SECONDS / len(PLANTS))
    print(soak.tally.table())
    assert not soak.violations, f"seed {seed}:{told(soak.violations)}"
    if SECONDS >= 60:
        assert soak.tally.count("migrate") > 10, "the users did next to nothing"
        assert soak.tally.count("blow") > 2, "next to nothing went wrong"


def _flip_a_byte(plant: Plant, path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(12345)
        file.write(b"\x01")


def _lose_the_object(plant: Plant, path: Path) -> None:
    path.unlink()


def _leave_an_object(plant: Plant, path: Path) -> None:
    path.with_name("volume-of-nobody").touch()


def _leave_a_mark(plant: Plant, path: Path) -> None:
    (path.parent / ".migrator-objects/volume-that-was").touch()


def _leave_a_file_in_the_making(plant: Plant, path: Path) -> None:
    path.with_name(".migrator-tmp-volume").touch()


DAMAGES: dict[str, tuple[Callable[[Plant, Path], None], str]] = {
    "another content": (_flip_a_byte, "holds"),
    "a lost object": (_lose_the_object, "a row names and there is not"),
    "an object of nobody": (_leave_an_object, "no row names"),
    "a mark of nobody": (_leave_a_mark, "a mark is left"),
    "a file in the making": (_leave_a_file_in_the_making, "no row names"),
}


def test_every_kind_of_damage_is_noticed(tmp_path: Path) -> None:
    """Each in a run of its own over the same service: what one run made is not in the next one's model."""
    with PLANTS["embedded"](tmp_path) as plant:
        volume_id = plant.rest().create(1)["id"]
        path = plant.audit.path(volume_id)
        _flip_a_byte(plant, path)
        for name, (damage, word) in DAMAGES.items():
            before = set(plant.audit.violations({volume_id: None}))
            soak = Soak(plant, seed=1, say=lambda line: None)
            wanted = {volume_id: "another"} if word == "holds" else {volume_id: None}
            damage(plant, path)
            found = set(plant.audit.violations(wanted)) - before
            assert any(word in each for each in found), (name, found)
            soak.run(0.1)
            assert any("not expected" in each for each in soak.violations), "a volume that no user made"
