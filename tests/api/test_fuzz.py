"""Whatever is sent, the answer is no 5xx, and of what is wrong the field is named; on each kind of database."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis
import pytest
from hypothesis import strategies as st

from migrator.api import queries
from tests.api.conftest import Answer, Api

UUID = "5c1f2cf6-0000-4000-8000-000000000000"
EXAMPLES = 60
_settings = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
#: What a server hands on of a header: bytes as Latin-1 characters, without those that end it.
HEADER = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=300)
#: Every character that a database may trip over is frequent.
WEIRD = st.text(
    st.one_of(
        st.sampled_from("\0\x01\x7f\\'\"%_*;\u200b\u202e\ufeff\ufffd\U0001f4da\U0010ffff"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=300,
)
READS = [route.partition(" ")[2] for route in queries.QUERIES if route.startswith("GET ") and "{" not in route]
#: They ask services, none of which is here: 503 is then the truth.
READS = [path for path in READS if "manage" not in path and "scheduler" not in path and "plan" not in path]


def fine(answer: Answer) -> Answer:
    """Check that an answer is no 5xx, and a fault well-formed."""
    assert answer.status < 500, answer.text
    if answer.status >= 400:
        assert answer.fault
    return answer


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["OpenStack-API-Version", "X-OpenStack-Request-Id", "X-Auth-Token", "Content-Type", "Accept", "Origin"]
)
def test_any_header(api: Api, name: str) -> None:
    volume_id = api.make_volume()

    @_settings
    @hypothesis.given(HEADER, st.sampled_from([("GET", None), ("PUT", {"volume": {"name": "n"}})]))
    @hypothesis.example("volume 3.99999", ("GET", None))
    @hypothesis.example("volume ٣.٧", ("GET", None))
    @hypothesis.example("req-" + "x" * 5000, ("GET", None))
    @hypothesis.example("\xff\xfe:\x80", ("GET", None))
    def send(value: str, request: tuple[str, Any]) -> None:
        method, body = request
        sent = {name: value} if name != "X-Auth-Token" else {}
        token = value if name == "X-Auth-Token" else "admin"
        answer = fine(api(method, f"/volumes/{volume_id}", body, token=token, headers=sent))
        assert answer.headers["x-openstack-request-id"].startswith("req-")

    send()


def test_a_token_of_any_length_owns_what_it_made_or_is_refused(any_api: Api) -> None:
    """The user is written into the row: what does not fit the column must not break the database."""
    for user in ("x" * 255, "x" * 256, "x" * 5000, "\U0001f4da".encode().decode("latin-1"), "a\x01b"):
        body = {"snapshot": {"volume_id": any_api.make_volume()}}
        made = fine(any_api("POST", "/snapshots", body, token=f"{user}:demo"))
        assert made.status == (202 if len(user) <= 255 else 401)
        listed = fine(any_api("GET", "/volumes", token=f"{user}:demo"))
        assert listed.status == (200 if len(user) <= 255 else 401)
    for project, status in (("p" * 255, 202), ("p" * 256, 401)):
        assert fine(any_api("POST", "/volumes", {"volume": {"size": 1}}, project=project)).status == status


# --- queries ---------------------------------------------------------------------------------------------------------


def test_any_query(any_api: Api) -> None:
    any_api.make_volume({"k": "v"}, display_name="n")
    for path in READS:
        _ask(any_api, path)


def _ask(any_api: Api, path: str) -> None:
    known = [*queries.of(f"GET {path}"), "no_such"]

    @hypothesis.settings(_settings, max_examples=40)
    @hypothesis.given(st.dictionaries(st.sampled_from(known), WEIRD, max_size=3), st.sampled_from(["3.0", "3.71"]))
    @hypothesis.example(dict.fromkeys(("limit", "offset"), "9" * 40), "3.71")
    @hypothesis.example({"limit": str(2**31 - 1), "offset": str(2**31 - 1)}, "3.71")
    @hypothesis.example({"limit": "²"}, "3.71")
    @hypothesis.example({"marker": "\U0001f4da" * 60}, "3.71")
    @hypothesis.example({"metadata": "[" * 9000}, "3.71")
    @hypothesis.example({"metadata": "{'a': '\U0001f4da'}"}, "3.71")
    @hypothesis.example({"metadata": '{"\\u0000": "\\ud800"}'}, "3.71")
    @hypothesis.example({"metadata": '{"a": "\\u0000"}'}, "3.71")
    @hypothesis.example({"created_at": "gt:9999-12-31T23:59:59+23:59"}, "3.71")
    @hypothesis.example({"since": "0001-01-01T00:00:00+23:59"}, "3.71")
    @hypothesis.example({"size": "9" * 30}, "3.71")
    @hypothesis.example({"size": str(2**31)}, "3.71")
    def send(query: dict[str, str], version: str) -> None:
        answer = fine(any_api("GET", f"{path}?{urlencode(query)}", version=version))
        if any("\0" in value for value in query.values()):
            assert answer.status in (400, 404), "404 where the list is not there yet"

    send()


#: Pairs of metadata, and whether they can be asked for of volumes and of snapshots.
PAIRS: list[tuple[dict[str, str], bool, bool]] = [
    ({"a\0": "v"}, False, False),
    ({"a": "\ud800"}, False, False),
    ({'a"b': "v"}, True, False),
    ({"a\\": "\\"}, True, False),
    ({"a\n": "v"}, True, False),
    ({"a'b": "'"}, True, True),
    ({"$.a[0]": '%"'}, True, True),
    ({"k": "знач"}, True, True),
    ({"k": "\U0001f4da"}, True, True),
    ({"ключ": "знач"}, True, False),
    ({"\U0001f4da": "\U0001f4da"}, True, False),
]


@pytest.mark.parametrize("path", ["/volumes", "/snapshots"])
def test_metadata_is_found_or_refused(any_api: Api, path: str) -> None:
    for pair, of_volumes, of_snapshots in PAIRS:
        if of_volumes:
            any_api.make_snapshot(any_api.make_volume(pair), meta=pair)
        answer = fine(any_api("GET", f"{path}?{urlencode({'metadata': json.dumps(pair)})}"))
        if of_volumes if path == "/volumes" else of_snapshots:
            assert [len(found) for found in answer.json.values()] == [1], pair
        else:
            assert (answer.status, "metadata" in answer.fault) == (400, True), pair


NO_QUERIES = ("%", "%zz=1", "limit=%ff", "%ff=1", "=&==&", "&" * 3000, "a=1&a=2&limit=1&limit=x")


def test_a_query_that_is_none(any_api: Api) -> None:
    for query in NO_QUERIES:
        fine(any_api("GET", f"/volumes?{query}"))


def test_ids_and_keys_in_paths_may_be_anything(any_api: Api) -> None:
    volume_id = any_api.make_volume()
    for text in ("%00", "%ff", "%F0%9F%93%9A", "..%2f..", "x" * 3000, "%E2%80%AE", "a%0Ab"):
        for method, path, body in (
            ("GET", f"/volumes/{text}", None),
            ("GET", f"/snapshots/{text}", None),
            ("GET", f"/types/{text}", None),
            ("GET", f"/migrations/{text}", None),
            ("GET", f"/os-hosts/{text}", None),
            ("GET", f"/os-quota-sets/{text}", None),
            ("PUT", f"/volumes/{volume_id}/metadata/{text}", {"meta": {"k": "v"}}),
        ):
            assert fine(any_api(method, path, body)).status in (200, 400, 404), path


# --- bodies ----------------------------------------------------------------------------------------------------------

#: Where a name goes: the request that writes it, and how it is read back.
Write = Callable[[Api, str, str], Answer]
NAMED: dict[str, tuple[Write, Callable[[Any], str]]] = {
    "volume.name": (
        lambda api, id_, text: api("PUT", f"/volumes/{id_}", {"volume": {"name": text}}),
        lambda body: str(body["volume"]["name"]),
    ),
    "volume.description": (
        lambda api, id_, text: api("PUT", f"/volumes/{id_}", {"volume": {"description": text}}),
        lambda body: str(body["volume"]["description"]),
    ),
    "metadata.k": (
        lambda api, id_, text: api("POST", f"/volumes/{id_}/metadata", {"metadata": {"k": text}}),
        lambda body: str(body["metadata"]["k"]),
    ),
    "metadata": (
        lambda api, id_, text: api("PUT", f"/volumes/{id_}/metadata", {"metadata": {text: "v"}}),
        lambda body: str(next(iter(body["metadata"]))),
    ),
    "volume_type.name": (
        lambda api, id_, text: api("POST", "/types", {"volume_type": {"name": text}}),
        lambda body: str(body["volume_type"]["name"]),
    ),
}
NAMES = {
    "255 letters": "x" * 255,
    "255 characters of 4 bytes": "\U0001f4da" * 255,
    "right to left": "\u202eabc\u200b",
    "quotes": "'; DROP TABLE volumes; -- \" \\ %s %(x)s {0} ${y}",
    "the last character": "\U0010ffff",
    "combining": "e\u0301" * 100,
}


def test_names_come_back_as_they_were_sent(any_api: Api) -> None:
    volume_id = any_api.make_volume()
    for field, (write, read) in NAMED.items():
        for title, text in NAMES.items():
            answer = fine(write(any_api, volume_id, text))
            assert (answer.status, read(answer.json)) == (200, text), (field, title)


def test_a_name_too_long_is_refused_by_its_field(any_api: Api) -> None:
    volume_id = any_api.make_volume(display_name="n")
    before = any_api.contents()
    for field, (write, _) in NAMED.items():
        for character in ("x", "\U0001f4da"):
            answer = write(any_api, volume_id, character * 256)
            assert (answer.status, field in answer.fault) == (400, True), answer.text
    assert any_api.contents() == before


def test_any_name(any_api: Api) -> None:
    volume_id = any_api.make_volume()
    for field in NAMED:
        _name(any_api, volume_id, field)


def _name(any_api: Api, volume_id: str, field: str) -> None:
    write, read = NAMED[field]

    @_settings
    @hypothesis.given(WEIRD)
    def send(text: str) -> None:
        answer = fine(write(any_api, volume_id, text))
        if answer.status == 200:
            assert read(answer.json) in (text, text.strip())
            assert "\0" not in text
        else:
            assert answer.status in (400, 409)

    send()


#: Bodies, and a part of what is said of each.
NO_BODIES: list[tuple[bytes, str]] = [
    (b'{"volume": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "not JSON"),
    (b'{"volume": ' + b"[" * 100_000, "not JSON"),
    (b'{"volume": {"name": "\\u0000"}}', "NUL"),
    (b'{"volume": {"name": "a\x00b"}}', "not JSON"),
    (b'{"volume": {"name": "\\ud800"}}', "not JSON"),
    (b'{"volume": {"name": "\xff"}}', "not JSON"),
    (b"\xef\xbb\xbf{}", "request body"),
    (b'{"volume": {"name": NaN}}', "volume.name"),
    (b'{"volume": {"name": 1e999}}', "volume.name"),
    (b'{"volume": {"name": ' + b"9" * 5000 + b"}}", "not JSON"),
    (b'{"volume": {"name": 1, "name": []}}', "volume.name"),
    (b'{"volume": 1, "volume": null}', "volume"),
    (b"[]", "not a JSON object"),
    (b"", "not JSON"),
    (b"null", "not a JSON object"),
]


def test_a_body_that_is_none(any_api: Api) -> None:
    volume_id = any_api.make_volume(display_name="n")
    for text, said in NO_BODIES:
        answer = any_api("PUT", f"/volumes/{volume_id}", text)
        assert (answer.status, said in answer.fault) == (400, True), (text[:40], answer.text)
    assert any_api.get_volume(volume_id).display_name == "n"


def test_of_keys_sent_twice_the_last_counts_everywhere(any_api: Api) -> None:
    """What the schema saw is what is done: nobody smuggles the first past the check of the last."""
    volume_id = any_api.make_volume(display_name="n")
    answer = any_api("PUT", f"/volumes/{volume_id}", b'{"volume": {"name": [], "name": "last"}}')
    assert (answer.status, answer.json["volume"]["name"]) == (200, "last")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WEIRD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=9), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("route", "key"),
    [
        ("POST /volumes", "volume"),
        ("POST /snapshots", "snapshot"),
        ("POST /attachments", "attachment"),
        ("POST /types", "volume_type"),
        ("POST /migrations", "migration"),
        ("PUT /os-services/enable", "host"),
        ("POST /workers/cleanup", "host"),
        ("POST /volumes/{id}/action", "os-reset_status"),
        ("POST /volumes/{id}/action", "os-set_image_metadata"),
        ("POST /volumes/{id}/action", "os-attach"),
        ("POST /volumes/{id}/metadata", "metadata"),
    ],
)
def test_any_body(api: Api, route: str, key: str) -> None:
    """What passes the schema by chance reaches the row: then it fits."""
    method, _, path = route.partition(" ")
    filled = path.replace("{id}", api.make_volume())

    @_settings
    @hypothesis.given(_JSON)
    def send(inner: Any) -> None:
        fine(api(method, filled, json.dumps({key: inner}).encode(), version="3.71"))

    send()


def test_a_name_in_a_query_finds_what_has_it(any_api: Api) -> None:
    """Of two names that differ in their last character, of four bytes, each finds its own."""
    for name in ("b\U0001f4da", "b\U0001f4d9"):
        volume_id = any_api.make_volume(display_name=name)
        found = any_api("GET", f"/volumes?name={quote(name)}", version="3.71").json["volumes"]
        assert [volume["id"] for volume in found] == [volume_id]
