"""Who may change a setting, over files in a directory of the test's own."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bench.agent.stage import Misuse
from bench.agent.trials import locks
from bench.agent.trials.locks import Locks

WHAT = ("sysctl net.ipv4.tcp_fin_timeout", "net-1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locks, "FOLDER", str(tmp_path))
    return tmp_path


def test_one_holds_it_until_it_gives_back(folder: Path) -> None:
    one, other = Locks("a"), Locks("b")
    one.take(*WHAT)
    one.take(*WHAT)  # its own once more
    said = f"{WHAT[0]}: changed by process {os.getpid()} of another experiment: wait until"
    with pytest.raises(Misuse, match=said):
        other.take(*WHAT)
    other.take(WHAT[0], "net-2")
    one.give_back()
    other.take(*WHAT)
    other.give_back()
    assert not list(folder.iterdir())


def test_those_of_no_owner_refuse_one_another() -> None:
    one = Locks()
    one.take(*WHAT)
    with pytest.raises(Misuse, match=f"changed by process {os.getpid()} of another"):
        Locks().take(*WHAT)
    one.give_back()


def test_of_one_owner_only_the_first_lets_go() -> None:
    outer, inner = Locks("a"), Locks("a")
    outer.take(*WHAT)
    inner.take(*WHAT)
    inner.give_back()
    with pytest.raises(Misuse, match=f"changed by process {os.getpid()} of another"):
        Locks("b").take(*WHAT)
    outer.give_back()


@pytest.mark.parametrize("said", ["", "4194305 a\n"])  # the second of no process: above pid_max
def test_who_has_not_written_who_it_is_holds_it_all_the_same(
    said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    one = Locks("a")
    one.take("file /etc/x y", "files")
    [path] = folder.iterdir()
    assert path.name == "connlab-guard.files.file_~etc~x_y.lock"
    path.write_text(said)
    with pytest.raises(Misuse, match="file /etc/x y: changed by a process of another"):
        Locks("a").take("file /etc/x y", "files")
    one.give_back()


def test_never_two_hold_it(folder: Path) -> None:
    inside, most, taken = [0], [0], [0] * 4
    count = threading.Lock()

    def contend(place: int) -> None:
        for _ in range(300):
            mine = Locks(str(place))
            try:
                mine.take(*WHAT)
            except Misuse:
                continue
            with count:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            taken[place] += 1
            with count:
                inside[0] -= 1
            mine.give_back()

    threads = [threading.Thread(target=contend, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and sum(taken) > 0
    assert not list(folder.iterdir())


def test_a_lock_on_a_file_that_has_been_removed_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder has let go of it between open(2) and flock(2)."""
    real, removed = locks.fcntl.flock, []

    def flock(number: int, how: int) -> None:
        if not removed:
            (path,) = folder.iterdir()
            removed.append(path.name)
            path.unlink()
        real(number, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    one = Locks("a")
    one.take(*WHAT)
    monkeypatch.setattr(locks.fcntl, "flock", real)
    assert [path.name for path in folder.iterdir()] == removed
    with pytest.raises(Misuse, match="changed by process"):
        Locks("b").take(*WHAT)
    one.give_back()
