"""Moves between directories: by hard link, by shared blocks, and every reason to leave it to a copy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.errors import DriverError
from tests.contract.files import files, make, refused, volume
from tests.contract.mounts import mounted, tmpfs, xfs
from tests.contract.worlds import no_progress, read

MIB = 1024**2


def test_a_move_on_one_file_system_is_a_hard_link(tmp_path: Path) -> None:
    one, two = make(pools={"p": tmp_path / "a"}), make("hosta@two", pools={"q": tmp_path / "b"})
    name, there = volume(one, b"x" * MIB, "p"), two.report()[0].location
    answer = one.can_assist("p", name, there)
    assert answer.yes
    assert "hard link" in answer.reason
    assert files(tmp_path / "b") == set()
    one.move("p", name, there, name, no_progress)
    assert (tmp_path / "a" / name).stat().st_ino == (tmp_path / "b" / name).stat().st_ino
    one.delete("p", name)
    assert two.allocated("q", name) >= MIB
    assert (tmp_path / "b" / name).stat().st_nlink == 1


def test_a_move_to_another_file_system_is_refused_with_the_reason(tmp_path: Path) -> None:
    one = make(pools={"p": tmp_path / "a"})
    with tmpfs(tmp_path / "b", "size=1m") as path:
        there = make("hosta@two", pools={"q": path}).report()[0].location
        answer = one.can_assist("p", volume(one, b"x", "p"), there)
        assert not answer.yes
        assert "another file system" in answer.reason


def test_a_move_between_thin_and_thick_is_left_to_a_copy(tmp_path: Path) -> None:
    """field.md bug 20 (LP1897598): thin and thick not converted by a move."""
    one = make(pools={"p": tmp_path / "a"})
    two = make("hosta@two", pools={"q": tmp_path / "b"}, file_thin_provisioning=False)
    answer = one.can_assist("p", volume(one, b"x", "p"), two.report()[0].location)
    assert not answer.yes
    assert "thin" in answer.reason


def test_a_file_with_unknown_hard_links_is_not_moved_by_one(tmp_path: Path) -> None:
    one, two = make(pools={"p": tmp_path / "a"}), make("hosta@two", pools={"q": tmp_path / "b"})
    name = volume(one, b"x", "p")
    os.link(tmp_path / "a" / name, tmp_path / "elsewhere")
    there = two.report()[0].location
    for _ in range(2):
        answer = one.can_assist("p", name, there)
        assert not answer.yes
        assert "hard links" in answer.reason
        one.move("p", name, there, name, no_progress)


def test_a_directory_that_was_exchanged_since_its_report_is_refused(tmp_path: Path) -> None:
    one, two = make(pools={"p": tmp_path / "a"}), make("hosta@two", pools={"q": tmp_path / "b"})
    name, there = volume(one, b"x", "p"), two.report()[0].location
    (tmp_path / "b").rename(tmp_path / "away")
    assert not one.can_assist("p", name, there).yes
    (tmp_path / "b").mkdir()
    assert "not the directory that the pool had" in one.can_assist("p", name, there).reason
    refused(
        DriverError,
        "not the directory that the pool had",
        lambda: one.move("p", name, there, name, no_progress),
        lambda: one.unmove("p", name, there, name),
    )
    assert files(tmp_path / "b") == set()


def test_taking_back_a_move_onto_itself_deletes_nothing(tmp_path: Path) -> None:
    """field.md bugs 4 and 6 (LP1404013, LP1798468): the volume's only file deleted as if it were a copy."""
    one = make(pools={"p": tmp_path / "a"})
    name, here = volume(one, b"only", "p"), one.report()[0].location
    (tmp_path / "alias").symlink_to("a")
    alias = here | {"directory": str(tmp_path / "alias"), "place": f"x:{(tmp_path / 'a').stat().st_ino}"}
    for there in (here, alias):
        with pytest.raises(DriverError, match="same directory"):
            one.move("p", name, there, name, no_progress)
        one.unmove("p", name, there, name)
        assert (tmp_path / "a" / name).read_bytes() == b"only"


@pytest.mark.parametrize("found_here", [True, False], ids=["a directory of that path", "none"])
def test_there_is_nothing_to_take_back_from_another_machine(tmp_path: Path, found_here: bool) -> None:
    one = make(pools={"p": tmp_path / "a"})
    name = volume(one, b"x", "p")
    if found_here:
        make("hosta@two", pools={"q": tmp_path / "b"}).create("q", name, 1)
    there = one.report()[0].location
    there |= {"machine": "another", "directory": str(tmp_path / "b"), "place": "file:another:1:1"}
    one.unmove("p", name, there, name)
    assert files(tmp_path / "a") == {name}
    assert not found_here or files(tmp_path / "b") == {name}


def test_a_link_on_a_disk_that_a_reboot_did_not_mount_is_not_forgotten(tmp_path: Path) -> None:
    one, two = make(pools={"p": tmp_path / "a"}), make("hosta@two", pools={"q": tmp_path / "b"})
    name, there = volume(one, b"x", "p"), two.report()[0].location
    one.move("p", name, there, name, no_progress)
    (tmp_path / "b").rename(tmp_path / "unmounted")
    with pytest.raises(DriverError, match="No such file"):
        one.unmove("p", name, there | {"machine": "an-earlier-boot"}, name)
    (tmp_path / "unmounted").rename(tmp_path / "b")
    one.unmove("p", name, there | {"machine": "an-earlier-boot"}, name)
    assert files(tmp_path / "b") == set()


def test_a_move_survives_a_reboot_between_two_attempts(tmp_path: Path) -> None:
    """The location was reported before the reboot: boot and device numbers differ, the directory does not."""
    one, two = make(pools={"p": tmp_path / "a"}), make("hosta@two", pools={"q": tmp_path / "b"})
    name, there = volume(one, b"x", "p"), two.report()[0].location
    inode = there["place"].rpartition(":")[2]
    old = there | {"machine": "an-earlier-boot", "fs": "4711", "place": f"file:an-earlier-boot:4711:{inode}"}
    one.move("p", name, old, name, no_progress)
    assert two.objects("q") == [name]
    one.unmove("p", name, old, name)
    assert two.objects("q") == []


def test_where_hard_links_do_not_reach_blocks_are_shared(tmp_path: Path) -> None:
    with xfs(tmp_path / "xfs") as disk:
        (disk / "b").mkdir()
        # A hard link cannot cross from one mount to another, even of the same file system.
        with mounted(tmp_path / "b", "--bind", str(disk / "b")) as second:
            one, two = make(pools={"p": disk / "a"}), make("hosta@two", pools={"q": second})
            name, there = volume(one, b"x" * MIB, "p"), two.report()[0].location
            assert "reflink" in one.can_assist("p", name, there).reason
            for _ in range(2):
                assert one.can_assist("p", name, there).yes
                one.move("p", name, there, name, no_progress)
                assert (second / name).read_bytes() == b"x" * MIB
            assert (second / name).stat().st_ino != (disk / "a" / name).stat().st_ino
            one.unmove("p", name, there, name)
            assert files(second) == set()
            one.move("p", name, there, name, no_progress)
            one.delete("p", name)
            assert read(two.export("q", name, writable=False)) == b"x" * MIB
            assert two.objects("q") == [name]
