"""Who has a host: one controller, as long as an agent of it lives, whatever lies about there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.agent import hostlock
from bench.agent.hostlock import Held, hold, holders, let_go

ANN, BOB, CAT = "a" * 16, "b" * 16, "c" * 16
SOON = 1.5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first of the directories that locks are kept in; the second is beside it."""
    for name in ("lock", "shm"):
        (tmp_path / name).mkdir(mode=0o1777)
    found = (str(tmp_path / "absent"), str(tmp_path / "lock"), str(tmp_path / "shm"))
    monkeypatch.setattr(hostlock, "FOLDERS", found)
    monkeypatch.setattr(hostlock, "WRITE_SECONDS", 0.1, raising=False)
    monkeypatch.setattr(hostlock, "PATIENCE", 0.3)
    return tmp_path / "lock"


def name_of(owner: str) -> str:
    return f"connlab-run.{owner}.lock"


def text_of(**changed: Any) -> bytes:
    fields = {"who": "ann@desk", "run": "run", "since": "2026-01-01T00:00:00Z", "boot_ns": 1}
    return json.dumps({**fields, **changed}).encode() + b"\n"


@contextlib.contextmanager
def locked(path: Path, text: bytes) -> Iterator[None]:
    """A file with any text that somebody has locked."""
    path.write_bytes(text)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def child(work: Callable[[], bytes]) -> Iterator[tuple[int, bytes]]:
    """A process that does some work, hands back bytes, and sleeps: its number and the bytes."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        with contextlib.suppress(BaseException):
            os.write(writing, work())
            os.close(writing)
            time.sleep(60)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as result:
        found = result.read()
    try:
        yield pid, found
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_second_owner_learns_whose_the_host_is(folder: Path) -> None:
    fd = hold(ANN, "ann@desk", "run \x1b[2Jmillion\n")
    line = r"^a run holds it: ann@desk, run \?\[2Jmillion\?, since 20\d\d-\d\d-\d\dT[\d:]{8}Z$"
    with pytest.raises(Held, match=line):
        hold(BOB, "bob@desk", "another run")
    entry = holders(BOB)[0]
    assert (entry["owner"], entry["who"], len(holders(BOB))) == (ANN, "ann@desk", 1)
    assert 0 < entry["boot_ns"] <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert os.listdir(folder) == [name_of(ANN)]  # who gave way has left nothing
    let_go(fd, ANN)
    assert os.listdir(folder) == []
    let_go(hold(BOB, "bob@desk", "another run"), BOB)
    assert os.listdir(folder) == []


def test_agents_of_one_owner_share_it_until_the_last_has_ended(folder: Path) -> None:
    first, second = hold(ANN, "ann@desk", "a run"), hold(ANN, "ann@desk", "a run")
    assert holders(ANN) == []
    let_go(first, ANN)
    with pytest.raises(Held, match="ann@desk"):
        hold(BOB, "bob@desk", "a run")
    third = hold(ANN, "ann@desk", "a run")
    let_go(second, ANN)
    let_go(third, ANN)
    assert os.listdir(folder) == []


def test_long_names_of_any_letters_are_kept_and_cut(folder: Path) -> None:
    fd = hold(ANN, "\U0001f600" * 1000, "ä" * 1000)
    entry = holders(BOB)[0]
    assert (entry["who"], entry["run"]) == ("\U0001f600" * 200, "ä" * 200)
    let_go(fd, ANN)


def test_the_lock_is_gone_when_its_process_is_killed(folder: Path) -> None:
    with child(lambda: str(hold(ANN, "ann@desk", "a run")).encode()) as (pid, _):
        assert holders(BOB)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert (folder / name_of(ANN)).exists()
        let_go(hold(BOB, "bob@desk", "a run"), BOB)
    assert os.listdir(folder) == []  # what was left over is removed


def test_workers_that_live_on_keep_the_lock(folder: Path) -> None:
    """They have what the agent held: the lock is theirs as well (flock(2), fork)."""
    fd = hold(ANN, "ann@desk", "a run")
    with child(lambda: b"") as (_, _):
        os.close(fd)
        with pytest.raises(Held, match="ann@desk"):
            hold(BOB, "bob@desk", "a run")
    let_go(hold(BOB, "bob@desk", "a run"), BOB)
    assert os.listdir(folder) == []


def test_a_lock_in_another_of_the_directories_counts(folder: Path) -> None:
    other = folder.parent / "shm" / name_of(ANN)
    with locked(other, text_of()), pytest.raises(Held, match="ann@desk"):
        hold(BOB, "bob@desk", "a run")
    assert os.listdir(folder) == []


def test_whatever_the_umask_others_can_read_it(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        fd = hold(ANN, "ann@desk", "a run")
    finally:
        os.umask(before)
    assert (folder / name_of(ANN)).stat().st_mode & 0o777 == 0o644
    let_go(fd, ANN)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 100,
        b"[" * 8192,
        b'{"a":' * 1600,
        b"[]\n",
        b"7\n",
        b'{"who": 7, "run": null, "boot_ns": -1}\n',
        b'{"who": "\\ud800"}\n',
        text_of(boot_ns=1 << 100),
        text_of(boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**15),
        text_of(boot_ns=True),
        text_of(boot_ns=0.5),
        text_of(boot_ns="1"),
        b"9" * 8192,
        b"x" * (1 << 20),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_garbage_that_is_held_is_held(folder: Path, text: bytes) -> None:
    with locked(folder / name_of(ANN), text):
        began = time.monotonic()
        with pytest.raises(Held, match=r"^a run holds it: "):
            hold(BOB, "bob@desk", "a run")
        assert time.monotonic() - began < SOON
        json.dumps(holders(BOB))
    assert holders(BOB) == []
    assert os.listdir(folder) == []


@settings(max_examples=100)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text_of(who=text)))
def test_any_text_gives_a_holder_in_one_line(text: bytes) -> None:
    entry = hostlock._fields(text)
    line = hostlock.named(entry)
    assert line.isprintable() and len(line) < 700
    assert type(entry["boot_ns"]) is int and entry["boot_ns"] >= 0


def leased(path: Path) -> bytes:
    """Have a write lease on a file: who opens it waits, or is told to come again (fcntl(2))."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return b"+"


