"""A server worker: it accepts, holds and answers connections, and closes what the peer has closed.

Only the few workers that hold a baton accept. An acceptor drains the accept queue and then naps, so
that it pays for one wake-up per few hundred connections and not for each. Connections wait in the
queue (backlog) meanwhile. The other workers sleep in epoll_wait(2) until something happens on one
of their connections.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import time
from array import array
from functools import partial
from itertools import islice, repeat
from typing import Callable, Dict, List, Sequence, Tuple

from bench import wire
from bench.agent import board as cell
from bench.agent import sweep
from bench.agent.workers import DONE, PASS

BATCH = 512
"""Connections that are accepted before orders and closes are looked at again."""

COLD_AFTER = 1.0
"""Seconds with an empty accept queue after which an acceptor stops napping and sleeps until the
listener wakes it."""

_LINGERING = 0.1
"""Seconds between two sweeps of a worker that has to answer but does not watch its sockets."""

CLOSING_NAP = 0.005
"""Seconds to wait for more hang-ups after the first ones, so that a drain wakes a worker once for
hundreds of them."""

_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORTAGE_NAP = 0.05
"""Seconds until accept(2) is tried again after one of these errors."""

# accept4(2) without the peer's address, which the socket module would format as text for each
# connection. PyDLL keeps the interpreter's lock: the call does not block, and no other thread needs
# the lock.
_accept4 = ctypes.PyDLL(None).accept4

_BYTES_AT_ONCE = 256
"""Bytes read from a connection at a time in a round. This is small enough for the interpreter's own
pools, which serve up to 512 bytes with the object's header (Objects/obmalloc.c
SMALL_REQUEST_THRESHOLD)."""

Events = List[Tuple[int, int]]

_WATCHED = select.EPOLLIN | select.EPOLLRDHUP
_OVER = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


def _waits(listener: socket.socket) -> bool:
    """Return whether a connection waits in a listener's accept queue."""
    return bool(sweep.ready([listener.fileno()]))


