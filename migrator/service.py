"""Start and stop what a process serves; the only file that knows eventlet.

A service is built before the process forks and holds nothing but its configuration; ``start`` opens the rest.  Nothing
is ever monkey-patched: eventlet's WSGI server holds the clients, slow and idle ones cheaply, in one native thread; it
reads the body, bounded, and the application then runs in native threads.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from oslo_db import exception as db_exc
from oslo_service.backend.base import ServiceBase

from migrator import compute, drivers, errors, notifications, rpc
from migrator import conf as config
from migrator.backend_name import BackendName
from migrator.context import service_context
from migrator.db import api as db_api
from migrator.db import migrations, services
from migrator.db.models import Migration

LOG = logging.getLogger(__name__)

#: Seconds that a service has to end cleanly.
GRACE_SECONDS = 8
#: Seconds between two tries to start a backend whose storage is not there.
DRIVER_RETRY_SECONDS = 5.0
#: An idle or stalled client is dropped after this, seconds.
CLIENT_SECONDS = 75


class Service(ServiceBase):  # type: ignore[misc]
    """One thing that a process serves; oslo.service calls start, wait, stop and reset."""

    name = "service"

    def __init__(self, conf: config.Conf) -> None:
        self.conf = conf
        #: False where the process serves more, and says that it is ready once all of it is.
        self.alone = True
        self.stopped = threading.Event()
        self.ready = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Open everything and begin to serve; returns when ready."""
        gc.enable()
        self._open()
        # What is loaded by now stays: the collector need not look at it each time that it looks at everything.
        gc.collect()
        gc.freeze()
        self.ready.set()
        LOG.info("%s %s", self.name, "is ready" if self.alone else "has started")

    def wait(self) -> None:
        self.stopped.wait()

    def stop(self) -> None:
        """End within GRACE_SECONDS; work that takes longer is given up and resumed by the next start."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        if self.ready.is_set():
            self._close()
        LOG.info("%s has stopped", self.name)

    def reset(self) -> None:
        """Nothing is re-read on SIGHUP."""

    def _open(self) -> None:
        raise AssertionError("each service opens something")

    def _close(self) -> None:
        raise AssertionError("each service closes what it opened")

    def _every(self, seconds: float, what: str, work: Callable[[], None]) -> None:
        """Do ``work`` in a thread of its own, now and every ``seconds``; a fault is logged and the next turn comes."""

        def loop() -> None:
            while not self.stopped.is_set():
                try:
                    work()
                except db_exc.DBError as error:
                    LOG.error("%s: %s: the database does not answer: %s", self.name, what, error)
                except errors.MigratorError as error:
                    LOG.error("%s: %s: %s", self.name, what, error)
                except Exception:
                    LOG.exception("%s: %s failed", self.name, what)
                self.stopped.wait(seconds)

        thread = threading.Thread(target=loop, name=what, daemon=True)
        self._threads.append(thread)
        thread.start()


class VolumeService(Service):
    """The volume service of one backend."""

    def __init__(self, conf: config.Conf, backend: str) -> None:
        super().__init__(conf)
        self.host = str(BackendName(conf.host, backend))
        self.name = f"migrator-volume {self.host}"
        self.options = config.backend(conf, backend)
        #: Built here, so that a wrong configuration ends the process before anything is served.
        self.driver = drivers.load(self.options.volume_driver or "")(self.host, self.options)
        self.compute = compute.load(conf)
        self._report_now = threading.Event()
        #: Services that are down and whose migrations are ours for as long, as the last sweep found.
        self._standing_in_for: list[str] = []

    def _open(self) -> None:
        from migrator.volume import copiers, runner
        from migrator.volume.manager import VolumeManager
        from migrator.volume.migration import Steps

        self.db = db_api.connect(self.conf)
        self._start_driver()
        self.bus = rpc.transport(self.conf)
        self._scheduler = rpc.SchedulerClient(self.bus, self.conf)
        self.copiers = copiers.CopierPool(self.conf.copy_workers)
        volume = rpc.VolumeClient(self.bus, self.conf)
        steps = Steps(self.conf, self.db, self.driver, volume, self.copiers, self.compute)
        self.news = notifications.Notifications(self.conf, f"volume.{self.host}")
        self._migration_news = notifications.MigrationNews(self.db, self.news)
        settings, began = runner_settings(self.conf), self._migration_news.began
        self.runner = runner.Runner(self.db, steps.functions(), self._mine, settings, self._migration_left, began)
        steps.stopping = self.runner.stopping
        self.manager = VolumeManager(
            self.conf, self.db, self.driver, self.runner.submit, self._report_now.set, self.compute, self.news, volume
        )
        self._beat()
        self.server = rpc.server(self.bus, rpc.VOLUME_TOPIC, self.host, [self.manager])
        self.server.start()
        self._send_report()
        self.runner.start()
        self._every(self.conf.report_interval, "sign of life", self._beat)
        self._every(0.0, "pool report", self._report_when_due)
        self._every(self.conf.migration_sweep_interval, "volume sweep", lambda: self.manager.sweep(self.host))
        if self.news.is_on:
            self._every(self.conf.notify_progress_seconds, "progress news", self._tell_progress)

    def _tell_progress(self) -> None:
        self._migration_news.progress(self.runner.active())

    def _start_driver(self) -> None:
        """Start the driver, waiting for storage that is not there yet: the service counts as down until then."""
        while not self.stopped.is_set():
            try:
                self.driver.start()
                return
            except errors.ConfigError:
                raise
            except errors.MigratorError as error:
                LOG.error("%s cannot start: %s; trying again in %g s", self.name, error, DRIVER_RETRY_SECONDS)
                self.stopped.wait(DRIVER_RETRY_SECONDS)

    def _close(self) -> None:
        self.runner.stop()
        self.server.stop()
        self.manager.close()
        self.copiers.shut_down()
        self._report_now.set()
        self.news.close()
        self.bus.cleanup()
        self.db.dispose()

    def _zone(self) -> str:
        return str(self.options.backend_availability_zone or self.conf.storage_availability_zone)

    def _beat(self) -> None:
        reaches = self.options.shared_access
        services.beat(self.db, self.host, services.VOLUME, self._zone(), self.conf.cluster, reaches)

    def _mine(self) -> Any:
        """Migrations whose source is this backend, once their destination is picked; and those of who is down.

        Nothing is handed back by force: when the owner returns, it goes on with what nobody holds.
        """
        from migrator.volume import states

        ours = Migration.source_host.startswith(self.host + "#", autoescape=True)
        pools = [f"{away}#{pool}" for away in self._away() for pool in self.driver.pools()]
        return (Migration.step != states.FIRST_STEP) & (ours | Migration.source_host.in_(pools) if pools else ours)

    def _away(self) -> list[str]:
        """Services that are down and whose storage is reached from here; the log says when that changes."""
        down_after = self.conf.service_down_time
        away = self.db.read(lambda session: services.stands_in_for(session, self.host, down_after))
        if away != self._standing_in_for:
            LOG.warning("%s goes on with the migrations of %s", self.name, ", ".join(away) or "nobody else any more")
            self._standing_in_for = away
        return away

    def _migration_left(self, migration: Migration) -> None:
        """A migration of ours is over: its space is free again, or taken for good."""
        if migration.end is None:
            return
        self._migration_news.ended(migration)
        self._report_now.set()
        if migration.end == "cancelled":  # perhaps for another one, which has waited for this
            for waiting in self.db.read(lambda session: migrations.under_way(session, migration.volume_id)):
                self._scheduler.migrate(service_context(), waiting)

    def _report_when_due(self) -> None:
        self._report_now.wait(self.conf.report_interval)
        self._report_now.clear()
        if not self.stopped.is_set():
            self._send_report()
            self.stopped.wait(0.1)  # many ends at once make one report

    def _send_report(self) -> None:
        """Tell every scheduler what the pools are like; the time is taken before the driver looks."""
        reported_at = self.db.now()
        self._scheduler.update_pools(
            {
                "host": self.host,
                "reported_at": reported_at,
                "availability_zone": self._zone(),
                "volume_backend_name": self.options.volume_backend_name,
                "reserved_percentage": self.options.reserved_percentage,
                "max_over_subscription_ratio": self.options.max_over_subscription_ratio,
                "driver": self.options.volume_driver,
                "pools": [dict(pool.__dict__) for pool in self.manager.report()],
            }
        )


def runner_settings(conf: config.Conf) -> Any:
    """The runner's settings from the options."""
    from migrator.volume import runner

    return runner.Settings(
        lease_seconds=conf.migration_lease_seconds,
        sweep_seconds=conf.migration_sweep_interval,
        attempts=conf.migration_attempts,
        retry_seconds=conf.migration_retry_seconds,
        parallel=conf.max_migrations_per_backend,
    )


