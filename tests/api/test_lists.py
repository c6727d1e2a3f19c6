"""Lists: filters, order and paging."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import sqlalchemy as sa

from migrator.db import messages
from migrator.db import volumes as db_volumes
from tests.api.conftest import DESTINATION, PROJECT, SOURCE, Api


def names(api: Api, query: str = "", path: str = "/volumes/detail", **more: Any) -> list[str]:
    answer = api("GET", f"{path}?{query}", **more)
    assert answer.status == 200, answer.text
    key = path.split("/")[1]
    return [item["name"] for item in answer.json[key]]


@pytest.fixture
def volumes(api: Api) -> dict[str, str]:
    """Five volumes a to e, made one after the other."""
    return _five(api)


def _five(api: Api) -> dict[str, str]:
    ids = {}
    for index, name in enumerate("abcde"):
        ids[name] = api.make_volume(
            {"letter": name, "all": "yes"},
            display_name=name,
            size=5 - index,
            status="error" if name == "b" else "available",
            host=DESTINATION if name in "de" else SOURCE,
            bootable=name == "c",
            project_id="other" if name == "e" else PROJECT,
        )
    return ids


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "dcba"),
        ("sort=name:asc", "abcd"),
        ("sort=name", "dcba"),
        ("sort_key=size&sort_dir=asc", "dcba"),
        ("sort=status:asc,size:asc", "dcab"),
        ("sort=bootable:desc,name:asc", "cabd"),
        ("name=a", "a"),
        ("name=nobody", ""),
        ("status=error", "b"),
        ("bootable=true", "c"),
        ("bootable=False&sort=name:asc", "abd"),
        ("size=4", "b"),
        ("availability_zone=nova", "dcba"),
        ("availability_zone=mars", ""),
        ("migration_status=None", "dcba"),
        ("migration_status=success", ""),
        ("metadata=" + quote('{"letter": "a"}'), "a"),
        ("metadata=" + quote("{'letter': 'a', 'all': 'yes'}"), "a"),
        ("metadata=" + quote("{'letter': 'a', 'all': 'no'}"), ""),
        ("all_tenants=1", "edcba"),
        ("all_tenants=true&project_id=other", "e"),
        ("all_tenants=0", "dcba"),
        ("host=" + quote(SOURCE), "cba"),
        ("host=" + quote("a@file1"), "cba"),
        ("host=b&all_tenants=1", "ed"),
        ("host=a@file", ""),
        ("user_id=joe", "dcba"),
        ("limit=2", "dc"),
        ("limit=0", ""),
        ("limit=2&offset=1", "cb"),
        ("offset=3", "a"),
        ("offset=9", ""),
    ],
)
def test_filters_and_order(api: Api, volumes: dict[str, str], query: str, expected: str) -> None:
    assert "".join(names(api, query)) == expected
    assert "".join(names(api, query, "/volumes")) == expected


@pytest.mark.parametrize(
    ("query", "version", "expected"),
    [
        ("name~=a", "3.34", "a"),
        ("created_at=gt:2000-01-01T00:00:00", "3.60", "dcba"),
        ("created_at=" + quote("lt:2000-01-01T00:00:00+02:00"), "3.60", ""),
        ("created_at=gte:2000-01-01,lt:2100-01-01", "3.60", "dcba"),
        ("consumes_quota=true", "3.65", "dcba"),
        ("consumes_quota=false", "3.65", ""),
    ],
)
def test_filters_of_newer_microversions(
    api: Api, volumes: dict[str, str], query: str, version: str, expected: str
) -> None:
    assert "".join(names(api, query, version=version, token="joe")) == expected
    before = f"3.{int(version.partition('.')[2]) - 1}"
    assert api("GET", f"/volumes?{query}", version=before, token="joe").status == 400


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("offset=-1", "offset"),
        ("offset=99999999999", "offset"),
        ("marker=nobody", "'nobody' could not be found"),
        ("sort=colour", "'colour' is not one of"),
        ("sort=name:up", "'up' is neither asc nor desc"),
        ("sort=name&sort_key=size", "cannot be used together"),
        ("all_tenants=perhaps", "all_tenants"),
        ("bootable=perhaps", "bootable"),
        ("size=big", "size"),
        ("metadata=nonsense", "not a dictionary of strings"),
        ("metadata=" + quote("{'a': 1}"), "not a dictionary of strings"),
        ("metadata=" + quote("__import__('os')"), "not a dictionary of strings"),
        ("colour=red", "'colour' is not a filter of this list"),
    ],
)
def test_queries_that_mean_nothing(api: Api, volumes: dict[str, str], query: str, reason: str) -> None:
    answer = api("GET", f"/volumes?{query}")
    assert answer.status == 400, answer.text
    assert reason in answer.fault


def test_what_a_tenant_may_not_filter_by_is_ignored_before_3_31_and_refused_then(
    api: Api, volumes: dict[str, str]
) -> None:
    assert names(api, "host=nobody", token="joe") == list("dcba")
    assert names(api, "all_tenants=1", token="joe", version="3.71") == list("dcba")
    answer = api("GET", "/volumes?host=nobody", token="joe", version="3.31")
    assert answer.status == 400
    assert "'host' is not a filter" in answer.fault


def _walk(api: Api, first: str, key: str, links: str) -> list[str]:
    """Follow the links of the pages from ``first`` on; return the ids in the order met."""
    ids: list[str] = []
    path = first
    while path:
        body = api("GET", path, project=None, version="3.71").json
        ids += [item["id"] for item in body[key]]
        following = [link["href"] for link in body.get(links, []) if link["rel"] == "next"]
        path = "{0.path}?{0.query}".format(urlsplit(following[0])) if following else ""
    return ids


@pytest.mark.parametrize(
    "sort", ["created_at:desc", "name:asc", "size:asc", "status:asc", "host:desc,size:asc", "updated_at"]
)
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_pages_hold_everything_once_and_in_order(api: Api, volumes: dict[str, str], sort: str, limit: int) -> None:
    everything = api("GET", f"/volumes?all_tenants=1&sort={sort}").json["volumes"]
    found = _walk(api, f"/v3/demo/volumes/detail?all_tenants=1&sort={sort}&limit={limit}", "volumes", "volumes_links")
    assert found == [volume["id"] for volume in everything]


def test_pages_stay_right_while_rows_come_and_go(api: Api, volumes: dict[str, str]) -> None:
    first = api("GET", "/volumes?limit=2").json
    assert [volume["name"] for volume in first["volumes"]] == ["d", "c"]
    api.make_volume(display_name="new")
    api.db.run(lambda session: db_volumes.bury(session, volumes["d"]))
    following = urlsplit(first["volumes_links"][0]["href"])
    assert "sort" not in following.query
    rest = api("GET", f"{following.path}?{following.query}", project=None).json
    assert [volume["name"] for volume in rest["volumes"]] == ["b", "a"]


def test_what_an_offset_skips_is_skipped_once(api: Api, volumes: dict[str, str]) -> None:
    ids = _walk(api, "/v3/demo/volumes?limit=1&offset=1&sort=name:asc", "volumes", "volumes_links")
    assert ids == [volumes[name] for name in "bcd"]


def test_who_looks_for_a_name_finds_the_volume_and_not_its_twin(api: Api, volumes: dict[str, str]) -> None:
    migration_id = api.make_migration(volumes["a"], step="copy_data")
    row = api.migration(migration_id)
    api.make_volume(id=row.destination_volume_id, twin_of=volumes["a"], display_name="a")
    (found,) = api("GET", "/volumes?all_tenants=1&name=a").json["volumes"]
    assert found["id"] == volumes["a"]
    assert len(api("GET", "/volumes?all_tenants=1").json["volumes"]) == 6


def test_the_marker_of_another_project_is_no_marker(api: Api, volumes: dict[str, str]) -> None:
    assert api("GET", f"/volumes?marker={volumes['e']}", token="joe").status == 400


def test_one_page_holds_no_more_than_the_operator_allows(make_api: Callable[..., Api]) -> None:
    api = make_api(osapi_max_limit=3)
    for _ in range(5):
        api.make_volume()
    for query in ("", "?limit=4"):
        body = api("GET", f"/volumes{query}").json
        assert len(body["volumes"]) == 3
        assert body["volumes_links"][0]["rel"] == "next"
    assert len(_walk(api, "/v3/demo/volumes", "volumes", "volumes_links")) == 5


def test_the_count_is_of_all_pages(api: Api, volumes: dict[str, str]) -> None:
    body = api("GET", "/volumes/detail?limit=1&with_count=true&status=available", version="3.45").json
    assert (len(body["volumes"]), body["count"]) == (1, 3)
    assert "count" not in api("GET", "/volumes?limit=1", version="3.45").json


def test_a_long_list_takes_as_many_statements_as_a_short_one(api: Api, volumes: dict[str, str]) -> None:
    statements: list[str] = []

    @sa.event.listens_for(api.db.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    counts = []
    for _ in range(2):
        statements.clear()
        api("GET", "/volumes/detail")
        counts.append(len(statements))
        for _ in range(20):
            api.make_volume({"k": "v"})
    assert counts[0] == counts[1] <= 5


def test_every_database_filters_sorts_and_pages_alike(any_api: Api) -> None:
    volumes = _five(any_api)
    for query, expected in {
        "sort=name:asc": "abcd",
        "sort=host:desc,size:asc": "dcba",
        "sort=bootable:desc,name:asc": "cabd",
        "name~=%25": "",
        "name~=A": "" if any_api.db.engine.dialect.name != "sqlite" else "a",
        "metadata=" + quote("{'letter': 'a', 'all': 'yes'}"): "a",
        "created_at=gte:2000-01-01,lt:2100-01-01": "dcba",
        "host=a@file1&bootable=false": "ba",
        "all_tenants=1&project_id=other": "e",
    }.items():
        assert "".join(names(any_api, query, version="3.71")) == expected, query
    for sort in ("created_at", "updated_at", "name:asc", "status:asc", "host:desc,size:asc", "bootable"):
        everything = any_api("GET", f"/volumes?sort={sort}").json["volumes"]
        found = _walk(any_api, f"/v3/demo/volumes?sort={sort}&limit=1", "volumes", "volumes_links")
        assert found == [volume["id"] for volume in everything], sort
    any_api.make_snapshot(volumes["a"], meta={"k": "v"})
    assert len(any_api("GET", "/snapshots?metadata=" + quote("{'k': 'v'}")).json["snapshots"]) == 1
    assert any_api("GET", "/snapshots?metadata=" + quote("{'k': 'w'}")).json["snapshots"] == []
    any_api.make_volume(display_name="f", image_metadata={"os": "größe", "arch": "x"})
    assert names(any_api, "glance_metadata=" + quote("{'os': 'größe', 'arch': 'x'}"), version="3.4") == ["f"]
    assert names(any_api, "glance_metadata=" + quote("{'os': 'größe', 'arch': 'y'}"), version="3.4") == []
    assert "glance_metadata" in any_api("GET", "/volumes?glance_metadata=" + quote("{'os': ''}"), version="3.3").fault
    for _ in range(2):
        answer = any_api("POST", "/types", {"volume_type": {"name": "größe 💾"}})
    assert answer.status == 409
    any_api.make_migration(volumes["c"], step="copy_data")
    assert len(any_api("GET", "/migrations?status=running&host=a&since=2026-01-01").json["migrations"]) == 1


# --- migrations and messages -----------------------------------------------------------------------------------------


def test_migrations_are_found_by_volume_status_host_and_time(api: Api) -> None:
    made = {}
    positions: dict[str, dict[str, Any]] = {
        "queued": {},
        "running": {"step": "copy_data"},
        "paused": {"step": "copy_data", "paused": True},
        "success": {"step": "delete_source", "end": "success", "destination_host": "c@file3#p"},
        "stuck": {"step": "copy_data", "direction": "back", "end": "stuck"},
    }
    for name, columns in positions.items():
        made[name] = api.make_migration(api.make_volume(), **columns)
    listed = api("GET", "/migrations").json["migrations"]
    assert [row["id"] for row in listed] == list(reversed(made.values()))
    assert {row["status"]: row["id"] for row in listed} == made
    assert not {"steps", "verdicts"} & set(listed[0])
    for status, migration_id in made.items():
        (row,) = api("GET", f"/migrations?status={status}").json["migrations"]
        assert row["id"] == migration_id
        (row,) = api("GET", f"/migrations?volume_id={row['volume_id']}").json["migrations"]
        assert row["id"] == migration_id
    assert len(api("GET", "/migrations?host=a@file1").json["migrations"]) == 5
    assert [row["status"] for row in api("GET", "/migrations?host=c").json["migrations"]] == ["success"]
    assert api("GET", "/migrations?host=nobody").json["migrations"] == []
    assert len(api("GET", "/migrations?since=2026-01-01T00:00:00").json["migrations"]) == 5
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    assert api("GET", f"/migrations?since={quote(later.isoformat())}").json["migrations"] == []
    assert api("GET", "/migrations?status=flying").status == 400
    assert api("GET", "/migrations?since=yesterday").status == 400
    ids = _walk(api, "/v3/demo/migrations?limit=2", "migrations", "migrations_links")
    assert ids == [row["id"] for row in listed]


def test_messages_of_the_project(api: Api) -> None:
    for index in range(3):
        api.db.run(
            lambda session, index=index: messages.add(  # type: ignore[misc]
                session,
                project_id="other" if index == 2 else PROJECT,
                request_id=f"req-{index}",
                resource_uuid=f"volume-{index}",
                event="migrate",
                text=f"failed {index}",
            )
        )
    listed = api("GET", "/messages", version="3.3", token="joe").json["messages"]
    assert [message["user_message"] for message in listed] == ["failed 1", "failed 0"]
    assert set(listed[0]) == {
        "id",
        "event_id",
        "user_message",
        "message_level",
        "created_at",
        "guaranteed_until",
        "request_id",
        "resource_type",
        "resource_uuid",
        "links",
    }
    (one,) = api("GET", "/messages?resource_uuid=volume-0", version="3.5", token="joe").json["messages"]
    path = f"/messages/{one['id']}"
    assert api("GET", path, version="3.3", token="joe").json["message"] == one
    assert api("GET", path, version="3.3", token="eve", project="other").status == 404
    assert api("DELETE", path, version="3.3", token="eve", project="other").status == 404
    assert api("DELETE", path, version="3.3", token="joe").status == 204
    assert api("GET", path, version="3.3", token="joe").status == 404