class Acceptor:
    """One worker's connections, stored as one flag per descriptor."""

    def __init__(
        self,
        board: cell.Board,
        worker: int,
        orders: int,
        ring: Callable[[bytes], None],
        spec: wire.ServerSpec,
        listeners: List[socket.socket],
        room: Tuple[int, int],
    ) -> None:
        """Take over the listeners of one worker.

        :param room: how many connections are planned for this worker, and the most descriptors it
            can have
        """
        self._row = board.row(worker)
        self._everyones_full = board.column(cell.FULL)
        self._shares = spec["listener"] == "shared"
        self._common = board.common
        self._orders, self._ring = orders, ring
        self._nonce = spec["nonce"]
        self._nap = spec["nap_ms"] / 1000
        self._watches = spec["watch"] == "epoll"
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._room, self._most = room
        self._held = bytearray(max(self._room + 4096, self._most))
        self._count = self._opened = self._closed = 0
        self._partial: Dict[int, bytes] = {}
        self._epoll = select.epoll()
        self._epoll.register(orders, select.EPOLLIN)
        self._accepting = self._cold = self._stopped = self._more = False
        self._last = self._swept = self._again = 0.0

    def run(self) -> None:
        """Work until the order to stop comes."""
        while not self._stopped:
            if self._accepting and self._common[cell.HALT]:
                self._baton(False)
            if self._accepting and not self._cold and self._may_ask():
                self._drain_queue()
            events = self._epoll.poll(self._patience(), BATCH)
            if self._common[cell.ANSWER] == cell.BYTE:
                events = self._answer_bytes(events)
            over: List[int] = []
            for fd, event in events:
                if fd == self._orders:
                    self._obey(os.read(fd, 1))
                elif fd in self._listeners:
                    if self._cold:  # an order or another listener may have warmed it just before
                        self._warm()
                elif event & _OVER:
                    over.append(fd)
                else:
                    self._reply(fd)
            if events:
                # An order among these events may have closed everything already.
                self._close([fd for fd in over if self._held[fd]])
                self._publish()
                if 0 < len(over) < BATCH:  # after one hang-up, many follow
                    time.sleep(CLOSING_NAP)
            elif self._common[cell.ANSWER] and not self._watches:
                self._sweep(at_most_every=_LINGERING)

    def _patience(self) -> float:
        if self._accepting and not self._cold:
            short = self._again - time.monotonic()
            if short > 0:
                return short
            if self._more:
                return 0
            if self._nap < 0.001:  # epoll_wait(2) counts in whole milliseconds
                time.sleep(self._nap)
                return 0
            return self._nap
        return _LINGERING if self._common[cell.ANSWER] and not self._watches else -1

    # Accepting.

    def _may_ask(self) -> bool:
        return not self._common[cell.PAUSE] and time.monotonic() >= self._again

    def _warm(self) -> None:
        """Stop watching the listeners, as a connection came, and nap between drains again."""
        for fd in self._listeners:
            self._epoll.unregister(fd)
        self._cold = False
        self._last = time.monotonic()

    def _chill(self) -> None:
        """Sleep until the listener wakes this worker, since no connections come any more.

        If no epoll watch is left (fs.epoll.max_user_watches), the worker goes on napping.
        """
        watched = []
        try:
            for fd in self._listeners:
                self._epoll.register(fd, select.EPOLLIN)
                watched.append(fd)
            self._cold = True
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            for fd in watched:
                self._epoll.unregister(fd)
            self._last = time.monotonic()

    def _baton(self, held: bool) -> None:
        if self._cold:
            self._warm()
        self._accepting = held
        self._last = time.monotonic()

    def _drain_queue(self) -> None:
        before = self._count
        room = self._most if self._common[cell.STRETCH] else self._room
        for listener in self._askable():
            self._accept(listener, min(BATCH, room - self._count))
            if self._row[cell.FULL]:
                break
        self._publish()
        self._more = self._count - before >= BATCH
        if self._count >= room or (self._row[cell.FULL] and self._others_can()):
            self._baton(False)
            self._ring(PASS)
        elif self._count > before:
            self._last = time.monotonic()
        elif time.monotonic() - self._last > COLD_AFTER:
            self._chill()

    def _askable(self) -> List[socket.socket]:
        """Return the listeners; if descriptors are short, only those with a queued connection."""
        listeners = list(self._listeners.values())
        return [one for one in listeners if _waits(one)] if self._row[cell.FULL] else listeners

    def _others_can(self) -> bool:
        """Return whether another worker could accept what is queued here."""
        return self._shares and not all(self._everyones_full)

    def _accept(self, listener: socket.socket, most: int) -> None:
        """Accept up to ``most`` queued connections. The loops run in C, without bytecode."""
        take = partial(_accept4, listener.fileno(), None, None, socket.SOCK_CLOEXEC)
        fds = list(islice(iter(take, -1), most))
        try:
            if len(fds) < most:  # call once more, in a way that raises the error
                fds.append(listener._accept()[0])  # type: ignore[attr-defined]
        except BlockingIOError:
            pass
        except OSError as error:
            self._mishap(error.errno or 0, listener)
        for fd in fds:
            self._held[fd] = 1
        self._count += len(fds)
        self._opened += len(fds)
        if self._watches:
            self._watch(fds)

    def _watch(self, fds: List[int]) -> None:
        watched: List[None] = []
        while len(watched) < len(fds):
            try:
                rest = fds[len(watched) :]
                watched.extend(map(self._epoll.register, rest, repeat(_WATCHED)))
            except OSError as error:  # ENOSPC: fs.epoll.max_user_watches
                self._row[cell.ERRORS + (error.errno or 0)] += 1
                self._reset([fds[len(watched)]])  # cannot be watched, so cannot be served
                watched.append(None)

    def _mishap(self, code: int, listener: socket.socket) -> None:
        """Count an error of accept(2).

        Held connections stay; queued ones are accepted later.

        accept(2) allocates a descriptor and a file before it looks at the queue (net/socket.c
        ``__sys_accept4_file``). So it fails for want of them on an empty queue too, and such a
        failure refused no connection.
        """
        if code == errno.EMFILE:
            self._row[cell.FULL] = 1
        if code in _SHORTAGE:
            self._again = time.monotonic() + _SHORTAGE_NAP
        if code not in (errno.EMFILE, errno.ENFILE) or _waits(listener):
            self._row[cell.ERRORS + code] += 1

    # Holding.

    def _close(self, fds: Sequence[int]) -> None:
        sweep.close(fds)
        self._forget(fds)

    def _reset(self, fds: Sequence[int]) -> None:
        sweep.reset(fds)
        self._forget(fds)

    def _forget(self, fds: Sequence[int]) -> None:
        for fd in fds:
            self._held[fd] = 0
        if self._partial:
            for fd in fds:
                self._partial.pop(fd, None)
        if fds:
            self._row[cell.FULL] = 0
        self._count -= len(fds)
        self._closed += len(fds)

    def _publish(self) -> None:
        row = self._row
        row[cell.HELD], row[cell.OPENED], row[cell.CLOSED] = (
            self._count,
            self._opened,
            self._closed,
        )

    def _reply(self, fd: int) -> None:
        try:
            data = self._partial.pop(fd, b"") + os.read(fd, 4096)
        except OSError:
            self._close([fd])
            return
        if not data:
            self._close([fd])
            return
        for start in range(0, len(data) - wire.ECHO_BYTES + 1, wire.ECHO_BYTES):
            answer = wire.echo_reply(self._nonce, data[start : start + wire.ECHO_BYTES])
            if answer is None:
                self._row[cell.WRONG] += 1
                continue
            try:
                os.write(fd, answer)
            except OSError:  # the client has hung up meanwhile
                self._close([fd])
                return
            self._row[cell.ANSWERED] += 1
        rest = len(data) % wire.ECHO_BYTES
        if rest:
            self._partial[fd] = data[-rest:]

    def _answer_bytes(self, events: Events) -> Events:
        """Answer each byte that has arrived; return the other events.

        The loop runs in C: zip() and map() take one connection through read and write before they
        turn to the next.
        """
        held = self._held
        asking = [fd for fd, event in events if event == select.EPOLLIN and held[fd]]
        if not asking:
            return events
        answers = wire.round_answers(self._nonce)
        found = map(os.read, asking, repeat(_BYTES_AT_ONCE))
        steps = map(os.write, asking, map(bytes.translate, found, repeat(answers)))
        done: List[int] = []
        over: List[int] = []
        while len(done) < len(asking):
            try:
                done.extend(steps)
            except OSError:  # the connection after the last one that is done has hung up
                over.append(asking[len(done)])
                done.append(0)
        self._row[cell.ANSWERED] += sum(done)
        self._close(over)
        if len(asking) == len(events):
            self._publish()
            return []
        return [(fd, event) for fd, event in events if event != select.EPOLLIN or not held[fd]]

    def _fds(self) -> array[int]:
        """Return the held descriptors, 4 bytes each: as a list, a million would take 38 MB."""
        return array("i", (fd for fd, flag in enumerate(self._held) if flag))

    def _sweep(self, at_most_every: float = 0) -> None:
        """Do the work that epoll would have reported: close closed connections, answer requests."""
        if time.monotonic() - self._swept < at_most_every:
            return
        for chunk in sweep.chunks(self._fds()):
            for fd, event in sweep.ready(chunk):
                if event & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                    self._close([fd])
                else:
                    self._reply(fd)
            self._publish()
        self._swept = time.monotonic()

    # Orders.

    def _obey(self, order: bytes) -> None:
        """Carry out an order.

        A: accept. H: stop accepting and shut the accept queue. C: sweep now. V: verify. D: drain.
        Any other: reset everything and stop.
        """
        if order == b"A":
            self._baton(True)
            return
        if order == b"H":
            self._baton(False)
            for listener in self._listeners.values():
                listener.listen(0)
            return
        if order == b"C":
            if not self._watches:
                self._sweep()
        elif order == b"V":
            self._verify()
        elif order == b"D":
            self._drain()
        else:
            self._stopped = True
            self._drain(pace=False)
        self._publish()
        self._ring(DONE)

    def _verify(self) -> None:
        fds = self._fds()
        dead = sweep.dead(fds)
        self._row[cell.ALIVE], self._row[cell.DEAD] = len(fds) - len(dead), len(dead)
        self._close(dead)

    def _drain(self, pace: bool = True) -> None:
        if pace and not self._watches:
            self._sweep()
        shut = self._close if pace and self._common[cell.HOW] == cell.FIN else self._reset
        for _ in sweep.close_all(self._fds(), shut, self._rate if pace else lambda: 0.0):
            self._publish()

    def _rate(self) -> float:
        if self._common[cell.OVER]:  # the agent is ending, and does not wait for long
            return 0.0
        return float(self._common[cell.RATE]) / max(1, self._common[cell.ACTIVE])