class SchedulerService(Service):
    """A scheduler."""

    name = "migrator-scheduler"

    def _open(self) -> None:
        from migrator.scheduler.manager import SchedulerManager

        self.db = db_api.connect(self.conf)
        self.bus = rpc.transport(self.conf)
        volume = rpc.VolumeClient(self.bus, self.conf)
        self.news = notifications.Notifications(self.conf, f"scheduler.{self.conf.host}")
        self.manager = SchedulerManager(self.conf, self.db, volume, self.news)
        self._beat()
        self.server = rpc.server(self.bus, rpc.SCHEDULER_TOPIC, self.conf.host, [self.manager])
        self.server.start()
        volume.report_pools()
        self._every(self.conf.report_interval, "sign of life", self._beat)
        self._every(self.conf.migration_sweep_interval, "sweep", self.manager.sweep)

    def _beat(self) -> None:
        services.beat(self.db, self.conf.host, services.SCHEDULER, self.conf.storage_availability_zone)

    def _close(self) -> None:
        self.server.stop()
        self.news.close()
        self.bus.cleanup()
        self.db.dispose()


class ApiService(Service):
    """The REST API on a socket that was bound before the process forked."""

    name = "migrator-api"

    def __init__(self, conf: config.Conf, listener: socket.socket) -> None:
        super().__init__(conf)
        self._listener = listener

    def _open(self) -> None:
        self.db = db_api.connect(self.conf)
        self.bus = rpc.transport(self.conf)
        application = self.application()
        self._wake_read, self._wake_write = os.pipe()
        self._threads.append(threading.Thread(target=self._serve, args=(application,), name="http", daemon=True))
        self._threads[-1].start()

    def application(self) -> Callable[..., Iterable[bytes]]:
        """The WSGI application with its own database pool and bus."""
        from migrator.api import app

        outbox = rpc.Outbox(self.bus)
        scheduler = rpc.SchedulerClient(self.bus, self.conf, outbox)
        self.news = notifications.Notifications(self.conf, f"api.{self.conf.host}")
        return app.build(self.conf, self.db, scheduler, rpc.VolumeClient(self.bus, self.conf, outbox), self.news)

    def _close(self) -> None:
        self.news.close()
        os.write(self._wake_write, b".")
        self._threads[-1].join(GRACE_SECONDS / 2)
        self.bus.cleanup()
        self.db.dispose()

    def _serve(self, application: Callable[..., Iterable[bytes]]) -> None:
        import eventlet
        import eventlet.hubs
        import eventlet.wsgi
        from eventlet import tpool
        from eventlet.greenio import GreenSocket

        tpool.set_num_threads(self.conf.osapi_volume_threads)
        edge = _Edge(application, self.conf.osapi_max_request_body_size, tpool.execute)
        server = eventlet.spawn(
            eventlet.wsgi.server,
            GreenSocket(self._listener.dup()),
            edge,
            log_output=False,
            keepalive=True,
            socket_timeout=CLIENT_SECONDS,
            debug=False,
        )
        eventlet.hubs.trampoline(self._wake_read, read=True)
        server.kill()
        eventlet.sleep(0.1)  # answers under way go out


