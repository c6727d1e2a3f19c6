"""Every route and every action is policed: a walk over both tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.api import router
from migrator.api.routes import DISCOVERY, ROUTES, Actions, Call
from migrator.policy import ADMIN, MEMBER, READER, list_rules
from tests.api.conftest import Api

RULES = {rule.name: rule.check_str for rule in list_rules()}
UUID = "5c1f2cf6-0000-4000-8000-000000000000"


def calls() -> Iterator[tuple[str, str, str | None, Call]]:
    """Every path, method, action (if it is one) and what serves it."""
    for path, methods in ROUTES.items():
        for method, call in methods.items():
            if isinstance(call, Actions):
                for action, served in call.table.items():
                    yield path, method, action, served
            else:
                yield path, method, None, call


def _filled(path: str) -> str:
    """Return the path with an id in the place of every variable."""
    return re.sub(r"\{\w+\}", UUID, path)


def identify(value: object) -> str:
    return value.rule or "open" if isinstance(value, Call) else str(value)


@pytest.mark.parametrize(("path", "method", "action", "call"), list(calls()), ids=identify)
def test_policed(api: Api, path: str, method: str, action: str | None, call: Call) -> None:
    where = _filled(path)
    body: Any = {action: {}} if action else None
    assert call.rule in RULES, "the rule is documented"
    assert RULES[call.rule] in (ADMIN, READER, MEMBER)

    def status(token: str | None) -> int:
        return api(method, where, body, token=token, version="3.71").status

    assert status(None) == 401
    if RULES[call.rule] == ADMIN:
        assert status("joe") == 403
        assert status("admin") != 403
    else:
        assert status("joe") != 403


@pytest.mark.parametrize(("path", "method", "action", "call"), list(calls()), ids=identify)
def test_the_policy_file_can_close_every_route(
    path: str, method: str, action: str | None, call: Call, make_api: Callable[..., Api], tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(f'"{call.rule}": "!"\n')
    api = make_api()
    where = _filled(path)
    answer = api(method, where, {action: {}} if action else None, version="3.71")
    assert answer.status == 403, answer.text
    assert str(call.rule) in answer.fault


def test_only_discovery_is_open() -> None:
    assert [call.rule for *_, call in calls() if call.rule is None] == []
    assert all(
        isinstance(call, Call) and call.rule is None for methods in DISCOVERY.values() for call in methods.values()
    )


def test_every_rule_that_is_no_building_block_is_used_or_read_by_a_view() -> None:
    routed = {call.rule for *_, call in calls()}
    attributes = {
        name
        for name in RULES
        if "attribute" in name
        or name.endswith(("read_sensitive", "access_types_extra_specs", "access_types_qos_specs_id"))
    }
    blocks = {"context_is_admin", "admin_or_project_reader", "admin_or_project_member", "volume:force_delete"}
    assert set(RULES) == routed | attributes | blocks


def test_every_path_leads_to_its_own_entry() -> None:
    mapper = router.make_mapper()
    for path in ROUTES:
        for prefix in ("/v3", "/v3/demo"):
            filled = prefix + path.replace("{", "").replace("}", "")
            assert mapper.match(filled, {})["template"] == path
