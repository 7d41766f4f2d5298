"""Whole runs over real agents in namespaces: the transport without SSH."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agents import CLIENT, SERVER, SERVER6, running

from bench import scenario, wire
from bench.agent import hostlock, memory
from bench.errors import LabError
from bench.hosts.channel import split
from bench.inventory import Host, Inventory
from bench.perf.netns import Namespaces
from bench.results.format import Run
from bench.results.store import Store
from bench.run import runner
from bench.run.curve import Progress

NAME = 'FOLDERS = ("/run/lock"'

LOCKS = Path(tempfile.mkdtemp(prefix="connlab-test-locks."))
"""Where the hosts of these tests are held. Namespaces share the machine's own directories, and with
them what else runs on it."""

atexit.register(shutil.rmtree, LOCKS, ignore_errors=True)


def with_own_locks(source: str) -> str:
    """The source of the host lock, for the hosts of these tests."""
    usual = f"FOLDERS = {hostlock.FOLDERS!r}".replace("'", '"')
    assert usual in source
    return source.replace(usual, f"FOLDERS = ({str(LOCKS)!r},)")


def repacked(data: bytes, change: Callable[[str, str], str]) -> bytes:
    """An agent, its sources changed by a function of their names and texts."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(packed, "w") as after:
        kept = {f"{name}c" for name in before.namelist()}
        for name in before.namelist():
            if name.endswith(".py"):
                text = before.read(name).decode()
                changed = change(name, text)
                after.writestr(name, changed)
                if changed != text:
                    kept.discard(f"{name}c")
        for name in kept.intersection(before.namelist()):
            after.writestr(name, before.read(name))
    return packed.getvalue()


def _own_locks_in(name: str, text: str) -> str:
    return with_own_locks(text) if name == "bench/agent/hostlock.py" else text


class LocalProcess:
    """A process on this machine as the transport's Process."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )

    def write(self, data: bytes) -> None:
        assert self.child.stdin
        if self.child.stdin.closed:
            raise BrokenPipeError
        self.child.stdin.write(data)

    def lines(self) -> Iterator[bytes]:
        assert self.child.stdout
        with self.child.stdout as out:
            yield from split(lambda: out.read(1 << 16), wire.LINE_BYTES)

    def errors(self) -> Iterator[bytes]:
        assert self.child.stderr
        with self.child.stderr as out:
            yield from iter(out.readline, b"")

    def close(self) -> None:
        assert self.child.stdin
        self.child.stdin.close()
        self.child.wait(10)


class LocalLink:
    """A namespace as the transport's Link."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.started: list[LocalProcess] = []
        self.paths: list[str] = []

    def give_up_after(self, seconds: float) -> None:
        pass

    def put(self, data: bytes, path: str) -> str:
        Path(path).parent.mkdir(mode=0o700)
        Path(path).write_bytes(repacked(data, _own_locks_in))
        self.paths.append(path)
        return path

    def remove(self, path: str) -> None:
        shutil.rmtree(Path(path).parent, ignore_errors=True)

    def run(self, argv: Sequence[str], seconds: float = 30.0) -> str:
        words = [with_own_locks(word) if NAME in word else word for word in argv]
        done = subprocess.run(
            [*self.words, *words], capture_output=True, text=True, check=False, timeout=seconds
        )
        if done.returncode:
            raise LabError(done.stderr.strip())
        return done.stdout

    def start(self, argv: Sequence[str]) -> LocalProcess:
        # In a namespace everything runs as root already, and sudo(8) may not be there.
        words = argv[2:] if list(argv[:2]) == ["sudo", "-n"] else argv
        self.started.append(LocalProcess([*self.words, *words]))
        return self.started[-1]

    def close(self) -> None:
        return None


