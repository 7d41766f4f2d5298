"""The cost of a lookup in established-hash tables of different sizes.

Runs as root. A network namespace takes the size of its table from tcp_child_ehash_entries of the
namespace that it is created in (net/ipv4/tcp_ipv4.c ``tcp_set_hashinfo``, Linux 6.1). So for each
step, a process creates its own namespace with a table of the requested size, and in it connections
over loopback. They are gone with the namespace, and the host's own table is never touched.

``args``: ``connections`` of each step; ``echoes``, the round trips when all are open. A step:
``entries`` of the table.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import random
import resource
import signal
import socket
import statistics
import struct
import time
from typing import Any, Dict, List, Tuple

from bench.agent import probe, sweep, workers
from bench.agent.memory import Gauge
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import child
from bench.agent.trials.guard import Settings

KEY = "net.ipv4.tcp_child_ehash_entries"
OWN = "/proc/sys/net/ipv4/tcp_ehash_entries"
"""Size of the namespace's own table; negative if it shares the first namespace's table."""

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # include/uapi/linux/sockios.h, if.h

MOST = 1_000_000
"""The most connections of a step."""

BOTH_ENDS_KIB = 9
"""Memory of both sockets of a connection, with their descriptors (bench.model.objects)."""

FLOOR_KIB = 512 * 1024
"""Memory that has to stay free."""

CHUNK = 50
"""Operations that are timed together, a few milliseconds. The lowest decile of all chunks counts,
which leaves out chunks in which other processes ran."""

OWN_FDS = 64
FIRST_PORT, PORT = 2_048, 5_000


class CannotMake(Exception):
    """This host cannot create such a namespace; that is no fault of the experiment."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Report whether it can be done here (``reason`` if not), then the figures of each step."""
    connections, echoes = int(args["connections"]), int(args["echoes"])
    if not 1 <= connections <= MOST:
        raise Misuse(f"connections: got {connections}, expected 1 to {MOST}")
    gauge = Gauge()
    free, wanted = gauge.read().free, connections * BOTH_ENDS_KIB + FLOOR_KIB
    gauge.close()
    reason = "" if free >= wanted else f"{free >> 10} MiB are free, {wanted >> 10} MiB are needed"
    answer: Dict[str, Any] = {"reason": reason}
    while True:
        stage.tell(**answer)
        step = stage.step() or {}
        if not step.get("entries"):
            return {"reason": ""}
        try:
            answer = {"reason": "", **_one(int(step["entries"]), connections, echoes)}
        except CannotMake as why:
            answer = {"reason": str(why)}


def _one(entries: int, connections: int, echoes: int) -> Dict[str, Any]:
    """Measure one table, in a process with its own namespace; return the figures."""
    settings = Settings()
    reading, writing = os.pipe()
    pid = 0
    try:
        try:
            settings.heal()
            settings.sysctl(KEY, str(entries))
        except (OSError, probe.Unreadable) as error:
            raise CannotMake(f"{KEY} cannot be set ({error})") from error
        pid = child.fork(lambda: _hold(writing, entries, connections, echoes))
        os.close(writing)
        writing = -1
        with os.fdopen(os.dup(reading), "rb") as lines:
            entered = json.loads(lines.readline() or b"{}")
            settings.put_back()  # the namespace has its table
            if "reason" in entered:
                raise CannotMake(str(entered["reason"]))
            told = json.loads(lines.readline() or b"{}")
        if "chunks" not in told:
            raise OSError(0, str(told.get("error", "the process that held the connections died")))
        return dict(told)
    finally:
        settings.put_back()
        os.close(reading)
        if writing >= 0:
            os.close(writing)
        if pid:
            os.kill(pid, signal.SIGKILL)  # its workers die with it
            os.waitpid(pid, 0)


