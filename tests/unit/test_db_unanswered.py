"""A commit whose answer is lost: done once, and nobody is told that it was refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exc
from sqlalchemy.orm import Session

from migrator import errors
from migrator.db import volumes
from migrator.db.api import CommitUnanswered, Database
from migrator.db.models import Migration
from migrator.db.transitions import Outcome
from migrator.volume.runner import Runner, Settings, unowned
from migrator.volume.states import Direction, Event
from tests.conftest import Kept, open_database
from tests.support import rows
from tests.support.unanswered import answers_lost


@pytest.fixture(params=["mariadb", "postgresql"])
def server_db(request: pytest.FixtureRequest, tmp_path: Path, kept: Kept) -> Iterator[Database]:
    """An empty database of each kind that is reached over a connection."""
    yield from open_database(request.param, tmp_path, kept)


def name_of(db: Database, volume_id: str) -> str | None:
    return rows.volume(db, volume_id).display_name


@pytest.mark.parametrize("again", [True, False])
def test_what_was_committed_is_there_and_nothing_is_done_twice_unless_that_is_wanted(
    server_db: Database, again: bool
) -> None:
    volume_id = rows.add_volume(server_db)
    names: list[str | None] = []

    def work(session: Session) -> None:
        names.append(volumes.get(session, volume_id).display_name)
        volumes.update_where(session, volume_id, display_name="new")

    with answers_lost(server_db.engine) as cut:
        if again:
            server_db.run(work)
        else:
            with pytest.raises(CommitUnanswered):
                server_db.run(work, if_unanswered=False)
    assert cut
    assert name_of(server_db, volume_id) == "new"
    assert names[1:] == (["new"] if again else [])


def test_a_connection_that_is_lost_before_the_commit_changes_nothing_and_is_made_anew(server_db: Database) -> None:
    volume_id, tries = rows.add_volume(server_db), []

    def work(session: Session) -> None:
        tries.append(1)
        volumes.update_where(session, volume_id, display_name=f"try {len(tries)}")
        if len(tries) == 1:
            raise db_exc.DBConnectionError(sa.exc.OperationalError("x", None, Exception("lost on purpose")))

    server_db.run(work, if_unanswered=False)
    assert name_of(server_db, volume_id) == "try 2"


def test_a_step_is_done_again_by_nobody_when_the_answer_to_its_end_is_lost(server_db: Database) -> None:
    """The runner believes that it has lost the row, and stops; its own next sweep goes on with what is its own."""
    row = rows.add_migration(server_db, rows.add_volume(server_db))
    rows.add_services(server_db)
    server_db.run(
        lambda s: s.execute(sa.update(Migration).values(step="verify_copy", destination_host=rows.DESTINATION))
    )
    done: list[str] = []
    with contextlib.ExitStack() as ends:

        def step(migration: Migration) -> Outcome:
            done.append(migration.step)
            ends.enter_context(answers_lost(server_db.engine))
            return Outcome(Event.DONE)

        functions = {(each, Direction.FORWARD): step for each in ("verify_copy", "disconnect")}
        settings = Settings(lease_seconds=30, sweep_seconds=5, attempts=3, retry_seconds=0, parallel=1)
        runner = Runner(server_db, functions, lambda: sa.true(), settings)
        with pytest.raises(errors.LostOwnership):
            runner.run(row.id)
    now = rows.migration(server_db, row.id)
    assert (done, now.step, now.owner) == (["verify_copy"], "disconnect", runner.owner)
    assert [each.id for each in unowned(server_db, ours=runner.owner)] == [row.id], "the next sweep goes on with it"
