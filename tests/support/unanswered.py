"""Commits that the database server does, and whose answer is lost on its way."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import sqlalchemy as sa


@contextlib.contextmanager
def answers_lost(engine: sa.Engine, times: int = 1) -> Iterator[list[int]]:
    """Cut the connection behind the next ``times`` commits of the block; gives one element for each that was cut."""
    cut: list[int] = []

    @sa.event.listens_for(engine, "commit")
    def on_commit(connection: sa.Connection) -> None:
        if len(cut) == times:
            return
        cut.append(1)
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.commit()
        with contextlib.closing(driver.cursor()) as cursor:
            cursor.execute("SELECT 1")  # some drivers send nothing where there is nothing to be committed
        number = driver._sock.fileno() if hasattr(driver, "_sock") else driver.fileno()
        with socket.socket(fileno=os.dup(number)) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    try:
        yield cut
    finally:
        sa.event.remove(engine, "commit", on_commit)
