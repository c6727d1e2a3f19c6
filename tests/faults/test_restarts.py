"""Broker and database killed while migrations start, copy and end, and started again: servers of the tests' own.

What a proxy cannot show: the broker has forgotten every queue of answers, and the database recovers from its log.
They are down for as long as in an outage; MIGRATOR_FAULT_OUTAGE_SECONDS makes that longer, 30 s say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import pytest

from tests.faults.test_outages import survives
from tests.support.bed import Bed
from tests.support.servers import Server, mariadb, rabbitmq

#: What is killed.
KILLED = {"broker": ("broker",), "database": ("database",), "both": ("broker", "database")}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bed, Mapping[str, Server]]]:
    """A deployment on servers that nobody else uses."""
    directory = tmp_path_factory.mktemp("own")
    with rabbitmq(directory / "broker") as (broker, broker_url), mariadb(directory / "db") as (database, database_url):
        opened = Bed(directory, database_url, broker_url)
        try:
            yield opened, {"broker": broker, "database": database}
        finally:
            opened.close()


@pytest.mark.parametrize("name", KILLED)
def test_servers_are_killed_and_started_again(
    own: tuple[Bed, Mapping[str, Server]], chance: random.Random, name: str
) -> None:
    """field.md part 5: what was lost with the broker, or not answered by the database, was never gone on with."""
    bed, servers = own
    killed = [servers[each] for each in KILLED[name]]

    def away() -> None:
        for server in killed:
            server.kill()

    def back() -> None:
        for server in killed:
            server.start()

    survives(bed, chance, f"{name} killed", away, back)
