"""Commands on what lies on a backend already: list it, make a volume of it, give a volume up."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Plain, Showing, for_each, given, key_value


def _reference(entry: Json) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(entry.get("reference", {}).items()))


MANAGEABLE: dict[str, columns.Cell] = {
    "Reference": _reference,
    "Size": columns.field("size"),
    "Safe To Manage": columns.field("safe_to_manage"),
    "Reason Not Safe": columns.field("reason_not_safe"),
    "Volume": columns.field("cinder_id"),
    "Extra Info": columns.field("extra_info"),
}


class ListManageable(Listing):
    """Lists what lies in a pool, and whether it can be managed."""

    columns = MANAGEABLE

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("host", metavar="<host>", help="A pool, host@backend#pool, or all pools of host@backend.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        found: list[Json] = self.client.get("manageable_volumes/detail", host=args.host).get("manageable-volumes", [])
        return found


class Manage(Showing):
    """Makes a volume of what lies in a pool already; its data stays."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("host", metavar="<host>", help="The pool that it lies in: host@backend#pool.")
        parser.add_argument("identifier", metavar="<identifier>", help="Its name there, as manageable-list shows it.")
        parser.add_argument(
            "--id-type",
            metavar="<id-type>",
            choices=("source-name", "source-id"),
            default="source-name",
            help="What the identifier is: source-name (by default) or source-id.",
        )
        parser.add_argument("--name", metavar="<name>", help="Name of the volume.")
        parser.add_argument("--description", metavar="<text>", help="What it is for.")
        parser.add_argument("--type", "--volume-type", metavar="<type>", help="Name or ID of the volume type.")
        parser.add_argument("--availability-zone", metavar="<zone>", help="Where it must be.")
        parser.add_argument(
            "--metadata",
            metavar="<key=value>",
            type=key_value,
            nargs="*",
            action="extend",
            help="Kept with the volume.",
        )
        parser.add_argument("--bootable", action="store_true", help="Servers may boot from it.")

    def thing(self, args: argparse.Namespace) -> Json:
        body = given(
            host=args.host,
            ref={args.id_type: args.identifier},
            name=args.name,
            description=args.description,
            volume_type=args.type,
            availability_zone=args.availability_zone,
            metadata=dict(args.metadata) if args.metadata else None,
            bootable=True if args.bootable else None,
        )
        return self.client.thing(self.client.post("manageable_volumes", {"volume": body}), "volume")


class Unmanage(Plain):
    """Forgets volumes without deleting their data, which stays where it is."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("volumes", metavar="<volume>", nargs="+", help="Name or ID of a volume to forget.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        def unmanage(name: str) -> None:
            self.client.act(client.VOLUME, self.client.find_id(client.VOLUME, name), "os-unmanage", {})
            self.say(f"Request to unmanage volume {name} has been accepted.")

        return for_each(self, parsed_args.volumes, unmanage)
