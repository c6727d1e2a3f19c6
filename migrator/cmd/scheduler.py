"""migrator-scheduler: picks destinations."""

from __future__ import annotations

from migrator.cmd import common


def main() -> None:
    common.begin_service()
    with common.one_line_errors("migrator-scheduler"):
        conf = common.load("migrator-scheduler")
        from migrator import service

        common.check_database(conf)
        common.launch(conf, [service.SchedulerService(conf)])


if __name__ == "__main__":
    main()
