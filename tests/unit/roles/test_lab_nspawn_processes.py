import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tune_loader import load

load("lab_common", "module_utils", "connlab_layout")
load("lab_common", "module_utils", "connlab_base")
processes = load("lab_nspawn", "module_utils", "connlab_processes")

# Captured on Linux 6.18, with a command that has blanks and brackets in its name.
STAT = (
    "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 181 0 0 0 0 0 0 0 20 0 1 0 98765 2564096 "
    "231 18446744073709551615 1 1 0 0 0 0 0 0 65538 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""


def test_start_time_is_field_22_whatever_the_command_is_called() -> None:
    assert processes.start_time(STAT) == 98765


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12 345\n", (12, 345)),
        ("12", None),
        ("", None),
        ("garbage\n", None),
        ("-1 5\n", None),
    ],
)
def test_pid_file(text: str, found: tuple[int, int] | None) -> None:
    assert processes.parse_pid_file(text) == found


def test_a_pid_file_means_this_very_process(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    processes.write_pid_file(path, os.getpid())
    assert processes.alive(path) == os.getpid()


def test_a_pid_that_is_used_again_is_not_taken_for_the_one_meant(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    processes.write_pid_file(path, os.getpid())
    pid, started = path.read_text().split()
    path.write_text(f"{pid} {int(started) - 1}\n")
    assert processes.alive(path) is None


def test_only_processes_of_one_command_are_asked_to_end() -> None:
    asked = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        for each, name in ((asked, "sleep"), (other, "cat")):
            while name not in Path(f"/proc/{each.pid}/comm").read_text():
                assert time.monotonic() < deadline
        processes.terminate({asked.pid, other.pid}, "sleep")
        assert asked.wait(10) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for each in (asked, other):
            each.kill()
            each.communicate()


def test_neither_the_caller_nor_the_first_process_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    processes.kill({1, os.getpid(), 4_194_303})
    assert killed == [4_194_303]


def test_no_pid_file_no_process(tmp_path: Path) -> None:
    assert processes.alive(tmp_path / "none") is None


def test_a_process_that_has_ended_is_not_alive(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    path = tmp_path / "x.pid"
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    processes.write_pid_file(path, child)
    assert processes.alive(path) is None
    os.waitpid(child, 0)
    assert processes.alive(path) is None


def test_only_the_hierarchies_that_an_init_manages_get_a_cgroup() -> None:
    assert processes.cgroup_roots(HYBRID) == ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]
    assert processes.cgroup_roots("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n") == ["/sys/fs/cgroup"]
    assert processes.cgroup_roots("proc /proc proc rw 0 0\n") == []
