"""migrator-manage migration: compare the backends with the rows, and say that a machine is off for certain."""

from __future__ import annotations

import getpass
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import oslo_messaging as messaging
from oslo_db import exception as db_exc

from migrator import conf as config
from migrator import drivers, errors, rpc
from migrator.backend_name import BackendName
from migrator.context import service_context
from migrator.db import api, audit, fences, migrations, services
from migrator.db.audit import Finding, Kind, Names, Stock
from migrator.volume import inventory

if TYPE_CHECKING:
    from migrator.db.models import Migration

#: Exit codes of the audit.
CLEAN, FOUND, NOT_ASKED = 0, 1, 2
_LOCAL = "local"
#: Longer than a call may take by this, seconds, nobody is waited for.
PATIENCE_SECONDS = 1.0
Told = dict[str, Any] | errors.MigratorError


def add_commands(subparsers: Any) -> None:
    """Add the actions of ``migrator-manage migration``."""
    look = subparsers.add_parser("audit", help="compare what lies on the backends with the rows")
    look.add_argument("--repair", action="store_true", help="remove what a migration that is over certainly left")
    look.add_argument("--format", choices=["table", "json"], default="table")
    fence = subparsers.add_parser("fence", help="say that a machine whose copier may still write is off for certain")
    fence.add_argument("migration", nargs="*", help="migrations that wait for it; without any they are listed")
    fence.add_argument("--machine", metavar="HOST", help="all that wait for the machine of that name")
    fence.add_argument(
        "--i-know-the-machine-is-off",
        dest="is_off",
        action="store_true",
        help="the machine is off, or cut off from the storage: a copier that still writes destroys the volume",
    )


def run(conf: config.Conf) -> int:
    """Do the action that the command line names; return the exit code."""
    if conf.command.action == "fence":
        return _fence(conf)
    try:
        return _audit(conf)
    except errors.ConfigError:
        raise
    except (db_exc.DBError, errors.MigratorError) as error:
        print(f"migrator-manage: the audit could not be made: {' '.join(str(error).split())}", file=sys.stderr)
        return NOT_ASKED


# --- whom to ask -----------------------------------------------------------------------------------------------------


class Backends(Protocol):
    """Who knows what lies on the backends."""

    def ask(self, state: services.ServiceState) -> dict[str, Any]:
        """Return the inventory of a service's pools; raises MigratorError."""

    def remove(self, finding: Finding) -> None:
        """Have the owning service remove what a migration left; raises MigratorError."""


class Services:
    """The volume services that are up, over the message bus."""

    def __init__(self, conf: config.Conf) -> None:
        self._client = rpc.VolumeClient(rpc.transport(conf), conf)

    def ask(self, state: services.ServiceState) -> dict[str, Any]:
        if not state.up:
            reason = f"its last sign of life was {state.seconds_since_heartbeat:.0f} s ago"
            raise errors.ServiceUnavailable(service=state.service.host, reason=reason)
        return self._client.inventory(service_context(), state.service.host)

    def remove(self, finding: Finding) -> None:
        assert finding.migration_id is not None, "only what a migration owned is removed"
        self._client.remove_orphan(service_context(), finding.place, finding.migration_id, finding.name)


class Storage:
    """The storage of this configuration's backends itself, where all services are one process: only read."""

    def __init__(self, conf: config.Conf) -> None:
        self._conf = conf

    def ask(self, state: services.ServiceState) -> dict[str, Any]:
        place = BackendName.parse(state.service.host)
        if place.backend is None or place.host != self._conf.host or place.backend not in self._conf.enabled_backends:
            raise errors.ServiceUnavailable(service=str(place), reason="this configuration has no such backend")
        options = config.backend(self._conf, place.backend)
        driver = drivers.load(options.volume_driver or "")(str(place), options)
        if not driver.asked_unstarted:
            raise errors.ServiceUnavailable(service=str(place), reason="only its own process can tell what it holds")
        return inventory.take(driver)

    def remove(self, finding: Finding) -> None:
        raise AssertionError("refused before anything was looked at")


def _backends(conf: config.Conf) -> Backends:
    if messaging.TransportURL.parse(conf).transport != _LOCAL:
        return Services(conf)
    if conf.command.repair:
        reason = f"{_LOCAL}:// reaches no running service, so nothing can be removed; audit without --repair"
        raise errors.ConfigError(option="transport_url", reason=reason)
    return Storage(conf)


# --- the audit -------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What an audit has found, and who could not be asked, by name with the reason."""

    findings: list[Finding] = field(default_factory=list)
    not_asked: dict[str, str] = field(default_factory=dict)
    removed: list[Finding] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        if self.findings:
            return FOUND
        return NOT_ASKED if self.not_asked else CLEAN


def _audit(conf: config.Conf) -> int:
    db = api.connect(conf)
    try:
        backends = _backends(conf)
        report = _look(conf, db, backends)
        if report.findings:  # what is being made or removed at this moment has settled by then
            time.sleep(conf.migration_sweep_interval)
            again = _look(conf, db, backends)
            report = Report([one for one in again.findings if one in report.findings], again.not_asked)
        if conf.command.repair:
            _repair(db, backends, report)
    finally:
        db.dispose()
    print("\n".join(_json(report) if conf.command.format == "json" else _table(report)))
    return report.exit_code