class Meminfo:
    """/proc/meminfo as agents see it: memory that the connections of a bed take, and nobody else.

    What other programs take or give back meanwhile would end a ramp to a floor before it has
    begun, or not at all.
    """

    EVERY = 0.02
    EACH_KIB = 8
    """Of a connection, both ends."""
    OURS = ("MemFree", "MemAvailable", "SReclaimable", "Active(file)", "Inactive(file)")

    def __init__(self, net: Namespaces, path: Path, free_mib: int) -> None:
        """``free_mib``: really free without a connection."""
        self._net, self._free = net, free_mib * 1024
        self._kept = memory.reserves(Path("/proc/zoneinfo").read_text()).total
        self._others = [
            row
            for row in Path("/proc/meminfo").read_text().splitlines()
            if row.split(":")[0] not in self.OURS
        ]
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._ended = threading.Event()
        self._write(0)
        bind = 'mount --bind "$0" /proc/meminfo && exec "$@"'
        self.words = ["unshare", "--mount", "sh", "-c", bind, str(path)]
        """Before a command that is to see it."""
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _write(self, held: int) -> None:
        left = max(0, self._free - held * self.EACH_KIB) + self._kept
        figures = dict(zip(self.OURS, (left, left, 0, 0, 0), strict=True))
        rows = [*self._others, *(f"{name}: {kib:012} kB" for name, kib in figures.items())]
        os.pwrite(self._file, "".join(f"{row}\n" for row in rows).encode(), 0)

    def _follow(self) -> None:
        while not self._ended.wait(self.EVERY):
            text = self._net.run("server", "cat", "/proc/net/sockstat")
            words = next(row.split() for row in text.splitlines() if row.startswith("TCP:"))
            self._write(int(words[words.index("inuse") + 1]))

    def close(self) -> None:
        """End what follows the connections."""
        self._ended.set()
        self._thread.join()
        os.close(self._file)


class Bed:
    """An inventory over two namespaces and everything that was started there."""

    def __init__(self, net: Namespaces, results: Path) -> None:
        self.net = net
        self.store = Store(results)
        self.links: dict[str, LocalLink] = {}
        self.seen: list[Progress] = []
        self.words: dict[str, list[str]] = {}
        """Before the commands of a host, by its name."""

    def connect(self, host: Host) -> LocalLink:
        words = [*self.net.enter(host.name), *self.words.get(host.name, [])]
        self.links[host.name] = LocalLink(words)
        return self.links[host.name]

    @contextlib.contextmanager
    def memory(self, free_mib: int) -> Iterator[None]:
        """Have so much really free memory on both hosts, which share it."""
        meminfo = Meminfo(self.net, self.store.root.with_name("meminfo"), free_mib)
        try:
            self.words = dict.fromkeys(("server", "client"), meminfo.words)
            yield
        finally:
            meminfo.close()

    def inventory(self, clients: Sequence[str] = (CLIENT,)) -> Inventory:
        def host(name: str, group: str, addresses: Sequence[str]) -> Host:
            return Host(name, (group,), name, 22, "lab", None, None, tuple(addresses))

        hosts = {
            "server": host("server", "servers", [SERVER, SERVER6]),
            "client": host("client", "clients", clients),
        }
        return Inventory("test", "local", hosts, True, None, None)

    def run(self, clients: Sequence[str] = (CLIENT,), **fields: Any) -> Run:
        wanted = scenario.load(
            "million", {"connections": 3000, "hold_seconds": 0.5, "memory_floor_mib": 16, **fields}
        )
        return runner.run(
            wanted, self.inventory(clients), self.store, self.connect, self.seen.append
        )

    def agent_pid(self, name: str) -> int:
        return self.links[name].started[0].child.pid

    def await_hold(self) -> None:
        """Wait until the run has held for a while, so that its peak is counted."""
        while not (self.store.root / "latest").exists():
            held = [now for now in self.seen if now.phase == "hold"]
            if held and held[-1].seconds_left is not None and held[-1].seconds_left < 26:
                return
            time.sleep(0.01)

    def clean(self, states: Sequence[str] = ("all",)) -> bool:
        """Nothing of a run is left: processes, files, sockets (of some states of ss(8))."""
        gone = all(
            not running(process.child.pid)
            for link in self.links.values()
            for process in link.started
        )
        files = all(
            not Path(path).parent.exists() for link in self.links.values() for path in link.paths
        )
        sockets = "".join(
            self.net.run(name, "ss", "-Htan", "state", state)
            for name in ("server", "client")
            for state in states
        )
        return gone and files and not sockets.strip() and not any(LOCKS.iterdir())
