"""host@backend#pool, the only place that knows the signs between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.backend_name import BackendName, MalformedBackendName

PART = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_."), min_size=1, max_size=20)


@given(PART, PART, PART)
def test_what_is_spelled_is_parsed_again(host: str, backend: str, pool: str) -> None:
    for name in (BackendName(host), BackendName(host, backend), BackendName(host, backend, pool)):
        assert BackendName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@b",
        "h@",
        "h@b#",
        "#p",
        "h#p",
        "h@b@c",
        "h@b#p#q",
        "h h@b",
        "h@b#p\n",
        "h@b#\x00",
        "x" * 256,
        "../x@b",
        "h@b/c",
    ],
)
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(MalformedBackendName):
        BackendName.parse(text)


def test_a_pool_name_may_be_what_backends_call_their_pools() -> None:
    assert BackendName.parse("h@b#/exports/a b").pool == "/exports/a b"


def test_places_contain_their_parts() -> None:
    pool = BackendName.parse("h@b#p")
    assert BackendName.parse("h@b").contains(pool)
    assert BackendName.parse("h").contains(pool)
    assert not BackendName.parse("h@c").contains(pool)
    assert not pool.contains(BackendName.parse("h@b"))
    assert pool.service == "h@b"
