"""Commands on what lies on a backend already: list it, make a volume or a snapshot of it, give one up."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Plain, Showing, for_each, given, key_value
from migrator.cli.volumes import add_volume


def _reference(key: str) -> columns.Cell:
    """Return what shows the reference under ``key``, if there is one."""

    def shown(entry: Json) -> str:
        return ", ".join(f"{kind}={name}" for kind, name in sorted((entry.get(key) or {}).items()))

    return shown


MANAGEABLE: dict[str, columns.Cell] = {
    "Reference": _reference("reference"),
    "Size": columns.field("size"),
    "Safe To Manage": columns.field("safe_to_manage"),
    "Reason Not Safe": columns.field("reason_not_safe"),
    "Volume": columns.field("cinder_id"),
    "Extra Info": columns.field("extra_info"),
}
MANAGEABLE_SNAPSHOTS: dict[str, columns.Cell] = {
    **{title: cell for title, cell in MANAGEABLE.items() if title not in ("Volume", "Extra Info")},
    "Snapshot": columns.field("cinder_id"),
    "Source Reference": _reference("source_reference"),
    "Extra Info": MANAGEABLE["Extra Info"],
}


class ListManageable(Listing):
    """Lists what lies in a pool, and whether it can be managed."""

    columns = MANAGEABLE

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("host", metavar="<host>", help="A pool, host@backend#pool, or all pools of host@backend.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        found: list[Json] = self.client.get("manageable_volumes/detail", host=args.host).get("manageable-volumes", [])
        return found


def _add_identifier(parser: argparse.ArgumentParser, kind: str, command: str) -> None:
    """Add what says which thing is meant, and what all that is managed can have; ``command`` lists what there is."""
    parser.add_argument("identifier", metavar="<identifier>", help=f"Its name there, as {command} shows it.")
    parser.add_argument(
        "--id-type",
        metavar="<id-type>",
        choices=("source-name", "source-id"),
        default="source-name",
        help="What the identifier is: source-name (by default) or source-id.",
    )
    parser.add_argument("--name", metavar="<name>", help=f"Name of the {kind}.")
    parser.add_argument("--description", metavar="<text>", help="What it is for.")
    parser.add_argument(
        "--metadata",
        metavar="<key=value>",
        type=key_value,
        nargs="*",
        action="extend",
        help=f"Kept with the {kind}.",
    )


def _identified(args: argparse.Namespace) -> Json:
    """Return the part of a body that ``_add_identifier`` asked for."""
    return given(
        ref={args.id_type: args.identifier},
        name=args.name,
        description=args.description,
        metadata=dict(args.metadata) if args.metadata else None,
    )


class Manage(Showing):
    """Makes a volume of what lies in a pool already; its data stays."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("host", metavar="<host>", help="The pool that it lies in: host@backend#pool.")
        _add_identifier(parser, "volume", "manageable-list")
        parser.add_argument("--type", "--volume-type", metavar="<type>", help="Name or ID of the volume type.")
        parser.add_argument("--availability-zone", metavar="<zone>", help="Where it must be.")
        parser.add_argument("--bootable", action="store_true", help="Servers may boot from it.")

    def thing(self, args: argparse.Namespace) -> Json:
        body = given(
            host=args.host,
            volume_type=args.type,
            availability_zone=args.availability_zone,
            bootable=True if args.bootable else None,
        )
        return self.client.thing(self.client.post("manageable_volumes", {"volume": body | _identified(args)}), "volume")


class Unmanage(Plain):
    """Forgets volumes without deleting their data, which stays where it is."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("volumes", metavar="<volume>", nargs="+", help="Name or ID of a volume to forget.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        def unmanage(name: str) -> None:
            self.client.act(client.VOLUME, self.client.find_id(client.VOLUME, name), "os-unmanage", {})
            self.say(f"Request to unmanage volume {name} has been accepted.")

        return for_each(self, parsed_args.volumes, unmanage)


class ListManageableSnapshots(Listing):
    """Lists what lies in a pool and is no volume, and whether it can be managed as a snapshot."""

    columns = MANAGEABLE_SNAPSHOTS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("host", metavar="<host>", help="A pool, host@backend#pool, or all pools of host@backend.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        found = self.client.get("manageable_snapshots/detail", host=args.host)
        return found.get("manageable-snapshots", [])  # type: ignore[no-any-return]


class ManageSnapshot(Showing):
    """Makes a snapshot of a volume of what lies in the volume's pool already; its data stays."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_volume(parser, "whose snapshot it is")
        _add_identifier(parser, "snapshot", "snapshot-manageable-list")

    def thing(self, args: argparse.Namespace) -> Json:
        body = {"volume_id": self.client.find_id(client.VOLUME, args.volume), **_identified(args)}
        return self.client.thing(self.client.post("manageable_snapshots", {"snapshot": body}), "snapshot")


class UnmanageSnapshots(Plain):
    """Forgets snapshots without deleting their data, which stays where it is."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshots", metavar="<snapshot>", nargs="+", help="Name or ID of a snapshot to forget.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        def unmanage(name: str) -> None:
            self.client.act(client.SNAPSHOT, self.client.find_id(client.SNAPSHOT, name), "os-unmanage", {})
            self.say(f"Request to unmanage snapshot {name} has been accepted.")

        return for_each(self, parsed_args.snapshots, unmanage)
