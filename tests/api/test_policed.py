"""Every route and every action is policed: a walk over both tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.api import queries, router
from migrator.api.routes import DISCOVERY, ROUTES, Actions, Call
from migrator.api.versions import MAX, MIN
from migrator.context import RequestContext
from migrator.policy import ADMIN, MEMBER, READER, Policy, list_rules
from tests import draw_reference
from tests.api.conftest import Api
from tests.support.processes import ROOT

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
def test_policed(make_api: Callable[..., Api], path: str, method: str, action: str | None, call: Call) -> None:
    api = make_api(scheduler_rpc_timeout_seconds=1)  # nobody answers here
    where = _filled(path)
    body: Any = {action: {}} if action else None
    assert call.rule in RULES, "the rule is documented"
    assert RULES[call.rule] in (ADMIN, READER, MEMBER)

    def status(token: str | None) -> int:
        return api(method, where, body, token=token, version="3.71").status

    assert status("") == 401
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
    #: Asked beside the rule of the route, about what is found there.
    blocks |= {"volume:extend_attached_volume", "volume:multiattach", "volume:multiattach_bootable_volume"}
    assert set(RULES) == routed | attributes | blocks


def test_every_path_leads_to_its_own_entry() -> None:
    mapper = router.make_mapper()
    for path in ROUTES:
        for prefix in ("/v3", "/v3/demo"):
            filled = prefix + path.replace("{", "").replace("}", "")
            assert mapper.match(filled, {})["template"] == path


def test_whoever_only_reads_changes_nothing(api: Api) -> None:
    """A token with the role reader, as Keystone gives them: asked of policy, since noauth makes everybody a member."""
    reader = RequestContext(user_id="ann", project_id="demo", roles=["reader"])
    policy = Policy(api.conf)
    for path, method, action, call in calls():
        assert call.rule is not None
        is_looking = method == "GET" or action in ("os-show_image_metadata",)
        assert policy.allows(reader, call.rule) is (is_looking and RULES[call.rule] == READER), (path, method, action)


def test_every_route_has_a_microversion_from_which_it_is_there(api: Api) -> None:
    for path, method, action, call in calls():
        assert MIN <= call.since <= MAX
        if call.since > MIN:
            before = f"3.{call.since.minor - 1}"
            answer = api(method, _filled(path), {action: {}} if action else None, version=before)
            assert answer.status == 404, (path, method, action, before)
            assert "The resource /v3/" in answer.fault


def test_every_body_has_a_schema(api: Api) -> None:
    for path, method, action, call in calls():
        assert (call.schema is not None) == (method in ("POST", "PUT")), (path, method, action)
        if call.schema is not None and action is None:
            answer = api(method, _filled(path), {"no such thing": 1}, version=str(call.since))
            assert answer.status == 400, (path, method, answer.text)


def test_every_route_has_its_place_in_the_reference() -> None:
    """Its heading, and below it the rule and the microversion; a body if it takes one, and every parameter."""
    page = (ROOT / "doc/source/rest/reference.rst").read_text(encoding="utf-8")
    for path, method, action, call in calls():
        title = " ".join(part for part in (method, path, action) if part)
        _, found, below = page.partition(f"\n{title}\n{'-' * len(title)}\n")
        assert found, title
        told = re.split(r"\n[-=]{3,}\n\n", below)[0]
        assert f":policy: ``{call.rule}``" in told, title
        assert f"\n:since: {call.since}\n" in told, title
        assert ("in the body, from" in told) is (call.schema is not None), title
        for name in queries.of(f"{method} {path}"):
            assert f"\n``{name}`` " in told, (title, name)


def test_the_reference_is_what_the_tables_say() -> None:
    """If this fails: ``make sample`` writes the page anew."""
    page = (ROOT / "doc/source/rest/reference.rst").read_text(encoding="utf-8")
    assert page == draw_reference.drawn()


def test_every_operation_that_a_rule_documents_is_a_route() -> None:
    """Variables may be called otherwise there, and an action or a part of a path be left out."""
    served = {f"{method} {re.sub(r'{[^}]+}', '{}', path)}" for path, method, *_ in calls()}
    served |= {"PUT /os-services/{}", "PUT /clusters/{}"}
    for rule in list_rules():
        for operation in getattr(rule, "operations", ()):
            path = re.sub(r"{[^}]+}", "{}", operation["path"].partition(" ")[0])
            assert f"{operation['method']} {path}" in served, (rule.name, operation)
