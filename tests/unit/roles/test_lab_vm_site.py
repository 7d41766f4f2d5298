from pathlib import Path

import pytest
from vm_parts import (
    NAME,
    Machine,
    Make,
    plan,
    refusal,
    site,
)


def test_where_nothing_is_nothing_is_found(lab_dir: Path, vm_machine: Machine) -> None:
    assert site.Site(lab_dir, NAME).look() == {}


@pytest.mark.parametrize(
    ("note", "image", "configuration"),
    [
        ('{"image": "/lab/image/1", "configuration": "c0ffee"}', "/lab/image/1", "c0ffee"),
        ("{}", "", ""),
        ("{half", "", ""),
        (None, "", ""),
    ],
)
def test_a_machine_is_as_its_note_says(
    lab_dir: Path, vm_machine: Machine, note: str | None, image: str, configuration: str
) -> None:
    where = site.Site(lab_dir, NAME)
    directory = where.directory("server1")
    directory.mkdir(parents=True)
    where.directory("client1").mkdir()
    vm_machine.running["client1"] = 7
    if note is not None:
        (directory / "vm.json").write_text(note)
    assert where.look() == {
        "client1": plan.Found(alive=True, traces=True),
        "server1": plan.Found(False, image, configuration, traces=True),
    }


# Removed.


def test_the_whole_lab_is_removed_and_that_twice(vm_maker: Make, vm_machine: Machine) -> None:
    made = vm_maker()
    made.make(10, 10)
    assert made.site.unmake(30) == ["client1", "server1"]
    assert vm_machine.did("stop")[-1] == (["client1", "server1"], 30)
    assert vm_machine.running == {}
    assert not made.site.state.exists()
    assert made.site.unmake(30) == []


def test_the_image_and_the_keys_outlive_the_lab(
    vm_maker: Make, lab_dir: Path, vm_image: Path
) -> None:
    made = vm_maker()
    made.make(10, 10)
    made.site.unmake(0)
    assert [path.name for path in lab_dir.iterdir()] == ["image"]
    assert {path.name for path in vm_image.iterdir()} == {
        "rootfs",
        "vmlinuz",
        "initrd.img",
        "disk.raw",
    }


def test_a_state_directory_alone_is_removed_and_said(lab_dir: Path, vm_machine: Machine) -> None:
    where = site.Site(lab_dir, NAME)
    where.state.mkdir()
    assert where.unmake(0) == ["state directory"]
    assert not where.state.exists()


def test_two_never_make_a_lab_at_the_same_time(lab_dir: Path) -> None:
    def enter() -> None:
        with site.locked(lab_dir, "other", 0):
            pass

    with site.locked(lab_dir, NAME, 0):
        assert refusal(enter) == (
            f"{lab_dir} is locked for 0 s: another lab is being created or removed there "
            "while other waits"
        )
    enter()


def test_the_lock_is_given_back_also_after_a_failure(lab_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError, match=r"^mine$"), site.locked(lab_dir, NAME, 0):
        raise ZeroDivisionError("mine")
    with site.locked(lab_dir / "new", NAME, 0):
        pass
    with site.locked(lab_dir, NAME, 0):
        pass
    assert [path.name for path in lab_dir.iterdir()] == ["new"]
