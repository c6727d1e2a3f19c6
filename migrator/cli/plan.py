"""The command that asks what a migration would do."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from cliff.formatters.table import TableFormatter

from migrator.cli import client, columns
from migrator.cli.base import Json, Showing, given
from migrator.cli.columns import Bytes, Cell, Quantity, Rate, Seconds, field, quantity
from migrator.cli.exits import REFUSED, SUCCESS
from migrator.cli.migration_orders import rate

_QUANTITIES: dict[str, type[Quantity]] = {
    **dict.fromkeys(("bytes_total", "bytes_allocated", "bytes_to_copy"), Bytes),
    **dict.fromkeys(("seconds_expected", "copy_seconds", "verify_seconds", "keep_source_seconds"), Seconds),
    "bytes_per_second": Rate,
}


def _refusals(pool: Json) -> Any:
    refused = [verdict for verdict in pool.get("filters") or () if not verdict["passed"]]
    return "; ".join(f"{verdict['filter']}: {verdict['reason']}" for verdict in refused)


def _gib(key: str) -> Cell:
    return quantity(Bytes, lambda pool: None if pool.get(key) is None else float(pool[key]) * (1 << 30))


_POOLS: dict[str, Cell] = {
    "Rank": field("rank"),
    "Pool": field("pool"),
    "Needed": _gib("needed_gib"),
    "Room": _gib("room_gib"),
    "Free": _gib("free_gib"),
    "Reserved": _gib("reserved_gib"),
    "Score": field("score"),
    "Against It": _refusals,
}
_PLANS: dict[str, Cell] = {"Plan": field("plan"), "Chosen": field("chosen"), "Reason": field("reason")}
_BLOCKERS: dict[str, Cell] = {"In The Way": field("reason"), "Remedy": field("remedy")}
_LISTS = {"blockers": _BLOCKERS, "plans": _PLANS, "pools": _POOLS}


class Plan(Showing):
    """Shows what migrating a volume would do, and changes nothing.

    The pools in the order in which they would be taken and what speaks against the others, the way that the data
    would go, how long that takes by what was measured before, and whatever is in the way, with its remedy.
    """

    epilog = "Ends 0 if the migration would begin and find a pool, 2 if something is in the way."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("volume", metavar="<volume>", help="Name or ID of the volume.")
        parser.add_argument(
            "host",
            metavar="<host>",
            nargs="?",
            help="Where to, in the form host@backend#pool or host@backend; without it the scheduler chooses.",
        )
        parser.add_argument("--force-host-copy", action="store_true", help="As if it were copied through a host.")
        parser.add_argument("--lock-volume", action="store_true", help="As if the volume were locked meanwhile.")
        parser.add_argument("--verify", choices=("readback", "inline", "none"), help="How the copy would be verified.")
        parser.add_argument("--rate", metavar="<rate>", type=rate, help="As if it copied at that rate at most (50M).")

    def thing(self, args: argparse.Namespace) -> Json:
        wanted = given(
            volume_id=self.client.find_id(client.VOLUME, args.volume),
            host=args.host,
            force_host_copy="true" if args.force_host_copy else None,
            lock_volume="true" if args.lock_volume else None,
            verify=args.verify,
            bytes_per_second=args.rate,
        )
        return self.client.thing(self.client.get("migrations/plan", **wanted), "plan")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        thing = self.thing(parsed_args)
        self.is_possible = bool(thing.get("possible"))
        # A table has no room for lists: they follow as tables of their own.
        self.lists = {key: thing.get(key) or [] for key in _LISTS}
        if parsed_args.formatter == "table" and not parsed_args.columns:
            thing = {key: value for key, value in thing.items() if key not in _LISTS}
        names, cells = columns.fields(thing)
        return names, [
            columns.measured(_QUANTITIES[name], thing[name]) if name in _QUANTITIES else cell
            for name, cell in zip(names, cells, strict=True)
        ]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        super().produce_output(parsed_args, column_names, data)
        if parsed_args.formatter == "table" and not parsed_args.columns:
            for key, shown in _LISTS.items():
                if self.lists[key]:
                    TableFormatter().emit_list(*columns.table(shown, self.lists[key]), self.app.stdout, parsed_args)
        return SUCCESS

    def run(self, parsed_args: argparse.Namespace) -> int:
        code = int(super().run(parsed_args))
        return code if self.is_possible else REFUSED