def test_a_file_that_somebody_keeps_from_being_opened_is_held(folder: Path) -> None:
    path = folder / name_of(ANN)
    path.write_bytes(text_of())
    with child(lambda: leased(path)) as (_, done):
        assert done == b"+"
        assert [(entry["owner"], entry["who"]) for entry in holders(BOB)] == [(ANN, "unknown")]
        with pytest.raises(Held, match=r"^a run holds it: unknown, unknown, since unknown$"):
            hold(BOB, "bob@desk", "a run")
        with pytest.raises(OSError, match="cannot be locked"):
            hold(ANN, "ann@desk", "a run")
    assert holders(BOB) == []
    assert os.listdir(folder) == []


def test_what_is_no_file_is_no_lock(folder: Path) -> None:
    (folder / name_of("0" * 16)).mkdir()
    os.mkfifo(folder / name_of("1" * 16))
    victim = folder.parent / "victim"
    victim.write_text("kept")
    (folder / name_of("2" * 16)).symlink_to(victim)
    (folder / name_of("3" * 16)).symlink_to(folder / name_of("3" * 16))
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # its path may be longer than sockaddr_un lets it be
        try:
            listener.bind(name_of("4" * 16))
        finally:
            os.chdir(here)
        before = sorted(os.listdir(folder))
        began = time.monotonic()
        assert holders(BOB) == []
        let_go(hold(BOB, "bob@desk", "a run"), BOB)
        assert time.monotonic() - began < SOON
        assert sorted(os.listdir(folder)) == before
        assert victim.read_text() == "kept"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_path_of_ours_that_is_taken_by_something_else(folder: Path, kind: str) -> None:
    path = folder / name_of(ANN)
    if kind == "link":
        path.symlink_to(folder.parent / "victim")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"connlab-run|symbolic links"):
        hold(ANN, "ann@desk", "a run")
    assert time.monotonic() - began < hostlock.PATIENCE + SOON
    assert not (folder.parent / "victim").exists()


@pytest.mark.parametrize(
    "name",
    ["connlab-run.abc.lock", f"connlab-run.{'A' * 16}.lock", f"x{name_of(ANN)}", "other.lock"],
)
def test_files_of_others_are_left_alone(folder: Path, name: str) -> None:
    (folder / name).write_text("theirs")
    assert holders(BOB) == []
    assert (folder / name).read_text() == "theirs"


