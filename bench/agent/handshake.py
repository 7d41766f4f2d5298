"""The nonce handshake: each side proves that it belongs to this run, and neither sends the nonce.

It runs on the control port, and on every data port before the first data connection::

    client -> server   challenge                                     16 bytes
    server -> client   proof("server", challenge), own challenge     32 + 16 bytes
    client -> server   proof("client", own challenge)                32 bytes
    server -> client   length, its description as JSON, proof("endpoints", JSON + challenge)

``wire.proof`` is an HMAC keyed by the nonce. The JSON gives the address and port that the client
has reached, and from which address and port, as the server's own socket reports them. So a client
notices a port that leads elsewhere, even to another server of the same run, and a relay that passes
on what both sides send. On the control port the JSON also lists the server's data endpoints.

Each side is a generator. It yields what to send and how many bytes to wait for, receives those
bytes, and returns its result. :class:`Talks` drives many of them at a time, each with a deadline.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import json
import os
import select
import socket
import struct
import time
from typing import Any, Dict, FrozenSet, Generator, List, NamedTuple, Optional, Sequence, Tuple

from bench import wire
from bench.agent.sockets import reset_on_close

SECONDS = 5.0
"""Seconds for one whole handshake. With that of the TCP connection it takes four round trips. At
300 ms each these take 1.2 s, and one lost SYN is sent again after 1 s (RFC 6298)."""

DESCRIPTION_BYTES = 1 << 20
"""The longest description that a server may send: room for some 30,000 endpoints."""

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 16

Script = Generator[Tuple[bytes, int], bytes, Any]


class Refused(Exception):
    """The peer is not an agent of this run."""


class ClosedByPeer(OSError):
    """The peer closed the connection during the handshake: it may have no room just now."""


class Description(NamedTuple):
    """A server agent's description of itself."""

    here: wire.Endpoint
    """The server's end of the connection that this was sent on."""
    peer: wire.Endpoint
    """The other end of that connection, as the server sees it."""
    endpoints: FrozenSet[wire.Endpoint]
    """Where it listens for data; sent on the control port only."""
    fronts: FrozenSet[wire.Endpoint]
    """Endpoints of proxies that lead to those."""


def describe(
    link: socket.socket,
    endpoints: Sequence[wire.Endpoint] = (),
    fronts: Sequence[wire.Endpoint] = (),
) -> bytes:
    """Return a server's description of itself, as it is sent on a connection."""
    ends = {"here": link.getsockname()[:2], "peer": link.getpeername()[:2]}
    return json.dumps({**ends, "endpoints": list(endpoints), "fronts": list(fronts)}).encode()


