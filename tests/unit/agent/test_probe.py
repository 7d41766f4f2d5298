"""Evidence: what a tool prints, and what becomes of a source that fails or is out of size."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.agent import about, probe


def test_a_tool_that_fails_is_no_evidence():
    with pytest.raises(probe.Unreadable, match=r"^no such thing$"):
        probe.output(["sh", "-c", "echo half; echo first >&2; echo no such thing >&2; exit 3"])
    with pytest.raises(probe.Unreadable, match=r"^sh: exit status 3$"):
        probe.output(["sh", "-c", "echo half; exit 3"])
    assert probe.output(["sh", "-c", "echo whole"]) == "whole\n"


def test_a_tool_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(probe, "TIMEOUT", 0.2)
    with pytest.raises(probe.Unreadable, match=r"^sleep: no answer within 0.2 s$"):
        probe.output(["sleep", "30"])
    assert not probe._children


def test_a_text_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(probe.wire, "TEXT_BYTES", 100)
    monkeypatch.setattr(probe, "PIECE", 7)
    path = tmp_path / "source"
    path.write_bytes(b"x" * 100)
    assert probe.text(str(path)) == "x" * 100
    path.write_bytes(b"x" * 101)
    with pytest.raises(probe.Unreadable, match=r"source: more than 100 bytes$"):
        probe.text(str(path))


@pytest.mark.parametrize(("pids", "workers"), [([70], 0), ([70, 71, 72], 2)])
def test_of_an_agent_and_its_workers_the_workers_count(pids, workers, monkeypatch):
    monkeypatch.setattr(probe, "SOURCES", {})
    monkeypatch.setattr(probe, "_rollup", lambda pid: {"Pss": pid})
    found = probe.collect("peak", None, "src", "established", lambda: [5, 6], pids)
    assert (found["workers"], found["pss_kib"], found["held"]) == (workers, sum(pids), 11)


def test_what_ss_prints_is_counted_by_lines(tmp_path, monkeypatch):
    fake = tmp_path / "ss"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(probe, "tool", lambda name: str(fake))
    ends = [("198.18.0.1", 5000), ("fd00::1", 5001)]
    assert probe.sockets(ends, "src", "established") == 4


def test_ipv6_addresses_are_in_brackets(monkeypatch):
    asked = []

    def refuse(argv):
        asked.append(argv)
        raise OSError(2, "no such file")

    monkeypatch.setattr(probe, "_start", refuse)
    monkeypatch.setattr(probe, "tool", lambda name: name)
    with pytest.raises(OSError, match="no such file"):
        probe.sockets([("198.18.0.1", 5000), ("fd00::1", 5001)], "dst", "established")
    assert asked[0][-1] == "( dst = 198.18.0.1:5000 or dst = [fd00::1]:5001 )"


def test_a_route_to_everything_is_told_as_a_prefix(monkeypatch):
    told = {
        "-4": '[{"dst":"default"},{"dst":"198.18.0.1"}]',
        "-6": '[{"dst":"default"},{"dst":"fd63::/64"}]',
    }
    monkeypatch.setattr(about, "tool", lambda name: name)
    monkeypatch.setattr(about, "output", lambda argv: told[argv[2]])
    assert about._addresses() == ["0.0.0.0/0", "198.18.0.1", "::/0", "fd63::/64"]


STARTS = """
import threading, time
from bench.agent import probe
threading.Thread(target=probe.output, args=(["sh", "-c", "echo $$ >&2; exec sleep 50"],)).start()
while not probe._children:
    time.sleep(0.01)
print(*[child.pid for child in probe._children], flush=True)
time.sleep(50)
"""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_a_tool_dies_with_its_agent():
    root = Path(probe.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], stdout=subprocess.PIPE, cwd=root
    ) as agent:
        pid = int(agent.stdout.readline())
        try:
            until = time.monotonic() + 10
            while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
                assert time.monotonic() < until
                time.sleep(0.01)
            agent.kill()
            while runs(pid):
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            agent.kill()
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("there", ["none", "another"])
def test_tools_run_where_no_setpriv_can_have_them_die(tmp_path, monkeypatch, there):
    if there == "another":
        (tmp_path / "setpriv").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "setpriv").chmod(0o755)
    sh = probe.tool("sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    probe._mortal.cache_clear()
    try:
        assert probe.output([sh, "-c", "echo whole"]) == "whole\n"
        assert probe._mortal() == ()
    finally:
        probe._mortal.cache_clear()


def test_what_root_runs_has_an_end_of_its_own(monkeypatch):
    monkeypatch.setattr(probe, "tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    sudoers = (Path(__file__).parents[3] / "docs" / "sudoers").read_text()
    for words in (["/usr/bin/cat", "/proc/slabinfo"], ["/usr/bin/dmesg"]):
        asked = probe.as_root(*words)
        assert asked[:5] == ["/usr/bin/sudo", "-n", "/usr/bin/timeout", "-s", "KILL"]
        assert " ".join(asked[2:]) in sudoers
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert probe.as_root("/usr/bin/dmesg") == ["/usr/bin/dmesg"]