def test_another_that_only_looks_holds_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It locks a file that is left over, for a moment, to see that nobody has it."""
    path = folder / name_of(ANN)
    path.write_bytes(text_of())
    looks = os.open(path, os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looks, fcntl.LOCK_UN))
    assert holders(BOB) == []
    os.close(looks)
    assert not path.exists()


def test_a_file_that_has_come_to_a_removed_ones_place_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening what is left over and locking it, its owner may have begun anew."""
    path = folder / name_of(ANN)
    path.write_bytes(text_of())
    flock, again = fcntl.flock, []

    def late(fd: int, kind: int) -> None:
        if not again:
            again.append(0)
            path.unlink()
            again[0] = hold(ANN, "ann@desk", "begun anew")
        flock(fd, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    holders(BOB)
    monkeypatch.setattr(fcntl, "flock", flock)
    assert [entry["run"] for entry in holders(BOB)] == ["begun anew"]
    let_go(again[0], ANN)


def test_who_goes_does_not_take_another_file_along(folder: Path) -> None:
    path = folder / name_of(ANN)
    first = hold(ANN, "ann@desk", "a run")
    path.unlink()  # by an administrator
    second = hold(ANN, "ann@desk", "a run")
    let_go(first, ANN)
    assert holders(BOB)
    let_go(second, ANN)
    assert not path.exists()


def test_one_that_was_late_to_be_seen_gives_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ann looks at the clock, and before anybody can see her lock Bob comes, sees none, stays."""
    opened, bobs = hostlock._opened, []

    def late(path: str) -> int | None:
        if path.endswith(name_of(ANN)) and not bobs:
            bobs.append(hold(BOB, "bob@desk", "a run"))
        return opened(path)

    monkeypatch.setattr(hostlock, "_opened", late)
    with pytest.raises(Held, match="bob@desk"):
        hold(ANN, "ann@desk", "a run")
    let_go(bobs[0], BOB)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("contenders", [2, 3])
def test_of_those_that_begin_at_the_same_moment_exactly_one_stays(
    folder: Path, contenders: int
) -> None:
    for _ in range(15):
        start_r, start_w = os.pipe()
        end_r, end_w = os.pipe()
        told_r, told_w = os.pipe()
        pids = []
        for number in range(contenders):
            pid = os.fork()
            if not pid:
                os.close(end_w)
                os.read(start_r, 1)
                try:
                    hold(f"{number}" * 16, f"user{number}", "a run")
                    os.write(told_w, b"+")
                except Held:
                    os.write(told_w, b"-")
                except BaseException:
                    os.write(told_w, b"!")
                os.read(end_r, 1)  # until the parent closes it
                os._exit(0)
            pids.append(pid)
        os.write(start_w, b"x" * contenders)
        told = b"".join(os.read(told_r, 1) for _ in range(contenders))
        for fd in (end_w, end_r, start_w, start_r, told_r, told_w):
            os.close(fd)
        for pid in pids:
            os.waitpid(pid, 0)
        assert sorted(told) == sorted(b"+" + b"-" * (contenders - 1))


def test_one_owners_agents_that_come_and_go_together_all_get_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostlock, "PATIENCE", 20.0)
    for _ in range(10):
        pids = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    let_go(hold(ANN, "ann@desk", "a run"), ANN)
                    status = 0
                finally:
                    os._exit(status)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert os.listdir(folder) == []


def test_a_file_whose_maker_was_killed_before_it_wrote_is_made_anew(folder: Path) -> None:
    (folder / name_of(ANN)).touch()
    fd = hold(ANN, "ann@desk", "a run")
    assert holders(BOB)[0]["who"] == "ann@desk"
    let_go(fd, ANN)


def test_no_directory_to_keep_it_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostlock, "FOLDERS", (str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(OSError, match=r"none of .*/a, .*/b can be written to"):
        hold(ANN, "ann@desk", "a run")
    assert holders(BOB) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        hold(ANN, "ann@desk", "a run")
    monkeypatch.undo()
    assert not (folder / name_of(ANN)).exists()


def test_it_never_makes_a_file_that_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_CREAT on another user's file in a sticky directory fails even for root, with
    fs.protected_regular (fs/namei.c may_create_in_sticky)."""
    opened, asked = os.open, []

    def watched(path: str, flags: int, *mode: int) -> int:
        asked.append(flags)
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", watched)
    first = hold(ANN, "ann@desk", "a run")
    let_go(hold(ANN, "ann@desk", "a run"), ANN)
    let_go(first, ANN)
    assert any(flags & os.O_CREAT for flags in asked)
    assert all(flags & os.O_EXCL for flags in asked if flags & os.O_CREAT)
    assert all(flags & os.O_NOFOLLOW and flags & os.O_CLOEXEC for flags in asked)


def test_by_itself_it_prints_the_holders(folder: Path) -> None:
    source = Path(hostlock.__file__).read_text()
    source = source.replace(
        'FOLDERS = ("/run/lock", "/dev/shm", "/tmp")', f"FOLDERS = {[str(folder)]}"
    )
    words = [sys.executable, "-I", "-c", source, BOB]

    def printed() -> Any:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
        assert not done.stderr
        return json.loads(done.stdout)

    assert printed() == []
    fd = hold(ANN, "ann@desk", "a run")
    found = printed()
    assert [hostlock.named(entry) for entry in found] == [hostlock.named(holders(BOB)[0])]
    assert found[0]["owner"] == ANN
    let_go(fd, ANN)


def test_a_link_to_a_file_that_somebody_has_locked_is_no_lock(folder: Path) -> None:
    other = folder.parent / "other"
    with locked(other, text_of()):
        (folder / name_of(BOB)).symlink_to(other)
        assert holders(ANN) == []
    assert other.exists()
