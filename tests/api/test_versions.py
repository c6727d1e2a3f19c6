"""Version discovery and microversions."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.api import versions
from tests.api.arcs import Step, run
from tests.api.conftest import Api

HEADER = "OpenStack-API-Version"


def test_discovery(api: Api) -> None:
    everything = {
        "versions.#": 1,
        "versions.0.id": "v3.0",
        "versions.0.status": "CURRENT",
        "versions.0.min_version": "3.0",
        "versions.0.version": "3.71",
        "versions.0.links.1.rel": "self",
        "versions.0.links.1.href": "http://api.test:8776/v3/",
        "@openstack-api-version": "volume 3.0",
    }
    run(
        api,
        [
            Step("the root offers a choice", "GET /", 300, everything, token=None, project=None),
            Step("v3 is there", "GET /v3/", 200, everything, token=None, project=None),
            Step("without a slash too", "GET /v3", 200, everything, token=None, project=None),
            Step("below a project too", "GET /v3/demo/", 200, everything, token=None, project=None),
            Step("nobody needs a token for it", "GET /", 300, everything, token="nobody:x", project=None),
            Step("but what is no project is not there", "GET /v3/attachments", 404, token=None, project=None),
            Step("v2 is not there", "GET /v2/", 404, token=None, project=None),
        ],
    )


def test_links_begin_with_the_public_endpoint(make_api: Any) -> None:
    api = make_api(public_endpoint="https://storage.example.org/volume/")
    answer = api("GET", "/", project=None)
    assert answer.json["versions"][0]["links"][1]["href"] == "https://storage.example.org/volume/v3/"
    volume_id = api.make_volume()
    links = api("GET", f"/volumes/{volume_id}").json["volume"]["links"]
    assert links[0]["href"] == f"https://storage.example.org/volume/v3/demo/volumes/{volume_id}"


@pytest.mark.parametrize(
    ("header", "status", "answered"),
    [
        (None, 200, "volume 3.0"),
        ("volume 3.0", 200, "volume 3.0"),
        ("volume 3.27", 200, "volume 3.27"),
        ("volume 3.71", 200, "volume 3.71"),
        ("volume latest", 200, "volume 3.71"),
        ("block-storage 3.5", 200, "volume 3.5"),
        ("compute 2.89, volume 3.5", 200, "volume 3.5"),
        ("compute 2.89", 200, "volume 3.0"),
        ("volume 3.72", 406, None),
        ("volume 2.0", 406, None),
        ("volume 4.0", 406, None),
        ("volume 3", 400, None),
        ("volume 3.x", 400, None),
        ("volume 3.007", 400, None),
        ("volume", 400, None),
    ],
)
def test_header(api: Api, header: str | None, status: int, answered: str | None) -> None:
    answer = api("GET", "/volumes", headers={} if header is None else {HEADER: header})
    assert answer.status == status, answer.text
    assert answer.headers["vary"] == HEADER
    if answered is not None:
        assert answer.headers[HEADER.lower()] == answered
    if status == 406:
        assert "Minimum is 3.0 and maximum is 3.71" in answer.fault


def test_urls_without_a_project_are_served_from_3_67(api: Api) -> None:
    volume_id = api.make_volume()
    href = f"http://api.test:8776/v3/volumes/{volume_id}"
    run(
        api,
        [
            Step(
                "links have no project then",
                "GET /v3/volumes/$id",
                200,
                {"volume.links.0.href": href, "volume.links.1.href": href.replace("/v3", "")},
                version="3.67",
                token="admin:demo",
                project=None,
            ),
            Step("the project is the token's", "GET /v3/volumes", 200, {"volumes.#": 0}, "", "joe:x", "3.67", {}, None),
            Step("so it is here", "GET /v3/volumes", 200, {"volumes.#": 1}, "", "joe:demo", "3.67", {}, None),
            Step("and before that", "GET /v3/volumes", 200, {"volumes.#": 1}, "", "joe:demo", "3.0", {}, None),
        ],
        id=volume_id,
    )


def test_messages_came_with_3_3(api: Api) -> None:
    assert api("GET", "/messages", version="3.2").status == 404
    assert api("GET", "/messages", version="3.3").status == 200


def test_every_named_microversion_is_one_that_we_serve() -> None:
    named = [value for value in vars(versions).values() if isinstance(value, versions.Version)]
    assert all(versions.MIN <= version <= versions.MAX for version in named)


#: Field, since when, and whether only administrators see it; as in the public reference.
VERSIONED = [
    ("group_id", "3.13", False),
    ("provider_id", "3.21", True),
    ("shared_targets", "3.48", False),
    ("service_uuid", "3.48", False),
    ("cluster_name", "3.61", True),
    ("volume_type_id", "3.63", False),
    ("encryption_key_id", "3.64", False),
    ("consumes_quota", "3.65", False),
]


def _before(version: str) -> str:
    return f"3.{int(version.partition('.')[2]) - 1}"


@pytest.mark.parametrize(("name", "since", "admins_only"), VERSIONED)
def test_fields_of_a_volume_by_microversion(api: Api, name: str, since: str, admins_only: bool) -> None:
    volume_id = api.make_volume(encryption_key_id="4a3f0b6c-0000-4000-8000-000000000001")
    for path in (f"/volumes/{volume_id}", "/volumes/detail"):
        for token in ("admin", "joe"):
            seen = {}
            for version in (_before(since), since, "3.71"):
                body = api("GET", path, token=token, version=version).json
                seen[version] = name in (body["volume"] if "volume" in body else body["volumes"][0])
            shown = token == "admin" or not admins_only
            assert seen == {_before(since): False, since: shown, "3.71": shown}


BASE_FIELDS = {
    "id",
    "status",
    "size",
    "availability_zone",
    "created_at",
    "updated_at",
    "name",
    "description",
    "volume_type",
    "snapshot_id",
    "source_volid",
    "metadata",
    "links",
    "user_id",
    "bootable",
    "encrypted",
    "replication_status",
    "consistencygroup_id",
    "multiattach",
    "attachments",
    "os-vol-tenant-attr:tenant_id",
}
ADMIN_FIELDS = {
    "migration_status",
    "os-vol-host-attr:host",
    "os-vol-mig-status-attr:migstat",
    "os-vol-mig-status-attr:name_id",
}


def test_a_volume_at_3_0_has_the_fields_of_the_reference_and_no_others(api: Api) -> None:
    volume_id = api.make_volume()
    assert set(api("GET", f"/volumes/{volume_id}").json["volume"]) == BASE_FIELDS | ADMIN_FIELDS
    assert set(api("GET", f"/volumes/{volume_id}", token="joe").json["volume"]) == BASE_FIELDS
    assert set(api("GET", "/volumes").json["volumes"][0]) == {"id", "name", "links"}


def test_at_every_microversion_a_volume_only_gains_fields(api: Api) -> None:
    volume_id = api.make_volume()
    before: set[str] = set()
    for minor in range(72):
        fields = set(api("GET", f"/volumes/{volume_id}", version=f"3.{minor}").json["volume"])
        assert fields >= before
        before = fields
    assert before == BASE_FIELDS | ADMIN_FIELDS | {name for name, *_ in VERSIONED} - {"encryption_key_id"}