def _hold(out: int, entries: int, connections: int, echoes: int) -> None:
    """Act as the process with the namespace: its workers fill the table in turn, then echo."""

    def say(**figures: Any) -> None:
        os.write(out, json.dumps(figures).encode() + b"\n")

    try:
        own = enter(entries)
    except CannotMake as why:
        say(reason=str(why))
        return
    say(entries=own)
    try:
        workers.open_files("hard")
        each = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OWN_FDS) // 2
        each = min(each, 65_536 - FIRST_PORT)
        crew: List[_Worker] = []
        opened: List[Tuple[int, float]] = []
        held = 0
        while held < connections:
            share = min(each, connections - held)
            crew.append(_Worker(len(crew), share))
            held += share
            opened += [(held, figure) for figure in crew[-1].ask(b"O")]
        chunks = [figure for one in crew for figure in one.ask(b"E", -(-echoes // len(crew)))]
        # Before the figures: otherwise the next step would run during seconds of closing.
        for one in crew:
            one.ask(b"C")
        say(entries=own, chunks=len(chunks), connect_us=_steps(opened, held), held=held,
            echo_us=round(decile(chunks), 2))  # fmt: skip
    except (OSError, EOFError) as error:
        say(error=str(error) or "a worker died")


def enter(entries: int) -> int:
    """Move this process into its own network namespace, with loopback up.

    :return: entries of its established-hash table
    :raises CannotMake: if that is not allowed, or the namespace has no table of its own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise CannotMake(f"unshare(CLONE_NEWNET): {errno.errorcode.get(code, str(code))}")
    own = int(probe.text(OWN))
    if own != entries:
        raise CannotMake(f"asked for a table of {entries} entries, got one of {own}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        name = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(link, SIOCGIFFLAGS, name))[1]
        fcntl.ioctl(link, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    return own


class _Worker:
    """A process that holds both ends of its share; asked in turn, so that figures stay separate."""

    def __init__(self, number: int, share: int) -> None:
        theirs, self._in = os.pipe()
        self._out, their_out = os.pipe()

        def body() -> None:
            os.close(self._in)
            os.close(self._out)
            _work(theirs, their_out, number, share)

        child.fork(body)
        os.close(theirs)
        os.close(their_out)
        self._lines = os.fdopen(self._out, "rb")

    def ask(self, order: bytes, count: int = 0) -> List[float]:
        """Send an order; return the figures, µs an operation.

        :raises EOFError: if the worker died.
        """
        os.write(self._in, order + struct.pack("<I", count))
        line = self._lines.readline()
        if not line:
            raise EOFError
        told = json.loads(line)
        if "error" in told:
            raise OSError(0, told["error"])
        return [float(one) for one in told["figures"]]


def _work(orders: int, out: int, number: int, share: int) -> None:
    """Open, echo and close, as ordered."""
    ends: List[Tuple[socket.socket, socket.socket]] = []
    while True:
        order = os.read(orders, 5)
        if len(order) < 5:
            return
        try:
            if order[:1] == b"O":
                figures = _open(ends, number, share)
            elif order[:1] == b"E":
                figures = _echo(ends, struct.unpack("<I", order[1:])[0])
            else:
                sweep.reset([near.detach() for near, _ in ends])
                for _, far in ends:
                    far.close()
                ends.clear()
                figures = []
        except OSError as error:
            os.write(out, json.dumps({"error": f"worker {number + 1}: {error}"}).encode() + b"\n")
            return
        os.write(out, json.dumps({"figures": figures}).encode() + b"\n")


def _open(ends: List[Tuple[socket.socket, socket.socket]], number: int, share: int) -> List[float]:
    """Connect and accept one after the other; return µs a connection, by chunk."""
    high, low = divmod(number + 1, 250)
    source, target = f"127.1.{high}.{low + 1}", (f"127.2.{high}.{low + 1}", PORT)
    with socket.socket() as listener:
        listener.bind(target)
        listener.listen(16)
        figures = []
        for start in range(0, share, CHUNK):
            count = min(CHUNK, share - start)
            began = time.perf_counter_ns()
            for port in range(FIRST_PORT + start, FIRST_PORT + start + count):
                near = socket.socket()
                near.bind((source, port))
                near.connect(target)
                ends.append((near, listener.accept()[0]))
            figures.append((time.perf_counter_ns() - began) / 1000 / count)
    return figures


def _echo(ends: List[Tuple[socket.socket, socket.socket]], count: int) -> List[float]:
    """Send a byte each way on random connections; return µs a round trip, by chunk."""
    chosen = random.Random(count).choices(ends, k=max(CHUNK, count))
    figures = []
    for start in range(0, len(chosen) - CHUNK + 1, CHUNK):
        began = time.perf_counter_ns()
        for near, far in chosen[start : start + CHUNK]:
            near.send(b"?")
            far.recv(1)
            far.send(b"!")
            near.recv(1)
        figures.append((time.perf_counter_ns() - began) / 1000 / CHUNK)
    return figures


def _steps(opened: List[Tuple[int, float]], held: int, steps: int = 8) -> List[Dict[str, Any]]:
    """Return the chunks of the ramp as a few steps: held at the end of each, µs a connection."""
    found = []
    for number in range(steps):
        part = opened[len(opened) * number // steps : len(opened) * (number + 1) // steps]
        if part:
            us = decile([figure for _, figure in part])
            found.append({"held": held * (number + 1) // steps, "us": round(us, 2)})
    return found


def decile(figures: List[float]) -> float:
    """Return the lowest decile, not below the least figure."""
    if len(figures) == 1:
        return figures[0]
    # Inclusive: with few figures that differ much, the exclusive method goes below the least.
    return statistics.quantiles(figures, n=10, method="inclusive")[0]