def _described(text: bytes) -> Description:
    """Check and return a description. :raises Refused: if it is not one."""
    try:
        fields = json.loads(text)
        return Description(
            _endpoint(fields["here"]),
            _endpoint(fields["peer"]),
            frozenset(map(_endpoint, fields["endpoints"])),
            frozenset(map(_endpoint, fields["fronts"])),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused("bad description") from error


def _endpoint(entry: Any) -> wire.Endpoint:
    address, port = entry
    if not isinstance(address, str) or not isinstance(port, int):
        raise ValueError(entry)
    return plain(address), port


def plain(address: str) -> str:
    """Return an address in the one form in which it can be compared as text.

    An IPv6 address can be written in many ways (RFC 5952). The zone (RFC 4007) is left out: each
    host numbers its own zones.

    :raises ValueError: if it is not an IP address.
    """
    return str(ipaddress.ip_address(address.partition("%")[0]))


def server(nonce: str, description: bytes) -> Script:
    """Run the server's side. :raises Refused: if the peer does not know the nonce."""
    theirs = yield b"", wire.CHALLENGE_BYTES
    mine = os.urandom(wire.CHALLENGE_BYTES)
    proof = yield wire.proof(nonce, "server", theirs) + mine, wire.PROOF_BYTES
    if not hmac.compare_digest(proof, wire.proof(nonce, "client", mine)):
        raise Refused("wrong proof")
    tag = wire.proof(nonce, "endpoints", description + theirs)
    # The client resets first, so that no side is left in TIME_WAIT.
    yield _LENGTH.pack(len(description)) + description + tag, 1


def client(nonce: str) -> Script:
    """Run the client's side; return the server's :class:`Description`.

    :raises Refused: if the peer is not a server agent of this run.
    """
    mine = os.urandom(wire.CHALLENGE_BYTES)
    answer = yield mine, wire.PROOF_BYTES + wire.CHALLENGE_BYTES
    proof, theirs = answer[: wire.PROOF_BYTES], answer[wire.PROOF_BYTES :]
    if not hmac.compare_digest(proof, wire.proof(nonce, "server", mine)):
        raise Refused("wrong proof")
    size = _LENGTH.unpack((yield wire.proof(nonce, "client", theirs), _LENGTH.size))[0]
    if size > DESCRIPTION_BYTES:
        raise Refused("bad length")
    text = yield b"", size
    tag = yield b"", wire.PROOF_BYTES
    if not hmac.compare_digest(tag, wire.proof(nonce, "endpoints", text + mine)):
        raise Refused("wrong tag")
    return _described(text)


class Ended(NamedTuple):
    """A handshake that is over."""

    key: Any
    result: Any
    """The script's return value; None after a problem."""
    problem: Optional[Exception]
    """:class:`Refused`, or an OSError of the connection."""


class _Talk:
    """One handshake under way on one socket."""

    def __init__(self, link: socket.socket, script: Script, key: Any, until: float) -> None:
        self.link, self.script, self.key, self.until = link, script, key, until
        self.began = time.monotonic()
        self.spoke = False
        """Whether the peer has sent all that the script waited for first."""
        self.out, self.wanted = next(script)
        self.received = b""

    def moves(self, event: int) -> None:
        """Send and receive as much as possible now.

        :raises StopIteration: with the result, once the handshake is over.
        :raises Refused: if the peer fails to prove itself.
        :raises OSError: if the connection fails.
        """
        if self.out and event & (select.POLLOUT | select.POLLERR | select.POLLHUP):
            code = self.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code in (errno.ECONNRESET, errno.EPIPE):
                raise ClosedByPeer(code, os.strerror(code))
            if code:
                raise OSError(code, os.strerror(code))
            self.out = self.out[self.link.send(self.out) :]
        if not self.out and event & (select.POLLIN | select.POLLERR | select.POLLHUP):
            try:
                piece = self.link.recv(min(_CHUNK, self.wanted - len(self.received)))
            except ConnectionResetError as error:
                raise ClosedByPeer(error.errno or 0, os.strerror(error.errno or 0)) from error
            if not piece:
                raise ClosedByPeer(0, "it closed the connection during the handshake")
            self.received += piece
        while not self.out and len(self.received) == self.wanted:
            data, self.received = self.received, b""
            self.spoke = True
            self.out, self.wanted = self.script.send(data)

    @property
    def interest(self) -> int:
        """Events to poll for."""
        return select.POLLOUT if self.out else select.POLLIN


class Talks:
    """Handshakes under way, and other descriptors that are polled with them."""

    def __init__(self) -> None:
        self._poll = select.poll()  # takes no watch of fs.epoll.max_user_watches
        self._talks: Dict[int, _Talk] = {}

    def __len__(self) -> int:
        return len(self._talks)

    def watch(self, fd: int) -> None:
        """Also wait for a descriptor to become readable."""
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Stop waiting for a descriptor."""
        self._poll.unregister(fd)

    def begin(self, link: socket.socket, script: Script, key: Any = None) -> None:
        """Start a handshake on a non-blocking socket, connected or about to be.

        The socket is closed by RST when the handshake is over, after :data:`SECONDS` at the latest.
        """
        reset_on_close(link)
        talk = _Talk(link, script, key, time.monotonic() + SECONDS)
        self._talks[link.fileno()] = talk
        self._poll.register(link.fileno(), talk.interest)

    def turn(self, seconds: float) -> Tuple[List[Ended], List[int]]:
        """Go on for at most ``seconds``; return ended handshakes and other readable descriptors."""
        first = next(iter(self._talks.values()), None)  # the oldest is the first to be due
        if first:
            seconds = min(seconds, max(0.0, first.until - time.monotonic()))
        over: List[Ended] = []
        others: List[int] = []
        for fd, event in self._poll.poll(seconds * 1000):
            talk = self._talks.get(fd)
            if not talk:
                others.append(fd)
                continue
            try:
                talk.moves(event)
            except StopIteration as end:
                over.append(self._end(fd, end.value, None))
            except BlockingIOError:
                continue
            except (OSError, Refused) as problem:
                over.append(self._end(fd, None, problem))
            else:
                self._poll.modify(fd, talk.interest)
        now = time.monotonic()
        for fd in [fd for fd, talk in self._talks.items() if talk.until <= now]:
            late = OSError(errno.ETIMEDOUT, f"no answer within {SECONDS:g} s")
            over.append(self._end(fd, None, late))
        return over, others

    def drop_silent(self, seconds: float) -> None:
        """End the handshakes whose peer has not sent its challenge within ``seconds``."""
        before = time.monotonic() - seconds
        for fd, talk in list(self._talks.items()):
            if not talk.spoke and talk.began < before:
                self._end(fd, None, None)

    def close(self) -> None:
        """End all handshakes."""
        for fd in list(self._talks):
            self._end(fd, None, None)

    def _end(self, fd: int, result: Any, problem: Optional[Exception]) -> Ended:
        talk = self._talks.pop(fd)
        self._poll.unregister(fd)
        talk.script.close()
        talk.link.close()
        return Ended(talk.key, result, problem)
