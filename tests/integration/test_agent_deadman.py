"""Agents whose controller is suspended, cut off, or reads nothing: all is closed, and in time."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Lab, block, running, until
from beds import repacked

from bench.agent import hostlock

SILENCE = 2.0
BOUND = 3.0
"""Seconds beyond the silence, for everything to be closed: it is 1.5 s for workers, 1 s for last
words."""
COMPLAINT = b"no word from the controller for 2 s: everything closed"
KEY = "net.ipv4.tcp_fin_timeout"


def beats(*agents: Agent) -> contextlib.AbstractContextManager[None]:
    """Signs of life for agents, as a context."""

    @contextlib.contextmanager
    def giving() -> Iterator[None]:
        over = threading.Event()

        def give() -> None:
            while not over.wait(0.3):
                for agent in agents:
                    agent.send("beat")

        thread = threading.Thread(target=give)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return giving()


def children(agent: Agent) -> list[int]:
    return [agent.process.pid, *agent.workers()]


def ends_alone(lab: Lab, *agents: Agent, heard: float) -> None:
    """See that agents that heard their controller last at a moment close all, and how soon."""
    pids = [pid for agent in agents for pid in children(agent)]
    for agent in agents:
        agent.process.wait(timeout=heard + SILENCE + BOUND - time.monotonic())
        assert until(lambda a=agent: COMPLAINT in a.stderr)
        assert not agent.home.exists()
        assert not agent.strangers
    assert time.monotonic() - heard >= SILENCE - 0.5  # the last sign of life was before that
    assert until(lambda: not [pid for pid in pids if running(pid)])
    for host in ("server", "client"):
        assert lab.sockets(host) == 0


@pytest.mark.parametrize("phase", ["ramp", "hold", "echo", "round", "drain"])
def test_agents_that_hear_nothing_close_everything(lab: Lab, phase: str) -> None:
    lab.silence = SILENCE
    server = lab.serve(nofile=300)
    with beats(server):
        client = lab.prepare(nofile=300, connect_rate=100 if phase == "ramp" else 0)
        with beats(client):
            client.send("ramp")
            if phase == "ramp":
                assert until(lambda: lab.count("client", "established") > 20)
            else:
                assert client.hear("ramped")["held"] == 2000
            if phase == "echo":  # the server does not answer yet
                client.send("echo", mode="all", patience_ms=60_000)
            elif phase == "round":
                fields = {"number": 1, "mode": "pipelined", "sample": 0, "window": 8}
                client.send("round", patience_ms=60_000, **fields)
            elif phase == "drain":
                client.send("drain", how="rst", rate=50)
                assert until(lambda: lab.count("client", "established") < 2000)
    heard = time.monotonic()
    held = lab.count("client", "established")
    assert 0 < held < 2000 if phase in ("ramp", "drain") else held == 2000
    ends_alone(lab, client, server, heard=heard)


def test_signs_of_life_keep_them_going(lab: Lab) -> None:
    lab.silence = 1.0
    server = lab.serve()
    with beats(server):
        client = lab.prepare()
        with beats(client):
            client.ask("ramp", "ramped")
            ticks = len(client.ticks)
            time.sleep(2.5)
            assert len(client.ticks) >= ticks + 2
            assert client.ask("status", "status")["held"] == 2000
            assert server.ask("status", "status")["held"] == 2000


def test_an_agent_that_was_suspended_itself_hears_what_came_meanwhile(lab: Lab) -> None:
    agent = lab.agent("client", silence=1.0)
    agent.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    agent.send("beat")
    agent.process.send_signal(signal.SIGCONT)
    with beats(agent):
        alive = agent.alive
        assert until(lambda: agent.alive > alive + 1)


def test_a_suspended_controller_is_one_that_says_nothing(lab: Lab) -> None:
    """Its pipes stay open, and it neither writes nor reads."""
    agent = lab.agent("client", silence=1.0, reads=False)
    heard = time.monotonic()
    agent.process.wait(timeout=1.0 + BOUND)
    assert time.monotonic() - heard >= 0.9
    assert not agent.home.exists()


def blocked(lab: Lab, agent: Agent) -> None:
    """Have an agent say so much that what it says next cannot be written."""
    for _ in range(4):
        agent.send("collect", phase="before", count=None)

    def waits() -> bool:
        # Of a pipe that is full poll(2) says that it cannot be written to, and of ours that it
        # can be read: what is in it is all that the kernel takes.
        return unread(agent) >= 65_536 - 4096

    assert until(waits), unread(agent)


def unread(agent: Agent) -> int:
    """Bytes in the pipe that an agent writes to: FIONREAD of pipe(7)."""
    found = array.array("i", [0])
    fcntl.ioctl(agent.process.stdout, termios.FIONREAD, found)
    return found[0]


def deaf_client(lab: Lab, **changed: Any) -> Agent:
    """A prepared client whose output is not read after that."""
    client = lab.prepare(**changed)
    client.reading.clear()
    assert until(lambda: unread(client) > 0, 3)  # the reader is at rest
    blocked(lab, client)
    return client


def test_an_agent_whose_output_is_not_read_obeys(lab: Lab) -> None:
    lab.serve()
    client = deaf_client(lab, connect_rate=300)
    client.send("ramp")
    assert until(lambda: lab.count("client", "established") > 50)
    client.send("halt")

    def still() -> bool:
        before = lab.count("client", "established")
        time.sleep(0.3)
        return lab.count("client", "established") == before

    assert until(still)
    held = lab.count("client", "established")
    assert held < 2000
    time.sleep(1.2)  # a tick would have come
    client.reading.set()
    said = {event["event"]: event for event in (client.hear_any() for _ in range(6))}
    assert set(said) == {"collected", "halted", "ramped"}
    ramped = said["ramped"]
    assert (ramped["reason"], ramped["held"]) == ("halted", held)
    ticks = len(client.ticks)
    assert until(lambda: len(client.ticks) > ticks + 1)  # they go on
    assert not client.strangers


def test_an_agent_whose_output_is_not_read_sees_the_end_of_its_input(lab: Lab) -> None:
    server = lab.serve()
    client = deaf_client(lab)
    client.send("ramp")
    assert until(lambda: lab.count("server", "established") == 2000)
    pids = children(client)
    client.process.stdin.close()
    client.process.wait(timeout=BOUND)
    assert not [pid for pid in pids if running(pid)]
    assert until(lambda: lab.count("server", "established") == 0)
    assert not client.home.exists()
    assert server.ask("status", "status")["held"] == 0


def test_an_agent_whose_output_is_not_read_keeps_its_floor(lab: Lab) -> None:
    lab.serve()
    client = deaf_client(lab, memory_floor_kib=1 << 39)
    client.send("ramp")
    time.sleep(0.5)
    assert lab.count("client", "established") == 0
    client.reading.set()
    said = [client.hear_any() for _ in range(5)]
    assert sorted(event["event"] for event in said) == ["collected"] * 4 + ["ramped"]
    ramped = next(event for event in said if event["event"] == "ramped")
    assert (ramped["reason"], ramped["held"]) == ("memory", 0)
    assert client.floors


def test_a_server_whose_output_is_not_read_goes_on_until_its_input_ends(lab: Lab) -> None:
    server = lab.serve()
    client = lab.prepare(blocks=[block(100)])
    server.reading.clear()
    assert until(lambda: unread(server) > 0, 3)
    blocked(lab, server)
    assert client.ask("ramp", "ramped")["held"] == 100
    server.process.stdin.close()
    server.process.wait(timeout=BOUND)
    assert until(lambda: lab.count("client", "established") == 0)


@pytest.mark.parametrize("end", ["silence", "input", "unread"])
def test_a_trial_puts_back_what_it_changed(lab: Lab, end: str) -> None:
    before = lab.net.run("client", "sysctl", "-n", KEY)
    agent = lab.agent("client", mode="trial", silence=SILENCE, reads=end != "unread")
    agent.send("trial", name="guard", args={"sysctl": {KEY: "7"}})
    assert until(lambda: lab.net.run("client", "sysctl", "-n", KEY) == "7\n")
    heard = time.monotonic()
    if end == "unread":
        with beats(agent):
            for _ in range(500):  # each is answered by an error
                agent.process.stdin.write(b"x" * 150 + b"\n")
            agent.process.stdin.flush()
            assert until(lambda: unread(agent) >= 65_536 - 4096)
        heard = time.monotonic()
    elif end == "input":
        agent.process.stdin.close()
    agent.process.wait(timeout=SILENCE + BOUND)
    if end != "input":
        assert time.monotonic() - heard >= SILENCE - 0.5
    assert lab.net.run("client", "sysctl", "-n", KEY) == before
    assert not agent.home.exists()
    assert not agent.strangers


def test_signs_of_life_keep_a_trial_going(lab: Lab) -> None:
    agent = lab.agent("client", mode="trial", silence=1.0)
    agent.send("trial", name="guard", args={"sysctl": {KEY: "7"}})
    agent.hear("told")
    with beats(agent):
        time.sleep(2.0)
        agent.ask("go", "told", sysctl={KEY: "8"})
    agent.process.wait(timeout=1.0 + BOUND)


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_stopped_worker_does_not_outlive_its_agent(lab: Lab, role: str) -> None:
    server, client = lab.serve(nofile=300), lab.prepare(nofile=300)
    client.ask("ramp", "ramped")
    agent = client if role == "client" else server
    pids = children(agent)
    for pid in agent.workers()[:2]:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    agent.process.stdin.close()
    agent.process.wait(timeout=10)
    assert time.monotonic() - began < BOUND
    assert until(lambda: not [pid for pid in pids if running(pid)])
    assert until(lambda: lab.count(role, "established") == 0)


# One run at a time on a host.


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / "locks"
    folder.mkdir()
    return folder


@pytest.fixture
def packed(packed: bytes, locks: Path) -> bytes:
    """The agent with a directory of this test's own for its locks."""
    usual = f"FOLDERS = {hostlock.FOLDERS!r}".replace("'", '"')

    def changed(name: str, text: str) -> str:
        if name != "bench/agent/hostlock.py":
            return text
        assert usual in text
        return text.replace(usual, f"FOLDERS = ({str(locks)!r},)")

    return repacked(packed, changed)


