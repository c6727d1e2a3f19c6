"""The commands on what lies on backends, on frozen backends, and on access to types: what each asks the service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.cli_stand_in import OTHER_ID, VOLUME_ID, Answer, fault, serving, volume

TYPE_ID = "55555555-5555-4555-8555-555555555555"
PLACE = "a@file1#pool1"
ENTRY = {
    "reference": {"source-name": "x.img"},
    "size": 2,
    "safe_to_manage": False,
    "reason_not_safe": "it is open",
    "cinder_id": None,
    "extra_info": "7 bytes",
}
ACCESS = {"volume_type_id": TYPE_ID, "project_id": "demo"}

ANSWERS: dict[str, Answer | list[Answer]] = {
    "GET /manageable_volumes/detail": (200, {"manageable-volumes": [ENTRY]}),
    "GET /manageable_snapshots/detail": (
        200,
        {"manageable-snapshots": [{**ENTRY, "source_reference": None}, {**ENTRY, "source_reference": {"a": "b"}}]},
    ),
    "POST /manageable_snapshots": (202, {"snapshot": {"id": OTHER_ID, "volume_id": VOLUME_ID, "status": "managing"}}),
    "POST /manageable_volumes": (202, {"volume": volume(status="managing")}),
    f"POST /volumes/{VOLUME_ID}/action": (202, {}),
    "PUT /os-services/freeze": (200, {}),
    "PUT /os-services/thaw": (200, {}),
    f"GET /types/{TYPE_ID}/os-volume-type-access": (200, {"volume_type_access": [ACCESS]}),
    f"POST /types/{TYPE_ID}/action": (202, {}),
    f"POST /snapshots/{OTHER_ID}/action": (202, {}),
}
REFERENCE = {"host": PLACE, "ref": {"source-name": "x.img"}}

CHANGES: list[tuple[str, str, Any]] = [
    (f"manage {PLACE} x.img", "POST /manageable_volumes", {"volume": REFERENCE}),
    (
        f"manage {PLACE} 7 --id-type source-id --name n --description d --type t --availability-zone az "
        "--metadata a=b --bootable",
        "POST /manageable_volumes",
        {
            "volume": {
                "host": PLACE,
                "ref": {"source-id": "7"},
                "name": "n",
                "description": "d",
                "volume_type": "t",
                "availability_zone": "az",
                "metadata": {"a": "b"},
                "bootable": True,
            }
        },
    ),
    (f"unmanage {VOLUME_ID}", f"POST /volumes/{VOLUME_ID}/action", {"os-unmanage": {}}),
    (
        f"snapshot-manage {VOLUME_ID} x.img",
        "POST /manageable_snapshots",
        {"snapshot": {"volume_id": VOLUME_ID, "ref": {"source-name": "x.img"}}},
    ),
    (
        f"snapshot-manage {VOLUME_ID} 7 --id-type source-id --name n --description d --metadata a=b",
        "POST /manageable_snapshots",
        {
            "snapshot": {
                "volume_id": VOLUME_ID,
                "ref": {"source-id": "7"},
                "name": "n",
                "description": "d",
                "metadata": {"a": "b"},
            }
        },
    ),
    (f"snapshot-unmanage {OTHER_ID}", f"POST /snapshots/{OTHER_ID}/action", {"os-unmanage": {}}),
    ("service-freeze a@file1", "PUT /os-services/freeze", {"host": "a@file1"}),
    ("service-thaw a@file1", "PUT /os-services/thaw", {"host": "a@file1"}),
    (
        f"type-access-add {TYPE_ID} demo",
        f"POST /types/{TYPE_ID}/action",
        {"addProjectAccess": {"project": "demo"}},
    ),
    (
        f"type-access-remove {TYPE_ID} demo",
        f"POST /types/{TYPE_ID}/action",
        {"removeProjectAccess": {"project": "demo"}},
    ),
    (
        f"snapshot-reset-state {OTHER_ID} --state error",
        f"POST /snapshots/{OTHER_ID}/action",
        {"os-reset_status": {"status": "error"}},
    ),
]


@pytest.mark.parametrize(("line", "request_", "body"), CHANGES, ids=[line for line, *_ in CHANGES])
def test_a_command_sends_exactly_that(line: str, request_: str, body: Any) -> None:
    with serving(ANSWERS) as service:
        result = service.run(*line.split())
    assert (result.code, result.err) == (0, "")
    method, _, path = request_.partition(" ")
    assert service.sent(method, path) == [body]


def test_lists() -> None:
    with serving(ANSWERS) as service:
        manageable = json.loads(service.run("manageable-list", PLACE, "-f", "json").out)
        access = json.loads(service.run("type-access-list", TYPE_ID, "-f", "json").out)
    assert manageable == [
        {
            "Reference": "source-name=x.img",
            "Size": 2,
            "Safe To Manage": False,
            "Reason Not Safe": "it is open",
            "Volume": None,
            "Extra Info": "7 bytes",
        }
    ]
    with serving(ANSWERS) as service_:
        found = json.loads(service_.run("snapshot-manageable-list", PLACE, "-f", "json").out)
    assert [(each["Reference"], each["Source Reference"]) for each in found] == [
        ("source-name=x.img", ""),
        ("source-name=x.img", "a=b"),
    ]
    assert service.requests[0].query == {"host": [PLACE]}
    assert access == [{"Volume Type": TYPE_ID, "Project": "demo"}]


def test_a_refusal_is_told_in_the_services_words() -> None:
    answers: dict[str, Answer | list[Answer]] = {"POST /manageable_volumes": fault(400, "it is open, somebody uses it")}
    with serving(answers) as service:
        result = service.run("manage", PLACE, "x.img")
    assert result.code == 2
    assert "somebody uses it" in result.err
    with serving(answers) as service:
        assert service.run("manage", PLACE, "x.img", "--id-type", "path").code == 2
    assert service.requests == []
