"""The RPC endpoint of a scheduler: picks pools, and reserves their space in the transaction that records the choice.

Pools are known from the backends' reports; what was placed since comes from the database at the moment of the choice
(db/usage.py).  Two schedulers that choose at once are told apart by the pool's counter: one of them decides again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import oslo_messaging as messaging
import sqlalchemy as sa
from oslo_db import exception as db_exc
from oslo_messaging.rpc import expose
from sqlalchemy.orm import Session

from migrator import errors
from migrator.backend_name import BackendName
from migrator.conf import Conf
from migrator.context import RequestContext, current_request_id, service_context
from migrator.db import messages, migrations, services, transitions, usage, volumes
from migrator.db.api import Database, clock, execute
from migrator.db.models import ExtraSpec, Migration, Volume, utcnow
from migrator.db.transitions import Outcome
from migrator.notifications import OFF, MigrationNews, Notifications
from migrator.rpc import VERSION, VolumeClient
from migrator.scheduler import explain
from migrator.scheduler.choose import Choice, Chooser
from migrator.scheduler.filters import Request, ServiceState
from migrator.scheduler.pools import Pool, PoolRegistry, Usage, view
from migrator.volume import runner, states
from migrator.volume.states import Direction, Event

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: A volume that waits this long for a pool lost its message.
FORGOTTEN = timedelta(seconds=10)
#: A migration that waits this long for a scheduler lost its message.
OVERDUE = timedelta(seconds=3)
#: Verdicts kept in a migration's row: those of every pool for two hundred pools, and a row of less than a megabyte.
KEPT_VERDICTS = 1000
#: Times that a choice is made again because another scheduler was faster.
CHOICES = 20
#: Filters that ask whether something more fits: what lies in the pool already is in its numbers.
FOR_NEWCOMERS = ("capacity", "different_place")
NOTHING_USED = Usage(provisioned_gib=0.0, reserved_gib=0.0, volumes=0)
#: Migrations that are worked on at once; the rest waits.  Their choices are made one after the other anyhow, and each
#: more takes a connection to the database, which costs more to open than all else that is done for a migration.
AT_ONCE = 4


class ReservationLost(Exception):
    """Another scheduler reserved on the pool since its usage was read."""


class SchedulerManager:
    """Decides where volumes go; every decision is kept with its reasons."""

    target = messaging.Target(version=VERSION)

    def __init__(self, conf: Conf, db: Database, volume_client: VolumeClient, news: Notifications = OFF) -> None:
        """``news`` is told of migrations that end here, because nothing fits."""
        self._migration_news = MigrationNews(db, news)
        self._conf = conf
        self._db = db
        self._volume = volume_client
        self._chooser = Chooser(conf)
        self._pools = PoolRegistry()
        self._news = threading.Condition()
        self._born = time.monotonic()
        # Choices of one process are made in turn: made at once they would only undo each other.
        self._one_choice = threading.Lock()
        self._owner = runner.new_owner()
        self._few = threading.BoundedSemaphore(AT_ONCE)

    # --- messages ---

    @expose
    def update_pools(self, context: RequestContext, report: dict[str, Any]) -> None:
        self._pools.update(report)
        with self._news:
            self._news.notify_all()

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def get_pools(self, context: RequestContext, detail: bool, type_id: str | None = None) -> list[dict[str, Any]]:
        """The pools as they were reported last; with ``type_id``, those that offer what the volume type asks for."""
        pools = self._pools.all()
        if type_id is not None:
            specs = self._db.read(lambda session: _extra_specs(session, type_id))
            pools = [pool for pool in pools if self._chooser.offers(pool, specs)]
        used = self._db.read(lambda session: usage.usage(session, _report_times(pools)))
        return [view(pool, _usage(used, pool), detail) for pool in sorted(pools, key=lambda pool: pool.name)]

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def check_pool(self, context: RequestContext, volume_id: str, type_id: str) -> str | None:
        """Return why the pool that a volume lies on does not do for a type, None: it does and nothing need be moved."""
        self._await_reports()
        return self._db.read(lambda session: self._why_not_stay(session, volume_id, type_id))

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def plan(self, context: RequestContext, volume_id: str, requested_host: str | None) -> dict[str, Any]:
        """Choose as for a migration of the volume, and reserve nothing; return what the choice was made of."""
        self._await_reports()
        return self._db.read(lambda session: self._told(session, volume_id, requested_host))

    @expose
    def create_volume(self, context: RequestContext, volume_id: str) -> None:
        """Choose a pool for a volume that is being created and send it there."""
        try:
            host = self._deciding(lambda session: self._place(session, volume_id))
        except errors.MigratorError as error:
            reason = error.message
            self._db.run(lambda session: _creation_failed(session, volume_id, reason))
            return
        if host is not None:
            self._volume.create_volume(context, host, volume_id)

    @expose
    def migrate(self, context: RequestContext, migration_id: str) -> None:
        """Pick the destination of a migration and hand it to the source's service."""
        with self._few:
            row = self._picked(migration_id)
        if row is None:
            return
        LOG.info(
            "Migration %s of volume %s: %s",
            row.id,
            row.volume_id,
            f"goes to {row.destination_host}" if row.end is None else f"{row.end}: {row.error_message}",
        )
        if row.end is not None:
            self._migration_news.ended(row)
        elif row.step != states.FIRST_STEP:
            self._volume.run_migration(context, row.source_host, row.id)

    def sweep(self, overdue: timedelta = OVERDUE) -> None:
        """Do what rows ask for and no message brought; a migration younger than ``overdue`` has it still under way."""
        forgotten = sa.or_(Migration.attempts > 0, Migration.created_at <= utcnow() - overdue)
        for row in runner.unowned(self._db, Migration.step == states.FIRST_STEP, forgotten):
            self.migrate(service_context(), migration_id=row.id)
        homeless = sa.select(Volume.id).where(
            Volume.status == "creating",
            Volume.host.is_(None),
            Volume.deleted_at.is_(None),
            Volume.created_at < utcnow() - FORGOTTEN,
        )
        for volume_id in self._db.read(lambda session: list(session.scalars(homeless))):
            self.create_volume(service_context(), volume_id=volume_id)

    def _picked(self, migration_id: str) -> Migration | None:
        """The migration with its destination, or turned back; None when it is not ours to pick for."""
        row = self._db.run(lambda session: self._claim(session, migration_id))
        if row is None:
            return None
        if row.direction == Direction.FORWARD.value:
            row = self._pick_or_fail(row)
        while row.end is None and row.owner == self._owner:  # nothing fits: turn back, which here is all
            undone, at = Outcome(Event.UNDONE), row
            row = self._db.run(lambda session: self._advance(session, at, undone))  # noqa: B023
        return row

    def _claim(self, session: Session, migration_id: str) -> Migration | None:
        """Take a migration that waits for its destination; one that is further on belongs to its source's service."""
        seen = migrations.glance(session, migration_id)
        if not migrations.is_at_scheduler(seen) or migrations.is_behind_another(session, seen):
            return None
        lease, dead = self._conf.migration_lease_seconds, runner.is_dead(seen.owner)
        took = migrations.claim(session, seen, self._owner, lease, owner_is_dead=dead)
        return migrations.get(session, migration_id) if took else None

    # --- choices ---

    def _await_reports(self) -> None:
        """Within one interval of the start, wait for the reports that were asked for from every backend that is up."""
        deadline = self._born + self._conf.report_interval
        if time.monotonic() >= deadline:
            return
        expected = {host for host, state in self._db.read(self._known)["services"].items() if state.up}

        def all_there() -> bool:
            return expected <= {pool.name.service for pool in self._pools.all()}

        with self._news:
            self._news.wait_for(all_there, deadline - time.monotonic())

    def _deciding(self, work: Callable[[Session], T]) -> T:
        """Run a choice with its reservation in one transaction, again where another scheduler was faster."""
        self._await_reports()
        for _ in range(CHOICES):
            try:
                with self._one_choice:
                    return self._db.run(work)
            except (ReservationLost, db_exc.DBDuplicateEntry):
                LOG.debug("another scheduler reserved at the same time, choosing again")
        raise errors.ServiceUnavailable(service="scheduler", reason=f"{CHOICES} choices were overtaken by others")

    def _pick_or_fail(self, row: Migration) -> Migration:
        """Pick; whatever goes wrong is written into the row, so that every migration ends."""
        error: errors.MigratorError
        if row.attempts > self._conf.migration_attempts:
            error = errors.TooManyAttempts(step=row.step, attempts=row.attempts - 1)
        else:
            try:
                return self._deciding(lambda session: self._pick(session, row))
            except (errors.LostOwnership, db_exc.DBError):
                raise
            except errors.MigratorError as failure:
                error = failure
            except Exception as failure:  # a filter's fault must end in the row, not in a thread
                LOG.exception("Migration %s: unexpected fault of the scheduler", row.id)
                error = errors.ServiceUnavailable(service="scheduler", reason=f"unexpected fault: {failure!r}")
        return self._db.run(lambda session: self._advance(session, row, Outcome(Event.FAILED, error=error)))

    def _pick(self, session: Session, migration: Migration) -> Migration:
        found = execute(session, _WISH, the_id=migration.volume_id).one_or_none()
        if found is None:
            raise errors.NotFound(kind="Volume", id=migration.volume_id)
        type_id, zone = found
        wish = (migration.size, migration.new_type_id or type_id, migration.source_host, migration.requested_host)
        choice = self._choose(session, self._move(session, zone, *wish))
        values: dict[str, Any] = {"verdicts": [verdict._asdict() for verdict in choice.verdicts[:KEPT_VERDICTS]]}
        if choice.pool is None:
            error = errors.NoValidBackend(reason=choice.reason())
            return self._advance(session, migration, Outcome(Event.FAILED, error=error, values=values))
        values |= {"destination_host": choice.pool.host, "destination_location": dict(choice.pool.location)}
        return self._advance(session, migration, Outcome(Event.DONE, values=values))

    def _move(
        self, session: Session, zone: str, size: int, type_id: str | None, source_host: str, host: str | None
    ) -> Request:
        """What a place is sought for when a volume of ``zone`` is moved, to ``host`` or, None, to wherever is best."""
        source = BackendName.parse(source_host)
        known = self._pools.get(source)
        return Request(
            size_gib=size,
            extra_specs=_extra_specs(session, type_id),
            # Who names no place did not ask for another zone (LP1883928); who names one may leave it.
            availability_zone=zone if host is None else None,
            source=source,
            source_location=dict(known.location) if known is not None else None,
            requested=BackendName.parse(host) if host else None,
            exclude=frozenset(),
            **self._known(session),
        )

    def _told(self, session: Session, volume_id: str, host: str | None) -> dict[str, Any]:
        """The choice that a migration of the volume would be, in words and numbers."""
        volume = volumes.get(session, volume_id)
        wish = (volume.availability_zone, volume.size, volume.volume_type_id, volume.host or "", host)
        request = self._move(session, *wish)
        candidates = self._candidates(session)
        choice = self._chooser.choose(candidates, request)
        return explain.tell(choice, candidates, self._chooser.weighers, request)

    def _why_not_stay(self, session: Session, volume_id: str, type_id: str) -> str | None:
        """Ask every filter that is not about newcomers; a backend that takes none keeps what it has."""
        volume = volumes.get(session, volume_id)
        here = BackendName.parse(volume.host or "")
        pool = self._pools.get(here)
        if pool is None:
            return f"no report of {here} has come from its backend"
        known = self._known(session)
        services_ = {host: replace(state, disabled=False, frozen=False) for host, state in known["services"].items()}
        request = Request(
            size_gib=0,
            extra_specs=_extra_specs(session, type_id),
            availability_zone=volume.availability_zone,
            source=None,
            source_location=None,
            requested=here,
            exclude=frozenset(),
            services=services_,
            now=known["now"],
        )
        for each in self._chooser.filters:
            reason = None if each.name in FOR_NEWCOMERS else each.against(pool, NOTHING_USED, request)
            if reason is not None:
                return f"{pool.host}: {each.name}: {reason}"
        return None

    def _place(self, session: Session, volume_id: str) -> str | None:
        volume = volumes.find(session, volume_id)
        if volume is None or volume.status != "creating" or volume.host is not None:
            return None
        request = Request(
            size_gib=volume.size,
            extra_specs=_extra_specs(session, volume.volume_type_id),
            availability_zone=volume.availability_zone,
            source=None,
            source_location=None,
            requested=None,
            exclude=frozenset(),
            **self._known(session),
        )
        choice = self._choose(session, request)
        if choice.pool is None:
            raise errors.NoValidBackend(reason=choice.reason())
        volumes.place(session, volume_id, services.place(session, choice.pool.host))
        return choice.pool.host

    def _choose(self, session: Session, request: Request) -> Choice:
        """Choose, and reserve on the pool chosen; raises ReservationLost."""
        generations = usage.pool_generations(session)  # before the usage: whatever changes later changes it too
        choice = self._chooser.choose(self._candidates(session), request)
        if choice.pool is not None:
            name = choice.pool.host
            if not usage.reserve(session, name, generations.get(name)):
                raise ReservationLost
        return choice

    def _candidates(self, session: Session) -> list[tuple[Pool, Usage]]:
        """Every pool as it was reported last, with what the database says of it."""
        pools = self._pools.all()
        used = usage.usage(session, _report_times(pools))
        return [(pool, _usage(used, pool)) for pool in pools]

    def _known(self, session: Session) -> dict[str, Any]:
        """Fields of a request that say what is known at this moment: the volume services, and the time."""
        found = services.glances(session)
        states_ = {row.host: _judged(row, self._conf.service_down_time) for row in found}
        return {"services": states_, "now": found[0].now if found else clock(session)}

    def _advance(self, session: Session, migration: Migration, outcome: Outcome) -> Migration:
        return transitions.advance(
            session,
            migration,
            outcome,
            attempts_allowed=self._conf.migration_attempts,
            retry_seconds=self._conf.migration_retry_seconds,
        )


