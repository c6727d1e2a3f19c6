"""Managing snapshots that lie on a backend and giving them up again: through the API to a real service and storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.conf import GIB
from migrator.db import snapshots
from migrator.db.models import Snapshot
from migrator.drivers.base import Capability, VolumeDriver
from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from migrator.errors import DriverError, NoSpace
from tests.api.conftest import Answer, Api
from tests.api.storage import BACKEND, PLACE, Storage, begin, fail, lay
from tests.contract.worlds import options
from tests.support.waiting import until

UUID = "5c1f2cf6-0000-4000-8000-000000000000"


@pytest.fixture
def api(make_api: Callable[..., Api], tmp_path: Path) -> Api:
    """The application on a message bus that is as quick as a call; the backend's service gives signs of life."""
    made = make_api(transport_url=f"local://{tmp_path.name}/")
    made.beat(BACKEND)
    return made


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return tmp_path / "pool1"


@pytest.fixture
def files(store: Callable[[VolumeDriver], Storage], pool: Path) -> Storage:
    return store(FileDriver(BACKEND, options(file_pools={"pool1": str(pool)}, file_thin_provisioning=True)))


@pytest.fixture
def faulty(store: Callable[[VolumeDriver], Storage]) -> Storage:
    """A backend in memory, with the object ``stray`` of 7 bytes, whose calls can be made to fail."""
    driver = MemoryDriver(BACKEND, options(memory_pools=["pool1"]))
    storage = store(driver)
    driver.lay("pool1", "stray", b"content")
    return storage


def make_volume(storage: Storage, size: int = 2, **values: Any) -> str:
    volume_id = storage.api.make_volume(host=PLACE, size=size, **values)
    storage.driver.create("pool1", f"volume-{volume_id}", size * GIB)
    return volume_id


def manage(api: Api, volume: str, file: str, path: str = "/manageable_snapshots", **more: Any) -> Answer:
    wanted = {"volume_id": volume, "ref": {"source-name": file}, **more}
    return api("POST", path, {"snapshot": wanted}, version="3.8")


def settled(api: Api, snapshot_id: str) -> Snapshot:
    """The snapshot, dead or alive, once nothing works on it."""

    def look() -> Snapshot:
        found = api.db.read(lambda session: session.get(Snapshot, snapshot_id))
        assert found is not None
        return found

    until(lambda: look().status not in ("managing", "unmanaging", "deleting"), "the snapshot settled")
    return look()


def managed(api: Api, volume_id: str, name: str) -> Snapshot:
    answer = manage(api, volume_id, name)
    assert answer.status == 202, answer.text
    return settled(api, answer.json["snapshot"]["id"])


def listed(api: Api, kind: str = "/detail") -> list[dict[str, Any]]:
    answer = api("GET", f"/manageable_snapshots{kind}?host=a@file1%23pool1", version="3.8")
    assert answer.status == 200, answer.text
    return list(answer.json["manageable-snapshots"])


@pytest.mark.parametrize("path", ["/os-snapshot-manage", "/manageable_snapshots"])
def test_a_file_becomes_a_snapshot_and_volumes_are_made_of_it(api: Api, files: Storage, pool: Path, path: str) -> None:
    volume_id = make_volume(files)
    lay(pool / "yesterday.img", size=GIB + 512)
    before = listed(api)
    assert [(each["reference"], each["size"], each["source_reference"]) for each in before] == [
        ({"source-name": "yesterday.img"}, 2, None)
    ], "the volume itself is no snapshot"
    answer = manage(api, volume_id, "yesterday.img", path, name="kept", description="old", metadata={"k": "v"})
    assert answer.status == 202, answer.text
    shown = answer.json["snapshot"]
    assert (shown["volume_id"], shown["name"], shown["metadata"]) == (volume_id, "kept", {"k": "v"})
    snapshot = settled(api, shown["id"])
    assert (snapshot.status, snapshot.volume_size, snapshot.adoption) == ("available", 2, None)
    assert begin(pool / f"snapshot-{snapshot.id}") == b"old data"
    assert not (pool / "yesterday.img").exists()
    (entry,) = listed(api)
    assert (entry["cinder_id"], entry["reason_not_safe"]) == (snapshot.id, "it is managed already")
    assert entry["source_reference"] == {"source-name": f"volume-{volume_id}"}
    made = api("POST", "/volumes", {"volume": {"snapshot_id": snapshot.id}}).json["volume"]["id"]
    until(lambda: api.get_volume(made).status == "available", "a volume was made of it")
    assert begin(pool / f"volume-{made}") == b"old data"


