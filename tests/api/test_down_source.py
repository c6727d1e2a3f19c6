"""os-migrate_volume while the service of the source is down: somebody else can do it, or the answer says why not."""

from __future__ import annotations

import re

from migrator.db import services
from tests.api.conftest import DESTINATION, Answer, Api


def migrate(api: Api, volume_id: str) -> Answer:
    return api("POST", f"/volumes/{volume_id}/action", {"os-migrate_volume": {"host": DESTINATION}})


def down(api: Api) -> str:
    """A volume whose service has been silent for five minutes."""
    volume_id = api.make_volume()
    api.silence("a@file1", 300)
    return volume_id


def test_without_anybody_else_it_is_refused_at_once_with_the_reason(api: Api) -> None:
    """Else the volume would stay at ``starting`` for ever (field.md pain 12)."""
    volume_id = down(api)
    api.beat("z@file9")
    answer = migrate(api, volume_id)
    assert answer.status == 400
    assert re.search(r"volume service a@file1 is down, its last sign of life was 3\d\d s ago", answer.fault)
    assert "no other service reaches its storage" in answer.fault
    assert api.get_volume(volume_id).migration_status is None


def test_a_service_of_the_same_cluster_and_backend_name_does_it(api: Api) -> None:
    volume_id = down(api)
    api.beat("a@file1", cluster="vault")
    api.beat("z@file1", cluster="vault")
    api.silence("a@file1", 300)
    assert migrate(api, volume_id).status == 202


def test_one_of_the_cluster_with_other_backends_does_not(api: Api) -> None:
    volume_id = down(api)
    api.beat("a@file1", cluster="vault")
    api.beat("z@file9", cluster="vault")
    api.silence("a@file1", 300)
    assert migrate(api, volume_id).status == 400


def test_a_service_that_says_it_reaches_the_storage_does_it_while_it_is_up(api: Api) -> None:
    volume_id = down(api)
    services.beat(api.db, "z@array", services.VOLUME, "nova", reaches=["a@file1"])
    api.silence("z@array", 300)
    assert migrate(api, volume_id).status == 400
    services.beat(api.db, "z@array", services.VOLUME, "nova", reaches=["a@file1"])
    assert migrate(api, volume_id).status == 202