_VOLUMES: sa.Table = Volume.__table__  # type: ignore[assignment]
#: What a volume says of the place that it may go to; built once (see db/api.execute).
_WISH = sa.select(_VOLUMES.c.volume_type_id, _VOLUMES.c.availability_zone).where(
    _VOLUMES.c.id == sa.bindparam("the_id"), _VOLUMES.c.deleted_at.is_(None)
)


def _judged(service: sa.Row[Any], down_after: float) -> ServiceState:
    age = max(0.0, service.now - service.heartbeat_at)
    return ServiceState(age <= down_after, service.disabled, service.disabled_reason, service.frozen, age)


def _extra_specs(session: Session, type_id: str | None) -> dict[str, str]:
    if type_id is None:
        return {}
    query = sa.select(ExtraSpec.key, ExtraSpec.value).where(ExtraSpec.type_id == type_id)
    return {key: value or "" for key, value in session.execute(query)}


def _report_times(pools: list[Pool]) -> dict[str, float]:
    return {pool.host: pool.reported_at for pool in pools}


def _usage(used: dict[str, usage.PoolUsage], pool: Pool) -> Usage:
    found = used.get(pool.host)
    if found is None:
        return Usage(provisioned_gib=0.0, reserved_gib=0.0, volumes=0)
    return Usage(found.provisioned_gib, found.reserved_gib, found.volumes)


def _creation_failed(session: Session, volume_id: str, reason: str) -> None:
    LOG.error("Volume %s cannot be created: %s", volume_id, reason)
    if volumes.update_where(session, volume_id, Volume.status == "creating", status="error"):
        volume = volumes.get(session, volume_id)
        messages.add(
            session,
            project_id=volume.project_id,
            request_id=current_request_id(),
            resource_uuid=volume_id,
            event="create",
            text=reason,
        )
