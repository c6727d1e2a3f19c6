"""The database: one engine, and transactions that either read or write.

Functions of this package take a ``Session`` from ``reader()`` or ``writer()``.  What a caller must do in ONE
transaction it does in one ``with`` block.  A transaction that lost against another one (deadlock, busy SQLite) is run
again by ``Database.run``, so what it does must have no effect outside the database.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa
from oslo_db import api as oslo_api
from oslo_db import exception as db_exc
from oslo_db.sqlalchemy import exc_filters
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session

from migrator import conf as config
from migrator.db import silence

T = TypeVar("T")
LOG = logging.getLogger(__name__)

#: What a URL asks for unless it says something else.  A server that died or was cut off without a word would be waited
#: for until the kernel gives up, many minutes; here every statement takes milliseconds, unless it waits for a lock.
#: Names of four-byte characters are names: MariaDB's default, utf8, is a three-byte one.
URL_DEFAULTS = {
    "mysql": {"charset": "utf8mb4", "connect_timeout": "10", "read_timeout": "60", "write_timeout": "60"},
    "postgresql": {
        "connect_timeout": "10",
        "keepalives_idle": "20",
        "keepalives_interval": "10",
        "keepalives_count": "4",
        "tcp_user_timeout": "60000",
        "read_timeout": "60",
    },
}
#: Seconds from the beginning of a transaction in which a lost connection is replaced; then the caller is told.
RECONNECT_SECONDS = 5.0
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


class CommitUnanswered(db_exc.DBError):
    """The connection was lost while a transaction was committed: nobody knows whether it was."""


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
        """A transaction that commits at the end of the block, or rolls back if it raises; raises CommitUnanswered."""
        with self._one_writer, self.engine.connect() as connection:
            connection = connection.execution_options(migrator_write=True)
            committing = False
            try:
                with Session(connection, expire_on_commit=False) as session, session.begin():
                    yield session
                    committing = True
            except db_exc.DBConnectionError as error:
                if committing:
                    raise CommitUnanswered(error) from error
                raise

    def read(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in a reading transaction, again if the connection was lost."""

        def once() -> T:
            with self.reader() as session:
                return work(session)

        return _retrying(once)

    def run(self, work: Callable[[Session], T], *, if_unanswered: bool = True) -> T:
        """Run ``work`` in a writing transaction, again if it lost against another one or its connection.

        ``if_unanswered``: also where it may have been committed already.  Whoever writes by compare-and-swap learns
        from the second time that the first one counted; whoever answers somebody else's request would refuse what was
        done, and gets CommitUnanswered instead.
        """

        def once() -> T:
            with self.writer() as session:
                return work(session)

        return _retrying(once, if_unanswered)

    def now(self) -> float:
        """The database's clock, epoch seconds."""
        return self.read(clock)

    def dispose(self) -> None:
        self.engine.dispose()


def clock(session: Session) -> float:
    """The database's clock, epoch seconds."""
    return float(session.scalar(sa.select(now_seconds())))  # type: ignore[arg-type]


def execute(session: Session, statement: sa.Executable, **parameters: Any) -> sa.CursorResult[*tuple[Any, ...]]:
    """Run a statement that was built once, on the session's connection and past its objects.

    For what every step of every migration does: building a statement and making objects of its rows costs several
    times what the database takes to answer it.
    """
    return session.connection().execute(statement, parameters)


def changed(result: sa.Result[Any]) -> int:
    """Rows that an UPDATE or DELETE matched."""
    return int(result.rowcount)  # type: ignore[attr-defined]


def _retrying(once: Callable[[], T], if_unanswered: bool = True) -> T:
    give_up = time.monotonic() + RECONNECT_SECONDS
    lost = (db_exc.DBConnectionError, CommitUnanswered) if if_unanswered else (db_exc.DBConnectionError,)

    def may_be_back(error: Exception) -> bool:
        return isinstance(error, lost) and time.monotonic() < give_up

    wrapped = oslo_api.wrap_db_retry(
        max_retries=8,
        retry_interval=0.02,
        max_retry_interval=2,
        inc_retry_interval=True,
        jitter=True,
        retry_on_deadlock=True,
        exception_checker=may_be_back,
    )(once)
    return wrapped()  # type: ignore[no-any-return]


def connect(conf: config.Conf, *, long_statements: bool = False) -> Database:
    """Open the database that the configuration names; raises oslo.db's errors when it cannot be reached.

    ``long_statements``: a statement may take as long as it likes, as those that change tables do.
    """
    if config.database_url(conf).startswith("sqlite"):
        return Database(_sqlite_engine(config.database_url(conf)))
    engine = _server_engine(
        url(conf, long_statements=long_statements),
        pool_size=conf.database.max_pool_size,
        max_overflow=conf.database.max_overflow,
        pool_recycle=conf.database.connection_recycle_time,
    )
    _await_server(engine, conf.database.max_retries, conf.database.retry_interval)
    return Database(engine)


def url(conf: config.Conf, *, long_statements: bool = False) -> sa.URL:
    """The database's URL with ``URL_DEFAULTS`` for what it leaves open."""
    configured = sa.make_url(config.database_url(conf))
    wanted = dict(URL_DEFAULTS.get(configured.get_backend_name().replace("mariadb", "mysql"), {}))
    if long_statements:
        wanted.pop("read_timeout", None)
    return configured.set(query=wanted | dict(configured.query))


def _server_engine(url: sa.URL, **pool: int) -> Engine:
    """MariaDB or PostgreSQL; oslo.db's translation of errors is kept.

    oslo.db's own engine asks before each transaction whether the connection still lives and rolls back once more
    after it: two round trips that a transaction of three statements feels.  Here every transaction ends by itself, and
    a connection that was lost is noticed by its first statement, which ``Database.run`` then repeats on a new one.
    """
    # Parameters of a failed statement may hold connection_info: they stay out of the log.
    connect_args: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        url, connect_args = silence.split(url)
    engine = sa.create_engine(url, pool_reset_on_return=None, hide_parameters=True, connect_args=connect_args, **pool)
    exc_filters.register_engine(engine)
    if url.get_backend_name() == "postgresql":
        silence.call_unreachable(engine)
    if url.get_backend_name() in ("mysql", "mariadb"):

        @sa.event.listens_for(engine, "connect")
        def on_connect(dbapi_connection: Any, record: Any) -> None:
            with dbapi_connection.cursor() as cursor:
                # What does not fit is an error, never cut.  And where clocks are put back in autumn, an hour of local
                # time comes twice, so that UNIX_TIMESTAMP would jump: back by an hour, and later on by one.
                cursor.execute("SET SESSION sql_mode = 'TRADITIONAL', time_zone = '+00:00'")

    return engine


def _await_server(engine: Engine, retries: int, seconds: float) -> None:
    """Return once the server answers; raises DBConnectionError after so many tries more (-1: never)."""
    for tried in itertools.count():
        try:
            with engine.connect():
                return
        except db_exc.DBConnectionError as error:
            if tried == retries:
                raise
            LOG.warning("The database does not answer, trying again in %g s: %s", seconds, error)
            time.sleep(seconds)


def _sqlite_engine(url: str) -> Engine:
    """SQLite with pooled connections and transactions that say at their beginning whether they will write.

    oslo.db's own engine opens the file anew for each transaction and begins them all as readers, so that two which
    then write fail instead of waiting; its translation of errors is kept.
    """
    engine = sa.create_engine(url, pool_size=10, max_overflow=-1, hide_parameters=True)
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