def test_a_snapshot_is_given_up_and_taken_again(api: Api, files: Storage, pool: Path) -> None:
    volume_id = make_volume(files)
    lay(pool / "x.img", size=GIB)
    first = managed(api, volume_id, "x.img")
    assert api("POST", f"/snapshots/{first.id}/action", {"os-unmanage": {}}).status == 202
    assert settled(api, first.id).deleted_at is not None
    assert begin(pool / f"snapshot-{first.id}") == b"old data"
    again = managed(api, volume_id, f"snapshot-{first.id}")
    assert (again.status, again.volume_size) == ("available", 1)
    assert api("DELETE", f"/snapshots/{again.id}").status == 202
    until(lambda: not list(pool.glob("snapshot-*")), "it was deleted")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "no volume": ({"volume_id": UUID}, {}, 404, UUID),
    "no file": ({"ref": {"source-name": "missing"}}, {}, 400, "missing"),
    "out of the pool": ({"ref": {"source-name": "../x.img"}}, {}, 400, "ref"),
    "larger than the volume": ({}, {"size": 1}, 400, "2 GiB large"),
    "volume being made": ({}, {"status": "creating"}, 400, "creating"),
    "volume locked": ({}, {"status": "maintenance"}, 400, "maintenance"),
    "unknown key": ({"colour": "red"}, {}, 400, "'colour'"),
    "no reference": ({"ref": {}}, {}, 400, "ref"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(api: Api, files: Storage, pool: Path, case: str) -> None:
    change, values, status, reason = REFUSED[case]
    lay(pool / "x.img", size=GIB + 1)
    lay(pool.parent / "x.img")
    volume_id = make_volume(files, **{"size": 2, **values})
    before = api.contents()
    answer = manage(api, volume_id, "x.img", **change)
    assert (answer.status, reason in answer.fault) == (status, True), answer.text
    assert api.contents() == before
    assert (pool / "x.img").exists()


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda api: api.silence(BACKEND, 300), "is down"),
        (lambda api: api.disable(BACKEND, "new disks"), "new disks"),
        (lambda api: api("PUT", "/os-services/freeze", {"host": BACKEND}), "frozen"),
    ],
)
def test_a_backend_that_takes_nothing_new(
    api: Api, files: Storage, pool: Path, prepare: Callable[[Api], object], reason: str
) -> None:
    lay(pool / "x.img")
    volume_id = make_volume(files)
    prepare(api)
    answer = manage(api, volume_id, "x.img")
    assert (answer.status, reason in answer.fault) == (400, True), answer.text
    assert (pool / "x.img").exists()


def test_a_driver_without_snapshots_manages_none(api: Api, faulty: Storage) -> None:
    faulty.driver.capabilities = frozenset(Capability) - {Capability.SNAPSHOTS}
    answer = manage(api, make_volume(faulty), "stray")
    assert (answer.status, "knows no snapshots" in answer.fault) == (400, True), answer.text


def test_a_migration_gives_way_to_a_managed_snapshot(api: Api, files: Storage, pool: Path) -> None:
    lay(pool / "x.img")
    volume_id = make_volume(files)
    migration_id = api.make_migration(volume_id)
    answer = manage(api, volume_id, "x.img")
    assert answer.status == 202, answer.text
    assert api.migration(migration_id).cancel_requested
    assert (pool / "x.img").exists(), "it waits until the migration has let go"


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["adopt", "extend"])
@pytest.mark.parametrize("how", ["delete", "with its volume", "reset"])
def test_what_cannot_be_taken_is_left_to_its_owner(api: Api, faulty: Storage, call: str, how: str) -> None:
    volume_id = make_volume(faulty)
    fail(faulty, call, NoSpace(where=PLACE, reason="not a byte"))
    snapshot = managed(api, volume_id, "stray")
    assert snapshot.status == "error_managing"
    (message,) = api("GET", f"/messages?resource_uuid={snapshot.id}", version="3.5").json["messages"]
    assert "not a byte" in message["user_message"]
    (entry,) = listed(api)
    assert (entry["safe_to_manage"], entry["cinder_id"]) == (True, None)
    answer = api("POST", f"/snapshots/{snapshot.id}/action", {"os-unmanage": {}})
    assert (answer.status, "nothing on a backend" in answer.fault) == (400, True)
    if how == "reset":
        reset = {"os-reset_status": {"status": "available"}}
        assert api("POST", f"/snapshots/{snapshot.id}/action", reset).status == 202
    path = f"/volumes/{volume_id}?cascade=true" if how == "with its volume" else f"/snapshots/{snapshot.id}"
    assert api("DELETE", path).status == 202
    until(lambda: settled(api, snapshot.id).deleted_at is not None, "the snapshot is gone")
    until(lambda: len(listed(api)) == 1, "the data outlives the snapshot that it did not become")


