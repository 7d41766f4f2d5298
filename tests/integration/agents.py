"""Agents in bare network namespaces: no Ansible, no SSH, the same wire."""

import contextlib
import itertools
import json
import os
import queue
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import wire
from bench.perf.netns import Namespaces

SERVER, SERVER6 = "198.18.0.1", "fd63:6f6e:6e6c::1"
CLIENT, CLIENT6 = "198.18.1.1", "fd63:6f6e:6e6c:1::1"
PORT, CONTROL = 5000, 5999
PATIENCE = 60
USERS = itertools.count(61_234)
"""Users that have no other process."""


class Agent:
    """One running agent and what it has said."""

    def __init__(
        self,
        packed: bytes,
        words: list[str],
        nofile: int | str | None = None,
        nproc: int | None = None,
        silence: float = 300,
        lock: dict | None = None,
        mode: str = "run",
        reads: bool = True,
    ) -> None:
        """``nofile``: soft and hard limit, or both as ``soft:hard``; ``nproc``: not as root.

        Without a word for ``silence`` seconds it ends; these tests send no signs of life.
        ``reads``: whether what it says after hello is read before ``reading`` is set.
        """
        self.home = Path(tempfile.mkdtemp(prefix="connlab.", suffix="00"))
        (self.home / "agent.pyz").write_bytes(packed)
        if nofile:
            both = nofile if isinstance(nofile, str) else f"{nofile}:{nofile}"
            words = [*words, "prlimit", f"--nofile={both}"]
        if nproc:  # root is spared by RLIMIT_NPROC (kernel/fork.c copy_process())
            user = next(USERS)
            os.chown(self.home, user, user)
            words = [*words, "prlimit", f"--nproc={nproc}:{nproc}", "setpriv"]
            words += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self.process = subprocess.Popen(
            [
                *words,
                os.path.realpath(sys.executable),
                str(self.home / "agent.pyz"),
                mode,
                json.dumps({"silence_seconds": silence, "lock": lock}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.ticks: list[dict] = []
        self.alive = 0
        self.floors: list[dict] = []
        self.strangers: list[bytes] = []
        self.reading = threading.Event()
        if reads:
            self.reading.set()
        self._events: queue.Queue[dict | None] = queue.Queue()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._drain)]
        for reader in self._readers:
            reader.start()
        self.stderr = b""
        self.hello = self.hear("hello")

    def _drain(self) -> None:
        self.stderr = self.process.stderr.read()

    def _read(self) -> None:
        for line in iter(self.process.stdout.readline, b""):
            try:
                event = json.loads(line)
            except ValueError:
                self.strangers.append(line)
                continue
            if event["event"] == "tick":
                self.ticks.append(event)
            elif event["event"] == "alive":
                self.alive += 1
            elif event["event"] == "floor":
                self.floors.append(event)
            else:
                self._events.put(event)
            self.reading.wait()
        self._events.put(None)

    def send(self, op: str, **fields) -> None:
        self.process.stdin.write(wire.encode({"op": op, **fields}))
        self.process.stdin.flush()

    def hear_any(self, patience: float = PATIENCE) -> dict:
        heard = self._events.get(timeout=patience)
        assert heard is not None, f"the agent ended: {self.stderr.decode()}"
        return heard

    def hear(self, event: str, patience: float = PATIENCE) -> dict:
        heard = self.hear_any(patience)
        assert heard["event"] == event, heard
        return heard

    def ask(self, op: str, event: str, **fields) -> dict:
        self.send(op, **fields)
        return self.hear(event)

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        self.reading.set()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Lab:
    """One server and one client namespace, and agents in them."""

    def __init__(self, net: Namespaces, packed: bytes) -> None:
        self.net, self._packed = net, packed
        self.nonce = secrets.token_hex(16)
        self.silence: float = 300
        self._agents: list[Agent] = []
        self._closed: list[Agent] = []

    def agent(
        self,
        host: str,
        nofile: int | str | None = None,
        nproc: int | None = None,
        **how,
    ) -> Agent:
        how = {"silence": self.silence, **how}
        made = Agent(self._packed, self.net.enter(host), nofile, nproc, **how)
        self._agents.append(made)
        return made

    def server_spec(self, **changed) -> dict:
        spec = {
            "nonce": self.nonce,
            "endpoints": [[SERVER, PORT]],
            "control": [SERVER, CONTROL],
            "connections": 2000,
            "backlog": 4096,
            "listener": "shared",
            "watch": "epoll",
            "acceptors": 1,
            "nap_ms": 5,
            "memory_floor_kib": 0,
            "nofile": "hard",
            "workers": 0,
            "limit": False,
        }
        return {**spec, **changed}

    def client_spec(self, **changed) -> dict:
        spec = {
            "nonce": self.nonce,
            "controls": [[SERVER, CONTROL]],
            "fronts": [],
            "routers": [],
            "blocks": [block()],
            "max_in_flight": 512,
            "connect_rate": 0,
            "connect_timeout_ms": 3000,
            "retries": 1,
            "backoff_ms": 10,
            "active": 1,
            "memory_floor_kib": 0,
            "nofile": "hard",
            "workers": 0,
            "source_ports": "plan",
            "limit": False,
        }
        return {**spec, **changed}

    def serve(self, nofile: int | str | None = None, nproc: int | None = None, **changed) -> Agent:
        server = self.agent("server", nofile, nproc)
        spec = self.server_spec(nofile=_kept(nofile), **changed)
        server.ask("serve", "serving", spec=spec)
        self._closed.append(server)
        return server

    def open(self) -> None:
        """Have the servers that are still closed to connections let them in."""
        while self._closed:
            self._closed.pop().ask("open", "opened")

    def prepare(
        self,
        nofile: int | str | None = None,
        nproc: int | None = None,
        opens: bool = True,
        **changed,
    ) -> Agent:
        """``opens``: whether it is the last client that has the servers prove themselves."""
        client = self.agent("client", nofile, nproc)
        spec = self.client_spec(nofile=_kept(nofile), **changed)
        client.ask("prepare", "prepared", spec=spec)
        if opens:
            self.open()
        return client

    def count(self, host: str, state: str, port: int = PORT) -> int:
        found = self.net.run(
            host, "ss", "-Htan", "state", state, f"( sport = {port} or dport = {port} )"
        )
        return len(found.splitlines())

    def sockets(self, host: str) -> int:
        """All TCP sockets of a host, of whatever state and port."""
        return len(self.net.run(host, "ss", "-Htan").splitlines())

    def counter(self, host: str, name: str) -> int:
        """A counter of a host's kernel since its namespace was made (nstat(8))."""
        rows = self.net.run(host, "nstat", "-asz", name).splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith(name + " "))

    def close(self) -> None:
        for agent in self._agents:
            agent.close()


def _kept(nofile: int | str | None) -> str:
    """Which limit an agent is told to live with: the soft one, where it was given by itself."""
    return "soft" if isinstance(nofile, str) else "hard"


def block(count: int = 2000, **changed) -> dict:
    made = {
        "source": CLIENT,
        "first_port": 10000,
        "count": count,
        "target": SERVER,
        "target_port": PORT,
    }
    return {**made, **changed}


def until(condition, patience: float = 5.0) -> bool:
    """Whether a condition comes true in time."""
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
