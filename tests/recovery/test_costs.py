"""What a migration that nothing disturbs asks of the database: numbers that only a decision may raise.

What an empty volume's move takes is round trips: the machine itself does next to nothing, and each BEGIN ends in one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from migrator.context import service_context
from migrator.db.models import PoolGeneration
from migrator.volume import watch
from migrator.volume.states import End
from tests.recovery.world import DESTINATION, World

#: Statements by what they begin with, from the scheduler's claim to the end: those of all three services.
COSTS = {
    "host_copy": {"BEGIN": 14, "SELECT": 22, "UPDATE": 23, "INSERT": 8, "DELETE": 2},
    "assisted": {"BEGIN": 7, "SELECT": 14, "UPDATE": 15, "INSERT": 4, "DELETE": 2},
}


@pytest.mark.parametrize("plan", COSTS)
def test_a_migration_costs_a_fixed_number_of_statements(
    world: World, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.plant.scheduler, "_born", -math.inf)  # it has heard of all backends long ago
    for what in ("LOOK_SECONDS", "RECORD_SECONDS", "SIGN_SECONDS"):
        monkeypatch.setattr(watch, what, math.inf)
    world.plant.conf.set_override("copy_checkpoint_seconds", 1e6)
    counter = sa.insert(PoolGeneration).values(name=DESTINATION, generation=1)  # made by the first choice of a pool
    world.db.run(lambda session: session.execute(counter))
    migration_id = world.ask(plan)
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    with world.plant.instants.unwatched():
        sa.event.listen(world.db.engine, "before_cursor_execute", note)
        try:
            world.plant.scheduler.migrate(service_context(), migration_id=migration_id)
            world.runner.run(migration_id)
        finally:
            sa.event.remove(world.db.engine, "before_cursor_execute", note)
    world.ended(End.SUCCESS)
    assert Counter(statement.split()[0] for statement in sent) == COSTS[plan], "\n".join(sent)
