"""What every command shares: how it is parsed, how a list or one thing is shown, and the service it talks to."""

from __future__ import annotations

import abc
import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from cliff import _argparse, command, lister, show

from migrator import errors
from migrator.cli import columns
from migrator.cli.exits import SUCCESS, exit_code

if TYPE_CHECKING:
    from migrator.cli.app import App
    from migrator.cli.client import Client

Json = dict[str, Any]

_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE = frozenset({"false", "0", "no", "off", "f", "n"})


def is_boolean(text: str) -> bool:
    return text.lower() in _TRUE | _FALSE


def boolean(text: str) -> bool:
    """Return the truth that an operator spelt; a type for argparse."""
    if not is_boolean(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def key_value(text: str) -> tuple[str, str]:
    """Split ``key=value``; a type for argparse."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def positive(text: str) -> int:
    """Return a whole number above zero; a type for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def one_line(text: str) -> str:
    return " ".join(text.split())


def given(**values: Any) -> Json:
    """Return those of ``values`` that were given at all."""
    return {key: value for key, value in values.items() if value is not None}


class Parser(_argparse.ArgumentParser):
    """Says what is wrong in one line, not under a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)}; see '{self.prog} --help'\n")


class Plain(command.Command):
    """A command that answers with a line or none; the base of all."""

    parser_class: ClassVar[type[Parser]] = Parser
    epilog: ClassVar[str] = ""

    def _load_hooks(self) -> None:
        # Nobody extends our commands, and looking for who might costs a scan of all installed packages.
        self._hooks = []

    def get_epilog(self) -> str:
        return self.epilog

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = self.parser_class(
            prog=prog_name,
            description=self.get_description(),
            epilog=self.get_epilog(),
            formatter_class=_argparse.SmartHelpFormatter,
        )
        self.add_arguments(parser)
        return parser

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments; none by default."""

    @property
    def cli(self) -> App:
        return cast("App", self.app)

    @property
    def client(self) -> Client:
        return self.cli.client

    def say(self, text: str) -> None:
        self.app.stdout.write(f"{text}\n")


class Shown:
    """Stands before Cliff's own classes: a column that does not exist is a mistake of usage."""

    def _generate_columns_and_selector(
        self, parsed_args: argparse.Namespace, column_names: Sequence[str]
    ) -> tuple[list[str], list[bool] | None]:
        try:
            return super()._generate_columns_and_selector(parsed_args, column_names)  # type: ignore[misc,no-any-return]
        except ValueError as error:
            raise errors.BadRequest(reason=one_line(str(error))) from error


class Listing(Shown, lister.Lister, Plain):
    """A command that shows a list; ``columns`` says what of each row."""

    columns: ClassVar[Mapping[str, columns.Cell]]

    @abc.abstractmethod
    def rows(self, args: argparse.Namespace) -> Iterable[Json]:
        """Return the things to show, as the API gave them."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        return columns.table(self.columns, self.rows(parsed_args))


class Showing(Shown, show.ShowOne, Plain):
    """A command that shows one thing, field by field."""

    @abc.abstractmethod
    def thing(self, args: argparse.Namespace) -> Json:
        """Return the thing to show, as the API gave it."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        return columns.fields(self.thing(parsed_args))


def for_each(command: Plain, names: Iterable[str], act: Callable[[str], None]) -> int:
    """Do ``act`` to each of ``names``; what is refused is said in a line each, and the first's exit code returned."""
    code = SUCCESS
    for name in names:
        try:
            act(name)
        except (errors.ApiRefused, errors.BadRequest, errors.NotFound) as error:
            command.cli.LOG.error("%s: %s", name, error, exc_info=command.cli.options.debug)
            code = code or exit_code(error)
    return code
