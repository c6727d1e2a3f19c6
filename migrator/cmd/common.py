"""What every program does first and last: read the configuration, check it, log, serve; one line for what is wrong."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator, Sequence

from oslo_config import cfg
from oslo_db import exception as db_exc
from oslo_service import backend as oslo_backend

from migrator import conf as config
from migrator import errors

#: Exit codes: as sysexits.h has them for a wrong configuration, 1 for the rest.
EXIT_CONFIG = 78

_QUIET = {
    "alembic": "WARNING",
    "amqp": "WARNING",
    "cotyledon": "WARNING",
    "oslo_service": "WARNING",
    "oslo.messaging": "WARNING",
    "oslo_messaging": "WARNING",
    "oslo_db": "WARNING",
    "stevedore": "WARNING",
    "urllib3": "WARNING",
    "keystonemiddleware": "WARNING",
}


def load(prog: str, argv: Sequence[str] | None = None) -> config.Conf:
    """Read the configuration of ``prog`` and start logging."""
    conf = config.load(prog, sys.argv[1:] if argv is None else argv)
    start_logging(conf)
    return conf


def start_logging(conf: config.Conf) -> None:
    from oslo_log import log

    levels = [f"{name}={level}" for name, level in _QUIET.items()]
    log.set_defaults(default_log_levels=levels)
    log.setup(conf, "migrator")


@contextlib.contextmanager
def one_line_errors(prog: str) -> Iterator[None]:
    """End the process with one clear line where its configuration or its surroundings are wrong."""
    try:
        yield
    except (cfg.Error, errors.ConfigError) as error:
        _end(prog, f"configuration: {error}", EXIT_CONFIG)
    except db_exc.DBError as error:
        _end(prog, f"database: {_first_line(error)}", 1)
    except errors.MigratorError as error:
        _end(prog, str(error), 1)
    except KeyboardInterrupt:
        _end(prog, "interrupted", 130)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _end(prog: str, text: str, code: int) -> None:
    logging.getLogger(prog).debug("ending with code %d", code)
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def use_threads() -> None:
    """Choose oslo.service's threading backend; before anything of oslo.service or oslo.messaging is used."""
    oslo_backend.init_backend(oslo_backend.BackendType.THREADING)


def begin_service() -> None:
    """What a service does before it loads anything."""
    # Until it starts, what is loaded stays: looking through it for garbage takes a tenth of the time.
    gc.disable()
    use_threads()


def launch(conf: config.Conf, services: Sequence[object], workers: int = 1) -> None:
    """Serve until SIGTERM: supervised child processes, ``workers`` of each service."""
    from oslo_service import service as oslo_service

    from migrator.service import GRACE_SECONDS

    # The collector writes into what it looks at; left alone, that stays shared with the child processes.
    gc.collect()
    gc.freeze()
    gc.enable()
    launcher = oslo_service.ProcessLauncher(conf)
    conf.set_override("graceful_shutdown_timeout", GRACE_SECONDS)
    for service in services:
        launcher.launch_service(service, workers=workers)
    launcher.wait()


def check_database(conf: config.Conf) -> None:
    """Raise ConfigError unless the database answers and has this version's tables."""
    from migrator.db import api, schema

    db = api.connect(conf)
    try:
        found = schema.version(db.engine)
        if found != schema.HEAD:
            raise errors.ConfigError(
                option="[database] connection",
                reason=f"the tables are at version {found or 'none'}, {schema.HEAD} is needed: "
                "run migrator-manage db sync",
            )
    finally:
        db.dispose()
