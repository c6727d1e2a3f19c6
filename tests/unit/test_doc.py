"""The pages name what there is: every route, action, command, filter and exit code, and nothing besides."""

from __future__ import annotations

import re

import pytest

from migrator import errors
from migrator.api import migrations, routes, versions
from migrator.cli import app, exits
from migrator.scheduler import choose
from migrator.volume import states
from tests.support.processes import ROOT

PAGES = ROOT / "doc" / "source"


def page(name: str) -> str:
    return (PAGES / f"{name}.rst").read_text(encoding="utf-8")


def test_the_table_of_routes_is_the_one_that_is_served() -> None:
    rows = re.findall(r"^``(/\S+)`` +((?:[A-Z]+(?:, )?)+)", page("rest/routes"), re.MULTILINE)
    told = {path: set(methods.split(", ")) for path, methods in rows}
    assert told == {path: set(methods) for path, methods in routes.ROUTES.items()}


@pytest.mark.parametrize("action", routes.VOLUME_ACTIONS)
def test_every_action_on_a_volume_is_explained(action: str) -> None:
    assert f"\n``{action}``\n" in page("rest/routes")


def test_every_action_on_a_migration_is_explained() -> None:
    for action in routes.MIGRATION_ACTIONS:
        assert f'\n``{{"{action}": {{' in page("rest/migrations")


def test_every_filter_of_migrations_is_explained() -> None:
    table = page("rest/migrations").partition("filter ")[2].partition("Paging")[0]
    assert set(re.findall(r"^``(\w+)``", table, re.MULTILINE)) == set(migrations.FILTERS)


def test_the_microversions_are_those_that_are_served() -> None:
    assert f"from {versions.MIN} to {versions.MAX}" in page("rest/index")


def test_the_table_of_commands_is_the_command_lines() -> None:
    assert re.findall(r"^``([a-z-]+)`` ", page("user/cli"), re.MULTILINE) == list(app.COMMANDS)


def test_the_table_of_exit_codes_is_complete() -> None:
    table = page("user/cli").partition("Exit codes\n")[2].partition("Which service")[0]
    codes = {int(code) for code in re.findall(r"^(\d+) ", table, re.MULTILINE)}
    assert codes == {exits.SUCCESS, *(code for _, code in exits.EXIT_CODES)}


def test_every_end_of_a_migration_is_explained_to_users() -> None:
    text = page("user/migrate")
    for word in (*states.End, "queued", "running", "paused"):
        assert f"\n``{word}`` " in text


def test_the_codes_told_to_operators_are_names_of_errors() -> None:
    table = page("admin/troubles").partition("code  ")[2].partition("If the destination")[0]
    codes = re.findall(r"^``(\w+)``", table, re.MULTILINE)
    assert codes
    for code in codes:
        assert issubclass(getattr(errors, code), errors.MigratorError), code


def test_the_bound_of_verdicts_is_the_schedulers() -> None:
    assert f"Of more than {choose.EXPLAIN_ALL} pools" in page("rest/migrations")
