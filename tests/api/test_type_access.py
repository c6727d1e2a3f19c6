"""Volume types that are not public: who sees them, who uses them, and how access is given and taken."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.arcs import Step, run
from tests.api.conftest import Api

PRIVATE = {"volume_type": {"name": "secret", "os-volume-type-access:is_public": False}}
PUBLIC = {"volume_type": {"name": "open"}}


@pytest.fixture
def made(api: Api) -> dict[str, Any]:
    """The ids of a private and of a public type."""
    return run(
        api,
        [
            Step("a private type", "POST /types", 200, {}, PRIVATE, keep={"secret": "volume_type.id"}),
            Step("a public one", "POST /types", 200, {}, PUBLIC, keep={"open": "volume_type.id"}),
        ],
    )


def test_access_is_given_and_taken(api: Api, made: dict[str, Any]) -> None:
    add, remove = {"addProjectAccess": {"project": "demo"}}, {"removeProjectAccess": {"project": "demo"}}
    volume = {"volume": {"size": 1, "volume_type": "secret"}}
    see: dict[str, Any] = {"token": "joe"}
    run(
        api,
        [
            Step("nobody has access", "GET /types/$secret/os-volume-type-access", 200, {"volume_type_access": []}),
            Step("it is not seen", "GET /types/$secret", 404, **see),
            Step("nor used by name", "POST /volumes", 404, body=volume, **see),
            Step("nor its specs read", "GET /types/$secret/extra_specs", 404, **see),
            Step("access is given", "POST /types/$secret/action", 202, body=add),
            Step("once", "POST /types/$secret/action", 409, {"fault": "has access"}, add),
            Step(
                "who has it",
                "GET /types/$secret/os-volume-type-access",
                200,
                {"volume_type_access": [{"volume_type_id": "$secret", "project_id": "demo"}]},
            ),
            Step("it is seen", "GET /types/$secret", 200, {"volume_type.is_public": False}, **see),
            Step("listed", "GET /types", 200, {"volume_types.#": 2}, **see),
            Step("with specs", "GET /types/$secret/extra_specs", 200, {"extra_specs": {}}, **see),
            Step("used", "POST /volumes", 202, {"volume.volume_type": "secret"}, volume, **see),
            Step("by that project alone", "GET /types/$secret", 404, token="eve", project="other"),
            Step("others list one", "GET /types", 200, {"volume_types.#": 1}, token="eve", project="other"),
            Step("access is taken", "POST /types/$secret/action", 202, body=remove),
            Step("once", "POST /types/$secret/action", 404, {"fault": "demo"}, remove),
            Step("it is gone", "GET /types/$secret", 404, **see),
        ],
        **made,
    )


def test_a_public_type_has_no_list_of_projects(api: Api, made: dict[str, Any]) -> None:
    body = {"addProjectAccess": {"project": "demo"}}
    run(
        api,
        [
            Step("no list", "GET /types/$open/os-volume-type-access", 404, {"fault": "public"}),
            Step("nothing to give", "POST /types/$open/action", 400, {"fault": "it is public"}, body),
            Step("no type", "POST /types/nothing/action", 404, {}, body),
            Step("no project", "POST /types/$secret/action", 400, {}, {"addProjectAccess": {}}),
            Step("no other word", "POST /types/$secret/action", 400, {}, {"giveProjectAccess": {"project": "x"}}),
        ],
        **made,
    )


def test_a_default_type_that_is_private_is_the_default_of_whom_it_is_open_to(make_api: Any) -> None:
    api = make_api(default_volume_type="secret")
    type_id = api("POST", "/types", PRIVATE).json["volume_type"]["id"]
    assert api("GET", "/types/default", token="joe").status == 404
    api("POST", f"/types/{type_id}/action", {"addProjectAccess": {"project": "demo"}})
    assert api("GET", "/types/default", token="joe").json["volume_type"]["id"] == type_id


def test_clients_that_ask_for_encryption_are_told_that_there_is_none(api: Api, made: dict[str, Any]) -> None:
    assert api("GET", f"/types/{made['open']}/encryption").json == {}
    assert api("GET", f"/types/{made['open']}/encryption/cipher").status == 404
    assert api("GET", "/types/nothing/encryption").status == 404
    assert api("POST", f"/types/{made['open']}/encryption", {"encryption": {}}).status == 405
