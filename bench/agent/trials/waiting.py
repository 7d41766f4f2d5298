"""The cost of a wake-up by one of N watched connections: select(2), poll(2) and epoll(7).

The connections are real TCP connections over loopback. This process has one end of each and a child
has the others, so that each connection counts only once against the limit on open files. One
connection in the middle has a byte that is never read. So every call returns at once
(level-triggered), and its time is the time to search the watched connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import statistics
import struct
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from bench.agent import sockets, workers
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import child

HOME = "127.0.0.1"

FD_SETSIZE = 1024
"""Descriptors of an ``fd_set`` (POSIX ``sys/select.h``; glibc's ``__FD_SETSIZE``)."""

SPARE = 64
"""Descriptors of each process that are not connections."""

PATIENCE = 30.0
"""Seconds that one connect, accept or answer of the child may take."""

BATCHES = 7
"""Timed batches of calls. Their median is reported, so that other activity counts less."""

_ORDER = struct.Struct("ii")


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Report the limit of select() and ``most``, how many can be watched; then carry out steps.

    A step watches ``watched`` connections, more than the step before. Its answer has, per
    multiplexer, ``wall_us`` and ``cpu_us`` for a call, or no entry if it cannot watch that many.
    ``milliseconds`` is the duration of a batch of calls.
    """
    files = workers.open_files("hard")
    milliseconds = args.get("milliseconds")
    if not isinstance(milliseconds, (int, float)) or not 0 < milliseconds <= 1000:
        raise Misuse(f"milliseconds: got {milliseconds!r}, expected above 0 and at most 1000")
    most = files - SPARE
    stage.tell(nofile=files, most=most, **_selects(files))
    with _listening() as (door, others):
        held: List[socket.socket] = []
        try:
            while True:
                step = stage.step() or {}
                wanted = step.get("watched")
                if not isinstance(wanted, int) or not len(held) < wanted <= most:
                    raise Misuse(
                        f"watched: got {wanted!r}, expected above {len(held)} and at most {most}"
                    )
                active = _grow(held, wanted, door, others)
                stage.tell(watched=wanted, **_measured(held, active.fileno(), milliseconds / 1000))
                active.recv(1)
        finally:
            for one in held:
                sockets.reset(one)


def _selects(files: int) -> Dict[str, Any]:
    """Find the lowest descriptor that select() refuses, its error text, and what select(2) does."""
    most = min(files - 1, 4 * FD_SETSIZE)
    ours, theirs = socket.socketpair()
    refused: Optional[int] = None
    words = ""
    above: Optional[bool] = None
    try:
        theirs.send(b"x")
        for number in range(FD_SETSIZE - 4, most):
            if _taken(number):
                continue
            os.dup2(ours.fileno(), number)
            try:
                select.select([number], [], [], 0)
            except ValueError as error:
                refused, words = number, str(error)
                above = _bare_select(number)
                break
            finally:
                os.close(number)
    finally:
        ours.close()
        theirs.close()
    return {"refused": refused, "words": words, "kernel_goes_on": above}


def _taken(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _bare_select(number: int) -> bool:
    """Return whether select(2) itself reports a descriptor, given a bitmap that is large enough."""
    libc = ctypes.CDLL(None, use_errno=True)
    bits = (ctypes.c_ulong * (number // (8 * ctypes.sizeof(ctypes.c_ulong)) + 1))()
    width = 8 * ctypes.sizeof(ctypes.c_ulong)
    bits[number // width] = 1 << (number % width)
    now = (ctypes.c_long * 2)(0, 0)  # struct timeval
    return int(libc.select(number + 1, bits, None, None, now)) == 1


@contextlib.contextmanager
def _listening() -> Iterator[Tuple[socket.socket, _Child]]:
    with socket.socket() as door:
        door.bind((HOME, 0))
        door.listen(1024)
        door.settimeout(PATIENCE)
        others = _Child(door.getsockname())
        try:
            yield door, others
        finally:
            others.end()


class _Child:
    """The process with the other ends. It ends when its orders end, or with its parent."""

    def __init__(self, target: Any) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()

        def body() -> None:
            os.close(self._orders)
            os.close(self._answers)
            _other_ends(target, orders, answers)

        self.pid = child.fork(body)
        os.close(orders)
        os.close(answers)

    def open(self, count: int, active: int) -> None:
        """Have it open ``count`` more connections, and write a byte to number ``active`` of all."""
        os.write(self._orders, _ORDER.pack(count, active))

    def opened(self) -> None:
        """Wait until it has opened them. :raises OSError: with its error text, if it could not."""
        ready, _, _ = select.select([self._answers], [], [], PATIENCE)
        said = os.read(self._answers, 512) if ready else b"no answer"
        if said != b"ok":
            raise OSError(0, f"the process with the other ends: {said.decode() or 'it has ended'}")

    def end(self) -> None:
        """End the child; it closes its sockets by RST."""
        os.close(self._orders)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


def _other_ends(target: Any, orders: int, answers: int) -> None:
    held: List[socket.socket] = []
    while True:
        order = os.read(orders, _ORDER.size)
        if len(order) < _ORDER.size:
            break
        count, active = _ORDER.unpack(order)
        try:
            for _ in range(count):
                made = socket.socket()
                made.settimeout(PATIENCE)
                held.append(made)
                made.connect(target)
            held[active].sendall(b"x")
            os.write(answers, b"ok")
        except OSError as error:
            os.write(answers, str(error).encode())
    for made in held:
        sockets.reset(made)


def _grow(
    held: List[socket.socket], count: int, door: socket.socket, others: _Child
) -> socket.socket:
    """Grow to ``count`` connections; return the one that has a byte to read."""
    missing = count - len(held)
    others.open(missing, count // 2)  # one process connects them in turn: both have the same order
    for _ in range(missing):
        one, _ = door.accept()
        held.append(one)
    others.opened()
    active = held[count // 2]
    active.settimeout(PATIENCE)
    active.recv(1, socket.MSG_PEEK)
    return active


def _measured(held: List[socket.socket], active: int, seconds: float) -> Dict[str, Any]:
    """Measure a call, by multiplexer; each has to report exactly the active connection."""
    numbers = [one.fileno() for one in held]
    found: Dict[str, Any] = {}
    if max(numbers) < FD_SETSIZE:
        found["select"] = _timed(lambda: select.select(numbers, [], [], 5)[0], [active], seconds)
    poll = select.poll()
    for number in numbers:
        poll.register(number, select.POLLIN)
    found["poll"] = _timed(lambda: poll.poll(5000), [(active, select.POLLIN)], seconds)
    with select.epoll() as epoll:
        for number in numbers:
            epoll.register(number, select.EPOLLIN)
        found["epoll"] = _timed(lambda: epoll.poll(5), [(active, select.EPOLLIN)], seconds)
    return found


def _timed(call: Callable[[], Any], expected: Any, seconds: float) -> Dict[str, float]:
    """Return wall and processor time of a call, µs: medians of :data:`BATCHES` batches.

    :raises OSError: if a call returns anything but ``expected``.
    """
    times = 1
    while True:
        began = time.perf_counter()
        for _ in range(times):
            got = call()
        took = time.perf_counter() - began
        if got != expected:
            raise OSError(0, f"got {got!r}, expected {expected!r}")
        if took >= seconds / 4:
            break
        times *= 2
    times = max(1, int(times * seconds / took))
    wall, cpu = [], []
    for _ in range(BATCHES):
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(times):
            call()
        cpu.append((time.process_time() - busy) / times * 1e6)
        wall.append((time.perf_counter() - began) / times * 1e6)
    return {"wall_us": statistics.median(wall), "cpu_us": statistics.median(cpu)}
