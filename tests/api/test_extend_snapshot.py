"""An extend beside a snapshot that is being made: found by the soak, the snapshot got the new size."""

from __future__ import annotations

from migrator.db import snapshots
from tests.api.conftest import Api


def test_a_volume_is_not_extended_while_a_snapshot_of_it_is_being_made(api: Api) -> None:
    volume_id = api.make_volume(size=1)
    snapshot_id = api.make_snapshot(volume_id, status="creating")
    body = {"os-extend": {"new_size": 2}}
    refused = api("POST", f"/volumes/{volume_id}/action", body)
    assert refused.status == 400
    assert "a snapshot of it is being made" in refused.json["badRequest"]["message"]
    api.db.run(lambda session: snapshots.update_where(session, snapshot_id, status="available"))
    assert api("POST", f"/volumes/{volume_id}/action", body).status == 202
