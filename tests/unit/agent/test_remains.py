"""What is left of an agent is waited for, killed, named; and nothing else is touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import wire
from bench.agent import remains

SOURCE = Path(remains.__file__).read_text()
DEAF = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
os.fork()
os.write(1, b"up\\n")
time.sleep(60)
"""
ENDS = """
print("up", flush=True)
import sys
sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def pushed() -> Iterator[Path]:
    """The path of an agent as a controller pushes it."""
    folder = Path(tempfile.mkdtemp(prefix="connlab.", suffix="00", dir="/tmp"))
    (folder / "agent.pyz").write_text("")
    yield folder / "agent.pyz"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program in a group of its own; it is up when this returns."""
    started = []

    def run(
        *words: str, ups: int = 1, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout
        for _ in range(ups):
            assert process.stdout.readline() == b"up\n"
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with process:
            pass


def clean_up(path: Path | str, seconds: float = 0.2, *before: str) -> Any:
    """Run it as a controller does."""
    words = [*before, sys.executable, "-c", SOURCE, str(path), f"{seconds:g}", wire.PUSHED]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def group(process: subprocess.Popen[bytes]) -> list[int]:
    """Numbers of all that a program has started and that has not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == process.pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_nothing_is_left_and_nothing_is_waited_for(pushed: Path) -> None:
    began = time.monotonic()
    assert clean_up(pushed, 20) == {"processes": [], "folder": False}
    assert time.monotonic() - began < 5
    assert not pushed.parent.exists()


def test_those_that_run_the_clean_up_are_no_remains(pushed: Path) -> None:
    """Over SSH it is timeout(1) that runs it, with the path among its own arguments."""
    began = time.monotonic()
    found = clean_up(pushed, 20, "timeout", "-s", "KILL", "25")
    assert found == {"processes": [], "folder": False}
    assert time.monotonic() - began < 5


def test_an_agent_that_ends_by_itself_is_waited_for(pushed: Path, start: Start) -> None:
    pushed.write_text(ENDS)
    agent = start(str(pushed), "run")
    assert agent.stdin
    agent.stdin.close()
    assert clean_up(pushed, 20) == {"processes": [], "folder": False}
    assert agent.wait(5) == 0


def test_an_agent_that_is_deaf_is_killed_with_its_workers(pushed: Path, start: Start) -> None:
    pushed.write_text(DEAF)
    agent = start(str(pushed), "run", "{}", ups=2)
    assert len(group(agent)) == 2
    began = time.monotonic()
    assert clean_up(pushed, 0.5) == {"processes": [], "folder": False}
    assert 0.5 <= time.monotonic() - began < 4
    assert group(agent) == []
    assert agent.wait(5) == -signal.SIGKILL


def test_a_stopped_agent_is_killed(pushed: Path, start: Start) -> None:
    pushed.write_text(ENDS)
    agent = start(str(pushed), "run")
    agent.send_signal(signal.SIGSTOP)
    assert clean_up(pushed) == {"processes": [], "folder": False}
    assert agent.wait(5) == -signal.SIGKILL


def test_who_only_mentions_the_path_is_not_touched(pushed: Path, start: Start) -> None:
    longer = start("-c", ENDS, f"cat {pushed}")
    beside = start("-c", ENDS, f"{pushed}.old", str(pushed.parent))
    began = time.monotonic()
    assert clean_up(pushed, 20) == {"processes": [], "folder": False}
    assert time.monotonic() - began < 5
    assert (longer.poll(), beside.poll()) == (None, None)


def test_a_tool_that_outlives_its_agent_is_killed(pushed: Path, start: Start) -> None:
    """It has no path among its arguments: what its agent has started carries it."""
    tool = start("-c", ENDS, env={remains.MARK: str(pushed)})
    assert clean_up(pushed) == {"processes": [], "folder": False}
    assert tool.wait(5) == -signal.SIGKILL


def test_who_only_has_the_path_in_a_variable_is_not_touched(pushed: Path, start: Start) -> None:
    others = [
        start("-c", ENDS, env=env)
        for env in (
            {remains.MARK: f"{pushed}.old"},
            {remains.MARK: f"{pushed} "},
            {remains.MARK: str(pushed.parent)},
            {f"X{remains.MARK}": str(pushed)},
            {"NOTE": f"{remains.MARK}={pushed}"},
            {"PWD": str(pushed)},
        )
    ]
    began = time.monotonic()
    assert clean_up(pushed, 20) == {"processes": [], "folder": False}
    assert time.monotonic() - began < 5
    assert ended(others) == [0] * len(others)


def ended(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """How processes end that nobody has killed: by themselves."""
    for process in processes:
        assert process.stdin
        process.stdin.close()
    return [process.wait(5) for process in processes]


@pytest.mark.parametrize("kernel", ["new", "old", "refuses"])
def test_a_number_that_is_anothers_by_now_is_not_killed(
    pushed: Path, start: Start, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, ours = start("-c", ENDS), start("-c", ENDS, str(pushed))
    if kernel == "old":
        monkeypatch.delattr(os, "pidfd_open")
    elif kernel == "refuses":
        monkeypatch.setattr(os, "pidfd_open", refused)
    remains.kill(str(pushed), [other.pid, ours.pid])
    assert ours.wait(5) == -signal.SIGKILL
    assert ended([other]) == [0]


def refused(*_: object) -> int:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_a_number_that_becomes_anothers_between_look_and_kill(
    pushed: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is killed is what was looked at, if the kernel has descriptors of processes."""
    ours, other = start("-c", ENDS, str(pushed)), start("-c", ENDS)
    look, kill = remains.is_of, os.kill

    def late(pid: int, path: str) -> bool:
        found = look(pid, path)
        kill(ours.pid, signal.SIGKILL)
        ours.wait(5)
        return found

    sent: list[int] = []
    monkeypatch.setattr(remains, "is_of", late)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(pid))
    remains.kill(str(pushed), [ours.pid])
    assert sent == []
    assert ended([other]) == [0]


