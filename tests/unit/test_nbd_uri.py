"""NBD addresses: what each part means, what is refused, and that a message repeats nothing secret."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from migrator.volume import nbd
from migrator.volume.nbd.uri import Address, Tls, UriError, parse_uri

GOOD = {
    "nbd://localhost": Address("", "localhost"),
    "nbd://Host.example:10810/": Address("", "host.example", 10810),
    "nbd://10.0.0.1/vol/1": Address("vol/1", "10.0.0.1"),
    "NBD://h//x": Address("/x", "h"),
    "nbd://[::1]:5/a%20b%C3%A9%23": Address("a b\u00e9#", "::1", 5),
    "nbd+unix:///?socket=/run/a+b%20c.sock": Address("", socket="/run/a+b c.sock"),
    "nbd+unix:///name?socket=relative": Address("name", socket="relative"),
    "nbds://h/x": Address("x", "h", tls=Tls(hostname="h")),
    "nbds://h/x?tls-certificates=/etc/pki": Address("x", "h", tls=Tls("/etc/pki", hostname="h")),
    "nbds://10.0.0.1/x?tls-hostname=h": Address("x", "10.0.0.1", tls=Tls(hostname="h")),
    "nbds://me%40here@h:1/x?tls-psk-file=/k": Address("x", "h", 1, tls=Tls(None, "/k", "me@here", "h")),
    "nbds+unix:///x?socket=s&tls-certificates=/d": Address("x", socket="s", tls=Tls("/d", hostname="localhost")),
    "nbds+unix://me@/x?socket=s&tls-psk-file=k": Address("x", socket="s", tls=Tls(None, "k", "me", "localhost")),
}

BAD = {
    "": "begins with",
    "http://h/": "begins with",
    "/dev/sda": "begins with",
    "nbd:h": "no //",
    "nbd:///x": "host is missing",
    "nbd://:10809/x": "host is missing",
    "nbd://h:x/": "port",
    "nbd://h:65536/": "port",
    "nbd://h:0/": "port 0",
    "nbd://[::1/": "malformed",
    "nbd://h/a b": "spaces",
    "nbd://h/a\nb": "control",
    "nbd://h/x#y": "fragment",
    "nbd://h/%FF": "UTF-8",
    "nbd://h/%00": "zero byte",
    "nbd://h/" + "x" * 4097: "longer",
    "nbd://secret@h/x": "user is for TLS",
    "nbds://me:secret@h/x?tls-psk-file=f": "password",
    "nbds://h/x?tls-psk-file=f": "needs a user",
    "nbds://me@h/x": "needs tls-psk-file",
    "nbds://me@h/?tls-psk-file=f&tls-certificates=d": "either",
    "nbd://h/x?tls-certificates=d": "need nbds",
    "nbd://h/x?socket=s": "only",
    "nbd+unix:///x": "socket=PATH",
    "nbd+unix://h/x?socket=s": "no host",
    "nbd+unix:///x?socket=": "empty",
    "nbd+unix:///x?socket=%00": "zero byte",
    "nbd+unix:///x?socket=a&socket=b": "twice",
    "nbd+unix:///x?socket": "name=value",
    "nbds://h/x?tls-cert=secret": "unknown parameter",
    "nbd+unix:///x?socket=%FF": "name=value",
}


@pytest.mark.parametrize("uri", GOOD)
def test_an_address_is_understood(uri: str) -> None:
    assert parse_uri(uri) == GOOD[uri]


@pytest.mark.parametrize("uri", BAD)
def test_a_wrong_address_is_refused_by_the_name_of_what_is_wrong(uri: str) -> None:
    with pytest.raises(UriError, match=BAD[uri]) as caught:
        parse_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "nbds://secretuser@h:1/secretname?tls-psk-file=f",
        "nbd+unix:///secretname?socket=/run/s",
        "nbd://h/secretname",
    ],
)
def test_neither_the_export_nor_the_user_is_in_a_message(uri: str) -> None:
    address = parse_uri(uri)
    assert "secret" not in f"{address} {address!r}"
    assert str(address).startswith(uri.partition("://")[0] + "://")


def test_the_client_imports_the_standard_library_and_the_shape_of_endpoints_only() -> None:
    for path in Path(nbd.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in filter(None, [*names, module]):
                known = name.split(".")[0] in sys.stdlib_module_names or name.startswith("migrator.volume.nbd")
                assert known or name in ("migrator.volume.endpoints", "migrator.volume.extents"), f"{path}: {name}"