def lock(owner: str, who: str = "ann@desk") -> dict[str, str]:
    return {"owner": owner * 16, "who": who, "run": "run million"}


def refused(lab: Lab, packed: bytes, mode: str, owner: str, tmp_path: Path) -> str:
    """What an agent that may not have its host says, all of it."""
    words = ["mktemp", "-d", "/tmp/connlab.XXXXXXXXXX"]
    home = Path(subprocess.check_output(words, text=True)[:-1])
    (home / "agent.pyz").write_bytes(packed)
    options = json.dumps({"silence_seconds": 20, "lock": lock(owner, "bob@desk")})
    words = [sys.executable, str(home / "agent.pyz"), mode, options]
    done = subprocess.run(
        [*lab.net.enter("client"), *words], capture_output=True, check=False, timeout=10
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not home.exists()
    said = json.loads(done.stdout)
    assert (said["event"], said["kind"]) == ("error", "refused")
    return str(said["message"])


@pytest.mark.parametrize("mode", ["run", "trial"])
def test_a_host_is_one_controllers(
    lab: Lab, packed: bytes, locks: Path, tmp_path: Path, mode: str
) -> None:
    server = lab.agent("server", lock=lock("a"), nofile=300)
    server.ask("serve", "serving", spec=lab.server_spec(nofile="hard"))
    line = "a run holds it: ann@desk, run million, since 20"
    assert refused(lab, packed, mode, "b", tmp_path).startswith(line)
    other = lab.agent("client", lock=lock("a"), mode="trial")
    workers = server.workers()
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert until(lambda: not [pid for pid in workers if running(pid)])
    assert refused(lab, packed, mode, "b", tmp_path).startswith(line)
    other.process.stdin.close()
    other.process.wait(timeout=BOUND)
    assert os.listdir(locks) == []
    lab.agent("client", lock=lock("b")).ask("stop", "stopped")
    assert until(lambda: os.listdir(locks) == [])


@pytest.mark.parametrize("end", ["stop", "input", "silence", "term", "kill"])
def test_nothing_is_left_of_a_lock(lab: Lab, locks: Path, end: str) -> None:
    agent = lab.agent("client", lock=lock("a"), silence=1.0)
    assert len(os.listdir(locks)) == 1
    if end == "stop":
        agent.send("stop")
    elif end == "input":
        agent.process.stdin.close()
    elif end in ("term", "kill"):
        agent.process.send_signal(signal.SIGTERM if end == "term" else signal.SIGKILL)
    agent.process.wait(timeout=1.0 + BOUND)
    if end == "kill":  # the next one removes the file that is left over
        lab.agent("client", lock=lock("b")).ask("stop", "stopped")
    assert until(lambda: os.listdir(locks) == [])


USER = ["setpriv", "--reuid=61200", "--regid=61200", "--clear-groups"]


@pytest.mark.parametrize("first", ["root", "user"])
def test_users_see_and_share_each_others_locks(tmp_path: Path, first: str) -> None:
    """In a directory with the sticky bit, where neither may remove the other's file."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/lock.XXXXXXXX"], text=True)[:-1])
    folder.chmod(0o1777)
    source = Path(hostlock.__file__).read_text().partition("if __name__")[0]
    source += f"""
FOLDERS = ({str(folder)!r},)
os.umask(0o077)
try:
    fd = hold(sys.argv[1], sys.argv[2], "a run")
    print("has it", flush=True)
    sys.stdin.read()
    let_go(fd, sys.argv[1])
except Held as held:
    print(held, flush=True)
"""

    @contextlib.contextmanager
    def holder(words: list[str], owner: str) -> Iterator[str]:
        with subprocess.Popen(
            [*words, "/usr/bin/python3", "-c", source, owner * 16, f"user{len(words)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout and process.stdin
            yield process.stdout.readline().strip()
            process.stdin.close()
            assert process.wait(10) == 0

    try:
        one, other = ([], USER) if first == "root" else (USER, [])
        has = "has it"
        with holder(one, "a") as first_said:
            assert first_said == has
            with holder(other, "b") as said:
                assert said.startswith(f"a run holds it: user{len(one)}, a run, since 20")
            with holder(other, "a") as shares:
                assert shares == has
            with holder(one, "b") as still:
                assert still.startswith(f"a run holds it: user{len(one)}")
        with holder(other, "b") as free:
            assert free == has
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
