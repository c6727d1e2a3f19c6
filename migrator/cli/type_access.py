"""Commands on who may use a volume type that is not public."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import ClassVar

from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Plain


class ListTypeAccess(Listing):
    """Lists the projects that may use a private volume type."""

    columns: ClassVar[dict[str, columns.Cell]] = {
        "Volume Type": columns.field("volume_type_id"),
        "Project": columns.field("project_id"),
    }

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_type(parser)

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        type_id = self.client.find_id(client.TYPE, args.type)
        found: list[Json] = self.client.get(f"types/{type_id}/os-volume-type-access").get("volume_type_access", [])
        return found


class _ChangeTypeAccess(Plain):
    action: ClassVar[str]
    done: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_type(parser)
        parser.add_argument("project", metavar="<project>", help="ID of the project.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        type_id = self.client.find_id(client.TYPE, parsed_args.type)
        self.client.act(client.TYPE, type_id, self.action, {"project": parsed_args.project})
        self.say(f"Project {parsed_args.project} {self.done} volume type {parsed_args.type}.")


class AddTypeAccess(_ChangeTypeAccess):
    """Lets a project use a private volume type."""

    action = "addProjectAccess"
    done = "may use"


class RemoveTypeAccess(_ChangeTypeAccess):
    """Lets a project no longer use a private volume type; the volumes that it has of it stay."""

    action = "removeProjectAccess"
    done = "may no longer use"


def _add_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", metavar="<type>", help="Name or ID of the volume type.")
