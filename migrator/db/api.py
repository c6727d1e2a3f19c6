"""The database: one engine, and transactions that either read or write.

Functions of this package take a ``Session`` from ``reader()`` or ``writer()``.  What a caller must do in ONE
transaction it does in one ``with`` block.  A transaction that lost against another one (deadlock, busy SQLite) is run
again by ``Database.run``, so what it does must have no effect outside the database.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa
from oslo_db import api as oslo_api
from oslo_db.sqlalchemy import engines, exc_filters
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session

from migrator import conf as config

T = TypeVar("T")

#: Seconds a SQLite connection waits for another process's write lock.
SQLITE_BUSY_SECONDS = 60


class now_seconds(sa.sql.functions.FunctionElement[float]):  # noqa: N801 (it is used like a SQL function)
    """The database's clock, epoch seconds with fractions: the only clock that leases are judged by."""

    type = sa.Double()
    name = "now_seconds"
    inherit_cache = True


#: Statement time, not transaction time: a lease must not be judged by the start of a long transaction.
_CLOCKS = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "mysql": "UNIX_TIMESTAMP(SYSDATE(6))",
    "mariadb": "UNIX_TIMESTAMP(SYSDATE(6))",
    "postgresql": "EXTRACT(EPOCH FROM clock_timestamp())",
}


@compiles(now_seconds)  # type: ignore[no-untyped-call,untyped-decorator]
def _compile_clock(element: now_seconds, compiler: Any, **kw: Any) -> str:
    return _CLOCKS[compiler.dialect.name]


class Database:
    """An engine with its two kinds of transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        # SQLite lets one writer in and makes the others poll; a lock of our own lets threads wait without polling.
        self._one_writer = threading.Lock() if self.is_sqlite else contextlib.nullcontext()

    @contextlib.contextmanager
    def reader(self) -> Iterator[Session]:
        """A transaction that only reads; what it returns stays usable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def writer(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, or rolls back if it raises."""
        with self._one_writer, self.engine.connect() as connection:
            connection = connection.execution_options(migrator_write=True)
            with Session(connection, expire_on_commit=False) as session, session.begin():
                yield session

    def read(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a reading transaction, again if the connection was lost."""

        def once() -> T:
            with self.reader() as session:
                return work(session)

        return _retrying(once)

    def run(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a writing transaction, again if it lost against another one."""

        def once() -> T:
            with self.writer() as session:
                return work(session)

        return _retrying(once)

    def now(self) -> float:
        """The database's clock, epoch seconds."""
        return self.read(clock)

    def dispose(self) -> None:
        self.engine.dispose()


def clock(session: Session) -> float:
    """The database's clock, epoch seconds."""
    return float(session.scalar(sa.select(now_seconds())))  # type: ignore[arg-type]


def changed(result: sa.Result[Any]) -> int:
    """Rows that an UPDATE or DELETE matched."""
    return int(result.rowcount)  # type: ignore[attr-defined]


def _retrying(once: Callable[[], T]) -> T:
    wrapped = oslo_api.wrap_db_retry(
        max_retries=8,
        retry_interval=0.02,
        max_retry_interval=2,
        inc_retry_interval=True,
        jitter=True,
        retry_on_deadlock=True,
        retry_on_disconnect=True,
    )(once)
    return wrapped()  # type: ignore[no-any-return]


def connect(conf: config.Conf) -> Database:
    """Open the database that the configuration names; raises oslo.db's errors when it cannot be reached."""
    url = config.database_url(conf)
    if url.startswith("sqlite"):
        return Database(_sqlite_engine(url))
    engine = engines.create_engine(
        url,
        max_pool_size=conf.database.max_pool_size,
        max_overflow=conf.database.max_overflow,
        connection_recycle_time=conf.database.connection_recycle_time,
        max_retries=conf.database.max_retries,
        retry_interval=conf.database.retry_interval,
        thread_checkin=False,
        mysql_sql_mode="TRADITIONAL",
        # oslo.db's default, utf8, is MariaDB's three-byte one, which refuses names that its tables could hold.
        connection_parameters="charset=utf8mb4" if url.startswith("mysql") and "charset=" not in url else "",
    )
    return Database(engine)


def _sqlite_engine(url: str) -> Engine:
    """SQLite with pooled connections and transactions that say at their beginning whether they will write.

    oslo.db's own engine opens the file anew for each transaction and begins them all as readers, so that two which
    then write fail instead of waiting; its translation of errors is kept.
    """
    engine = sa.create_engine(url, pool_size=10, max_overflow=-1)
    exc_filters.register_engine(engine)

    @sa.event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {SQLITE_BUSY_SECONDS * 1000}",
            "journal_mode = WAL",
            # A switch that was told to be done must be done, also after a power cut.
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("migrator_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
