"""Whatever goes wrong is a fault in JSON, with the request's id, and shows nothing of the inside."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import sqlalchemy as sa

from tests.api.arcs import Step, run
from tests.api.conftest import Api
from tests.support.unanswered import answers_lost

UUID = "5c1f2cf6-0000-4000-8000-000000000000"
REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def test_faults_have_the_names_that_clients_know(api: Api) -> None:
    run(
        api,
        [
            Step(
                "an empty token", "GET /volumes", 401, {"unauthorized.code": 401, "fault": "no X-Auth-Token"}, token=""
            ),
            Step("a token without a user", "GET /volumes", 401, {"unauthorized.code": 401}, token=":demo"),
            Step(
                "not allowed", "GET /os-services", 403, {"forbidden.code": 403, "fault": "services:index"}, token="joe"
            ),
            Step(
                "no such volume",
                f"GET /volumes/{UUID}",
                404,
                {"itemNotFound.message": f"Volume {UUID} could not be found."},
            ),
            Step("no such path", "GET /nothing/here", 404, {"itemNotFound.code": 404}),
            Step("no such method", "PATCH /volumes", 405, {"badMethod.code": 405, "@allow": "GET, POST"}),
            Step("HEAD is not served", "HEAD /volumes", 405),
            Step(
                "not JSON", "POST /volumes", 400, {"badRequest.message": "Malformed request body: it is not JSON"}, b"{"
            ),
            Step("no body", "POST /volumes", 400, {"fault": "Malformed request body"}),
            Step("not UTF-8", "POST /volumes", 400, {"fault": "Malformed request body"}, b'{"volume": "\xff"}'),
            Step("not an object", "POST /volumes", 400, {"fault": "not a JSON object"}, b"[]"),
            Step("nested beyond reason", "POST /volumes", 400, {"fault": "Malformed"}, b"[" * 100_000),
            Step("half a surrogate", "POST /volumes", 400, {"fault": "Malformed"}, b'{"volume": {"name": "\\ud800"}}'),
            Step(
                "a NUL", "POST /volumes", 400, {"fault": "Malformed"}, b'{"volume": {"name": "a\\u0000b", "size": 1}}'
            ),
            Step("a NUL in the path", "GET /volumes/%00", 404),
            Step("a NUL in the query", "GET /volumes?name=%00", 400, {"fault": "query"}),
            Step("a query that is not UTF-8", "GET /volumes?name=%ff", 400, {"fault": "query"}),
            Step(
                "unknown action",
                f"POST /volumes/{UUID}/action",
                400,
                {"fault": "no such action: os-fly"},
                {"os-fly": 1},
            ),
            Step("no action", f"POST /volumes/{UUID}/action", 400, {"fault": "exactly one key"}, {}),
            Step("two actions", f"POST /volumes/{UUID}/action", 400, {"fault": "has 2"}, {"os-extend": {}, "x": 1}),
        ],
    )


def test_a_body_over_the_limit_is_413(make_api: Any) -> None:
    api = make_api(osapi_max_request_body_size=2048)
    answer = api("POST", "/volumes", b'{"volume": {"name": "%s"}}' % (b"x" * 3000))
    assert answer.status == 413
    assert answer.json == {"overLimit": {"code": 413, "message": "Request body is larger than 2048 bytes."}}


def test_every_answer_has_a_request_id_of_its_own(api: Api) -> None:
    answers = [
        api("GET", "/", project=None),
        api("GET", "/volumes"),
        api("GET", "/volumes", token=""),
        api("GET", "/nowhere"),
        api("POST", "/volumes", b"{"),
        api("GET", "/volumes", version="9.9"),
    ]
    ids = [answer.headers["x-openstack-request-id"] for answer in answers]
    assert all(REQUEST_ID.fullmatch(found) for found in ids)
    assert len(set(ids)) == len(ids)


def test_a_request_id_from_outside_is_kept_beside_our_own(api: Api) -> None:
    theirs = "req-11111111-2222-4333-8444-555555555555"
    volume_id = api.make_volume()
    answer = api(
        "POST",
        f"/volumes/{volume_id}/action",
        {"os-migrate_volume": {"host": "b@file2"}},
        headers={"X-OpenStack-Request-ID": theirs},
    )
    assert answer.status == 202
    ours = answer.headers["x-openstack-request-id"]
    assert ours != theirs
    assert api("GET", "/migrations").json["migrations"][0]["requested_by"]["request_id"] == ours


def test_an_unexpected_fault_is_500_and_hides_the_inside(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    volume_id = api.make_volume(host="@@broken@@")
    answer = api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": "b@file2"}})
    assert answer.status == 500
    assert answer.json["computeFault"]["code"] == 500
    assert "broken" not in answer.fault
    assert "MalformedBackendName" in caplog.text


def test_a_broken_database_is_503_with_retry_after(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with api.db.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE volumes"))
    answer = api("GET", "/volumes")
    assert answer.status == 503
    assert answer.json["serviceUnavailable"]["message"] == "The database does not answer."
    assert answer.headers["retry-after"].isdigit()
    assert "no such table" in caplog.text


def test_a_scheduler_that_does_not_answer_is_503(make_api: Any) -> None:
    api = make_api(scheduler_rpc_timeout_seconds=1)
    answer = api("GET", "/scheduler-stats/get_pools")
    assert answer.status == 503
    assert "no answer within 1 s" in answer.fault


def test_one_line_per_request_without_the_query(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "migrator.api.access"):
        answer = api("GET", "/volumes?metadata=%7B%22secret%22%3A%22x%22%7D")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "migrator.api.access"]
    assert line.startswith('"GET /v3/demo/volumes" status: 200 len: ')
    assert answer.headers["x-openstack-request-id"] in line
    assert "secret" not in line


def test_health_needs_no_token(api: Api) -> None:
    assert api("GET", "/healthcheck", token=None, project=None).status == 200


def test_a_request_is_not_refused_that_was_carried_out(any_api: Api) -> None:
    """Done again it would find its own work: "status must be available", of a volume that it has just taken."""
    if any_api.db.is_sqlite:
        return  # a file has no connection to be lost
    volume_id = any_api.make_volume()
    with answers_lost(any_api.db.engine) as cut:
        answer = any_api("DELETE", f"/volumes/{volume_id}", token="joe")
    assert cut
    assert answer.status == 503
    assert "it is not known whether this was done" in answer.fault
    assert answer.headers["retry-after"].isdigit()
    assert any_api.get_volume(volume_id).status == "deleting"
