"""migrator-volume: the volume services of this host, one child process per backend of enabled_backends."""

from __future__ import annotations

from migrator import errors
from migrator.cmd import common
from migrator.conf import Conf


def main() -> None:
    common.begin_service()
    with common.one_line_errors("migrator-volume"):
        conf = common.load("migrator-volume")
        from migrator import service

        backends = [service.VolumeService(conf, name) for name in enabled_backends(conf)]
        common.check_database(conf)
        common.launch(conf, backends)


def enabled_backends(conf: Conf) -> list[str]:
    """Names of the backends to serve; raises ConfigError where there are none or one twice."""
    names = list(conf.enabled_backends)
    if not names:
        raise errors.ConfigError(option="enabled_backends", reason="names no backend to serve")
    if len(set(names)) != len(names):
        raise errors.ConfigError(option="enabled_backends", reason="names a backend twice")
    return names


if __name__ == "__main__":
    main()
