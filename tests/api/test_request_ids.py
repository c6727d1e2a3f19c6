"""One request's id goes with all that follows from it: messages for users, and the lines of every service."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_context import context

from migrator.context import RequestContext, current_request_id, service_context
from migrator.db.models import Snapshot
from tests.api.conftest import Answer, Api
from tests.api.plant import Plant
from tests.support.waiting import until

ID = "x-openstack-request-id"


class Lines(logging.Handler):
    """Keeps what is logged with the request that it is logged for, as oslo.log's formatter finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def emit(self, record: logging.LogRecord) -> None:
        now = context.get_current()
        self.found.append((record.getMessage(), str(now.request_id) if now else None))


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logging.getLogger("migrator").addHandler(handler)
    yield handler
    logging.getLogger("migrator").removeHandler(handler)


def broken(api: Api, plant: Plant) -> dict[str, tuple[str, Any]]:
    """Requests that are accepted and then fail: path, and body."""
    full = {"volume": {"size": 4_000_000, "name": "too large"}}
    lost = api.make_volume()  # nothing lies on the backend
    return {
        "no pool for a volume": ("/volumes", full),
        "nothing to extend": (f"/volumes/{lost}/action", {"os-extend": {"new_size": 2}}),
        "nothing to take a snapshot of": ("/snapshots", {"snapshot": {"volume_id": api.make_volume()}}),
    }


@pytest.mark.parametrize("case", ["no pool for a volume", "nothing to extend", "nothing to take a snapshot of"])
def test_what_fails_later_is_told_by_the_id_of_its_request(api: Api, plant: Plant, lines: Lines, case: str) -> None:
    path, body = broken(api, plant)[case]
    answers: list[Answer] = [api("POST", path, body), api("GET", "/volumes")]
    ours = answers[0].headers[ID]
    assert answers[0].status == 202, answers[0].text

    def told() -> Any:
        return api("GET", f"/messages?request_id={ours}", version="3.5").json["messages"]

    until(lambda: told() != [], "its users are told")
    (message,) = told()
    assert message["request_id"] == ours
    logged = {request_id for line, request_id in lines.found if message["user_message"] in line}
    assert logged == {ours}, "the service that failed says so under the same id"


def test_a_thread_of_the_services_takes_the_id_of_each_message(api: Api, plant: Plant, lines: Lines) -> None:
    """Threads are used again: the second message must not be logged as the first."""
    asked = {}
    for _ in range(6):
        answer = api("POST", "/snapshots", {"snapshot": {"volume_id": api.make_volume()}})
        asked[answer.json["snapshot"]["id"]] = answer.headers[ID]
    for snapshot_id in asked:
        until(lambda id_=snapshot_id: _status(api, id_) == "error", "it failed")  # type: ignore[misc]
    logged = {
        line.split()[1].rstrip(":"): request_id for line, request_id in lines.found if line.startswith("Snapshot ")
    }
    assert logged == asked


def _status(api: Api, snapshot_id: str) -> str:
    found = api.db.read(lambda session: session.get(Snapshot, snapshot_id))
    assert found is not None
    return found.status


def test_what_nobody_asked_for_is_under_no_request() -> None:
    """A sweep's thread has no context, and making one for a message does not give it one."""
    seen: list[str | None] = []

    def sweep() -> None:
        service_context()
        seen.append(current_request_id())
        RequestContext(request_id="req-x", overwrite=True)
        seen.extend((current_request_id(), service_context().request_id))

    thread = threading.Thread(target=sweep)
    thread.start()
    thread.join()
    assert seen == [None, "req-x", "req-x"]
