"""Commands that order a migration about: each says what was accepted, and ends 2 where it is refused."""

from __future__ import annotations

import argparse
from typing import ClassVar

from migrator.cli.base import Json, Plain

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def rate(text: str) -> int | None:
    """Return bytes per second as an operator spelt them: 50M, 1.5G, 65536, none; a type for argparse."""
    if text.lower() == "none":
        return None
    number, suffix = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        count = int(float(number) * _SUFFIXES[suffix])
    except (ValueError, KeyError, OverflowError):
        count = 0
    if count <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: write 65536, 50M, 1.5G or none")
    return count


class Order(Plain):
    """What all orders share: a migration, and a line that says what was accepted."""

    order: ClassVar[str]
    accepted: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("migration", metavar="<migration>", help="ID of the migration; migration-list lists them.")

    def body(self, args: argparse.Namespace) -> Json:
        """Return what the order says beside its name."""
        return {}

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.post(f"migrations/{parsed_args.migration}/action", {self.order: self.body(parsed_args)})
        self.say(self.accepted.format(migration=parsed_args.migration))


class CancelMigration(Order):
    """Cancels a migration: it is taken back, and the volume stays where it is.

    Refused past the point of no return, where the volume lives at its new place already.
    """

    order = "cancel"
    accepted = "Migration {migration} is being cancelled."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--force", action="store_true", help="Also if it was begun with --lock-volume; administrators only."
        )

    def body(self, args: argparse.Namespace) -> Json:
        return {"force": True} if args.force else {}


class PauseMigration(Order):
    """Pauses a migration: a copy stops at once and keeps what it has copied, another step is brought to its end."""

    order = "pause"
    accepted = "Migration {migration} is paused; to go on: migrator migration-resume {migration}"


class ResumeMigration(Order):
    """Lets a paused migration go on where it was."""

    order = "resume"
    accepted = "Migration {migration} goes on."


class RetryMigration(Order):
    """Begins a migration that failed or was cancelled anew, from nothing; tries to take back one that is stuck."""

    order = "retry"
    accepted = "Migration {migration} begins again; to follow it: migrator migration-watch {migration}"


class SetMigrationRate(Order):
    """Limits the rate of a migration while it runs."""

    order = "set_rate"
    accepted = "Migration {migration} has its new rate."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "rate",
            metavar="<rate>",
            type=rate,
            help="Bytes per second, with K, M, G or T for powers of 1024 (50M), at least 64K; none: the limit that is "
            "configured for its backend, if any.",
        )

    def body(self, args: argparse.Namespace) -> Json:
        return {"bytes_per_second": args.rate}


class UndoMigration(Order):
    """Puts a migrated volume back on its old place, as long as that is kept and nothing could write to the volume."""

    order = "undo"
    accepted = "Migration {migration} is undone: the volume is back at its old place."
