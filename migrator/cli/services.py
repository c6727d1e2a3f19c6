"""Commands on services and the pools that they report."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from migrator.cli import columns
from migrator.cli.base import Json, Listing, Plain, given


class ListPools(Listing):
    """Lists the pools that the scheduler knows; a name is what migrate takes as host."""

    columns = columns.POOLS

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--detail", action="store_true", help="With capacities and capabilities.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        body = self.client.get("scheduler-stats/get_pools", detail="True" if args.detail else None)
        return sorted(body.get("pools", []), key=lambda pool: str(pool["name"]))

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        shown: Mapping[str, columns.Cell] = columns.POOLS_DETAIL if parsed_args.detail else columns.POOLS
        return columns.table(shown, self.rows(parsed_args))


class ListServices(Listing):
    """Lists services, and whether they are up."""

    columns = columns.SERVICES

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--host", metavar="<host>", help="Only those of this host or host@backend.")
        parser.add_argument("--binary", metavar="<binary>", help="Only those of this kind.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        services = self.client.get("os-services", host=args.host, binary=args.binary).get("services", [])
        return sorted(services, key=lambda service: (service["binary"], service["host"]))


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="<host>", help="Host, or host@backend of a volume service.")
    parser.add_argument("binary", metavar="<binary>", help="Kind of service, as service-list shows it.")


class EnableService(Plain):
    """Lets a service have new volumes again."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_service(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.put("os-services/enable", {"host": parsed_args.host, "binary": parsed_args.binary})
        self.say(f"Service {parsed_args.binary} on {parsed_args.host} is enabled.")


class DisableService(Plain):
    """Keeps new volumes away from a service; what it has stays and works."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_service(parser)
        parser.add_argument("--reason", metavar="<text>", help="Shown by service-list.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        path = "os-services/disable" if parsed_args.reason is None else "os-services/disable-log-reason"
        body = given(host=parsed_args.host, binary=parsed_args.binary, disabled_reason=parsed_args.reason)
        self.client.put(path, body)
        self.say(f"Service {parsed_args.binary} on {parsed_args.host} is disabled.")


class _SetFrozen(Plain):
    word: ClassVar[str]
    done: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("host", metavar="<host>", help="The backend: host@backend.")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.client.put(f"os-services/{self.word}", {"host": parsed_args.host})
        self.say(f"Backend {parsed_args.host} {self.done}.")


class FreezeService(_SetFrozen):
    """Lets a backend take no new volumes, also as copies; those that it has can be used, deleted and migrated."""

    word = "freeze"
    done = "is frozen"


class ThawService(_SetFrozen):
    """Lets a backend take new volumes again."""

    word = "thaw"
    done = "takes new volumes again"
