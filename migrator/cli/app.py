"""The command ``migrator``: the table of its commands, and the options they share."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from cliff import app, command, commandmanager
from cliff.help import HelpAction

import migrator
from migrator import errors
from migrator.cli import session
from migrator.cli.base import Parser, one_line
from migrator.cli.exits import exit_code

if TYPE_CHECKING:
    from migrator.cli.client import Client

#: Every command and the class that runs it, under ``migrator.cli``; a class is imported only when it is called for.
COMMANDS: dict[str, str] = {
    "create": "volumes:CreateVolume",
    "list": "volumes:ListVolumes",
    "show": "volumes:ShowVolume",
    "delete": "volumes:DeleteVolumes",
    "extend": "volumes:ExtendVolume",
    "retype": "retype:Retype",
    "reset-state": "volumes:ResetState",
    "manageable-list": "manage:ListManageable",
    "manage": "manage:Manage",
    "unmanage": "manage:Unmanage",
    "migrate": "migrate:Migrate",
    "plan": "plan:Plan",
    "migration-list": "migrations:ListMigrations",
    "migration-show": "migrations:ShowMigration",
    "migration-watch": "migrate:WatchMigration",
    "migration-cancel": "migration_orders:CancelMigration",
    "migration-pause": "migration_orders:PauseMigration",
    "migration-resume": "migration_orders:ResumeMigration",
    "migration-retry": "migration_orders:RetryMigration",
    "migration-set-rate": "migration_orders:SetMigrationRate",
    "migration-undo": "migration_orders:UndoMigration",
    "get-pools": "services:ListPools",
    "service-list": "services:ListServices",
    "service-enable": "services:EnableService",
    "service-disable": "services:DisableService",
    "service-freeze": "services:FreezeService",
    "service-thaw": "services:ThawService",
    "type-list": "types:ListTypes",
    "type-show": "types:ShowType",
    "type-create": "types:CreateType",
    "type-delete": "types:DeleteTypes",
    "type-key": "types:SetTypeKeys",
    "type-access-list": "type_access:ListTypeAccess",
    "type-access-add": "type_access:AddTypeAccess",
    "type-access-remove": "type_access:RemoveTypeAccess",
    "snapshot-create": "snapshots:CreateSnapshot",
    "snapshot-list": "snapshots:ListSnapshots",
    "snapshot-show": "snapshots:ShowSnapshot",
    "snapshot-delete": "snapshots:DeleteSnapshots",
    "snapshot-reset-state": "snapshots:ResetSnapshots",
    "snapshot-manageable-list": "manage:ListManageableSnapshots",
    "snapshot-manage": "manage:ManageSnapshot",
    "snapshot-unmanage": "manage:UnmanageSnapshots",
    "message-list": "messages:ListMessages",
}


class Commands(commandmanager.CommandManager):
    """Cliff's manager, fed from the table above instead of installed entry points."""

    def __init__(self) -> None:
        super().__init__()
        for name, target in COMMANDS.items():
            self.commands[name] = EntryPoint(name, f"migrator.cli.{target}", "migrator.cli")


class OneLine(logging.Formatter):
    """An error is one line, whatever it says; a traceback (``--debug``) keeps its shape."""

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(record.getMessage())
        if record.exc_info:
            return f"{self.formatException(record.exc_info)}\n{text}"
        return text


class App(app.App):
    """The operator's command line."""

    NAME = "migrator"
    LOG = logging.getLogger("migrator.cli")

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.failure_code = 0
        self.root_level = logging.getLogger().level
        self.handlers: list[logging.Handler] = []
        super().__init__(migrator.__doc__, migrator.__version__, Commands(), deferred_help=True)

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, object] | None = None
    ) -> argparse.ArgumentParser:
        # No abbreviations: this parser sees a command's own options too, and must not take --de for --debug.
        parser = Parser(prog=self.NAME, description=description, add_help=False, allow_abbrev=False)
        parser.add_argument("--version", action="version", version=f"{self.NAME} {version}")
        loud = parser.add_mutually_exclusive_group()
        loud.add_argument(
            "-v", "--verbose", action="count", dest="verbose_level", default=1, help="Show the requests made."
        )
        loud.add_argument(
            "-q", "--quiet", action="store_const", dest="verbose_level", const=0, help="Show no progress."
        )
        parser.add_argument("--log-file", help="Write everything that is logged to a file too.")
        parser.add_argument("-h", "--help", action="store_true", dest="deferred_help", help="Show help and exit.")
        parser.add_argument("--debug", action="store_true", help="Show a traceback on errors.")
        session.register_options(parser, self.argv)
        return parser

    def configure_logging(self) -> None:
        console = logging.StreamHandler(self.stderr)
        # The libraries' warnings are for those who look into the requests; an error is one line.
        console.setLevel(logging.DEBUG if self.options.verbose_level > 1 else logging.ERROR)
        console.setFormatter(OneLine())
        self.handlers = [console]
        if self.options.log_file:
            to_file = logging.FileHandler(self.options.log_file)
            to_file.setLevel(logging.DEBUG)
            to_file.setFormatter(logging.Formatter(self.LOG_FILE_MESSAGE_FORMAT))
            self.handlers.append(to_file)
        root = logging.getLogger()
        self.root_level = root.level
        # No lower than somebody listens: the session composes a line for every request otherwise.
        root.setLevel(min(handler.level for handler in self.handlers))
        for handler in self.handlers:
            root.addHandler(handler)

    @property
    def quiet(self) -> bool:
        return bool(self.options.verbose_level == 0)

    @cached_property
    def client(self) -> Client:
        """The service's API, connected with the options given; made when a command first needs it."""
        from migrator.cli.client import Client

        return Client(session.connect(self.options))

    def interact(self) -> None:
        """Without a command, say which there are: there is no shell of our own."""
        show_help = HelpAction([], argparse.SUPPRESS, default=self)
        show_help(self.parser, self.options, None, None)

    def clean_up(self, cmd: command.Command, result: int, err: BaseException | None) -> None:
        self.failure_code = exit_code(err) if err is not None else 0

    def run_subcommand(self, argv: list[str]) -> int:
        """Run one command; Cliff says 1 for whatever went wrong, our table of exit codes says more."""
        result = super().run_subcommand(argv)
        return self.failure_code or result

    def close(self) -> None:
        """Take back what was done to the process's logging."""
        logging.getLogger().setLevel(self.root_level)
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return its exit code (see EXIT_CODES)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        cli = App(arguments)
    except errors.MigratorError as error:
        print(one_line(str(error)), file=sys.stderr)
        return exit_code(error)
    try:
        return cli.run(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    finally:
        cli.close()
