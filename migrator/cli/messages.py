"""Commands on the messages that tell users what went wrong."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from migrator.cli import columns
from migrator.cli.base import Json, Listing, given, positive


class ListMessages(Listing):
    """Lists messages about requests that failed after they had been accepted."""

    columns = columns.MESSAGES

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--resource-id", metavar="<id>", help="Only those about this volume or snapshot.")
        parser.add_argument("--limit", metavar="<n>", type=positive, help="At most so many.")

    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        filters = given(resource_uuid=args.resource_id)
        return self.client.list_all("messages", "messages", limit=args.limit, **filters)
