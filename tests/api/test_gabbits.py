"""The arcs of gabbits/: one file for each resource, the requests of a life in turn and what is refused on the way.

In front of a real scheduler and real volume services of files; migrations are placed and go no further.  A file is
one test, since each of its requests stands on those before.  What is there beforehand has its name in ``planted``.
"""

from __future__ import annotations

import json
import re
import unittest
from pathlib import Path
from typing import Any, ClassVar

import pytest
from gabbi import handlers, suitemaker, utils
from gabbi.handlers import base

from migrator.api.router import make_mapper
from migrator.api.routes import DISCOVERY, ROUTES, Actions
from tests.api.conftest import DESTINATION, SOURCE, Api
from tests.api.plant import Plant

HERE = Path(__file__).parent / "gabbits"
FILES = sorted(HERE.glob("*.yaml"))
HOST = "api.test"


def planted(api: Api, plant: Plant, directory: Path) -> dict[str, str]:
    """What the files mean by $ENVIRON['…']."""
    for name in ("disk.img", "old.img", "snapshot.img"):
        (directory / "file1" / name).write_bytes(b"\0" * 4096)
    api.beat("dead@nfs", cluster="east")
    api.silence("dead@nfs", 3600)
    return {
        "VOLUME": plant.volume(user_id="joe"),
        "THEIRS": plant.volume(project_id="other", user_id="eve"),
        "SOURCE": SOURCE,
        "DESTINATION": DESTINATION,
        "NOTHING": "5c1f2cf6-0000-4000-8000-000000000000",
        "SERVER": "5c1f2cf6-0000-4000-8000-000000000001",
        "LONG": "x" * 256,
    }


class Fault(base.ResponseHandler):
    """``response_fault: [words]``: the answer is a fault, of its status, whose message has all of these."""

    test_key_suffix = "fault"
    test_key_value: ClassVar[list[str]] = []

    def action(self, test: Any, item: str, value: object = None) -> None:
        (fault,) = json.loads(test.output).values()
        assert str(fault["code"]) == str(test.test_data["status"])
        assert test.replace_template(item) in fault["message"], fault["message"]


class Without(base.ResponseHandler):
    """``response_without: [keys]``: none of these is anywhere in the answer."""

    test_key_suffix = "without"
    test_key_value: ClassVar[list[str]] = []

    def action(self, test: Any, item: str, value: object = None) -> None:
        assert f'"{item}":' not in test.output, test.output


HANDLERS = [handler() for handler in (*handlers.RESPONSE_HANDLERS, Fault, Without)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_arc(api: Api, plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    for name, value in planted(api, plant, tmp_path).items():
        monkeypatch.setenv(name, value)
    suite: Any = suitemaker.test_suite_from_dict(
        unittest.defaultTestLoader,
        file.stem,
        utils.load_yaml(yaml_file=str(file)),
        str(HERE),
        HOST,
        80,
        None,
        lambda: api.app,
        handlers=HANDLERS,
    )
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == suite.countTestCases() > 0
    assert not result.skipped
    failed: list[tuple[Any, str]] = [*result.errors, *result.failures]
    problems = [f"{test.test_data['name']}: {text}" for test, text in failed]
    assert not problems, "\n".join(problems)


# --- the files together ----------------------------------------------------------------------------------------------

VERBS = ("GET", "POST", "PUT", "DELETE")


def _requests(file: Path) -> list[tuple[str, str, Any, int]]:
    """Method, path, body and status of every request of a file."""
    content = utils.load_yaml(yaml_file=str(file))
    found = []
    for test in content["tests"]:
        asked = {"method": "GET", "status": 200, **content.get("defaults", {}), **test}
        method = next((verb for verb in VERBS if verb in test), asked["method"])
        found.append((method, str(test.get(method, asked.get("url"))), asked.get("data"), int(asked["status"])))
    return found


def _routes() -> set[str]:
    """Every route and every action, as ``_named`` names them."""
    named: set[str] = set()
    for path, methods in ROUTES.items():
        for method, call in methods.items():
            actions = call.table if isinstance(call, Actions) else [""]
            named |= {f"{method} {path} {action}".strip() for action in actions}
    return named | {f"GET {path}" for path in DISCOVERY}


def _named(method: str, url: str, body: Any) -> str:
    """The route that a request of a file leads to; its action, if it has one."""
    path = re.sub(r"\$[A-Z]+\[[^/]*?\](?:\.\$\w+\[[^/]*?\])?", "x", url.partition("?")[0])
    found = make_mapper().match(path.rstrip("/") or "/", {})
    template = found["template"] if found else "nowhere"
    action = next(iter(body)) if template.endswith("/action") and body else ""
    return f"{method} {template} {action}".strip()


def test_every_route_and_every_action_is_asked_for_and_succeeds() -> None:
    asked = {
        _named(method, url, body) for file in FILES for method, url, body, status in _requests(file) if status < 400
    }
    assert _routes() - asked == NEVER


#: What there is nothing of: no type is the default one, none encrypts, no compute service swaps, and no migration goes
#: far enough to be retried or undone.  test_completion_and_reset.py and test_migration_actions.py see to the latter.
NEVER = {
    "GET /types/default",
    "GET /types/{type_id}/encryption/{key}",
    "POST /migrations/{migration_id}/action retry",
    "POST /migrations/{migration_id}/action undo",
    "POST /volumes/{volume_id}/action os-migrate_volume_completion",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_refused_something(file: Path) -> None:
    assert [status for *_, status in _requests(file) if 400 <= status < 500]
