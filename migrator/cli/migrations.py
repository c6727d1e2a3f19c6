"""Commands that look at migrations."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from cliff.formatters.table import TableFormatter

from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Showing, given, positive


class ListMigrations(Listing):
    """Lists migrations, the newest first."""

    columns = columns.MIGRATIONS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--volume", metavar="<volume>", help="Only those of this volume, by name or ID.")
        parser.add_argument("--status", metavar="<status>", help="Only those in this status.")
        parser.add_argument("--host", metavar="<host>", help="Only those from or to this place.")
        parser.add_argument("--since", metavar="<time>", help="Only those begun since then, as 2026-01-02T15:04:05.")
        parser.add_argument("--limit", metavar="<n>", type=positive, help="At most so many.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        filters = given(
            volume_id=args.volume and self.client.find_id(client.VOLUME, args.volume),
            status=args.status,
            host=args.host,
            since=args.since,
        )
        return self.client.list_all("migrations", "migrations", limit=args.limit, **filters)


class ShowMigration(Showing):
    """Shows all about a migration: how far it is, each step, and why it failed."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("migration", metavar="<migration>", help="ID of the migration to show.")

    def thing(self, args: argparse.Namespace) -> Json:
        return self.client.thing(self.client.get(f"migrations/{args.migration}"), "migration")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        thing = self.thing(parsed_args)
        # A table has no room for lists: they follow as tables of their own.
        self.lists = {key: thing.get(key) or [] for key in ("steps", "verdicts")}
        if parsed_args.formatter == "table" and not parsed_args.columns:
            thing = {key: value for key, value in thing.items() if key not in self.lists}
        kinds = columns.MIGRATION_QUANTITIES
        names, cells = columns.fields(thing)
        return names, [
            columns.measured(kinds[name], thing[name]) if name in kinds else cell
            for name, cell in zip(names, cells, strict=True)
        ]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        super().produce_output(parsed_args, column_names, data)
        if parsed_args.formatter != "table" or parsed_args.columns:
            return 0
        refused = [verdict for verdict in self.lists["verdicts"] if not verdict.get("passed")]
        for shown, rows in ((columns.STEPS, self.lists["steps"]), (columns.VERDICTS, refused)):
            if rows:
                TableFormatter().emit_list(*columns.table(shown, rows), self.app.stdout, parsed_args)
        return 0
