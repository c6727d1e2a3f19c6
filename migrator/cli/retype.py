"""The command that changes a volume's type."""

from __future__ import annotations

import argparse

from migrator.cli import client
from migrator.cli.base import Plain
from migrator.cli.migrate import follow

_POLICIES = ("never", "on-demand")


class Retype(Plain):
    """Changes the type of a volume."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("volume", metavar="<volume>", help="Name or ID of volume for which to modify type.")
        parser.add_argument("new_type", metavar="<volume-type>", help="Name or ID of the new volume type.")
        parser.add_argument(
            "--migration-policy",
            metavar="<never|on-demand>",
            choices=_POLICIES,
            default="never",
            help="Whether the volume may be moved if its pool does not do for the type. Default: never.",
        )
        parser.add_argument(
            "--wait", action="store_true", help="Follow the migration if there is one, and end as it ends."
        )

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        volume_id = self.client.find_id(client.VOLUME, parsed_args.volume)
        before = self._newest(volume_id) if parsed_args.wait else None
        body = {"new_type": parsed_args.new_type, "migration_policy": parsed_args.migration_policy}
        self.client.act(client.VOLUME, volume_id, "os-retype", body)
        self.say(f"Request to retype volume {parsed_args.volume} has been accepted.")
        if not parsed_args.wait:
            return
        begun = self._newest(volume_id)
        if begun is None or begun == before:
            self.say(f"Volume {parsed_args.volume} has its new type; nothing had to be moved.")
        else:
            follow(self, begun, parsed_args.volume)

    def _newest(self, volume_id: str) -> str | None:
        """Return the id of the volume's newest migration, which is recorded before a request is accepted."""
        found = self.client.get("migrations", volume_id=volume_id, limit=1).get("migrations", [])
        return str(found[0]["id"]) if found else None
