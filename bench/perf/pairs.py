"""Compiles a plain-C reference pair and runs it on the hosts of a lab."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import LabError
from bench.hosts.session import Connect
from bench.hosts.transport import Link, Process, drawn
from bench.inventory import Host

SOURCES = Path(__file__).parent
PORT = 5001
NAP_US = 5000
WINDOW = 1024
RESERVE = 64


@dataclass(frozen=True)
class Figure:
    """One run of one contestant."""

    connections: int
    seconds: float
    cpu_us: float
    """CPU time of its processes on all hosts per connection, µs (/proc/<pid>/schedstat). It
    includes softirq work that the kernel does in the caller's context, and excludes other
    processes."""

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self.connections / self.seconds


def compile_pair(name: str) -> bytes:
    """Build ``perf/<name>.c``. :raises LabError: with the compiler's words."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / name
        # Static, so that it runs on hosts with another libc.
        words = ["cc", "-O2", "-static", "-o", str(program), str(SOURCES / f"{name}.c")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"cc {name}.c: {done.stderr.strip()}")
        return program.read_bytes()


def cpu_ns(link: Link, pids: Sequence[int]) -> int:
    """Return the CPU time so far of some processes and their children, ns."""
    script = (
        'for p in "$@"; do cat /proc/$p/schedstat; '
        "for c in $(cat /proc/$p/task/$p/children); do cat /proc/$c/schedstat; done; done"
    )
    found = link.run(["sh", "-c", script, "sh", *map(str, pids)])
    return sum(int(line.split()[0]) for line in found.splitlines())


def per_process(share: int, hard: int) -> int:
    """Return the connections of one process: the limit minus two pipes for each other process."""
    processes = math.ceil(share / hard)
    while share > processes * (hard - RESERVE - 2 * processes):
        processes += 1
        if hard <= RESERVE + 2 * processes:
            raise LabError(f"a hard limit of {hard} open files is too low for {share} connections")
    return math.ceil(share / processes)


class _Side:
    """One program on one host."""

    def __init__(self, link: Link, program: bytes, words: Sequence[str], watch: bool) -> None:
        self.link = link
        self._path = link.put(program, drawn("pair"))
        env = ["env", "WATCH=1"] if watch else []
        start = ["sh", "-c", 'echo $$; exec "$@"', "sh", *env, self._path, *words]
        self._process: Process = link.start(start)
        self._lines: Iterator[bytes] = self._process.lines()
        self.pid = int(self.line())
        if self.line() != "ready":
            raise LabError("the pair did not start")

    def line(self) -> str:
        """Return its next line. :raises LabError: with its error output if it ended."""
        line = next(self._lines, None)
        if line is None:
            complaint = b" ".join(self._process.errors()).decode(errors="replace")
            raise LabError(f"the C pair ended: {complaint}")
        return line.decode()

    def go(self) -> None:
        """Send the start signal."""
        self._process.write(b"go\n")

    def end(self) -> None:
        """Close all its connections, and wait until it has ended."""
        self._process.close()
        wait = 'while [ -e "/proc/$1" ]; do sleep 0.1; done'
        self.link.run(["timeout", "25", "sh", "-c", wait, "sh", str(self.pid)])
        self.link.remove(self._path)


def run_pair(
    program: bytes,
    connect: Connect,
    server: Host,
    clients: Sequence[Host],
    connections: int,
    *,
    active: int,
    watch: bool,
) -> Figure:
    """Open ``connections`` with a C pair. :raises LabError: if one is lost."""
    links = [connect(host) for host in (server, *clients)]
    sides: list[_Side] = []
    try:
        hard = [int(link.run(["sh", "-c", "ulimit -Hn"])) for link in links]
        address = server.data_addresses[0]
        shares = [connections // len(clients)] * len(clients)
        shares[0] += connections - sum(shares)
        common = [address, str(PORT)]
        words = [str(connections), str(per_process(connections, hard[0])), str(active), str(NAP_US)]
        sides.append(_Side(links[0], program, ["server", *common, *words], watch))
        for host, link, share, limit in zip(clients, links[1:], shares, hard[1:], strict=True):
            words = [str(share), str(per_process(share, limit)), str(active), str(WINDOW)]
            words.append(host.data_addresses[0])
            sides.append(_Side(link, program, ["client", *common, *words], False))
        before = sum(cpu_ns(side.link, [side.pid]) for side in sides)
        began = time.monotonic()
        for side in sides[1:]:
            side.go()
        ends = [side.line().split() for side in sides[1:]]
        seconds = time.monotonic() - began
        used = sum(cpu_ns(side.link, [side.pid]) for side in sides) - before
        if [int(end[1]) for end in ends] != shares:
            raise LabError(f"the C pair lost connections: {ends}, expected {shares}")
        return Figure(connections, seconds, used / 1000 / connections)
    finally:
        for side in [*sides[1:], *sides[:1]]:
            side.end()
        for link in links:
            link.close()
