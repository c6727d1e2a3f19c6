"""Microversions: what a request asks for, and which there are; version discovery."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from migrator import errors

if TYPE_CHECKING:
    from migrator.api.wsgi import Answer, Request

HEADER = "OpenStack-API-Version"
#: How clients call this service in the header; the second is its name in catalogs.
SERVICE_TYPES = ("volume", "block-storage")


class Version(NamedTuple):
    """A microversion; compares as one would think."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MIN = Version(3, 0)
MAX = Version(3, 71)

MESSAGES = Version(3, 3)
GLANCE_METADATA = Version(3, 4)
MESSAGE_FILTERS = Version(3, 5)
CLUSTERS = Version(3, 7)
MANAGEABLE = Version(3, 8)
GROUP_FILTER = Version(3, 10)
SUMMARY = Version(3, 12)
GROUP_ID = Version(3, 13)
GROUP_SNAPSHOT_ID = Version(3, 14)
MIGRATE_TO_CLUSTER = Version(3, 16)
MANAGEABLE_CLUSTER = Version(3, 17)
PROVIDER_ID = Version(3, 21)
WORKERS_CLEANUP = Version(3, 24)
CLUSTER_REPLICATION = Version(3, 26)
RESOURCE_FILTERS = Version(3, 33)
SUMMARY_METADATA = Version(3, 36)
LIMITS_OF_PROJECT = Version(3, 39)
SNAPSHOT_SORT_AND_PAGE = Version(3, 33)
FORCE_DELETE = Version(3, 23)
ATTACHMENTS = Version(3, 27)
POOL_FILTERS = Version(3, 28)
STRICT_FILTERS = Version(3, 31)
LIKE_FILTERS = Version(3, 34)
POOL_TYPE_FILTER = Version(3, 35)
SNAPSHOT_USER_ID = Version(3, 41)
EXTEND_IN_USE = Version(3, 42)
ATTACHMENT_COMPLETE = Version(3, 44)
COUNT = Version(3, 45)
SHARED_TARGETS = Version(3, 48)
BACKEND_STATE = Version(3, 49)
TYPE_EXTRA_SPECS = Version(3, 52)
STRICT_BODIES = Version(3, 53)
ATTACHMENT_MODE = Version(3, 54)
TIME_FILTERS = Version(3, 60)
CLUSTER_NAME = Version(3, 61)
TYPE_ID = Version(3, 63)
ENCRYPTION_KEY = Version(3, 64)
CONSUMES_QUOTA = Version(3, 65)
SNAPSHOT_IN_USE = Version(3, 66)

_NUMBER = re.compile(r"(\d{1,3})\.(0|[1-9]\d{0,4})")


def negotiate(header: str | None) -> Version:
    """Return the microversion that the header asks for; raises BadRequest and VersionNotAcceptable."""
    for part in (header or "").split(","):
        service, _, wanted = part.strip().partition(" ")
        if service.lower() in SERVICE_TYPES:
            return _version(wanted.strip())
    return MIN


def _version(text: str) -> Version:
    if text == "latest":
        return MAX
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise errors.InvalidInput(field=HEADER, reason=f"{text[:40]!r} is not of the form 3.N")
    version = Version(int(match[1]), int(match[2]))
    if not MIN <= version <= MAX:
        raise errors.VersionNotAcceptable(version=version, minimum=MIN, maximum=MAX)
    return version


def _document(base_url: str) -> dict[str, Any]:
    return {
        "versions": [
            {
                "id": "v3.0",
                "status": "CURRENT",
                "version": str(MAX),
                "min_version": str(MIN),
                "updated": "2026-01-01T00:00:00Z",
                "links": [
                    {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
                    {"rel": "self", "href": f"{base_url}/v3/"},
                ],
                "media-types": [
                    {"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}
                ],
            }
        ]
    }


def choices(request: Request) -> Answer:
    """``GET /``: which versions there are."""
    from migrator.api.wsgi import Answer

    return Answer(300, _document(request.base_url))


def show(request: Request, **_: str) -> Answer:
    """``GET /v3/``: the same, for who has chosen already."""
    from migrator.api.wsgi import Answer

    return Answer(200, _document(request.base_url))
