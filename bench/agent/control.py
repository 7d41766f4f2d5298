"""Who may be connected to: a server agent of this very run, on each port that is planned.

A server's doorkeeper answers the handshake (:mod:`bench.agent.handshake`) on the control port for
as long as the agent lives, and on the data ports until they are opened to connections. A client
has every server prove itself on its control port, and then every address and port that it is going
to connect to, from each of its own, before it opens anything else.

A target may be a stranger. So one source has it proven first; then no more handshakes with it are
under way than have passed, and one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from typing import Deque, Dict, Iterable, List, Sequence, Set, Tuple

from bench import wire
from bench.agent import handshake
from bench.agent.handshake import ClosedByPeer, Description, Refused

__all__ = ["Doorkeeper", "Refused", "family_of", "introduce", "vouched"]

MOST_PEERS = 512
"""Handshakes that a doorkeeper has under way. Others wait in the listeners' queues; peers that say
nothing make room for them."""

SILENT_SECONDS = 0.5
"""Until a peer that has not asked makes room: an agent asks with the segment that ends TCP's own
handshake, half a round trip after it was accepted."""

TRIES = 3
"""Of a source at a target that has proven itself to another one, and closes the connection: as a
queue does that is full where net.ipv4.tcp_abort_on_overflow is 1 (ip-sysctl.rst), and a doorkeeper
that has no room for who says nothing. Else a full queue only lets wait."""

WINDOW = 128
"""Handshakes that a client has under way."""

RELEASE_SECONDS = 5.0
"""For the doorkeeper's thread to let go of the data ports."""

_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Pair = Tuple[str, wire.Endpoint]


def family_of(address: str) -> int:
    """AF_INET or AF_INET6 of an address written out."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Doorkeeper(threading.Thread):
    """Answers the handshake on a server's ports, for many peers at a time."""

    def __init__(
        self,
        listener: socket.socket,
        nonce: str,
        endpoints: Sequence[wire.Endpoint],
        fronts: Sequence[wire.Endpoint] = (),
        doors: Iterable[socket.socket] = (),
    ) -> None:
        """:param doors: listeners of the data ports, answered on until :meth:`release`."""
        super().__init__(name="doorkeeper", daemon=True)
        self._nonce, self._endpoints, self._fronts = nonce, endpoints, fronts
        self._doors = {door.fileno(): door for door in doors}
        self._listeners = {listener.fileno(): listener, **self._doors}
        self._talks = handshake.Talks()
        self._wake_r, self._wake_w = socket.socketpair()
        self._released = threading.Event()
        self._listening = True
        for one in (*self._listeners.values(), self._wake_r):
            one.setblocking(False)
            self._talks.watch(one.fileno())

    def release(self) -> None:
        """Leave the data ports to others.

        :raises OSError: if the thread does not let go of them within :data:`RELEASE_SECONDS`.
        """
        self._wake_w.send(b"R")
        if not self._released.wait(RELEASE_SECONDS):
            raise OSError(errno.ETIMEDOUT, "the doorkeeper keeps the data ports")

    def close(self) -> None:
        """End the thread. The listeners are not closed."""
        with contextlib.suppress(OSError):
            self._wake_w.send(b"C")
        self.join(RELEASE_SECONDS)

    def run(self) -> None:
        """Serve until closed, or until the process ends."""
        closed = False
        while not closed:
            full = len(self._talks) >= MOST_PEERS
            self._listen(not full)
            _, moved = self._talks.turn(SILENT_SECONDS if full else 1.0)
            if full:
                self._talks.drop_silent(SILENT_SECONDS)
            for fd in moved:
                if fd == self._wake_r.fileno():
                    closed = self._obey(self._wake_r.recv(16))
                elif fd in self._listeners:
                    self._admit(self._listeners[fd])
        self._talks.close()
        self._wake_r.close()
        self._wake_w.close()

    def _listen(self, on: bool) -> None:
        """Wait for further peers, or leave them in the listeners' queues."""
        if on == self._listening:
            return
        for fd in self._listeners:
            self._talks.watch(fd) if on else self._talks.forget(fd)
        self._listening = on

    def _obey(self, orders: bytes) -> bool:
        """Let go of the data ports, or of everything; returns whether it is the end."""
        if b"R" in orders:
            for fd in self._doors:
                if self._listening:
                    self._talks.forget(fd)
                del self._listeners[fd]
            self._doors = {}
            self._released.set()
        return b"C" in orders

    def _admit(self, listener: socket.socket) -> None:
        """Begin the handshake with those who wait, as many as there is room for."""
        for _ in range(MOST_PEERS - len(self._talks)):
            try:
                peer, _ = listener.accept()
            except OSError as error:
                if error.errno in _SHORTAGE:
                    self._talks.turn(0.05)
                return
            try:
                peer.setblocking(False)
                address, port = peer.getsockname()[:2]
                said = handshake.describe((address, port), self._endpoints, self._fronts)
                self._talks.begin(peer, handshake.server(self._nonce, said))
            except OSError:  # it has gone again
                peer.close()


