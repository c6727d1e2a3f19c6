"""Commands on volume types."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from urllib.parse import quote

from migrator import errors
from migrator.cli import client, columns
from migrator.cli.base import Json, Listing, Plain, Showing, for_each, given, key_value

_PUBLIC = "os-volume-type-access:is_public"


class ListTypes(Listing):
    """Lists volume types."""

    columns = columns.TYPES

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        return self.client.list_all("types", "volume_types", **client.TYPE.filters)


class ShowType(Showing):
    """Shows all about a volume type."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("type", metavar="<type>", help="Name or ID of the volume type to show.")

    def thing(self, args: argparse.Namespace) -> Json:
        return self.client.find(client.TYPE, args.type)


class CreateType(Showing):
    """Creates a volume type."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", metavar="<name>", help="Name of the volume type.")
        parser.add_argument("--description", metavar="<text>", help="What it is for.")
        parser.add_argument(
            "--property", metavar="<key=value>", type=key_value, action="append", help="Extra spec; may be repeated."
        )
        parser.add_argument("--private", action="store_true", help="Only for projects that are given access.")

    def thing(self, args: argparse.Namespace) -> Json:
        body = {"name": args.name, _PUBLIC: not args.private, **given(description=args.description)}
        created = self.client.thing(self.client.post("types", {"volume_type": body}), "volume_type")
        if args.property:
            specs = dict(args.property)
            self.client.post(f"types/{created['id']}/extra_specs", {"extra_specs": specs})
            created["extra_specs"] = {**(created.get("extra_specs") or {}), **specs}
        return created


class DeleteTypes(Plain):
    """Deletes one volume type or several."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("types", metavar="<type>", nargs="+", help="Name or ID of a volume type to delete.")

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        def delete(name: str) -> None:
            self.client.delete(f"types/{self.client.find_id(client.TYPE, name)}")
            self.say(f"Volume type {name} has been deleted.")

        return for_each(self, parsed_args.types, delete)


class SetTypeKeys(Plain):
    """Sets or unsets extra specs of a volume type."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("type", metavar="<type>", help="Name or ID of the volume type.")
        parser.add_argument("action", metavar="<action>", choices=("set", "unset"), help="set or unset.")
        parser.add_argument("specs", metavar="<key[=value]>", nargs="+", help="key=value to set, key to unset.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        type_id = self.client.find_id(client.TYPE, parsed_args.type)
        path = f"types/{type_id}/extra_specs"
        if parsed_args.action == "set":
            self.client.post(path, {"extra_specs": _specs(parsed_args.specs)})
            return
        for spec in parsed_args.specs:
            self.client.delete(f"{path}/{quote(spec.partition('=')[0], safe='')}")


def _specs(texts: Iterable[str]) -> dict[str, str]:
    try:
        return dict(key_value(text) for text in texts)
    except argparse.ArgumentTypeError as error:
        raise errors.BadRequest(reason=str(error)) from error
