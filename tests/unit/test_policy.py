"""The rules by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator import conf as config
from migrator import errors, policy
from migrator.context import RequestContext


def _policy(directory: Path, rules: str = "") -> policy.Policy:
    (directory / "policy.yaml").write_text(rules or "{}")
    (directory / "x.conf").write_text(f"[oslo_policy]\npolicy_file = {directory}/policy.yaml\n")
    return policy.Policy(config.load("x", [], [str(directory / "x.conf")]))


ADMIN = RequestContext(user_id="a", project_id="p", roles=["admin", "member", "reader"])
MEMBER = RequestContext(user_id="m", project_id="p", roles=["member", "reader"])
READER = RequestContext(user_id="r", project_id="p", roles=["reader"])
NOBODY = RequestContext(user_id="n", project_id="p", roles=[])


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ("volume:get", [ADMIN, MEMBER, READER]),
        ("volume:create", [ADMIN, MEMBER]),
        ("volume_extension:volume_admin_actions:migrate_volume", [ADMIN]),
        ("migrations:cancel", [ADMIN]),
    ],
)
def test_roles(tmp_path: Path, rule: str, allowed: list[RequestContext]) -> None:
    decisions = _policy(tmp_path)
    assert [who for who in (ADMIN, MEMBER, READER, NOBODY) if decisions.allows(who, rule)] == allowed
    elsewhere = {"project_id": "q", "user_id": None}
    assert [who for who in (ADMIN, MEMBER, READER) if decisions.allows(who, rule, elsewhere)] == [ADMIN]


def test_a_refusal_names_the_rule(tmp_path: Path) -> None:
    with pytest.raises(errors.Forbidden, match="migrations:get_all"):
        _policy(tmp_path).authorize(MEMBER, "migrations:get_all")


def test_the_operators_file_counts(tmp_path: Path) -> None:
    decisions = _policy(tmp_path, '"migrations:get_all": "role:member"\n"context_is_admin": "role:boss"\n')
    assert decisions.allows(MEMBER, "migrations:get_all")
    assert not decisions.allows(ADMIN, "migrations:cancel")


def test_a_changed_file_counts_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "RELOAD_SECONDS", 0.0)
    decisions = _policy(tmp_path)
    assert not decisions.allows(MEMBER, "migrations:get_all")
    (tmp_path / "policy.yaml").write_text('"migrations:get_all": "role:member"\n# longer, so that it is another file\n')
    assert decisions.allows(MEMBER, "migrations:get_all")


def test_every_rule_is_documented_once(tmp_path: Path) -> None:
    names = [rule.name for rule in policy.list_rules()]
    assert len(names) == len(set(names))
    assert all(rule.description for rule in policy.list_rules())
    assert set(names) == set(policy.get_enforcer(config.load("x", [], [])).registered_rules)
