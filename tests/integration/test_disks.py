"""Disks that fill up, are read-only or too small: real file systems, and real runs on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from beds import Bed, LocalLink

from bench import files
from bench.claims.record import Records
from bench.errors import InputError, LabError
from bench.files import Room
from bench.inventory import Host
from bench.perf.netns import Namespaces
from bench.results import store as kept
from bench.results.format import Run
from bench.results.store import Store
from bench.run.curve import Progress

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    yield from mounted(tmp_path / "disk", "20m")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    yield from mounted(tmp_path / "small", "64k")


def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_read_only(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    for root in (small, small / "below"):
        with pytest.raises(InputError) as refused:
            Store(root).create("million", NOW)
        line = f"--results {root}: cannot be written: Read-only file system"
        assert str(refused.value) == line
        with pytest.raises(InputError, match=line):
            Records(root).check()


def test_a_disk_that_is_too_small(small: Path) -> None:
    with pytest.raises(InputError) as refused:
        Store(small).create("million", NOW)
    assert str(refused.value) == (
        f"--results {small}: cannot be written: No space left on device, expected room for 16 MiB"
    )
    assert list(small.iterdir()) == []


def test_a_disk_that_is_too_small_for_a_long_run(disk: Path, net: Namespaces) -> None:
    bed = Bed(net, disk)
    with pytest.raises(InputError, match=f"^--results {disk}: got 20 MiB free, expected 71 MiB fo"):
        bed.run(hold_seconds=86_400 // 3.2)
    assert not bed.links and list(disk.iterdir()) == []


def fill(folder: Path) -> None:
    """Take all the room that a file system has."""
    with (folder / "filler").open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def full_at(phase: str, bed: Bed) -> None:
    """Have the bed's disk run full when its run comes to a phase."""

    class Seen(list[Progress]):
        def append(self, now: Progress) -> None:
            if now.phase == phase and not (bed.store.root / "filler").exists():
                fill(bed.store.root)
            super().append(now)

    bed.seen = Seen()


def readable(root: Path) -> Run:
    """What there is of the run: nothing half-written, nothing hidden."""
    (folder,) = (path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    assert [path for path in root.rglob("*") if path.name.startswith(".")] == []
    lines = (folder / "samples.ndjson").read_text(encoding="utf-8").splitlines()
    assert lines and all(json.loads(line)["host"] for line in lines)
    assert (folder / "raw" / "server" / "before" / "slabinfo").stat().st_size > 0
    return Store(root).load("latest")


@pytest.mark.parametrize("unwritable", ["small", "read-only", "file"])
def test_a_disk_that_takes_no_run_is_known_before_a_host_is_touched(
    net: Namespaces, small: Path, tmp_path: Path, unwritable: str
) -> None:
    root = small
    if unwritable == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    if unwritable == "file":
        root = tmp_path / "file"
        root.write_text("")
    bed = Bed(net, root)
    with pytest.raises(InputError, match=f"^--results {root}: "):
        bed.run()
    assert not bed.links
    assert root.is_file() or list(root.iterdir()) == []


def test_a_host_that_is_not_reached_leaves_no_directory(net: Namespaces, disk: Path) -> None:
    bed = Bed(net, disk)

    def unreachable(host: Host) -> LocalLink:
        raise LabError(f"host {host.name}: cannot be reached by SSH")

    bed.connect = unreachable  # type: ignore[method-assign]
    with pytest.raises(LabError, match="cannot be reached by SSH"):
        bed.run()
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("phase", ["ramp", "hold"])
def test_a_disk_that_runs_full_ends_the_run_in_order(
    net: Namespaces, disk: Path, phase: str
) -> None:
    bed = Bed(net, disk)
    full_at(phase, bed)
    with pytest.raises(LabError, match=r": cannot be written: No space left on device$") as ended:
        bed.run()
    assert bed.clean()
    run = readable(disk)
    assert (run.verdict, run.reason) == ("aborted", str(ended.value))
    assert run.hosts["server"].phases["before"].workers > 0  # whole: it had room of its own
    assert len(run.curve) > 0


def test_of_a_run_that_does_not_fit_the_counts_are_kept(
    net: Namespaces, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SPARE", 12_288)
    monkeypatch.setattr(kept, "HOST_SPARE", 0)
    bed = Bed(net, disk)
    full_at("hold", bed)
    with pytest.raises(LabError, match=r": cannot be written: No space left on device$"):
        bed.run()
    assert bed.clean()
    run = readable(disk)
    assert run.verdict == "aborted"
    assert run.reason.startswith("run.json is shortened: No space left on device; aborted: ")
    assert run.measured.ramp_seconds > 0
    assert [point.held for point in run.curve] == [3000]
    assert run.hosts == {}


def test_a_disk_that_is_full_at_the_end_of_an_interrupted_run(
    net: Namespaces, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SPARE", 1)
    monkeypatch.setattr(kept, "HOST_SPARE", 0)
    bed = Bed(net, disk)

    class Seen(list[Progress]):
        def append(self, now: Progress) -> None:
            if now.phase == "hold":
                fill(disk)
                raise KeyboardInterrupt

    bed.seen = Seen()
    with pytest.raises(KeyboardInterrupt):
        bed.run()
    assert bed.clean()
    assert [path for path in disk.rglob("*") if path.name.startswith(".")] == []


def test_room_is_given_back_while_another_process_has_its_file_open(small: Path) -> None:
    room = Room(small, 16_384)
    pid = os.fork()
    if not pid:
        signal.pause()
    try:
        fill(small)
        room.release()
        files.write_inside(small, (), {"kept": "x" * 8192})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (small / "kept").stat().st_size == 8192