def _look(conf: config.Conf, db: api.Database, backends: Backends) -> Report:
    """Ask every service, then read the rows; in this order, see db/audit.py."""
    report, stocks = Report(), dict[str, Stock]()
    states = db.read(lambda session: services.states(session, conf.service_down_time, binary=services.VOLUME))
    for host, told in _ask_all(backends, states, conf.rpc_step_timeout_seconds).items():
        if isinstance(told, errors.MigratorError):
            report.not_asked[host] = told.message
            continue
        for pool, values in told.items():
            if "error" in values:
                report.not_asked[f"{host}#{pool}"] = values["error"]
            else:
                objects, exports = frozenset(values["objects"]), frozenset(values["exports"])
                stocks[f"{host}#{pool}"] = Stock(objects, exports, values["place"])
    report.findings = db.read(lambda session: audit.look(session, Names.of(conf), stocks))
    return report


def _ask_all(backends: Backends, states: list[services.ServiceState], seconds: float) -> dict[str, Told]:
    """Ask every service at once; one that has not answered in that time, because the broker is away say, has failed."""
    told: dict[str, Told] = {}

    def ask(state: services.ServiceState) -> None:
        try:
            told[state.service.host] = backends.ask(state)
        except errors.MigratorError as error:
            told[state.service.host] = error

    # The bus waits for its broker for ever; what waits there must not keep the process from its end.
    threads = [threading.Thread(target=ask, args=(state,), daemon=True) for state in states]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds + PATIENCE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    answers = dict(told)
    for state in states:
        host, late = state.service.host, f"no answer within {seconds:g} s"
        answers.setdefault(host, errors.ServiceUnavailable(service=host, reason=late))
    return answers


def _repair(db: api.Database, backends: Backends, report: Report) -> None:
    """Remove what a migration that is over owned, and nothing else; what could not be removed stays in the report."""
    for finding in [one for one in report.findings if one.migration_id is not None]:
        try:
            if finding.kind is Kind.RANGES_LEFT:
                _forget(db, finding.name)
            elif _service(finding) in report.not_asked:
                continue
            else:
                backends.remove(finding)
        except errors.MigratorError as error:
            print(f"migrator-manage: {error}", file=sys.stderr)
        else:
            report.findings.remove(finding)
            report.removed.append(finding)


def _forget(db: api.Database, migration_id: str) -> None:
    db.run(lambda session: audit.forget_ranges(session, migration_id))


def _service(finding: Finding) -> str:
    return BackendName.parse(finding.place).service


def _json(report: Report) -> list[str]:
    values = {
        "findings": [asdict(one) for one in report.findings],
        "removed": [asdict(one) for one in report.removed],
        "not_asked": report.not_asked,
    }
    return [json.dumps(values, indent=2)]


def _table(report: Report) -> Iterator[str]:
    rows = [("WHAT", "WHERE", "NAME"), *((str(one.kind), one.place, one.name) for one in report.findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row, finding in zip(rows, [None, *report.findings], strict=True):
        if report.findings:
            yield f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}"
        if finding is not None:
            yield f"    {finding.detail}: {finding.advice}"
    for finding in report.removed:
        yield f"removed: {finding.name} {finding.place}".rstrip()
    for name, reason in report.not_asked.items():
        yield f"not asked: {name}: {reason}"
    if not report.findings:
        yield "Nothing is wrong where it was looked." if report.not_asked else "Nothing is wrong."


# --- the fence -------------------------------------------------------------------------------------------------------


def _fence(conf: config.Conf) -> int:
    """Forget the copiers of a machine that is off; list them where nothing was chosen or it was not said to be off."""
    db = api.connect(conf)
    try:
        waiting = db.read(fences.unfenced)
        chosen = _chosen(db, waiting, conf.command.migration, conf.command.machine)
        if chosen and conf.command.is_off:
            return max(_declare(db, row) for row in chosen)
    finally:
        db.dispose()
    for row in chosen or waiting:
        print(f"migration {row.id} at {row.step}: {_copier(row)}")
    if chosen:
        print("Nothing is done without --i-know-the-machine-is-off.")
    return FOUND if waiting else CLEAN


def _chosen(db: api.Database, waiting: list[Migration], ids: Sequence[str], machine: str | None) -> list[Migration]:
    """Return the migrations that were named one by one or by their machine; raises Conflict or NotFound."""
    by_id = {row.id: row for row in waiting}
    for id_ in ids:
        if id_ not in by_id:
            row = db.read(lambda session, id_=id_: migrations.get(session, id_))  # type: ignore[misc]
            state = f"ended {row.end}" if row.end else "is being worked on" if row.worker else "has no copier recorded"
            raise errors.Conflict(reason=f"Migration {id_} waits for no machine: it {state}.")
    return [row for row in waiting if row.id in ids or (machine and (row.worker or {}).get("host") == machine)]


def _declare(db: api.Database, row: Migration) -> int:
    why = f"{_copier(row)} was declared off by {getpass.getuser()}"
    done = db.run(lambda session: fences.declare_dead(session, row, why))
    print(f"migration {row.id}: {why if done else 'was claimed at the same moment; look again'}")
    return CLEAN if done else FOUND


def _copier(row: Migration) -> str:
    worker = row.worker or {}
    return f"process {worker.get('pid')} on {worker.get('host') or 'a machine of unknown name'}"
