"""What a backend's service does in the place of another one of its cluster that is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from oslo_messaging.rpc import expose

from migrator.context import RequestContext
from migrator.db.models import Migration
from migrator.volume import runner, states

if TYPE_CHECKING:
    from migrator.db.api import Database

LOG = logging.getLogger(__name__)


class CleanUp:
    """The message by which an operator has the rows of a dead service worked on, for an endpoint to inherit."""

    _db: Database
    _run_migration: Callable[[str], None]

    def sweep(self, service: str) -> None:
        """Do what rows of the backend ``service`` ask for."""
        raise AssertionError("the endpoint has its own")

    @expose
    def clean_up(self, context: RequestContext, service: str) -> None:
        """Go on with what was left on the backend ``service``, whose pools this service has under the same names."""
        LOG.info("Cleaning up what was left on %s", service)
        self.sweep(service)
        left_there = Migration.source_host.startswith(f"{service}#", autoescape=True)
        for row in runner.unowned(self._db, left_there, Migration.step != states.FIRST_STEP):
            self._run_migration(row.id)
