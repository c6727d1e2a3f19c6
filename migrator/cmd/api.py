"""migrator-api: the REST API, osapi_volume_workers processes on one socket."""

from __future__ import annotations

from migrator.cmd import common


def main() -> None:
    common.begin_service()
    with common.one_line_errors("migrator-api"):
        conf = common.load("migrator-api")
        from migrator import service

        common.check_database(conf)
        listener = service.listen(conf)
        common.launch(conf, [service.ApiService(conf, listener)], conf.osapi_volume_workers)


if __name__ == "__main__":
    main()
