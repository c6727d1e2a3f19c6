"""Metadata of volumes and snapshots, key by key: whose it is, what is refused, and that nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.api.arcs import Step, run
from tests.api.conftest import Api

#: How a thing with metadata is made, by the collection it is in.
MAKERS: dict[str, Callable[[Api, dict[str, str]], str]] = {
    "volumes": lambda api, metadata: api.make_volume(metadata),
    "snapshots": lambda api, metadata: api.make_snapshot(api.make_volume(), meta=metadata),
}


@pytest.fixture(params=MAKERS)
def where(request: pytest.FixtureRequest, api: Api) -> str:
    """The path of something with the metadata a=1, b=2."""
    return f"/{request.param}/{MAKERS[request.param](api, {'a': '1', 'b': '2'})}/metadata"


def test_the_life_of_metadata(api: Api, where: str) -> None:
    run(
        api,
        [
            Step("it is shown", "GET $at", 200, {"metadata": {"a": "1", "b": "2"}}, token="joe"),
            Step("key by key", "GET $at/a", 200, {"meta": {"a": "1"}}, token="joe"),
            Step("a key that is not there", "GET $at/z", 404, {"fault": "with key z"}, token="joe"),
            Step(
                "some is added",
                "POST $at",
                200,
                {"metadata": {"a": "3", "b": "2", "c": "4"}},
                {"metadata": {"a": "3", "c": "4"}},
                "joe",
            ),
            Step("one is set", "PUT $at/d", 200, {"meta": {"d": "5"}}, {"meta": {"d": "5"}}, "joe"),
            Step("under its own key", "PUT $at/d", 400, {"fault": "'d'"}, {"meta": {"e": "5"}}, "joe"),
            Step("one at a time", "PUT $at/d", 400, {}, {"meta": {"d": "5", "e": "6"}}, "joe"),
            Step("one goes", "DELETE $at/b", 200, token="joe"),
            Step("once", "DELETE $at/b", 404, token="joe"),
            Step("what is left", "GET $at", 200, {"metadata": {"a": "3", "c": "4", "d": "5"}}, token="joe"),
            Step("all is replaced", "PUT $at", 200, {"metadata": {"ü": "€𝄞"}}, {"metadata": {"ü": "€𝄞"}}, "joe"),
            Step("and kept", "GET $at", 200, {"metadata": {"ü": "€𝄞"}}, token="joe"),
            Step("all of it goes", "PUT $at", 200, {"metadata": {}}, {"metadata": {}}, "joe"),
            Step("no strings", "POST $at", 400, {"fault": "metadata.a"}, {"metadata": {"a": 1}}, "joe"),
            Step("nothing", "POST $at", 400, {}, {"metadata": None}, "joe"),
            Step("no key", "POST $at", 400, {}, {"metadata": {"": "x"}}, "joe"),
            Step("a long key", "POST $at", 400, {}, {"metadata": {"k" * 256: "x"}}, "joe"),
            Step("a long value", "POST $at", 400, {}, {"metadata": {"k": "x" * 256}}, "joe"),
            Step("more than that", "POST $at", 400, {"fault": "'x'"}, {"metadata": {}, "x": 1}, "joe"),
        ],
        at=where,
    )


def test_metadata_of_others_is_not_there(api: Api, where: str) -> None:
    body = {"metadata": {"mine": "1"}}
    for method, path, sent in (
        ("GET", where, None),
        ("GET", f"{where}/a", None),
        ("POST", where, body),
        ("PUT", where, body),
        ("PUT", f"{where}/a", {"meta": {"a": "x"}}),
        ("DELETE", f"{where}/a", None),
    ):
        assert api(method, path, sent, token="eve", project="other").status == 404, (method, path)
    assert api("GET", where).json["metadata"] == {"a": "1", "b": "2"}


def test_there_is_a_bound_to_all_keys_together(api: Api, where: str) -> None:
    many = {f"k{number}": "v" for number in range(127)}
    assert api("PUT", where, {"metadata": many}).status == 200
    assert api("PUT", f"{where}/one", {"meta": {"one": "v"}}).status == 200
    refused = api("PUT", f"{where}/more", {"meta": {"more": "v"}})
    assert refused.status == 400
    assert "128 keys at most" in refused.fault
    assert api("PUT", f"{where}/one", {"meta": {"one": "changed"}}).status == 200


def test_metadata_of_a_locked_volume_or_a_twin_stays(api: Api) -> None:
    locked = api.make_volume({"a": "1"}, status="maintenance")
    assert "maintenance" in api("DELETE", f"/volumes/{locked}/metadata/a", token="joe").fault
    moved = api.make_volume()
    twin = api.make_twin(moved, api.make_migration(moved))
    assert api("GET", f"/volumes/{twin}/metadata", token="joe").status == 404
    assert "destination of a migration" in api("POST", f"/volumes/{twin}/metadata", {"metadata": {"a": "1"}}).fault


@pytest.mark.parametrize("kind", MAKERS)
def test_of_changes_at_the_same_time_none_is_lost(any_api: Api, kind: str) -> None:
    where = f"/{kind}/{MAKERS[kind](any_api, {})}/metadata"
    statuses: list[int] = []

    def change(number: int) -> None:
        statuses.append(any_api("PUT", f"{where}/k{number}", {"meta": {f"k{number}": "v"}}).status)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 12
    assert set(any_api("GET", where).json["metadata"]) == {f"k{number}" for number in range(12)}
