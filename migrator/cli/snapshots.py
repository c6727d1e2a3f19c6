"""Commands on snapshots."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Plain, Showing, for_each, given, positive
from migrator.cli.volumes import add_volume


class CreateSnapshot(Showing):
    """Takes a snapshot of a volume."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_volume(parser, "to take a snapshot of")
        parser.add_argument("--name", metavar="<name>", help="Name of the snapshot.")
        parser.add_argument("--description", metavar="<text>", help="What it is for.")

    def thing(self, args: argparse.Namespace) -> Json:
        body = given(
            volume_id=self.client.find_id(client.VOLUME, args.volume), name=args.name, description=args.description
        )
        return self.client.thing(self.client.post("snapshots", {"snapshot": body}), "snapshot")


class ListSnapshots(Listing):
    """Lists snapshots."""

    columns = columns.SNAPSHOTS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--all-tenants", action="store_true", help="Those of all projects.")
        parser.add_argument("--volume", metavar="<volume>", help="Only those of this volume, by name or ID.")
        parser.add_argument("--status", metavar="<status>", help="Only those in this status.")
        parser.add_argument("--name", metavar="<name>", help="Only those of this name.")
        parser.add_argument("--limit", metavar="<n>", type=positive, help="At most so many.")
        parser.add_argument("--marker", metavar="<id>", help="Only those after this snapshot.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        filters = given(
            all_tenants=1 if args.all_tenants else None,
            volume_id=args.volume and self.client.find_id(client.VOLUME, args.volume),
            status=args.status,
            name=args.name,
            marker=args.marker,
        )
        return self.client.list_all("snapshots/detail", "snapshots", limit=args.limit, **filters)


class ShowSnapshot(Showing):
    """Shows all about a snapshot."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="<snapshot>", help="Name or ID of the snapshot to show.")

    def thing(self, args: argparse.Namespace) -> Json:
        return self.client.find(client.SNAPSHOT, args.snapshot)


class DeleteSnapshots(Plain):
    """Deletes one snapshot or several."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshots", metavar="<snapshot>", nargs="+", help="Name or ID of a snapshot to delete.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        def delete(name: str) -> None:
            self.client.delete(f"snapshots/{self.client.find_id(client.SNAPSHOT, name)}")
            self.say(f"Request to delete snapshot {name} has been accepted.")

        return for_each(self, parsed_args.snapshots, delete)


class ResetSnapshots(Plain):
    """Sets what is recorded of snapshots' state, without doing anything to them."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshots", metavar="<snapshot>", nargs="+", help="Name or ID of a snapshot.")
        parser.add_argument("--state", metavar="<state>", default="available", help="By default available.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        def reset(name: str) -> None:
            snapshot_id = self.client.find_id(client.SNAPSHOT, name)
            self.client.act(client.SNAPSHOT, snapshot_id, "os-reset_status", {"status": parsed_args.state})

        return for_each(self, parsed_args.snapshots, reset)
