"""Volumes of this host for copiers of others: each is served over NBD by a process of its own, for one copy.

A driver says how its object is reached on this machine.  Whoever asks from another machine is answered here: with the
address of a server that serves just this object, under a name that nobody can guess, and with TLS to nobody but who
has the key or a certificate.  Rules:

 1. An export is made for one peer and one use.  The next request for the same migration ends it first.
 2. It lives no longer than its use: it ends when it is revoked, when the sweep finds that nobody holds the migration
    any more or that its copy is over, and when the service ends, in whatever way.  What is left all the same is killed
    before the next service makes an export or says that one is ended.
 3. It is ended by SIGKILL, and over when the process is gone: no byte is written after that.
 4. Keys are made anew for each export, lie in files of a private directory, and go to the one peer in the answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import logging
import os
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from migrator import errors, machine
from migrator.conf import Conf
from migrator.db.api import Database, now_seconds
from migrator.db.models import Migration
from migrator.drivers.base import Connection
from migrator.volume import export_server
from migrator.volume.export_server import PortTaken, Server, Spec
from migrator.volume.states import Direction

LOG = logging.getLogger(__name__)

#: Steps during which a copier may use the export.
STEPS = ("create_destination", "copy_data", "verify_copy")
#: Seconds between two looks whether a volume outgrew what its pool may hold.
LIMIT_SECONDS = 0.25
#: TEST-NET of RFC 5737: asking which way it lies sends nothing.
_SOMEWHERE = ("192.0.2.1", 9)


class Exports:
    """The servers of one backend's service."""

    def __init__(self, conf: Conf, service: str) -> None:
        """``service``: host@backend.  Nothing is touched before the first sweep or offer."""
        self._conf = conf
        self._service = service
        self._lock = threading.Lock()
        #: By the id of the migration that they serve.
        self._servers: dict[str, Server] = {}
        #: Migrations whose destination outgrew its pool, until they ask again.
        self._full: dict[str, str] = {}
        self._is_prepared = False
        # The kernel kills a server when the thread that started it ends, so one thread starts them all and lives on.
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix="nbd-exports")

    @property
    def are_possible(self) -> bool:
        """True if the programs are installed, so that an export to another machine can be made, and fenced."""
        try:
            export_server.find_programs(self._conf.nbd_server)
        except errors.ExportImpossible:
            return False
        return True

    # --- one export ---

    def offer(self, migration_id: str, connection: Connection, peer: str | None) -> Connection:
        """Return how the machine ``peer`` reaches what is connected here; None: it is this one.

        Raises ExportImpossible, NoSpace, SizeMismatch, or DriverError, for instance when no port is free.
        """
        self.revoke(migration_id)
        if peer in (None, connection.machine) or connection.kind != "file":
            return connection
        assert peer is not None
        if (full := self._full.pop(migration_id, None)) is not None:
            raise errors.NoSpace(where=self._service, reason=full)
        server = self._start(self._spec(connection))
        with self._lock:
            earlier = self._servers.get(migration_id)
            self._servers[migration_id] = server
        if earlier is not None:  # two requests at once: the later one counts
            earlier.kill()
        if connection.limit is not None:
            self._watch_limit(migration_id, server, connection.limit)
        LOG.info("Migration %s: process %d serves its destination on %s", migration_id, server.pid, _place(server))
        return _answer(connection, server, peer)

    def revoke(self, migration_id: str) -> None:
        """End the export of a migration, if there is one: nobody writes when this returns; raises DriverError."""
        self._prepare()  # it may be one that an earlier process made
        with self._lock:
            server = self._servers.get(migration_id)
        if server is not None:
            self._end(migration_id, server)

    def _end(self, migration_id: str, server: Server) -> None:
        server.kill()
        with self._lock:
            if self._servers.get(migration_id) is server:
                del self._servers[migration_id]

    def uncache(self, migration_id: str) -> None:
        """Drop what this machine's memory holds of an exported object, so that it is read from where it is stored.

        Raises Conflict where nothing is exported, and DriverError.
        """
        with self._lock:
            server = self._servers.get(migration_id)
        if server is None:
            raise errors.DriverError(backend=self._service, reason=f"nothing is exported for migration {migration_id}")
        try:
            descriptor = os.open(server.spec.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise errors.DriverError(backend=self._service, reason=f"{server.spec.path}: {error.strerror}") from error

    # --- all of them ---

    def sweep(self, db: Database) -> None:
        """End what nobody may use any more, and say which servers died."""
        try:
            self._prepare()
        except errors.DriverError as error:
            LOG.error("%s: %s", self._service, error)
            return
        with self._lock:
            known = dict(self._servers)
        for migration_id, server in known.items():
            if (status := server.ended()) is not None and not server.is_ending:
                LOG.warning("Migration %s: its NBD server %d ended by itself: %d", migration_id, server.pid, status)
        wanted = self._wanted(db, list(known)) if known else set()
        for migration_id, server in known.items():
            if migration_id in wanted and server.ended() is None:
                continue
            try:
                self._end(migration_id, server)
            except errors.DriverError as error:
                LOG.error("Migration %s: %s", migration_id, error)
            else:
                LOG.info("Migration %s: the export of its destination is over", migration_id)

    def _wanted(self, db: Database, ids: list[str]) -> set[str]:
        """Those of the migrations whose copier may be at work: at its steps, and held by somebody not long ago."""
        query = sa.select(Migration.id).where(
            Migration.id.in_(ids),
            Migration.end.is_(None),
            Migration.direction == Direction.FORWARD.value,
            Migration.step.in_(STEPS),
            Migration.lease_until > now_seconds() - self._conf.migration_lease_seconds,
        )
        return db.read(lambda session: set(session.scalars(query)))

    def close(self) -> None:
        """End them all; none is made afterwards."""
        with self._lock:
            known = dict(self._servers)
        for migration_id, server in known.items():
            try:
                self._end(migration_id, server)
            except errors.DriverError as error:
                LOG.error("%s", error)
        self._launcher.shutdown(wait=False, cancel_futures=True)  # which ends, by the kernel, what could not be ended

    def _prepare(self) -> None:
        """End what an earlier process left, and say what an operator should know, once; raises DriverError."""
        with self._lock:
            if self._is_prepared:
                return
            try:
                if count := export_server.remove_leftovers(self._root):
                    LOG.info("%s: removed %d exports that an earlier process left", self._service, count)
            except OSError as error:
                raise errors.DriverError(backend=self._service, reason=f"what was exported earlier: {error}") from error
            if self._conf.nbd_tls == "off":
                LOG.warning("%s: nbd_tls is off: volumes cross the network in plain text", self._service)
            self._is_prepared = True

    # --- a server ---

    @property
    def _root(self) -> Path:
        return Path(self._conf.state_path).absolute() / "nbd" / self._service.replace("/", "_")

    def _spec(self, connection: Connection) -> Spec:
        conf = self._conf
        if conf.nbd_tls == "x509" and not conf.nbd_tls_directory:
            raise errors.ExportImpossible(reason="nbd_tls is x509 and nbd_tls_directory is not set")
        return Spec(
            path=connection.path,
            size=connection.size,
            writable=connection.writable,
            address=str(conf.nbd_export_address or _own_address()),
            connections=conf.nbd_connections,
            tls=conf.nbd_tls,
            certificates=str(conf.nbd_tls_directory or ""),
            name=secrets.token_urlsafe(24),
            user=secrets.token_hex(8),
            key=secrets.token_hex(32),
        )

    def _start(self, spec: Spec) -> Server:
        """Start a server on a free port."""
        programs = export_server.find_programs(self._conf.nbd_server)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        first, last = port_range(self._conf.nbd_ports)
        # Each backend's service begins elsewhere, so that they rarely want the same one.
        ports = list(range(first, last + 1))
        begin = secrets.randbelow(len(ports))
        for port in ports[begin:] + ports[:begin]:
            if not _is_free(spec.address, port):
                continue
            folder = self._root / secrets.token_hex(8)
            server = self._launcher.submit(Server, programs, spec, port, folder).result()
            try:
                server.wait_ready()
            except PortTaken:
                continue
            return server
        raise errors.DriverError(backend=self._service, reason=f"every port of nbd_ports {first}-{last} is in use")

    def _watch_limit(self, migration_id: str, server: Server, limit: int) -> None:
        """End the export once its object occupies more than its pool may hold; the next request hears why."""

        def watch() -> None:
            while server.ended() is None:
                try:
                    occupied = os.stat(server.spec.path, follow_symlinks=False).st_blocks * 512
                except OSError:  # deleted: whoever did that ends the export too
                    return
                if occupied > limit:
                    self._full[migration_id] = f"the destination occupies {occupied} bytes, its pool holds {limit}"
                    with contextlib.suppress(errors.DriverError):  # it is killed: whoever ends the export waits for it
                        server.kill()
                    return
                pause.wait(LIMIT_SECONDS)

        pause = threading.Event()
        threading.Thread(target=watch, name="nbd-limit", daemon=True).start()


def _place(server: Server) -> str:
    address = server.spec.address
    return f"[{address}]:{server.port}" if ":" in address else f"{address}:{server.port}"


def _answer(connection: Connection, server: Server, peer: str) -> Connection:
    """What the peer is told: the address may be shown to anybody, all else is for its copier alone."""
    spec = server.spec
    access: dict[str, Any] = {
        "host": spec.address,
        "port": server.port,
        "export": spec.name,
        "tls": spec.tls,
        "connections": spec.connections,
    }
    if spec.tls == "psk":
        access |= {"user": spec.user, "key": spec.key}
    scheme = "nbd" if spec.tls == "off" else "nbds"
    return dataclasses.replace(
        connection, kind="nbd", path=f"{scheme}://{_place(server)}", machine=peer, limit=None, nbd=access
    )


def accepted(conf: Conf, connection: Connection) -> Connection:
    """Complete another host's export with what only this host knows; raises Unreachable for one it must not use."""
    if connection.kind != "nbd" or connection.nbd is None:
        return connection
    tls = connection.nbd["tls"]
    if tls == "off" and conf.nbd_tls != "off":
        reason = f"it is in plain text, and nbd_tls of {machine.host_name()} is {conf.nbd_tls}"
        raise errors.Unreachable(what=connection.path, reason=reason)
    if tls != "x509":
        return connection
    if not conf.nbd_tls_directory:
        reason = f"it wants a certificate, and nbd_tls_directory of {machine.host_name()} is not set"
        raise errors.Unreachable(what=connection.path, reason=reason)
    return dataclasses.replace(connection, nbd={**connection.nbd, "certificates": str(conf.nbd_tls_directory)})


# --- addresses -------------------------------------------------------------------------------------------------------


def port_range(text: str) -> tuple[int, int]:
    """Return the first and the last port of ``FIRST-LAST``; raises ConfigError."""
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit()) or not 0 < int(first) <= int(last) < 65536:
        raise errors.ConfigError(option="nbd_ports", reason=f"must be FIRST-LAST, as 10809-10999, not {text!r}")
    return int(first), int(last)


def _is_free(address: str, port: int) -> bool:
    """Tell whether nobody listens there; raises ExportImpossible for an address that is not this host's."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return True
    except socket.gaierror as error:
        raise errors.ExportImpossible(reason=f"nbd_export_address {address}: {error.strerror}") from error
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        raise errors.ExportImpossible(reason=f"nbd_export_address {address}: {error.strerror}") from error


def _own_address() -> str:
    """The address that this host's name stands for, or that it sends from; raises ExportImpossible."""
    found = []
    try:
        found = [str(place[0]) for *_, place in socket.getaddrinfo(socket.gethostname(), None)]
    except socket.gaierror:
        LOG.debug("the host's name has no address")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_SOMEWHERE)
            found.append(str(probe.getsockname()[0]))
    except OSError:
        LOG.debug("there is no way out of this host")
    for address in found:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if not ip.is_loopback and not ip.is_link_local and not ip.is_unspecified:
            return address
    raise errors.ExportImpossible(reason="no address of it is known that other hosts reach; set nbd_export_address")
