"""The proof before the ramp: clients connect only to server agents of their own run.

A server's doorkeeper answers the handshake (:mod:`bench.agent.handshake`). It does so on the
control port for as long as the agent lives, and on the data ports until they are opened to
connections. A client makes every server prove itself on its control port. Then it has every address
and port that it is going to connect to proven, from each of its own addresses. It opens nothing
else before that.

A target may belong to a stranger. So one source has it proven first. After that, the handshakes
under way with a target are never more than one plus those that have passed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from typing import Deque, Dict, FrozenSet, Iterable, List, NamedTuple, Sequence, Set, Tuple

from bench import wire
from bench.agent import handshake
from bench.agent.handshake import ClosedByPeer, Description, Refused, plain

__all__ = ["Doorkeeper", "Refused", "Way", "family_of", "introduce", "vouched"]

MOST_PEERS = 512
"""The most handshakes that a doorkeeper has under way. Other peers wait in the listeners' queues,
and peers that send nothing make room for them."""

SILENT_SECONDS = 0.5
"""Seconds until a peer that has not sent its challenge makes room. An agent sends it with the
segment that ends TCP's own handshake, half a round trip after it was accepted."""

TRIES = 3
"""Tries of one source at a target that has proven itself to another source, and now closes the
connection. A full queue does so where net.ipv4.tcp_abort_on_overflow is 1 (ip-sysctl.rst);
otherwise it only makes the client wait. A doorkeeper also does so when it has no room for a peer
that sends nothing."""

WINDOW = 128
"""The most handshakes that a client has under way."""

RELEASE_SECONDS = 5.0
"""Seconds for the doorkeeper's thread to release the data ports."""

_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Pair = Tuple[str, wire.Endpoint]


class Way(NamedTuple):
    """Proxies and routers that the lab itself puts between a client and its servers."""

    fronts: FrozenSet[wire.Endpoint] = frozenset()
    """Endpoints of proxies. A proxy chooses the server and the address from which it connects to
    it."""
    routers: FrozenSet[str] = frozenset()
    """Addresses of routers that a server may see in place of the client's."""


def way(fronts: Iterable[wire.Endpoint], routers: Iterable[str]) -> Way:
    """Return the :class:`Way` of a spec. :raises ValueError: if an entry is not an address."""
    return Way(
        frozenset((plain(address), port) for address, port in fronts),
        frozenset(map(plain, routers)),
    )


DIRECT = Way()


def family_of(address: str) -> int:
    """Return AF_INET or AF_INET6, whichever an address is of."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Doorkeeper(threading.Thread):
    """The thread that answers the handshake on a server's ports, for many peers at a time."""

    def __init__(
        self,
        listener: socket.socket,
        nonce: str,
        endpoints: Sequence[wire.Endpoint],
        fronts: Sequence[wire.Endpoint] = (),
        doors: Iterable[socket.socket] = (),
    ) -> None:
        """Watch the listeners.

        :param doors: listeners of the data ports, answered on until :meth:`release`
        """
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
        """Stop answering on the data ports.

        :raises OSError: if the thread does not release them within :data:`RELEASE_SECONDS`.
        """
        self._wake_w.send(b"R")
        if not self._released.wait(RELEASE_SECONDS):
            raise OSError(errno.ETIMEDOUT, "the doorkeeper did not release the data ports")

    def close(self) -> None:
        """End the thread. The listeners stay open."""
        with contextlib.suppress(OSError):
            self._wake_w.send(b"C")
        self.join(RELEASE_SECONDS)

    def run(self) -> None:
        """Serve until :meth:`close`, or until the process ends."""
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
        """Accept further peers, or leave them in the listeners' queues."""
        if on == self._listening:
            return
        for fd in self._listeners:
            self._talks.watch(fd) if on else self._talks.forget(fd)
        self._listening = on

    def _obey(self, orders: bytes) -> bool:
        """Release the data ports, or everything; return whether the thread has to end."""
        if b"R" in orders:
            for fd in self._doors:
                if self._listening:
                    self._talks.forget(fd)
                del self._listeners[fd]
            self._doors = {}
            self._released.set()
        return b"C" in orders

    def _admit(self, listener: socket.socket) -> None:
        """Begin the handshake with the peers that wait, as many as there is room for."""
        for _ in range(MOST_PEERS - len(self._talks)):
            try:
                peer, _ = listener.accept()
            except OSError as error:
                if error.errno in _SHORTAGE:
                    self._talks.turn(0.05)
                return
            try:
                peer.setblocking(False)
                door = listener.fileno() in self._doors
                ends = () if door else (self._endpoints, self._fronts)
                said = handshake.describe(peer, *ends)
                self._talks.begin(peer, handshake.server(self._nonce, said))
            except OSError:  # the peer is already gone
                peer.close()


def introduce(
    control: wire.Endpoint, nonce: str, source: str, between: Way = DIRECT
) -> FrozenSet[wire.Endpoint]:
    """Prove this run to a server agent, and have it prove itself; return its endpoints and fronts.

    :raises Refused: if no agent of this run answers there, or a relay is in between.
    """
    said = introductions([(source, control)], nonce, between)[source, control]
    return said.endpoints | said.fronts


