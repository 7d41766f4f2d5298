"""A server worker: accepts, holds, answers, and closes what the peer has closed.

Acceptors are the few workers that hold a baton. An acceptor drains the queue and then naps, so
that a wake-up is paid once for some hundred connections and not for each; the queue (backlog)
keeps them meanwhile. The others sleep in epoll_wait(2) until one of their connections moves.
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
"""Accepts between two looks at orders and closes."""

COLD_AFTER = 1.0
"""Seconds of empty naps until an acceptor stops napping and waits to be woken instead."""

_LINGERING = 0.1
"""Seconds between two sweeps while a worker that does not watch has been told to answer."""

CLOSING_NAP = 0.005
"""Seconds to gather further hang-ups after some: a drain then wakes a worker once for hundreds."""

_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORTAGE_NAP = 0.05
"""Seconds until accept(2) is asked again after one of these."""

# accept4(2) without the peer's address, which the socket module would write out as text for each.
# PyDLL keeps the interpreter's lock: the call does not block, and nobody else wants the lock.
_accept4 = ctypes.PyDLL(None).accept4

_BYTES_AT_ONCE = 256
"""Read at a time of a connection in a round: small enough for the interpreter's own pools, which
serve up to 512 with the object's header (Objects/obmalloc.c SMALL_REQUEST_THRESHOLD)."""

Events = List[Tuple[int, int]]

_WATCHED = select.EPOLLIN | select.EPOLLRDHUP
_OVER = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


def _waits(listener: socket.socket) -> bool:
    """Whether somebody is in a listener's queue."""
    return bool(sweep.ready([listener.fileno()]))


class Acceptor:
    """One worker's connections: a flag per descriptor, nothing else."""

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
        """``room``: connections that are planned for, and descriptors that there are at most."""
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
        """Work until told to stop."""
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
                    if self._cold:  # an order or another listener may have come just before
                        self._warm()
                elif event & _OVER:
                    over.append(fd)
                else:
                    self._reply(fd)
            if events:
                # An order among the events may have closed everything already.
                self._close([fd for fd in over if self._held[fd]])
                self._publish()
                if 0 < len(over) < BATCH:  # where one hangs up, many follow
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
        """A connection came: nap between drains from now on."""
        for fd in self._listeners:
            self._epoll.unregister(fd)
        self._cold = False
        self._last = time.monotonic()

    def _chill(self) -> None:
        """Nothing comes any more: sleep until the listener wakes this worker.

        Where no watch is left (fs.epoll.max_user_watches), it goes on napping.
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
        """The listeners, or where descriptors are short those with somebody in their queue."""
        listeners = list(self._listeners.values())
        return [one for one in listeners if _waits(one)] if self._row[cell.FULL] else listeners

    def _others_can(self) -> bool:
        """Whether somebody else could take what is queued here."""
        return self._shares and not all(self._everyones_full)

    def _accept(self, listener: socket.socket, most: int) -> None:
        """Take what is queued, at most ``most``; the loops are the interpreter's own."""
        take = partial(_accept4, listener.fileno(), None, None, socket.SOCK_CLOEXEC)
        fds = list(islice(iter(take, -1), most))
        try:
            if len(fds) < most:  # ask again, in a way that raises what is the matter
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
                self._reset([fds[len(watched)]])  # what cannot be watched cannot be served
                watched.append(None)

    def _mishap(self, code: int, listener: socket.socket) -> None:
        """Count an error of accept(2). What is held is held; what waits is asked for again.

        accept(2) takes a descriptor and a file before it looks (net/socket.c
        ``__sys_accept4_file``), so it lacks them for an empty queue as well: that refused nobody.
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
            except OSError:  # it has hung up in the meantime
                self._close([fd])
                return
            self._row[cell.ANSWERED] += 1
        rest = len(data) % wire.ECHO_BYTES
        if rest:
            self._partial[fd] = data[-rest:]

    def _answer_bytes(self, events: Events) -> Events:
        """Answer each byte that has come on a connection; returns the other events.

        The loop is the interpreter's own: zip() and map() take one connection through read and
        write before they ask for the next.
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
            except OSError:  # the one after the last done has hung up
                over.append(asking[len(done)])
                done.append(0)
        self._row[cell.ANSWERED] += sum(done)
        self._close(over)
        if len(asking) == len(events):
            self._publish()
            return []
        return [(fd, event) for fd, event in events if event != select.EPOLLIN or not held[fd]]

    def _fds(self) -> array[int]:
        """What is held, 4 bytes each: as a list, a million of them would take 38 MB."""
        return array("i", (fd for fd, flag in enumerate(self._held) if flag))

    def _sweep(self, at_most_every: float = 0) -> None:
        """Do what epoll would have told of: close what is closed, answer what asks."""
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
        """A: accept. H: close the door. C: sweep now. V: verify. D: drain. S: stop."""
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