def introduce(control: wire.Endpoint, nonce: str, source: str) -> Set[wire.Endpoint]:
    """Prove this run to a server agent and have it proven; returns its endpoints and fronts.

    :raises Refused: if nobody is there, or not an agent of this run.
    """
    said = introductions([(source, control)], nonce)[source, control]
    return said.endpoints | said.fronts


def introductions(pairs: Iterable[Pair], nonce: str) -> Dict[Pair, Description]:
    """Have the server at each target proven, from each source; several at a time.

    A source of another IP version than the target is left to the kernel.

    :raises Refused: at the first that is not a server agent of this run; none is begun after it.
    """
    return _Introductions(pairs, nonce).all()


class _Introductions:
    """Handshakes with all targets; at a time, with each no more than have passed there, and one."""

    def __init__(self, pairs: Iterable[Pair], nonce: str) -> None:
        self._nonce = nonce
        self._waiting: Dict[wire.Endpoint, Deque[str]] = {}
        for source, target in pairs:
            self._waiting.setdefault(target, deque()).append(source)
        # A target has one turn, and two more for each handshake that has passed.
        self._turns = deque(self._waiting)
        self._proven: Set[wire.Endpoint] = set()
        self._closings: Dict[Pair, int] = {}
        self._found: Dict[Pair, Description] = {}
        self._refusal = ""

    def all(self) -> Dict[Pair, Description]:
        """Have all of them. :raises Refused: at the first that fails."""
        talks = handshake.Talks()
        try:
            while (self._turns and not self._refusal) or len(talks):
                while self._turns and not self._refusal and len(talks) < WINDOW:
                    self._begin(talks, self._turns.popleft())
                for ended in talks.turn(1.0)[0]:
                    self._over(ended.key, ended)
        finally:
            talks.close()
        if self._refusal:
            raise Refused(self._refusal)
        return self._found

    def _begin(self, talks: handshake.Talks, target: wire.Endpoint) -> None:
        if not self._waiting[target]:
            return
        source = self._waiting[target].popleft()
        try:
            link = _connecting(source, target)
            talks.begin(link, handshake.client(self._nonce), (source, target))
        except OSError as error:
            self._refuse(source, _unproven(target, error))

    def _over(self, pair: Pair, ended: handshake.Ended) -> None:
        source, target = pair
        if isinstance(ended.problem, ClosedByPeer) and self._may_try_again(pair):
            self._waiting[target].appendleft(source)
            self._turns.append(target)
        elif ended.problem:
            self._refuse(source, _unproven(target, ended.problem))
        else:
            self._found[pair] = ended.result
            self._proven.add(target)
            self._turns += (target, target)

    def _may_try_again(self, pair: Pair) -> bool:
        self._closings[pair] = self._closings.get(pair, 0) + 1
        return pair[1] in self._proven and self._closings[pair] < TRIES

    def _refuse(self, source: str, why: str) -> None:
        self._refusal = self._refusal or f"{why} (from {source})"


def _connecting(source: str, target: wire.Endpoint) -> socket.socket:
    link = socket.socket(family_of(target[0]), socket.SOCK_STREAM)
    try:
        link.setblocking(False)
        if family_of(source) == link.family:
            link.bind((source, 0))
        code = link.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        link.close()
        raise
    return link


def _unproven(target: wire.Endpoint, problem: Exception) -> str:
    why = (problem.strerror if isinstance(problem, OSError) else "") or str(problem)
    return f"{target[0]} port {target[1]} is not a server agent of this run: {why}"


def vouched(spec: wire.ClientSpec) -> None:
    """Have every server proven, and every target from every source that is to connect to it.

    :raises Refused: before any data connection has been made.
    """
    known: Set[wire.Endpoint] = set()
    fronts: Set[wire.Endpoint] = set()
    for said in introductions(_controls(spec), spec["nonce"]).values():
        known |= said.endpoints
        fronts |= said.fronts
    pairs = _pairs(spec["blocks"])
    allowed = known | fronts
    for _, target in pairs:
        if target not in allowed:
            raise Refused(f"{target[0]} port {target[1]} belongs to no server agent of this run")
    for (source, target), said in introductions(pairs, spec["nonce"]).items():
        # Behind a proxy it is the proxy that chooses.
        if said.here != target and not (target in fronts and said.here in known):
            raise Refused(
                f"{target[0]} port {target[1]} leads to {said.here[0]} port {said.here[1]} "
                f"(from {source})"
            )


def _controls(spec: wire.ClientSpec) -> List[Pair]:
    sources = [block["source"] for block in spec["blocks"]]
    pairs = []
    for control in spec["controls"]:
        same = [source for source in sources if family_of(source) == family_of(control[0])]
        pairs.append(((same or sources)[0], control))
    return pairs


def _pairs(blocks: Sequence[wire.TupleBlock]) -> List[Pair]:
    """Each source with each of its targets, once."""
    return list(
        dict.fromkeys(
            (block["source"], (block["target"], block["target_port"])) for block in blocks
        )
    )
