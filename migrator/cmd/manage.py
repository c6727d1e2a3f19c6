"""migrator-manage: the database's tables, and what an administrator does about migrations beside the API."""

from __future__ import annotations

import sys

from oslo_config import cfg

from migrator import conf as config
from migrator.cmd import common


def _add_commands(subparsers: object) -> None:
    from migrator.cmd import audit

    add = subparsers.add_parser  # type: ignore[attr-defined]
    db = add("db", help="the database's tables").add_subparsers(dest="action", required=True)
    db.add_parser("sync", help="bring the tables to this version; data stays")
    db.add_parser("version", help="print the version of the tables")
    audit.add_commands(add("migration", help="leftovers").add_subparsers(dest="action", required=True))


def main() -> None:
    common.use_threads()
    with common.one_line_errors("migrator-manage"):
        from oslo_log import log

        conf = config.new()
        log.register_options(conf)
        conf.register_cli_opt(cfg.SubCommandOpt("command", title="commands", handler=_add_commands))
        conf(sys.argv[1:], project="migrator", prog="migrator-manage")
        conf.set_default("use_stderr", True)  # standard output is for what was asked for
        common.start_logging(conf)
        if conf.command.name == "db":
            _db(conf)
        else:
            sys.exit(_migration(conf))


def _migration(conf: config.Conf) -> int:
    from migrator.cmd import audit

    common.check_database(conf)
    return audit.run(conf)


def _db(conf: config.Conf) -> None:
    from migrator.db import api, schema

    db = api.connect(conf, long_statements=True)
    try:
        if conf.command.action == "sync":
            schema.sync(db.engine)
        print(schema.version(db.engine) or "none")
    finally:
        db.dispose()


if __name__ == "__main__":
    main()
