"""Managing what lies on a backend and giving it up again: through the API to a real backend's service and storage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.conf import GIB
from migrator.db import volumes
from migrator.drivers.base import VolumeDriver
from migrator.drivers.file import FileDriver
from migrator.drivers.memory import MemoryDriver
from migrator.errors import DriverError, NoSpace
from tests.api.arcs import Step, run
from tests.api.conftest import Api
from tests.api.storage import BACKEND, PLACE, Storage, begin, fail, lay
from tests.contract.test_adoption import require_leases
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
    """The directory of pool1."""
    return tmp_path / "pool1"


@pytest.fixture
def files(store: Callable[[VolumeDriver], Storage], pool: Path) -> Storage:
    """A backend of files."""
    paths = {"pool1": str(pool), "pool2": str(pool.parent / "pool2")}
    return store(FileDriver(BACKEND, options(file_pools=paths, file_thin_provisioning=True)))


@pytest.fixture
def faulty(store: Callable[[VolumeDriver], Storage]) -> Storage:
    """A backend in memory, with the object ``stray`` of 7 bytes, whose calls can be made to fail."""
    driver = MemoryDriver(BACKEND, options(memory_pools=["pool1"]))
    storage = store(driver)
    driver.lay("pool1", "stray", b"content")
    return storage


# --- manage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/os-volume-manage", "/manageable_volumes"])
def test_a_file_becomes_a_volume(api: Api, files: Storage, pool: Path, path: str) -> None:
    inode = lay(pool / "Grandma's disk.img", size=2 * GIB).stat().st_ino
    wanted = {
        "host": PLACE,
        "ref": {"source-name": "Grandma's disk.img"},
        "name": "hers",
        "description": "old",
        "metadata": {"k": "v"},
        "bootable": "true",
        "availability_zone": "nova",
        "volume_type": None,
    }
    answer = api("POST", path, {"volume": wanted}, version="3.8")
    assert answer.status == 202, answer.text
    shown = answer.json["volume"]
    assert (shown["name"], shown["size"], shown["bootable"], shown["metadata"]) == ("hers", 2, "true", {"k": "v"})
    volume = files.settled(shown["id"])
    assert (volume.status, volume.host, volume.size, volume.project_id) == ("available", PLACE, 2, "demo")
    found = pool / f"volume-{volume.id}"
    assert (found.stat().st_ino, found.stat().st_size) == (inode, 2 * GIB)
    assert not (pool / "Grandma's disk.img").exists()
    assert begin(found) == b"old data"


def test_a_size_that_is_no_whole_gib_is_rounded_up_and_the_file_grown_with_zeros(files: Storage, pool: Path) -> None:
    lay(pool / "odd.img", b"x" * 1000, size=GIB + 7)
    (entry,) = files.listed()
    assert (entry["size"], entry["safe_to_manage"]) == (2, True)
    assert f"{GIB + 7} bytes; it will be grown with zeros to 2 GiB" in entry["extra_info"]
    volume = files.settled(files.manage({"source-name": "odd.img"}).json["volume"]["id"])
    grown = pool / f"volume-{volume.id}"
    assert (volume.size, grown.stat().st_size) == (2, 2 * GIB)
    assert grown.stat().st_blocks * 512 < 1 << 20
    with grown.open("rb") as file:
        assert file.read(1002) == b"x" * 1000 + b"\0\0"


def test_a_source_id_stays_when_the_name_changes(files: Storage, pool: Path) -> None:
    lay(pool / "old.img")
    source_id = files.listed()[0]["extra_info"].partition("source-id ")[2].partition(",")[0]
    (pool / "old.img").rename(pool / "new.img")
    volume = files.settled(files.manage({"source-id": source_id}).json["volume"]["id"])
    assert volume.status == "available"
    assert not (pool / "new.img").exists()


def _linked(path: Path) -> None:
    lay(path)
    os.link(path, path.parent / "other.img")


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link"),
    "pipe": (lambda path: os.mkfifo(path), "a pipe"),
    "empty": (lambda path: lay(path, b""), "it is empty"),
    "linked": (_linked, "other hard links"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_plain_file_is_listed_with_the_reason_and_refused(
    api: Api, files: Storage, pool: Path, kind: str
) -> None:
    prepare, reason = STRANGE[kind]
    prepare(pool / "x.img")
    entry = next(each for each in files.listed() if each["reference"] == {"source-name": "x.img"})
    assert entry["safe_to_manage"] is False
    assert reason in entry["reason_not_safe"]
    before = api.contents()
    answer = files.manage({"source-name": "x.img"})
    assert (answer.status, reason in answer.fault) == (400, True)
    assert api.contents() == before


def test_a_file_that_somebody_uses_is_refused(files: Storage, pool: Path) -> None:
    require_leases(pool)
    with lay(pool / "busy.img").open("r+b"):
        (entry,) = files.listed()
        assert "somebody uses it" in entry["reason_not_safe"]
        assert "somebody uses it" in files.manage({"source-name": "busy.img"}).fault
    volume = files.settled(files.manage({"source-name": "busy.img"}).json["volume"]["id"])
    assert volume.status == "available"


@pytest.mark.parametrize(
    "reference",
    [
        *({"source-name": name} for name in ("missing", "", "..", "../x", "/etc/passwd", "a/b", ".hidden", "sub", 7)),
        *({"source-id": id_} for id_ in ("1", "", "x", 5)),
        {"source-name": "x.img", "source-id": "1"},
        {"name": "x.img"},
        {},
    ],
    ids=repr,
)
def test_nothing_out_of_the_pool_can_be_referred_to(api: Api, files: Storage, pool: Path, reference: Any) -> None:
    lay(pool / "x.img")
    lay(pool.parent / "x")
    lay(pool / ".hidden")
    (pool / "sub").mkdir()
    assert files.manage(reference).status == 400
    assert (pool.parent / "x").exists()
    assert api("GET", "/volumes").json["volumes"] == []


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"host": "a@file1"}, 400, "name the pool too"),
        ({"host": "a@b@c"}, 400, "host@backend#pool"),
        ({"host": "z@z#p"}, 404, "z@z#p"),
        ({"host": "a@file1#nowhere"}, 400, "there is no such pool"),
        ({"availability_zone": "mars"}, 400, "is in zone nova"),
        ({"volume_type": "tin"}, 404, "tin"),
        ({"colour": "red"}, 400, "'colour'"),
        ({"ref": None}, 400, "ref"),
        ({"bootable": "perhaps"}, 400, "bootable"),
        ({"cluster": "east"}, 400, "cluster"),
    ],
    ids=repr,
)
def test_requests_that_are_refused(
    api: Api, files: Storage, pool: Path, change: dict[str, Any], status: int, reason: str
) -> None:
    lay(pool / "x.img")
    answer = files.manage({"source-name": "x.img"}, **change)
    assert answer.status == status, answer.text
    assert reason in answer.fault
    assert (pool / "x.img").exists()


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda api: api.silence(BACKEND, 300), "its volume service is down"),
        (lambda api: api.disable(BACKEND, "new disks"), "new disks"),
        (lambda api: api("PUT", "/os-services/freeze", {"host": BACKEND}), "frozen"),
    ],
)
def test_a_backend_that_takes_no_volumes_takes_none_this_way(
    api: Api, files: Storage, pool: Path, prepare: Callable[[Api], object], reason: str
) -> None:
    lay(pool / "x.img")
    prepare(api)
    assert reason in files.manage({"source-name": "x.img"}).fault
    assert (pool / "x.img").exists()


def test_one_file_becomes_one_volume(api: Api, files: Storage, pool: Path) -> None:
    lay(pool / "x.img")
    asked = [files.manage({"source-name": "x.img"}) for _ in range(2)]
    done = [files.settled(answer.json["volume"]["id"]) for answer in asked if answer.status == 202]
    assert sorted(volume.status for volume in done) in (["available"], ["available", "error_managing"])
    for volume in done:
        if volume.status == "error_managing":
            assert volume.host is None
            assert api("DELETE", f"/volumes/{volume.id}").status == 202
    assert len(list(pool.glob("volume-*"))) == 1


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["adopt", "extend"])
def test_what_cannot_be_taken_is_left_to_its_owner(api: Api, faulty: Storage, call: str) -> None:
    fail(faulty, call, NoSpace(where=PLACE, reason="not a byte"))
    volume = faulty.settled(faulty.manage({"source-name": "stray"}).json["volume"]["id"])
    assert (volume.status, volume.host) == ("error_managing", None)
    (message,) = api("GET", f"/messages?resource_uuid={volume.id}", version="3.5").json["messages"]
    assert "not a byte" in message["user_message"]
    (entry,) = faulty.listed()
    assert (entry["safe_to_manage"], entry["cinder_id"]) == (True, None)
    name = entry["reference"]["source-name"]
    assert name == "stray" or name in message["user_message"]
    assert api("DELETE", f"/volumes/{volume.id}").status == 202
    assert len(faulty.listed()) == 1, "the data outlives the volume that it did not become"
    again = faulty.settled(faulty.manage({"source-name": name}).json["volume"]["id"])
    assert again.status == "available"


def test_while_the_storage_does_not_answer_the_volume_waits_and_the_sweep_goes_on(faulty: Storage) -> None:
    error = DriverError(backend=BACKEND, reason="gone")
    fail(faulty, "adopt", error)
    fail(faulty, "exists", error)
    volume_id = faulty.manage({"source-name": "stray"}).json["volume"]["id"]
    assert isinstance(faulty.driver, MemoryDriver)
    asked = faulty.driver.faults
    until(lambda: asked.count("exists") == 1, "it was to be given back")
    assert faulty.api.get_volume(volume_id).status == "managing"
    until(lambda: not faulty.manager._locks.busy(f"volume-{volume_id}"), "the manager let go")
    faulty.manager.sweep(BACKEND)
    assert faulty.settled(volume_id).status == "available"


def test_what_can_neither_be_kept_nor_given_back_stays_named(api: Api, faulty: Storage) -> None:
    fail(faulty, "extend", NoSpace(where=PLACE, reason="full"))
    fail(faulty, "disown", NoSpace(where=PLACE, reason="stuck"))
    volume = faulty.settled(faulty.manage({"source-name": "stray"}).json["volume"]["id"])
    assert (volume.status, volume.host) == ("error_managing", PLACE)
    (message,) = api("GET", f"/messages?resource_uuid={volume.id}", version="3.5").json["messages"]
    assert "deleting the volume deletes it" in message["user_message"]


# --- unmanage --------------------------------------------------------------------------------------------------------


def test_a_volume_is_given_up_and_taken_again(api: Api, files: Storage, pool: Path) -> None:
    lay(pool / "x.img", size=GIB)
    first = files.settled(files.manage({"source-name": "x.img"}).json["volume"]["id"])
    assert [(each["cinder_id"], each["reason_not_safe"]) for each in files.listed()] == [
        (first.id, "it is managed already")
    ]
    assert api("POST", f"/volumes/{first.id}/action", {"os-unmanage": None}).status == 202
    assert files.settled(first.id).deleted_at is not None
    assert api("GET", f"/volumes/{first.id}").status == 404
    (entry,) = files.listed()
    name = f"volume-{first.id}"
    assert (entry["reference"], entry["safe_to_manage"], entry["cinder_id"]) == ({"source-name": name}, True, None)
    assert begin(pool / name) == b"old data"
    again = files.settled(files.manage({"source-name": name}).json["volume"]["id"])
    assert (again.status, again.size) == ("available", 1)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda api: api.make_volume(status="in-use"), "it is in-use"),
        (lambda api: api.make_volume(encryption_key_id=UUID), "encrypted"),
        (lambda api: api.make_volume(host=None, status="error"), "it is on no backend"),
        (lambda api: api.make_volume(status="maintenance"), "maintenance"),
        (lambda api: _with(api, api.make_snapshot), "it has snapshots"),
        (lambda api: _with(api, api.attach), "it is attached"),
        (lambda api: _with(api, api.make_migration), "is moving it"),
    ],
)
def test_volumes_that_are_not_given_up(api: Api, prepare: Callable[[Api], str], reason: str) -> None:
    volume_id = prepare(api)
    before = api.contents()
    answer = api("POST", f"/volumes/{volume_id}/action", {"os-unmanage": {}})
    assert (answer.status, reason in answer.fault) == (400, True), answer.text
    assert api.contents() == before


def _with(api: Api, add: Callable[[str], object]) -> str:
    volume_id = api.make_volume()
    add(volume_id)
    return volume_id


def test_a_volume_that_the_storage_keeps_says_so(api: Api, faulty: Storage) -> None:
    fail(faulty, "disown", DriverError(backend=BACKEND, reason="stuck"))
    volume_id = faulty.settled(faulty.manage({"source-name": "stray"}).json["volume"]["id"]).id
    assert api("POST", f"/volumes/{volume_id}/action", {"os-unmanage": {}}).status == 202
    assert faulty.settled(volume_id).status == "error_unmanaging"
    (message,) = api("GET", f"/messages?resource_uuid={volume_id}", version="3.5").json["messages"]
    assert "stuck" in message["user_message"]
    assert api("POST", f"/volumes/{volume_id}/action", {"os-unmanage": {}}).status == 202
    assert faulty.settled(volume_id).deleted_at is not None


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_lost_message_or_a_crash_left_is_done_by_the_sweep(files: Storage, pool: Path, moved: bool) -> None:
    lay(pool / "x.img", size=GIB)
    reference = {"source-name": "x.img"}
    volume_id = files.api.make_volume(status="managing", host=PLACE, adoption=reference)
    if moved:  # the service died before it could write down that it had taken the file
        files.driver.adopt("pool1", reference, f"volume-{volume_id}")
    for _ in range(2):
        files.manager.sweep(BACKEND)
    assert files.api.get_volume(volume_id).status == "available"
    files.api.db.run(lambda session: volumes.update_where(session, volume_id, status="unmanaging"))
    if moved:
        files.driver.disown("pool1", f"volume-{volume_id}")
    for _ in range(2):
        files.manager.sweep(BACKEND)
    assert files.api.get_volume(volume_id).deleted_at is not None
    assert begin(pool / f"volume-{volume_id}") == b"old data"
    assert list(files.driver.objects("pool1")) == []


@pytest.mark.parametrize("taken", [False, True])
def test_a_volume_that_is_forced_away_while_it_is_managed_leaves_the_data(
    files: Storage, pool: Path, taken: bool
) -> None:
    lay(pool / "x.img", size=GIB)
    reference = {"source-name": "x.img"}
    volume_id = files.api.make_volume(status="managing", host=PLACE, adoption=reference)
    if taken:  # and its service died before it could write that down
        files.driver.adopt("pool1", reference, f"volume-{volume_id}")
    assert files.api("POST", f"/volumes/{volume_id}/action", {"os-force_delete": {}}).status == 202
    until(lambda: files.api.get_volume(volume_id).deleted_at is not None, "the row is gone")
    assert begin(pool / (f"volume-{volume_id}" if taken else "x.img")) == b"old data"
    assert list(files.driver.objects("pool1")) == []


# --- list ------------------------------------------------------------------------------------------------------------


def test_pages_of_what_could_be_managed(api: Api, files: Storage, pool: Path) -> None:
    for number, name in enumerate(("b", "a", "c"), 1):
        lay(pool / name, size=number * GIB)

    def names(query: str) -> list[str]:
        return [entry["reference"]["source-name"] for entry in files.listed(query, "")]

    assert names("") == ["a", "b", "c"]
    assert names("&sort=size:desc") == ["c", "a", "b"]
    assert names("&sort_key=reference&sort_dir=desc") == ["c", "b", "a"]
    assert names("&limit=1&offset=1") == ["b"]
    assert names("&marker={'source-name':'a'}") == ["b", "c"]
    assert set(files.listed("", "")[0]) == {"reference", "size", "safe_to_manage"}
    more = {"reason_not_safe", "cinder_id", "extra_info"}
    assert set(files.listed()[0]) == {"reference", "size", "safe_to_manage"} | more
    lay(pool.parent / "pool2" / "d")
    whole = api("GET", "/os-volume-manage/detail?host=a@file1", version="3.8").json["manageable-volumes"]
    assert ["pool2" in entry["extra_info"] for entry in whole] == [False, False, False, True]

    def step(title: str, query: str, status: int, version: str = "3.8") -> Step:
        return Step(title, f"GET /manageable_volumes?{query}", status, version=version)

    api.beat(BACKEND, cluster="east")
    run(
        api,
        [
            step("no host", "", 400),
            step("no such host", "host=z@z", 404),
            step("no such key", "host=a@file1&sort=colour", 400),
            step("no such parameter", "host=a@file1&colour=red", 400),
            step("no such marker", "host=a@file1&marker={'source-name':'z'}", 400),
            step("clusters come later", "cluster=east", 400),
            step("now", "cluster=east%23pool1", 200, "3.17"),
            step("no such cluster", "cluster=west", 404, "3.17"),
            step("not both", "cluster=east&host=a@file1", 400, "3.17"),
        ],
    )