class _Edge:
    """Between the HTTP server and the application: the body is read by the former, all else runs in native threads."""

    def __init__(self, application: Callable[..., Iterable[bytes]], limit: int, execute: Callable[..., Any]) -> None:
        self._application = application
        self._limit = limit
        self._execute = execute

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # One byte more than allowed is enough for the application to refuse it.
        body = environ["wsgi.input"].read(self._limit + 1) if _has_body(environ) else b""
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        status, headers, chunks = self._execute(self._run, environ)
        if len(body) > self._limit:
            headers = [*headers, ("Connection", "close")]
        start_response(status, headers)
        return chunks  # type: ignore[no-any-return]

    def _run(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], list[bytes]]:
        answer: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            answer[:] = [status, headers]

        chunks = self._application(environ, start_response)
        try:
            body = list(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        return answer[0], answer[1], body


def _has_body(environ: dict[str, Any]) -> bool:
    return bool(environ.get("CONTENT_LENGTH") not in (None, "", "0") or environ.get("HTTP_TRANSFER_ENCODING"))


def listen(conf: config.Conf) -> socket.socket:
    """Bind the API's address; raises ConfigError where that cannot be, or must not be, served."""
    address, port = str(conf.osapi_volume_listen), int(conf.osapi_volume_listen_port)
    if conf.auth_strategy == "noauth" and not _is_loopback(address) and not conf.noauth_beyond_loopback:
        raise errors.ConfigError(
            option="auth_strategy",
            reason=f"noauth on {address} would make everybody an administrator; use keystone, listen on 127.0.0.1, "
            "or set noauth_beyond_loopback",
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise errors.ConfigError(
            option="osapi_volume_listen", reason=f"cannot listen on {address}:{port}: {error.strerror or error}"
        ) from error
    listener.setblocking(False)
    return listener


def _is_loopback(address: str) -> bool:
    return address in ("localhost", "::1") or address.startswith("127.")
