"""The other commands: what each asks the service, what it shows, and in which formats."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import yaml

from migrator.cli import columns
from tests.unit.cli_stand_in import (
    MIGRATION_ID,
    OTHER_ID,
    VOLUME_ID,
    Answer,
    StandIn,
    fault,
    migration,
    serving,
    volume,
)

SNAPSHOT_ID = "44444444-4444-4444-8444-444444444444"
TYPE_ID = "55555555-5555-4555-8555-555555555555"
SNAPSHOT = {"id": SNAPSHOT_ID, "name": "snap1", "volume_id": VOLUME_ID, "status": "available", "size": 1}
TYPE = {"id": TYPE_ID, "name": "fast", "is_public": True, "description": None, "extra_specs": {"a": "b"}}
SERVICE = {"binary": "migrator-volume", "host": "a@file1", "zone": "nova", "status": "enabled", "state": "up"}
POOL = {
    "name": "a@file1#pool1",
    "capabilities": {"volume_backend_name": "file1", "total_capacity_gb": 100, "free_capacity_gb": 12.5},
}
MESSAGE = {"id": OTHER_ID, "resource_uuid": VOLUME_ID, "user_message": "schedule: no valid backend", "event_id": "1"}

ANSWERS: dict[str, Answer | list[Answer]] = {
    "GET /volumes/detail": (200, {"volumes": [volume(), volume(id=OTHER_ID, name="vol2", metadata={})]}),
    f"GET /volumes/{VOLUME_ID}": (200, {"volume": volume()}),
    "POST /volumes": (202, {"volume": volume(status="creating")}),
    f"DELETE /volumes/{VOLUME_ID}": (202, {}),
    f"POST /volumes/{VOLUME_ID}/action": (202, {}),
    f"POST /volumes/{OTHER_ID}/action": (202, {}),
    "GET /migrations": (200, {"migrations": [migration()]}),
    f"GET /migrations/{MIGRATION_ID}": (200, {"migration": migration()}),
    "GET /scheduler-stats/get_pools": (200, {"pools": [POOL]}),
    "GET /os-services": (200, {"services": [SERVICE]}),
    "PUT /os-services/enable": (200, {"service": "a@file1", "status": "enabled"}),
    "PUT /os-services/disable": (200, {"service": "a@file1", "status": "disabled"}),
    "PUT /os-services/disable-log-reason": (200, {"service": "a@file1", "status": "disabled"}),
    "GET /types": (200, {"volume_types": [TYPE]}),
    f"GET /types/{TYPE_ID}": (200, {"volume_type": TYPE}),
    "POST /types": (200, {"volume_type": TYPE}),
    f"DELETE /types/{TYPE_ID}": (202, {}),
    f"POST /types/{TYPE_ID}/extra_specs": (200, {"extra_specs": {}}),
    f"DELETE /types/{TYPE_ID}/extra_specs/a": (202, {}),
    f"DELETE /types/{TYPE_ID}/extra_specs/b%3Ac": (202, {}),
    "GET /snapshots/detail": (200, {"snapshots": [SNAPSHOT]}),
    "POST /snapshots": (202, {"snapshot": SNAPSHOT}),
    f"DELETE /snapshots/{SNAPSHOT_ID}": (202, {}),
    "GET /messages": (200, {"messages": [MESSAGE]}),
}

#: Command line -> the requests that change something, with their bodies.
CHANGES: list[tuple[str, list[tuple[str, str, Any]]]] = [
    ("create 2", [("POST", "/volumes", {"volume": {"size": 2}})]),
    (
        "create 2 --name n --type fast --availability-zone az --description d --metadata a=b c=d=e --metadata f=",
        [
            (
                "POST",
                "/volumes",
                {
                    "volume": {
                        "size": 2,
                        "name": "n",
                        "volume_type": "fast",
                        "availability_zone": "az",
                        "description": "d",
                        "metadata": {"a": "b", "c": "d=e", "f": ""},
                    }
                },
            )
        ],
    ),
    ("create --snapshot-id snap1", [("POST", "/volumes", {"volume": {"snapshot_id": SNAPSHOT_ID}})]),
    ("create --source-volid vol2", [("POST", "/volumes", {"volume": {"source_volid": OTHER_ID}})]),
    ("delete vol1", [("DELETE", f"/volumes/{VOLUME_ID}", None)]),
    ("extend vol1 5", [("POST", f"/volumes/{VOLUME_ID}/action", {"os-extend": {"new_size": 5}})]),
    (
        "retype vol1 fast",
        [
            (
                "POST",
                f"/volumes/{VOLUME_ID}/action",
                {"os-retype": {"new_type": "fast", "migration_policy": "never"}},
            )
        ],
    ),
    (
        "retype --migration-policy on-demand vol1 fast",
        [
            (
                "POST",
                f"/volumes/{VOLUME_ID}/action",
                {"os-retype": {"new_type": "fast", "migration_policy": "on-demand"}},
            )
        ],
    ),
    ("reset-state vol1", [("POST", f"/volumes/{VOLUME_ID}/action", {"os-reset_status": {"status": "available"}})]),
    (
        "reset-state vol1 vol2 --state error --attach-status detached --reset-migration-status",
        [
            (
                "POST",
                f"/volumes/{each}/action",
                {"os-reset_status": {"status": "error", "attach_status": "detached", "migration_status": "none"}},
            )
            for each in (VOLUME_ID, OTHER_ID)
        ],
    ),
    (
        "service-enable a@file1 migrator-volume",
        [("PUT", "/os-services/enable", {"host": "a@file1", "binary": "migrator-volume"})],
    ),
    (
        "service-disable a@file1 migrator-volume",
        [("PUT", "/os-services/disable", {"host": "a@file1", "binary": "migrator-volume"})],
    ),
    (
        "service-disable a@file1 migrator-volume --reason repair",
        [
            (
                "PUT",
                "/os-services/disable-log-reason",
                {"host": "a@file1", "binary": "migrator-volume", "disabled_reason": "repair"},
            )
        ],
    ),
    (
        "type-create fast --description d --private --property a=b",
        [
            (
                "POST",
                "/types",
                {"volume_type": {"name": "fast", "description": "d", "os-volume-type-access:is_public": False}},
            ),
            ("POST", f"/types/{TYPE_ID}/extra_specs", {"extra_specs": {"a": "b"}}),
        ],
    ),
    ("type-delete fast", [("DELETE", f"/types/{TYPE_ID}", None)]),
    ("type-key fast set a=b c=d", [("POST", f"/types/{TYPE_ID}/extra_specs", {"extra_specs": {"a": "b", "c": "d"}})]),
    (
        "type-key fast unset a b:c",
        [
            ("DELETE", f"/types/{TYPE_ID}/extra_specs/a", None),
            ("DELETE", f"/types/{TYPE_ID}/extra_specs/b%3Ac", None),
        ],
    ),
    (
        "snapshot-create vol1 --name s --description d",
        [("POST", "/snapshots", {"snapshot": {"volume_id": VOLUME_ID, "name": "s", "description": "d"}})],
    ),
    ("snapshot-delete snap1", [("DELETE", f"/snapshots/{SNAPSHOT_ID}", None)]),
]


def changes(service: StandIn) -> list[tuple[str, str, Any]]:
    return [(r.method, r.path.removeprefix("/v3/admin"), r.body) for r in service.requests if r.method != "GET"]


@pytest.mark.parametrize(("line", "expected"), CHANGES, ids=[line for line, _ in CHANGES])
def test_a_command_that_changes_something_sends_exactly_that(line: str, expected: list[tuple[str, str, Any]]) -> None:
    with serving(ANSWERS) as service:
        result = service.run(*line.split())
    assert (result.code, result.err) == (0, "")
    assert changes(service) == expected


@pytest.mark.parametrize(
    "line",
    [
        "create",
        "create none",
        "create 0",
        "create 1 --metadata a",
        "extend vol1 -1",
        "retype vol1",
        "retype vol1 fast --migration-policy always",
        "type-key fast set a",
        "type-key fast change a=b",
        "reset-state vol1 --attach-status maybe",
        "list -c nonsense",
        "list --host a@b@c",
        "migration-show",
        "nonsense-list",
    ],
)
def test_a_mistake_of_usage_changes_nothing_and_ends_with_2(line: str) -> None:
    with serving(ANSWERS) as service:
        result = service.run(*line.split())
    assert result.code == 2
    assert changes(service) == []
    assert result.err.count("\n") == 1 or line == "nonsense-list"


#: Command line -> the columns shown, the query it sends, and a cell that must be there.
LISTS: list[tuple[str, dict[str, columns.Cell], dict[str, str], tuple[str, Any]]] = [
    ("list", columns.VOLUMES, {}, ("Host", "a@file1#pool1")),
    (
        "list --all-tenants --status error --name x --limit 5 --marker m",
        columns.VOLUMES,
        {"all_tenants": "1", "status": "error", "name": "x", "limit": "5", "marker": "m"},
        ("Migration Status", None),
    ),
    ("migration-list", columns.MIGRATIONS, {}, ("Progress", 50.0)),
    (
        f"migration-list --volume {VOLUME_ID} --status running --host a@file1 --since 2026-01-02T15:04:05 --limit 3",
        columns.MIGRATIONS,
        {
            "volume_id": VOLUME_ID,
            "status": "running",
            "host": "a@file1",
            "since": "2026-01-02T15:04:05",
            "limit": "3",
        },
        ("Rate", 100 << 20),
    ),
    ("get-pools", columns.POOLS, {}, ("Name", "a@file1#pool1")),
    ("get-pools --detail", columns.POOLS_DETAIL, {"detail": "True"}, ("Free GiB", 12.5)),
    (
        "service-list --host a@file1 --binary migrator-volume",
        columns.SERVICES,
        {"host": "a@file1", "binary": "migrator-volume"},
        ("State", "up"),
    ),
    ("type-list", columns.TYPES, {"is_public": "None"}, ("Properties", {"a": "b"})),
    (f"snapshot-list --volume {VOLUME_ID}", columns.SNAPSHOTS, {"volume_id": VOLUME_ID}, ("Name", "snap1")),
    (
        f"message-list --resource-id {VOLUME_ID}",
        columns.MESSAGES,
        {"resource_uuid": VOLUME_ID},
        ("Message", "schedule: no valid backend"),
    ),
]


@pytest.mark.parametrize(("line", "shown", "query", "cell"), LISTS, ids=[row[0] for row in LISTS])
def test_a_list_asks_with_its_filters_and_shows_its_columns(
    line: str, shown: dict[str, columns.Cell], query: dict[str, str], cell: tuple[str, Any]
) -> None:
    with serving(ANSWERS) as service:
        as_json = service.run(*line.split(), "-f", "json")
        as_table = service.run(*line.split())
    assert (as_json.code, as_json.err) == (0, "")
    rows = json.loads(as_json.out)
    assert list(rows[0]) == list(shown)
    assert rows[0][cell[0]] == cell[1]
    assert all(f" {name} " in as_table.out for name in shown)
    assert {key: value[0] for key, value in service.requests[0].query.items()} == query


@pytest.mark.parametrize("line", [row[0] for row in LISTS])
def test_every_list_comes_in_every_format(line: str) -> None:
    with serving(ANSWERS) as service:
        as_yaml = service.run(*line.split(), "-f", "yaml").out
        as_csv = service.run(*line.split(), "-f", "csv").out
        as_values = service.run(*line.split(), "-f", "value").out
    rows = len(yaml.safe_load(as_yaml))
    assert rows == len(list(csv.DictReader(io.StringIO(as_csv)))) == len(as_values.splitlines()) > 0


def test_columns_can_be_chosen() -> None:
    with serving(ANSWERS) as service:
        result = service.run("list", "-f", "value", "-c", "ID", "-c", "migration_status", "-c", "Name")
    assert result.out == f"{VOLUME_ID} vol1 None\n{OTHER_ID} vol2 None\n"


def test_a_column_with_gaps_can_be_sorted() -> None:
    volumes = [volume(name=str(i), **{"os-vol-mig-status-attr:migstat": s}) for i, s in enumerate(["b", None, "a"])]
    with serving({"GET /volumes/detail": (200, {"volumes": volumes})}) as service:
        result = service.run("list", "--sort-column", "Migration Status", "-f", "value", "-c", "Name")
    assert result.out.split() == ["1", "2", "0"]


def test_an_empty_list_is_no_error() -> None:
    with serving({"GET /volumes/detail": (200, {"volumes": []})}) as service:
        result = service.run("list", "-f", "json")
    assert (result.code, json.loads(result.out)) == (0, [])


def test_a_long_list_is_read_page_after_page() -> None:
    pages: list[Answer] = [
        (200, {"volumes": [volume(id=VOLUME_ID)], "volumes_links": [{"rel": "next", "href": "http://elsewhere/"}]}),
        (200, {"volumes": [volume(id=OTHER_ID)]}),
    ]
    with serving({"GET /volumes/detail": pages}) as service:
        result = service.run("list", "-f", "value", "-c", "ID")
    assert result.out.split() == [VOLUME_ID, OTHER_ID]
    assert service.requests[1].query["marker"] == [VOLUME_ID]


@pytest.mark.parametrize(
    ("host", "names"),
    [("a", "1 2 3"), ("a@file1", "1 2"), ("a@file1#pool2", "2"), ("b@file1", "4"), ("nowhere", "")],
)
def test_a_host_means_everything_within_it(host: str, names: str) -> None:
    places = ["a@file1#pool1", "a@file1#pool2", "a@file2#pool1", "b@file1#pool1", None]
    volumes = [volume(name=str(i), **{"os-vol-host-attr:host": place}) for i, place in enumerate(places, 1)]
    with serving({"GET /volumes/detail": (200, {"volumes": volumes})}) as service:
        result = service.run("list", "--host", host, "-f", "value", "-c", "Name")
        first = service.run("list", "--host", host, "--limit", "1", "-f", "value", "-c", "Name")
    assert result.out.split() == names.split()
    assert first.out.split() == names.split()[:1]


def test_a_volume_is_shown_whole_but_for_links() -> None:
    with serving(ANSWERS) as service:
        by_name = service.run("show", "vol1", "-f", "json")
        table = service.run("show", VOLUME_ID)
    assert json.loads(by_name.out) == {key: value for key, value in volume().items() if key != "links"}
    assert "| purpose=test " in table.out
    assert "None" not in table.out


@pytest.mark.parametrize(
    ("line", "expected"), [("type-show fast", TYPE), (f"type-show {TYPE_ID}", TYPE), ("snapshot-show snap1", SNAPSHOT)]
)
def test_types_and_snapshots_are_shown_by_name_or_id(line: str, expected: dict[str, Any]) -> None:
    with serving(ANSWERS) as service:
        result = service.run(*line.split(), "-f", "json")
    assert json.loads(result.out) == expected


@pytest.mark.parametrize(("end", "code"), [("available", 0), ("error", 3)])
def test_a_new_volume_is_waited_for_until_it_can_be_used_or_never_will(end: str, code: int) -> None:
    seen: list[Answer] = [(200, {"volume": volume(status=status)}) for status in ("creating", "creating", end)]
    with serving({**ANSWERS, f"GET /volumes/{VOLUME_ID}": seen}) as service:
        result = service.run("create", "1", "--wait", "-f", "json")
    assert result.code == code
    if code == 0:
        assert json.loads(result.out)["status"] == "available"
    else:
        assert (result.out, result.err) == ("", f"Volume {VOLUME_ID} is in status error.\n")


def test_what_can_be_deleted_is_deleted_and_the_rest_is_said_and_counts() -> None:
    """field.md pain 14: a failure among several is still a failure."""
    refusal = fault(400, "Volume has dependent snapshots.")
    with serving({**ANSWERS, f"DELETE /volumes/{OTHER_ID}": refusal}) as service:
        result = service.run("delete", "nothing", "vol2", "vol1", "--cascade")
    assert result.code == 2
    assert result.err.splitlines() == [
        "nothing: Volume 'nothing' could not be found.",
        "vol2: Volume has dependent snapshots.",
    ]
    assert result.out == "Request to delete volume vol1 has been accepted.\n"
    assert service.requests[-1].query == {"cascade": ["true"]}


def test_a_migration_is_shown_whole_to_machines() -> None:
    with serving(ANSWERS) as service:
        result = service.run("migration-show", MIGRATION_ID, "-f", "json")
    assert json.loads(result.out) == migration()


def test_a_migration_is_shown_to_people_with_a_table_of_its_steps_and_what_was_refused() -> None:
    verdicts = [
        {"pool": "b@file2#pool2", "filter": "capacity", "passed": False, "reason": "needs 1 GiB, 0 GiB free"},
        {"pool": "c@file3#pool3", "filter": "capacity", "passed": True, "reason": "fits"},
    ]
    shown = {f"GET /migrations/{MIGRATION_ID}": (200, {"migration": migration(verdicts=verdicts)})}
    with serving({**ANSWERS, **shown}) as service:
        result = service.run("migration-show", MIGRATION_ID)
    fields, *tables = result.out.split("+\n+")
    assert "| 512.0 MiB" in result.out
    assert "100.0 MiB/s" in result.out
    for text in ("| Step ", "| create_destination | forward ", "needs 1 GiB, 0 GiB free"):
        assert text in "".join(tables)
        assert text not in fields
    assert "fits" not in result.out
    assert "'steps'" not in result.out


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 60, "1024.0 PiB")]
)
def test_bytes_read_as_people_say_them(count: int, text: str) -> None:
    assert columns.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1:00 min"), (3599.6, "1:00:00 h"), (7209, "2:00:09 h")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert columns.seconds_text(seconds) == text