def introductions(
    pairs: Iterable[Pair], nonce: str, between: Way = DIRECT
) -> Dict[Pair, Description]:
    """Have the server at each target proven, from each source, several at a time.

    If a source has another IP version than the target, the kernel chooses the source address.

    :raises Refused: at the first target that is not a server agent of this run, or is reached
        through a relay; no handshake begins after it.
    """
    return _Introductions(pairs, nonce, between).all()


class _Try(NamedTuple):
    """A handshake that a client has under way."""

    source: str
    target: wire.Endpoint
    own: wire.Endpoint
    """The client's end of the connection."""


class _Introductions:
    """Handshakes with all targets.

    The handshakes under way with a target are never more than one plus those that have passed
    there.
    """

    def __init__(self, pairs: Iterable[Pair], nonce: str, between: Way) -> None:
        self._nonce, self._between = nonce, between
        self._waiting: Dict[wire.Endpoint, Deque[str]] = {}
        for source, target in pairs:
            self._waiting.setdefault(target, deque()).append(source)
        # A target has one turn, and two more turns for each handshake that has passed.
        self._turns = deque(self._waiting)
        self._proven: Set[wire.Endpoint] = set()
        self._closings: Dict[Pair, int] = {}
        self._found: Dict[Pair, Description] = {}
        self._refusal = ""

    def all(self) -> Dict[Pair, Description]:
        """Complete all handshakes. :raises Refused: at the first that fails."""
        talks = handshake.Talks()
        try:
            while (self._turns and not self._refusal) or len(talks):
                while self._turns and not self._refusal and len(talks) < WINDOW:
                    self._begin(talks, self._turns.popleft())
                if not len(talks):  # the last turns were for targets that are all proven
                    continue
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
            own = link.getsockname()[:2]
            talks.begin(link, handshake.client(self._nonce), _Try(source, target, own))
        except OSError as error:
            self._refuse(source, _unproven(target, error))

    def _over(self, one: _Try, ended: handshake.Ended) -> None:
        if isinstance(ended.problem, ClosedByPeer) and self._may_try_again(one):
            self._waiting[one.target].appendleft(one.source)
            self._turns.append(one.target)
        elif ended.problem:
            self._refuse(one.source, _unproven(one.target, ended.problem))
        elif astray := _astray(one, ended.result, self._between):
            self._refuse(one.source, astray)
        else:
            self._found[one.source, one.target] = ended.result
            self._proven.add(one.target)
            self._turns += (one.target, one.target)

    def _may_try_again(self, one: _Try) -> bool:
        pair = one.source, one.target
        self._closings[pair] = self._closings.get(pair, 0) + 1
        return one.target in self._proven and self._closings[pair] < TRIES

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


def _astray(one: _Try, said: Description, between: Way) -> str:
    """Return what is wrong with the path to a proven server; empty if it is the lab's own path."""
    target, own = ((plain(address), port) for address, port in (one.target, one.own))
    if target in between.fronts:
        return ""
    if said.here != target:
        return _leads_to(target, said.here)
    if said.peer != own and said.peer[0] not in between.routers:
        return (
            f"{target[0]} port {target[1]} is reached through a relay: it sees "
            f"{said.peer[0]} port {said.peer[1]}, this is {own[0]} port {own[1]}"
        )
    return ""


def _leads_to(target: wire.Endpoint, here: wire.Endpoint) -> str:
    return f"{target[0]} port {target[1]} leads to {here[0]} port {here[1]}"


def vouched(spec: wire.ClientSpec) -> None:
    """Have every server proven, and every target from every source that will connect to it.

    :raises Refused: if one proof fails; no data connection has been made then.
    """
    between = way(spec["fronts"], spec["routers"])
    known: Set[wire.Endpoint] = set()
    allowed: Set[wire.Endpoint] = set()
    for said in introductions(_controls(spec), spec["nonce"], between).values():
        known |= said.endpoints
        allowed |= said.endpoints | said.fronts
    pairs = _pairs(spec["blocks"])
    for _, target in pairs:
        if target not in allowed:
            raise Refused(f"{target[0]} port {target[1]} belongs to no server agent of this run")
    for (source, target), said in introductions(pairs, spec["nonce"], between).items():
        if said.here not in known:  # the proxy chooses which of them
            raise Refused(f"{_leads_to(target, said.here)} (from {source})")


def _controls(spec: wire.ClientSpec) -> List[Pair]:
    sources = [block["source"] for block in spec["blocks"]]
    pairs = []
    for control in spec["controls"]:
        same = [source for source in sources if family_of(source) == family_of(control[0])]
        pairs.append(((same or sources)[0], control))
    return pairs


def _pairs(blocks: Sequence[wire.TupleBlock]) -> List[Pair]:
    """Return each pair of a source and one of its targets, once."""
    return list(
        dict.fromkeys(
            (block["source"], (block["target"], block["target_port"])) for block in blocks
        )
    )