def test_while_the_storage_does_not_answer_it_waits_and_the_sweep_goes_on(api: Api, faulty: Storage) -> None:
    volume_id = make_volume(faulty)
    fail(faulty, "adopt", DriverError(backend=BACKEND, reason="gone"))
    fail(faulty, "exists", DriverError(backend=BACKEND, reason="gone"))
    snapshot_id = manage(api, volume_id, "stray").json["snapshot"]["id"]
    assert isinstance(faulty.driver, MemoryDriver)
    asked = faulty.driver.faults
    until(lambda: asked.count("exists") == 1, "it was to be given back")
    until(lambda: not faulty.manager._locks.busy(f"snapshot-{snapshot_id}"), "the manager let go")
    faulty.manager.sweep(BACKEND)
    assert settled(api, snapshot_id).status == "available"


def test_what_can_neither_be_kept_nor_given_back_stays_named(api: Api, faulty: Storage) -> None:
    volume_id = make_volume(faulty)
    fail(faulty, "extend", NoSpace(where=PLACE, reason="full"))
    fail(faulty, "disown", NoSpace(where=PLACE, reason="stuck"))
    snapshot = managed(api, volume_id, "stray")
    assert (snapshot.status, snapshot.adoption) == ("error_managing", None)
    (message,) = api("GET", f"/messages?resource_uuid={snapshot.id}", version="3.5").json["messages"]
    assert "deleting the snapshot deletes it" in message["user_message"]
    assert api("DELETE", f"/snapshots/{snapshot.id}").status == 202
    until(lambda: listed(api) == [], "it was deleted")


def test_a_snapshot_that_the_storage_keeps_says_so(api: Api, faulty: Storage) -> None:
    snapshot = managed(api, make_volume(faulty), "stray")
    fail(faulty, "disown", DriverError(backend=BACKEND, reason="stuck"))
    order = {"os-unmanage": None}
    assert api("POST", f"/snapshots/{snapshot.id}/action", order).status == 202
    assert settled(api, snapshot.id).status == "error_unmanaging"
    assert api("POST", f"/snapshots/{snapshot.id}/action", order).status == 202
    assert settled(api, snapshot.id).deleted_at is not None


@pytest.mark.parametrize("status", ["managing", "unmanaging"])
def test_nobody_deletes_what_is_being_managed(api: Api, status: str) -> None:
    snapshot_id = api.make_snapshot(api.make_volume(), status=status, adoption={"source-name": "x.img"})
    for method, path, body in (
        ("DELETE", f"/snapshots/{snapshot_id}", None),
        ("POST", f"/snapshots/{snapshot_id}/action", {"os-force_delete": {}}),
        ("POST", f"/snapshots/{snapshot_id}/action", {"os-unmanage": {}}),
    ):
        answer = api(method, path, body)
        assert (answer.status, answer.json["badRequest"]["code"]) == (400, 400), answer.text


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_lost_message_or_a_crash_left_is_done_by_the_sweep(files: Storage, pool: Path, moved: bool) -> None:
    api, reference = files.api, {"source-name": "x.img"}
    lay(pool / "x.img", size=GIB)
    snapshot_id = api.make_snapshot(make_volume(files), status="managing", adoption=reference)
    if moved:  # the service died before it could write down that it had taken the file
        files.driver.adopt("pool1", reference, f"snapshot-{snapshot_id}")
    for _ in range(2):
        files.manager.sweep(BACKEND)
    assert settled(api, snapshot_id).status == "available"
    api.db.run(lambda session: snapshots.update_where(session, snapshot_id, status="unmanaging"))
    if moved:
        files.driver.disown("pool1", f"snapshot-{snapshot_id}")
    for _ in range(2):
        files.manager.sweep(BACKEND)
    assert settled(api, snapshot_id).deleted_at is not None
    assert begin(pool / f"snapshot-{snapshot_id}") == b"old data"


def test_a_tenant_neither_lists_nor_manages(api: Api, files: Storage, pool: Path) -> None:
    lay(pool / "x.img")
    snapshot_id = api.make_snapshot(make_volume(files))
    body = {"snapshot": {"volume_id": UUID, "ref": {"source-name": "x.img"}}}
    assert api("GET", "/manageable_snapshots?host=a@file1", token="joe", version="3.8").status == 403
    assert api("POST", "/manageable_snapshots", body, token="joe", version="3.8").status == 403
    assert api("POST", f"/snapshots/{snapshot_id}/action", {"os-unmanage": {}}, token="joe").status == 403
