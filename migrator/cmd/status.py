"""migrator-status: the upgrade check that deployment tools run before a new version is started."""

from __future__ import annotations

import sys

from oslo_config import cfg

from migrator import conf as config
from migrator.cmd import common

#: Exit codes of ``upgrade check`` as every such tool has them.
SUCCESS, WARNING, FAILURE = 0, 1, 2


def _add_commands(subparsers: object) -> None:
    upgrade = subparsers.add_parser("upgrade", help="before an upgrade")  # type: ignore[attr-defined]
    upgrade.add_subparsers(dest="action", required=True).add_parser("check", help="is anything in the way")


def main() -> None:
    with common.one_line_errors("migrator-status"):
        from oslo_log import log

        conf = config.new()
        log.register_options(conf)
        conf.register_cli_opt(cfg.SubCommandOpt("command", title="commands", handler=_add_commands))
        conf(sys.argv[1:], project="migrator", prog="migrator-status")
        common.start_logging(conf)
        sys.exit(check(conf))


def check(conf: config.Conf) -> int:
    """Print each finding; return the exit code."""
    from sqlalchemy import func, select

    from migrator.db import api, schema
    from migrator.db.models import Migration

    db = api.connect(conf)
    found = schema.version(db.engine)
    if found != schema.HEAD:
        print(f"Failure: the tables are at version {found or 'none'}, {schema.HEAD} is needed: migrator-manage db sync")
        return FAILURE
    print(f"Success: the tables are at version {found}")
    stuck = db.read(lambda session: session.scalar(select(func.count()).where(Migration.end == "stuck")))
    running = db.read(lambda session: session.scalar(select(func.count()).where(Migration.end.is_(None))))
    if running:
        print(f"Warning: {running} migrations are under way; they go on after the upgrade")
    if stuck:
        print(f"Warning: {stuck} migrations are stuck and wait for an operator")
    return WARNING if running or stuck else SUCCESS


if __name__ == "__main__":
    main()