def test_a_directory_with_something_else_in_it_stays_and_is_said_so(pushed: Path) -> None:
    (pushed.parent / "notes").write_text("theirs")
    assert clean_up(pushed) == {"processes": [], "folder": True}
    assert os.listdir(pushed.parent) == ["notes"]


def test_it_is_fine_if_all_is_gone_already(pushed: Path) -> None:
    shutil.rmtree(pushed.parent)
    assert clean_up(pushed) == {"processes": [], "folder": False}


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/other/agent.pyz",
        "/tmp/connlab./agent.pyz",
        "/tmp/connlab.abcdefghij/agent.pyz\n",
        "/tmp/connlab.abcdefghij/../agent.pyz",
        "/tmp/connlab.abcdefghij/other.pyz",
        "/var/tmp/connlab.abcdefghij/agent.pyz",
        "tmp/connlab.abcdefghij/agent.pyz",
    ],
)
def test_a_foreign_path_is_refused(path: str, start: Start) -> None:
    process = start("-c", ENDS, path)
    words = [sys.executable, "-c", SOURCE, path, "0", wire.PUSHED]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert done.stderr == f"path: got {path!r}, expected that of a pushed agent\n"
    assert process.poll() is None


def test_what_cannot_be_killed_is_named(
    pushed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def roots(pid: int, path: str) -> None:
        raise PermissionError

    monkeypatch.setattr(sys, "argv", ["-c", str(pushed), "0", wire.PUSHED])
    monkeypatch.setattr(remains, "DYING_SECONDS", 0.01)
    monkeypatch.setattr(remains, "of", lambda path: [71, 72])
    monkeypatch.setattr(remains, "is_of", lambda pid, path: True)
    monkeypatch.setattr(remains, "_end", roots)
    monkeypatch.setattr(subprocess, "call", lambda words, **_: asked.append(words))
    remains.main()
    assert json.loads(capsys.readouterr().out) == {"processes": [71, 72], "folder": False}
    assert asked == [["sudo", "-n", "kill", "-KILL", "71", "72"]]
