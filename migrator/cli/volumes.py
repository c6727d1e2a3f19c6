"""Commands on volumes, but for their migration."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from migrator import errors
from migrator.backend_name import BackendName, MalformedBackendName
from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Plain, Showing, for_each, given, key_value, positive

#: Statuses in which a new volume stays only for a while.
_ON_THE_WAY = frozenset({"creating", "downloading"})
_POLL_SECONDS = 0.2


def add_volume(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("volume", metavar="<volume>", help=f"Name or ID of the volume {words}.")


class CreateVolume(Showing):
    """Creates a volume."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "size", metavar="<size>", type=positive, nargs="?", help="Size in GiB; may be left out with a source."
        )
        parser.add_argument("--name", metavar="<name>", help="Name of the volume.")
        parser.add_argument("--type", metavar="<type>", help="Name or ID of the volume type.")
        parser.add_argument("--availability-zone", metavar="<zone>", help="Where it shall be.")
        parser.add_argument("--description", metavar="<text>", help="What it is for.")
        parser.add_argument(
            "--metadata",
            metavar="<key=value>",
            type=key_value,
            nargs="*",
            action="extend",
            help="Kept with the volume.",
        )
        parser.add_argument("--snapshot-id", metavar="<snapshot>", help="Name or ID of a snapshot to begin from.")
        parser.add_argument("--source-volid", metavar="<volume>", help="Name or ID of a volume to begin from.")
        parser.add_argument("--wait", action="store_true", help="Wait until it can be used.")

    def thing(self, args: argparse.Namespace) -> Json:
        if args.size is None and not (args.snapshot_id or args.source_volid):
            raise errors.BadRequest(reason="a volume needs a size, --snapshot-id or --source-volid")
        body = given(
            size=args.size,
            name=args.name,
            volume_type=args.type,
            availability_zone=args.availability_zone,
            description=args.description,
            metadata=dict(args.metadata) if args.metadata else None,
            snapshot_id=args.snapshot_id and self.client.find_id(client.SNAPSHOT, args.snapshot_id),
            source_volid=args.source_volid and self.client.find_id(client.VOLUME, args.source_volid),
        )
        volume = self.client.thing(self.client.post("volumes", {"volume": body}), "volume")
        return self._wait(volume) if args.wait else volume

    def _wait(self, volume: Json) -> Json:
        """Return the volume once it can be used; raises VolumeFailed."""
        while True:
            volume = self.client.show(client.VOLUME, volume["id"])
            if volume["status"] not in _ON_THE_WAY:
                break
            time.sleep(_POLL_SECONDS)
        if volume["status"].startswith("error"):
            raise errors.VolumeFailed(volume=volume["id"], status=volume["status"])
        return volume


class ListVolumes(Listing):
    """Lists volumes."""

    columns = columns.VOLUMES

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--all-tenants", action="store_true", help="Those of all projects.")
        parser.add_argument("--status", metavar="<status>", help="Only those in this status.")
        parser.add_argument("--name", metavar="<name>", help="Only those of this name.")
        parser.add_argument(
            "--host", metavar="<host>", help="Only those at a host, a host@backend, or a host@backend#pool."
        )
        parser.add_argument("--limit", metavar="<n>", type=positive, help="At most so many.")
        parser.add_argument("--marker", metavar="<id>", help="Only those after this volume.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        filters = given(
            all_tenants=1 if args.all_tenants else None, status=args.status, name=args.name, marker=args.marker
        )
        if args.host is None:
            return self.client.list_all("volumes/detail", "volumes", limit=args.limit, **filters)
        # The API knows whole pools alone; who empties a backend asks for all its pools.
        place = _place(args.host)
        found = [
            volume
            for volume in self.client.list_all("volumes/detail", "volumes", **filters)
            if place.contains(_place(volume.get("os-vol-host-attr:host") or "-"))
        ]
        return found[: args.limit]


def _place(host: str) -> BackendName:
    try:
        return BackendName.parse(host)
    except MalformedBackendName as error:
        raise errors.BadRequest(reason=str(error)) from error


class ShowVolume(Showing):
    """Shows all about a volume."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_volume(parser, "to show")

    def thing(self, args: argparse.Namespace) -> Json:
        return self.client.find(client.VOLUME, args.volume)


class DeleteVolumes(Plain):
    """Deletes one volume or several."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("volumes", metavar="<volume>", nargs="+", help="Name or ID of a volume to delete.")
        parser.add_argument("--cascade", action="store_true", help="With its snapshots.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        params = {"cascade": "true"} if parsed_args.cascade else {}

        def delete(name: str) -> None:
            self.client.delete(f"volumes/{self.client.find_id(client.VOLUME, name)}", **params)
            self.say(f"Request to delete volume {name} has been accepted.")

        return for_each(self, parsed_args.volumes, delete)


class ExtendVolume(Plain):
    """Makes a volume larger."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_volume(parser, "to extend")
        parser.add_argument("new_size", metavar="<new-size>", type=positive, help="Size in GiB it shall have.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        volume_id = self.client.find_id(client.VOLUME, parsed_args.volume)
        self.client.act(client.VOLUME, volume_id, "os-extend", {"new_size": parsed_args.new_size})
        self.say(f"Request to extend volume {parsed_args.volume} has been accepted.")


class ResetState(Plain):
    """Sets what is recorded of a volume's state, without doing anything to the volume."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("volumes", metavar="<volume>", nargs="+", help="Name or ID of a volume.")
        parser.add_argument("--state", metavar="<state>", help="Status to record; available if no option is given.")
        parser.add_argument(
            "--attach-status", metavar="<status>", choices=("attached", "detached"), help="attached or detached."
        )
        parser.add_argument(
            "--reset-migration-status", action="store_true", help="Forget the outcome of its last migration."
        )

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        migration_status = "none" if parsed_args.reset_migration_status else None
        body = given(
            status=parsed_args.state, attach_status=parsed_args.attach_status, migration_status=migration_status
        ) or {"status": "available"}

        def reset(name: str) -> None:
            self.client.act(client.VOLUME, self.client.find_id(client.VOLUME, name), "os-reset_status", body)

        return for_each(self, parsed_args.volumes, reset)
