"""Bugs of others that only show in whole deployments: what volumes are and have after each move, and move again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import GIB, MIB, allocated, digest, write_pattern
from tests.support.processes import AllInOne
from tests.support.rest import Rest
from tests.support.waiting import until

#: Pool and options of each backend; all lie on one file system, so that thin ones can move volumes themselves.
BACKENDS = {
    "one": ("a", ""),
    "two": ("b", ""),
    "south": ("c", "backend_availability_zone = south\n"),
    "thick": ("d", "file_thin_provisioning = false\n"),
}
ONE, TWO, SOUTH, THICK = (f"node@{backend}#{pool}" for backend, (pool, _) in BACKENDS.items())
#: What a move may change, as an administrator sees it.
CHANGED = {
    *("availability_zone", "migration_status", "updated_at", "service_uuid"),
    *("os-vol-host-attr:host", "os-vol-mig-status-attr:migstat", "os-vol-mig-status-attr:name_id"),
}


@dataclass
class Site:
    """A deployment with backends of several kinds, and its administrator."""

    directory: Path
    running: AllInOne

    @property
    def rest(self) -> Rest:
        return self.running.rest()

    def place(self, volume_id: str) -> Path:
        """The file that the volume lies in."""
        volume = self.rest.volume(volume_id)
        backend = str(volume["os-vol-host-attr:host"]).split("@")[1].split("#")[0]
        return self.directory / backend / f"volume-{volume['os-vol-mig-status-attr:name_id'] or volume_id}"

    def volume(self, host: str, seed: int, **values: Any) -> str:
        """A volume of 1 GiB on that pool with something in it."""
        volume_id = str(self.rest.create(1, availability_zone="nova", **values)["id"])
        if self.rest.volume(volume_id)["os-vol-host-attr:host"] != host:
            self.rest.moved(volume_id, host)
        write_pattern(self.place(volume_id), GIB, seed, data_share=0.02)
        return volume_id

    def make_type(self, name: str, **specs: str) -> str:
        body = {"volume_type": {"name": name, "extra_specs": specs}}
        return str(self.rest.ok("POST", "/types", body)["volume_type"]["id"])

    def retype(self, volume_id: str, new_type: str) -> dict[str, Any]:
        """Retype, by a move if need be; return the migration."""
        body = {"os-retype": {"new_type": new_type, "migration_policy": "on-demand"}}
        self.rest.ok("POST", f"/volumes/{volume_id}/action", body)
        migration = self.rest.wait_migration(volume_id)
        assert migration["status"] == "success", migration
        return migration

    def action(self, volume_id: str, action: str, **values: Any) -> None:
        self.rest.ok("POST", f"/volumes/{volume_id}/action", {action: values})

    def snapshot(self, volume_id: str) -> str:
        made = self.rest.ok("POST", "/snapshots", {"snapshot": {"volume_id": volume_id}})["snapshot"]["id"]
        until(lambda: self.rest.ok("GET", f"/snapshots/{made}")["snapshot"]["status"] == "available", "a snapshot")
        return str(made)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.rest.ok("DELETE", f"/snapshots/{snapshot_id}")
        until(lambda: self.rest.request("GET", f"/snapshots/{snapshot_id}")[0] == 404, "the snapshot is gone")

    def objects(self) -> list[Path]:
        return [path for backend in BACKENDS for path in (self.directory / backend).glob("[vs]*-*")]


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    sections = "".join(
        f"[{backend}]\nvolume_driver = file\nvolume_backend_name = {backend}\n"
        f"file_pools = {pool}:{directory}/{backend}\n{options}"
        for backend, (pool, options) in BACKENDS.items()
    )
    running = AllInOne(directory, f"enabled_backends = {','.join(BACKENDS)}\n{sections}")
    try:
        yield Site(directory, running)
    finally:
        running.process.end()


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """The deployment, on whose backends every test leaves nothing."""
    before = set(whole_site.objects())
    yield whole_site
    assert set(whole_site.objects()) <= before


@pytest.mark.parametrize("forced", [True, False], ids=["host copy", "assisted"])
def test_all_that_its_owner_knows_of_a_volume_is_the_same_after_a_move(site: Site, forced: bool) -> None:
    """field.md bugs 12, 13, 16, 17 and 24: type, zone, multiattach, image and status were another after the move.

    LP1597247, LP1747949, LP1790840, LP1538926, LP1344341.  All of pain 13.
    """
    name = f"shared-{forced}"
    site.make_type(name, multiattach="<is> True")
    volume_id = site.volume(ONE, 1, name="v", description="d", metadata={"k": "v"}, volume_type=name)
    site.action(volume_id, "os-set_bootable", bootable=True)
    site.action(volume_id, "os-set_image_metadata", metadata={"os": "debian"})
    site.action(volume_id, "os-update_readonly_flag", readonly=True)
    first, wanted = site.rest.volume(volume_id), digest(site.place(volume_id))
    assert (first["bootable"], first["multiattach"], first["volume_type"]) == ("true", True, name)
    for host, zone in ((SOUTH, "south"), (TWO, "nova")):
        migration = site.rest.moved(volume_id, host, force_host_copy=forced)
        assert migration["plan"] == ("host_copy" if forced else "assisted")
        now = site.rest.volume(volume_id)
        assert {key for key in first if now[key] != first[key]} <= CHANGED
        assert now.keys() == first.keys()
        assert (now["availability_zone"], now["status"], now["attachments"]) == (zone, "available", [])
        assert digest(site.place(volume_id)) == wanted
    site.rest.delete(volume_id)


def test_a_volume_can_be_worked_with_at_every_stop_of_its_way(site: Site) -> None:
    """field.md bug 19 (LP1487952, LP1525781, LP1528087): after some moves nobody found its object any more.

    LP1866935: and nothing is renamed, so what a connection names stays.
    """
    volume_id = site.volume(ONE, 2)
    stops = [(THICK, True), (TWO, False), (SOUTH, False), (ONE, True)]
    for number, (host, forced) in enumerate(stops):
        wanted = digest(site.place(volume_id))
        migration = site.rest.moved(volume_id, host, force_host_copy=forced)
        place = site.place(volume_id)
        assert digest(place) == wanted
        if migration["plan"] == "host_copy":
            assert place.name == f"volume-{migration['destination_volume_id']}"
        site.delete_snapshot(site.snapshot(volume_id))
        assert site.objects() == [place]
        if number > 1:
            size = number
            site.action(volume_id, "os-extend", new_size=size)
            site.rest.wait_volume(volume_id, "available")
            assert place.stat().st_size == size * GIB
    site.rest.delete(volume_id)


def test_a_move_between_thin_and_thick_converts(site: Site) -> None:
    """field.md bug 20 (LP1897598) and pain 9: a thin volume on a thick pool stayed thin, and a thick one thick."""
    for word in ("thin", "thick"):
        site.make_type(word, **{f"{word}_provisioning_support": "<is> True"})
    volume_id = site.volume(ONE, 3, volume_type="thin")
    wanted, occupied = digest(site.place(volume_id)), allocated(site.place(volume_id))
    assert occupied < GIB // 8
    for word, host in (("thick", THICK), ("thin", None)):
        migration = site.retype(volume_id, word)
        assert (migration["plan"], host in (None, migration["destination_host"])) == ("host_copy", True)
        place = site.place(volume_id)
        assert digest(place) == wanted
        assert (allocated(place) >= GIB) == (word == "thick")
        assert word == "thick" or allocated(place) <= occupied + 2 * MIB
        assert site.rest.volume(volume_id)["volume_type"] == word
    plain = site.volume(ONE, 8)
    site.rest.moved(plain, THICK)
    assert allocated(site.place(plain)) >= GIB, "by a migration too"
    for each in (volume_id, plain):
        site.rest.delete(each)


def test_a_type_that_differs_in_its_limits_alone_moves_nothing_and_is_kept(site: Site) -> None:
    """field.md bug 20 (LP1906291, LP1901188): the limits of quality of service got lost, and equal ones meant a move.

    None are set here.  What a type says of them to others is in its extra specs, and stays with the volume.
    """
    limits = {"qos:maxIOPS": "100", "vendor:qos_policy": "gold"}
    site.make_type("limited", **limits)
    volume_id = site.volume(ONE, 10)
    before = site.rest.ok("GET", f"/migrations?volume_id={volume_id}")["migrations"]
    site.action(volume_id, "os-retype", new_type="limited", migration_policy="never")
    assert site.rest.ok("GET", f"/migrations?volume_id={volume_id}")["migrations"] == before
    for forced in (True, False):
        site.rest.moved(volume_id, (ONE, TWO)[forced], force_host_copy=forced)
        volume = site.rest.volume(volume_id)
        kind = site.rest.ok("GET", f"/types/{volume['volume_type_id']}")["volume_type"]
        assert (kind["name"], kind["extra_specs"], kind["qos_specs_id"]) == ("limited", limits, None)
    status, _ = site.rest.request("POST", "/qos-specs", {"qos_specs": {"name": "q", "maxIOPS": "100"}})
    assert status == 404, "nothing pretends to set them"
    site.rest.delete(volume_id)


def test_volumes_made_from_a_snapshot_or_a_volume_move_as_they_are_now(site: Site) -> None:
    """field.md bug 30 (LP1580013): the destination was made from the snapshot, instead of empty."""
    rest = site.rest
    origin = site.volume(ONE, 4)
    snapshot = site.snapshot(origin)
    born = {"snapshot_id": snapshot}, {"source_volid": origin}
    made = [str(rest.create(1, **values)["id"]) for values in born]
    for number, volume_id in enumerate(made):
        write_pattern(site.place(volume_id), GIB, 5 + number, data_share=0.01)
        wanted = digest(site.place(volume_id))
        for host in (TWO, ONE):
            rest.moved(volume_id, host, force_host_copy=True)
            assert digest(site.place(volume_id)) == wanted
        for key, value in born[number].items():
            assert rest.volume(volume_id)[key] == value
    site.delete_snapshot(snapshot)
    for volume_id in (origin, *made):
        rest.delete(volume_id)


def test_a_backend_moves_a_volume_itself_whatever_status_its_migration_gave_it(site: Site) -> None:
    """field.md bug 49 (LP2104334): the backend's own way was open to available volumes alone.

    And a retype really moves: field.md bugs 10 and 18 (LP1652802, LP1268305).
    """
    for name in ("one", "two"):
        site.make_type(f"at-{name}", volume_backend_name=name)
    retyped, plain = site.volume(ONE, 7, volume_type="at-one"), site.volume(ONE, 9)
    wanted = digest(site.place(retyped))
    assert site.retype(retyped, "at-two")["plan"] == "assisted"
    assert (site.place(retyped).parent.name, digest(site.place(retyped))) == ("two", wanted)
    wanted = digest(site.place(plain))
    for host, locked in ((SOUTH, True), (TWO, False)):
        assert site.rest.moved(plain, host, lock_volume=locked)["plan"] == "assisted"
        assert site.rest.volume(plain)["status"] == "available"
        assert digest(site.place(plain)) == wanted
    for each in (retyped, plain):
        site.rest.delete(each)
