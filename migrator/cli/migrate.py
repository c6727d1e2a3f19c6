"""Commands that move a volume, and follow the move to its end."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn

from migrator import errors
from migrator.cli import client
from migrator.cli.base import Json, Parser, Plain, boolean, is_boolean
from migrator.cli.columns import bytes_text, seconds_text
from migrator.cli.interrupts import remembered
from migrator.cli.progress import Progress, progress_for

_FIRST_POLL_SECONDS = 0.1
_LAST_POLL_SECONDS = 1.0
_POLL_GROWTH = 1.3
#: A service that is restarted comes back within this; a migration of hours must not lose its watcher for it.
PATIENCE_SECONDS = 60.0

_FLAGS = ("--force-host-copy", "--lock-volume")
_MIGRATE_USAGE = f"""migrator migrate [--force-host-copy [<True|False>]]
{" " * 24}[--lock-volume [<True|False>]]
{" " * 24}<volume> <host>"""
_EXIT_CODES = """exit codes: 0 accepted, or with --wait: moved; 1 the service cannot be reached or broke; 2 refused;
3 failed; 4 cancelled"""


class _MigrateParser(Parser):
    """Reads a flag that stands right before the volume as a flag alone."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(_separate(list(args or ())), namespace)


def _separate(args: Sequence[str]) -> list[str]:
    """Return ``args`` with ``=True`` on each flag whose next word can only be the volume or the host.

    It can only be that if it spells no truth, and if leaving it to the flag would leave less than two words over.
    """
    if any("=" not in arg and arg in _FLAGS for arg in args):
        alone = [
            f"{arg}=True" if arg in _FLAGS and index + 1 < len(args) and not is_boolean(args[index + 1]) else arg
            for index, arg in enumerate(args)
        ]
        values = {index + 1 for index, arg in enumerate(alone) if arg in _FLAGS}
        words = [arg for index, arg in enumerate(alone) if index not in values and not arg.startswith("-")]
        if len(words) == 2:
            return alone
    return list(args)


def _add_flag(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    parser.add_argument(
        flag, metavar="<True|False>", nargs="?", type=boolean, const=True, default=False, help=f"{text} Alone: True."
    )


class Migrate(Plain):
    """Migrates volume to a new host."""

    parser_class = _MigrateParser
    epilog = _EXIT_CODES

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = _MIGRATE_USAGE
        parser.add_argument("volume", metavar="<volume>", help="Name or ID of volume to migrate.")
        parser.add_argument(
            "host", metavar="<host>", help="Destination host, in the form host@backend-name#pool; get-pools lists them."
        )
        _add_flag(parser, _FLAGS[0], "Bypass what the driver can do itself and copy through a host. Default: False.")
        _add_flag(
            parser,
            _FLAGS[1],
            "True: an available volume goes to maintenance, and no other command can abort its migration, but "
            "migration-cancel --force of an administrator. "
            "False (default): other commands abort it.",
        )
        parser.add_argument("--wait", action="store_true", help="Follow the migration, and end as it ends.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        volume = self.client.find(client.VOLUME, parsed_args.volume)
        body = {
            "host": parsed_args.host,
            "force_host_copy": parsed_args.force_host_copy,
            "lock_volume": parsed_args.lock_volume,
        }
        self.client.act(client.VOLUME, volume["id"], "os-migrate_volume", body)
        self.say(f"Request to migrate volume {parsed_args.volume} has been accepted.")
        if parsed_args.wait:
            follow(self, self._begun(volume["id"]), parsed_args.volume)

    def _begun(self, volume_id: str) -> str:
        """Return the id of the migration just asked for: it is recorded before a request is accepted."""
        found = self.client.get("migrations", volume_id=volume_id, limit=1).get("migrations", [])
        if not found:
            raise errors.ApiFailed(reason=f"the service accepted, but shows no migration of volume {volume_id}")
        return str(found[0]["id"])


class WatchMigration(Plain):
    """Follows a migration to its end, and ends as it ends."""

    epilog = _EXIT_CODES

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("migration", metavar="<migration>", help="ID of the migration to follow.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        follow(self, parsed_args.migration)


def follow(command: Plain, migration_id: str, volume: str | None = None) -> None:
    """Show a migration's progress until its end; raises MigrationFailed and MigrationCancelled as it ends.

    An interrupt ends the watching, not the migration, and says so.
    """
    progress = progress_for(command.app.stdout, command.app.stderr, command.cli.quiet)
    try:
        with remembered() as interrupted:
            migration = _until_end(command.client, migration_id, progress, interrupted)
    except KeyboardInterrupt:
        progress.clear()  # before the line below, not only at the end
        command.cli.LOG.error("The migration goes on; to follow it: migrator migration-watch %s", migration_id)
        raise
    finally:
        progress.clear()
    name = volume or str(migration["volume_id"])
    ENDS[migration["status"]](command, name, migration)


def _until_end(api: client.Client, migration_id: str, progress: Progress, interrupted: threading.Event) -> Json:
    """Return the migration once it is over; a service away for a while is waited for, then ApiUnreachable raised."""
    pause = _FIRST_POLL_SECONDS
    heard = time.monotonic()
    while True:
        try:
            migration = api.thing(api.get(f"migrations/{migration_id}"), "migration")
            heard = time.monotonic()
            progress.show(migration)
            if migration["status"] in ENDS:
                return migration
        except (errors.ApiUnreachable, errors.ApiFailed):
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise
        if interrupted.wait(pause):
            raise KeyboardInterrupt
        pause = min(pause * _POLL_GROWTH, _LAST_POLL_SECONDS)


def _moved(command: Plain, volume: str, migration: Json) -> None:
    took = _seconds(migration)
    details = [bytes_text(migration["bytes_done"])] if migration.get("bytes_done") is not None else []
    details += [f"in {seconds_text(took)}"] if took is not None else []
    command.say(f"Volume {volume} is now at {migration['destination_host']} ({' '.join(details)}).")


def _failed(command: Plain, volume: str, migration: Json, what: str = "failed and was taken back") -> NoReturn:
    error = migration.get("error") or {}
    reason = error.get("message") or "no reason was recorded"
    raise errors.MigrationFailed(volume=volume, what=what, step=_step(migration), reason=reason)


def _stuck(command: Plain, volume: str, migration: Json) -> NoReturn:
    _failed(command, volume, migration, "is stuck, with the data safe,")


def _cancelled(command: Plain, volume: str, migration: Json) -> NoReturn:
    raise errors.MigrationCancelled(volume=volume, step=_step(migration))


#: How a migration can end, and what is made of it here.
ENDS: dict[str, Callable[[Plain, str, Json], None]] = {
    "success": _moved,
    "error": _failed,
    "stuck": _stuck,
    "cancelled": _cancelled,
}


def _step(migration: Json) -> str:
    """Return the step at which a migration turned: it has walked back since, to its first step."""
    forward = [step["step"] for step in migration.get("steps") or [] if step["direction"] == "forward"]
    reached = forward[-1] if forward else migration.get("step")
    return str((migration.get("error") or {}).get("step") or reached)


def _seconds(migration: Json) -> float | None:
    """Return how long a migration took, by the service's clock."""
    begun, ended = migration.get("created_at"), migration.get("finished_at")
    if not begun or not ended:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()
