"""What is summed up: the summary, limits and quotas; and what clients ask first: zones, extensions, filters."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.api import extensions, routes
from tests.api.conftest import Api


@pytest.fixture
def volumes(api: Api) -> list[str]:
    """Three volumes of 6 GiB together, one with a snapshot and a twin; and one of another project."""
    made = [
        api.make_volume({"k": "1", "same": "x"}, size=1),
        api.make_volume({"k": "2", "same": "x"}, size=2, display_name="two"),
        api.make_volume(size=3),
        api.make_volume({"theirs": "1"}, size=10, project_id="other"),
    ]
    api.make_snapshot(made[1], volume_size=2)
    api.make_twin(made[2], api.make_migration(made[2]))
    return made


def test_the_summary(api: Api, volumes: list[str]) -> None:
    """field.md bug 42 (LP1917450): a twin is not counted."""

    def summary(query: str = "", version: str = "3.12", **more: Any) -> Any:
        return api("GET", f"/volumes/summary{query}", version=version, **more).json["volume-summary"]

    assert summary() == {"total_size": 6, "total_count": 3}
    assert summary(token="joe") == {"total_size": 6, "total_count": 3}
    assert summary("?all_tenants=1") == {"total_size": 16, "total_count": 4}
    assert summary("?all_tenants=1", token="joe") == {"total_size": 6, "total_count": 3}
    assert summary("?name=two") == {"total_size": 2, "total_count": 1}
    assert summary("?name=none") == {"total_size": 0, "total_count": 0}
    with_metadata = summary(version="3.36")
    assert with_metadata["metadata"] == {"k": ["1", "2"], "same": ["x"]}
    assert summary("?all_tenants=1&project_id=other", version="3.36")["metadata"] == {"theirs": ["1"]}
    assert api("GET", "/volumes/summary?colour=red", version="3.31").status == 400


def test_limits_say_what_is_used(api: Api, volumes: list[str]) -> None:
    absolute = api("GET", "/limits", token="joe").json["limits"]["absolute"]
    assert absolute == {
        "maxTotalVolumes": -1,
        "maxTotalSnapshots": -1,
        "maxTotalVolumeGigabytes": -1,
        "maxTotalBackups": -1,
        "maxTotalBackupGigabytes": -1,
        "totalVolumesUsed": 3,
        "totalSnapshotsUsed": 1,
        "totalGigabytesUsed": 8,
        "totalBackupsUsed": 0,
        "totalBackupGigabytesUsed": 0,
    }

    def used(token: str, version: str) -> Any:
        found = api("GET", "/limits?project_id=other", token=token, version=version).json
        return found["limits"]["absolute"]["totalVolumesUsed"]

    assert used("admin", "3.39") == 1
    assert used("admin", "3.38") == 3
    assert used("joe", "3.39") == 3


def test_quotas_are_shown_and_unlimited(api: Api, volumes: list[str]) -> None:
    plain = api("GET", "/os-quota-sets/demo", token="joe").json["quota_set"]
    assert plain.pop("id") == "demo"
    assert set(plain.values()) == {-1}
    assert {"volumes", "snapshots", "gigabytes", "per_volume_gigabytes", "backups", "backup_gigabytes"} <= set(plain)
    usage = api("GET", "/os-quota-sets/demo?usage=True", token="joe").json["quota_set"]
    assert usage["volumes"] == {"limit": -1, "in_use": 3, "reserved": 0}
    assert usage["gigabytes"]["in_use"] == 8
    assert api("GET", "/os-quota-sets/demo/defaults", token="joe").json["quota_set"] == {"id": "demo", **plain}
    assert api("GET", "/os-quota-sets/other", token="joe").status == 404
    assert api("GET", "/os-quota-sets/other?usage=1").json["quota_set"]["volumes"]["in_use"] == 1
    assert api("PUT", "/os-quota-sets/demo", {"quota_set": {"volumes": 1}}).status == 405


def test_availability_zones(api: Api) -> None:
    api.beat("c@file3", zone="west")
    api.disable("c@file3")
    shown = api("GET", "/os-availability-zone", token="joe").json
    assert shown == {
        "availabilityZoneInfo": [
            {"zoneName": "nova", "zoneState": {"available": True}},
            {"zoneName": "west", "zoneState": {"available": False}},
        ]
    }


def test_extensions_name_what_is_served(api: Api) -> None:
    shown = {each["alias"]: each for each in api("GET", "/extensions", token="joe").json["extensions"]}
    assert set(shown) == set(extensions.EXTENSIONS)
    assert set(shown["os-services"]) == {"alias", "name", "description", "updated", "links"}
    assert api("GET", "/extensions/os-services").json == {"extension": shown["os-services"]}
    assert api("GET", "/extensions/backups").status == 404
    collections = {path.split("/")[1] for path in routes.ROUTES}
    named = {"os-services", "os-hosts", "os-availability-zone", "os-quota-sets", "os-volume-manage", "capabilities"}
    assert named <= collections & set(shown)


def test_filters_that_are_listed_are_those_that_work(api: Api) -> None:
    def listed(token: str, version: str, query: str = "") -> dict[str, list[str]]:
        found = api("GET", f"/resource_filters{query}", token=token, version=version).json["resource_filters"]
        return {each["resource"]: each["filters"] for each in found}

    tenants, everything = listed("joe", "3.71"), listed("admin", "3.71")
    assert {"name", "name~", "status", "metadata", "created_at"} <= set(tenants["volume"])
    assert "host" not in tenants["volume"]
    assert "host" in everything["volume"]
    assert "name~" not in listed("joe", "3.33")["volume"]
    assert set(listed("joe", "3.33", "?resource=snapshot")) == {"snapshot"}
    assert api("GET", "/resource_filters?resource=moon", version="3.33").status == 400
    values = {"bootable": "true", "size": "1", "metadata": "{}", "glance_metadata": "{}", "consumes_quota": "true"}
    values |= {"created_at": "gt:2020-01-01", "updated_at": "gt:2020-01-01"}
    for resource, path in (("volume", "/volumes/detail"), ("snapshot", "/snapshots/detail"), ("message", "/messages")):
        for name in everything[resource]:
            answer = api("GET", f"{path}?{name}={values.get(name, 'x')}", version="3.71")
            assert answer.status == 200, (resource, name, answer.text)


def test_snapshots_by_the_filters_of_their_own(api: Api) -> None:
    there, here = api.make_volume(availability_zone="west"), api.make_volume()
    api.make_snapshot(there, display_name="first", display_description="of the database")
    api.make_snapshot(here, display_name="second", status="error")

    def names(query: str, version: str = "3.71") -> list[str]:
        found = api("GET", f"/snapshots?sort=name:asc&{query}", version=version).json
        return [snapshot["name"] for snapshot in found["snapshots"]]

    assert names("availability_zone=west") == ["first"]
    assert names("description~=data") == ["first"]
    assert names("status~=rro") == ["second"]
    assert names("consumes_quota=true") == ["first", "second"]
    assert names("consumes_quota=false") == []
    counted = api("GET", "/snapshots?limit=1&with_count=true", version="3.45").json
    assert (counted["count"], len(counted["snapshots"])) == (2, 1)
    assert "count" not in api("GET", "/snapshots?with_count=true", version="3.44", token="joe").json
