"""A REST client for tests: plain HTTP, so that what is tested is the service alone."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from tests.support.waiting import until

ENDS = ("success", "error", "cancelled", "stuck")


class Refused(AssertionError):
    """An answer that the test did not expect."""


class Rest:
    """Speaks to one API as ``user`` of ``project`` (noauth)."""

    def __init__(self, url: str, user: str = "admin", project: str = "p") -> None:
        self._address = urlsplit(url).netloc
        self.project = project
        self._headers = {
            "X-Auth-Token": f"{user}:{project}",
            "Content-Type": "application/json",
            "OpenStack-API-Version": "volume 3.71",
        }

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and parsed body; ``path`` begins behind the project."""
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, f"/v3/{self.project}{path}", payload, self._headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """Return the body of a 2xx answer."""
        status, answer = self.request(method, path, body)
        if status >= 300:
            raise Refused(f"{method} {path}: {status} {answer}")
        return answer

    # --- volumes ---

    def create(self, size: int, **values: Any) -> dict[str, Any]:
        """Create a volume and wait until it is available."""
        volume = self.ok("POST", "/volumes", {"volume": {"size": size, **values}})["volume"]
        return self.wait_volume(volume["id"], "available")

    def volume(self, volume_id: str) -> dict[str, Any]:
        return dict(self.ok("GET", f"/volumes/{volume_id}")["volume"])

    def wait_volume(self, volume_id: str, status: str, seconds: float = 60.0) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            volume = self.volume(volume_id)
            assert not volume["status"].startswith("error") or status.startswith("error"), volume
            return volume if volume["status"] == status else None

        return until(there, f"volume {volume_id} {status}", seconds) or {}

    def delete(self, volume_id: str) -> None:
        """Delete a volume and wait until it is gone."""
        self.ok("DELETE", f"/volumes/{volume_id}")
        until(lambda: self.request("GET", f"/volumes/{volume_id}")[0] == 404, f"volume {volume_id} gone")

    # --- migrations ---

    def migrate(self, volume_id: str, host: str, **options: Any) -> tuple[int, Any]:
        body = {"os-migrate_volume": {"host": host, **options}}
        return self.request("POST", f"/volumes/{volume_id}/action", body)

    def migration_of(self, volume_id: str) -> dict[str, Any]:
        """The volume's newest migration, whole."""
        newest = self.ok("GET", f"/migrations?volume_id={volume_id}&limit=1")["migrations"][0]
        return dict(self.ok("GET", f"/migrations/{newest['id']}")["migration"])

    def wait_migration(self, volume_id: str, seconds: float = 120.0) -> dict[str, Any]:
        """Wait until the volume's newest migration is over; return it whole."""

        def ended() -> dict[str, Any] | None:
            migration = self.migration_of(volume_id)
            return migration if migration["status"] in ENDS else None

        return until(ended, f"the migration of {volume_id} ends", seconds) or {}

    def moved(self, volume_id: str, host: str, seconds: float = 120.0, **options: Any) -> dict[str, Any]:
        """Migrate and wait for success; return the migration."""
        status, answer = self.migrate(volume_id, host, **options)
        assert status == 202, answer
        migration = self.wait_migration(volume_id, seconds)
        assert migration["status"] == "success", migration
        assert self.volume(volume_id)["os-vol-host-attr:host"] == host
        return migration
