"""migrator-all: everything in one process, on SQLite and two directories; no root, no server, no configuration."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from migrator import conf as config
from migrator import errors
from migrator.cmd import common

DEFAULT_LISTEN = "127.0.0.1:8776"
#: Backends and pools that exist without any configuration file.
DEFAULT_BACKENDS = {"file1": "pool1", "file2": "pool2"}


def main(argv: Sequence[str] | None = None) -> None:
    common.begin_service()
    with common.one_line_errors("migrator-all"):
        arguments = _parser().parse_args(argv)
        state = Path(arguments.state_dir).absolute()
        conf = configure(state, arguments.listen, arguments.config_file)
        common.start_logging(conf)
        _serve(conf, state)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="migrator-all", description=__doc__)
    parser.add_argument("--state-dir", required=True, metavar="DIR", help="directory for the database and the volumes")
    parser.add_argument("--listen", metavar="HOST:PORT", help=f"where the API listens (default {DEFAULT_LISTEN})")
    parser.add_argument(
        "--config-file", action="append", default=[], metavar="FILE", help="options beside the defaults"
    )
    return parser


def configure(state: Path, listen: str | None, files: Sequence[str]) -> config.Conf:
    """The embedded default, with what ``files`` say laid over it."""
    arguments = [argument for file in files for argument in ("--config-file", file)]
    conf = config.load("migrator-all", arguments, [])
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise errors.ConfigError(option="--state-dir", reason=f"{state}: {error.strerror}") from error
    _set_defaults(conf, state)
    if listen:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise errors.ConfigError(option="--listen", reason=f"{listen!r} is not HOST:PORT")
        conf.set_override("osapi_volume_listen", host.strip("[]"))
        conf.set_override("osapi_volume_listen_port", int(port))
    return conf


def _set_defaults(conf: config.Conf, state: Path) -> None:
    import oslo_messaging

    oslo_messaging.TransportURL(conf)  # registers transport_url
    conf.set_default("transport_url", f"local://{os.getpid()}")
    conf.set_default("state_path", str(state))
    conf.set_default("auth_strategy", "noauth")
    if conf.enabled_backends:
        return
    conf.set_default("enabled_backends", list(DEFAULT_BACKENDS))
    for backend, pool in DEFAULT_BACKENDS.items():
        config.backend(conf, backend)
        conf.set_default("volume_driver", "file", group=backend)
        conf.set_default("volume_backend_name", backend, group=backend)
        conf.set_default("file_pools", {pool: str(state / "backends" / backend / pool)}, group=backend)


def _serve(conf: config.Conf, state: Path) -> None:
    from migrator import service
    from migrator.cmd.volume import enabled_backends
    from migrator.db import api, schema

    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    listener = service.listen(conf)
    db = api.connect(conf)
    schema.sync(db.engine)
    db.dispose()
    running: list[service.Service] = [service.SchedulerService(conf)]
    running += [service.VolumeService(conf, name) for name in enabled_backends(conf)]
    running.append(service.ApiService(conf, listener))
    for each in running:
        each.alone = False
        each.start()
    print(_welcome(conf, state), file=sys.stderr, flush=True)
    ending.wait()
    for each in reversed(running):
        each.stop()


def _welcome(conf: config.Conf, state: Path) -> str:
    url = f"http://{conf.osapi_volume_listen}:{conf.osapi_volume_listen_port}"
    hosts = [f"{conf.host}@{name}" for name in conf.enabled_backends]
    return (
        f"migrator-all is ready at {url} (backends {', '.join(hosts)}; state in {state})\n"
        f"Try, in another terminal:\n"
        f"  export MIGRATOR_URL={url}\n"
        f"  migrator get-pools\n"
        f"  migrator create --name mine 1\n"
        f"  migrator migrate --wait mine <another pool's name>"
    )


if __name__ == "__main__":
    main()
