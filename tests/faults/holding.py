"""Migrations held at chosen steps by the database itself: a row that is marked cannot leave its step.

A trigger lets the UPDATE that ends the step wait for a lock which the test has.  So a kill meets each of many
migrations at the step it was chosen for: in the work of a long step, or between that of a short one and its record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import sqlalchemy as sa

_LOCK = "migrator-tests-hold"
#: A service waits for its database so long, and gives up the statement: nobody is to be held for longer.
SECONDS = 20
_TABLE = "CREATE TABLE held (volume_id VARCHAR(36) PRIMARY KEY, plan VARCHAR(32) NOT NULL, step VARCHAR(32) NOT NULL)"
_TRIGGER = f"""CREATE TRIGGER held_at_a_step BEFORE UPDATE ON migrations FOR EACH ROW
IF (NEW.step <> OLD.step OR (NEW.`end` IS NOT NULL AND OLD.`end` IS NULL)) AND EXISTS (
    SELECT 1 FROM held WHERE volume_id = OLD.volume_id AND step = OLD.step
    AND (plan = OLD.plan OR OLD.step = 'pick_destination')
) THEN
    SET @held = GET_LOCK(CONCAT(DATABASE(), '{_LOCK}'), {SECONDS});
    SET @held = RELEASE_LOCK(CONCAT(DATABASE(), '{_LOCK}'));
END IF"""


def prepare(engine: sa.Engine) -> None:
    """Add the trigger to a deployment's database; without marks it does nothing."""
    with engine.connect() as connection:
        connection.exec_driver_sql(_TABLE)
        connection.exec_driver_sql(_TRIGGER)


@contextlib.contextmanager
def holding(engine: sa.Engine, targets: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Hold the migrations of these volumes (id → plan and step) for the time of the block."""
    insert = sa.text("INSERT INTO held VALUES (:volume_id, :plan, :step)")
    rows = [{"volume_id": volume_id, "plan": plan, "step": step} for volume_id, (plan, step) in targets.items()]
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DO GET_LOCK(CONCAT(DATABASE(), '{_LOCK}'), {SECONDS})")
        connection.execute(insert, rows)
        try:
            yield
        finally:
            # First the lock: whoever waits for it may have locked the marks.
            connection.exec_driver_sql(f"DO RELEASE_LOCK(CONCAT(DATABASE(), '{_LOCK}'))")
            connection.exec_driver_sql("DELETE FROM held")
