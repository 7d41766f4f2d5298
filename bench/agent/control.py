"""The nonce handshake: a client connects only to a server agent of its own run.

On the control port, before the first data connection::

    client -> server   challenge                                     16 bytes
    server -> client   proof("server", challenge), own challenge     32 + 16 bytes
    client -> server   proof("client", own challenge)                32 bytes
    server -> client   length, endpoints as JSON, proof("endpoints", JSON + challenge)

Neither side sends the nonce (``wire.proof`` is an HMAC keyed by it), and the client learns from
the server itself which addresses and ports are the server's data endpoints.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import struct
import threading
from typing import List, Set, Tuple

from bench import wire
from bench.agent.sockets import reset_on_close

TIMEOUT = 1.5
"""Seconds for the whole exchange: a local round trip takes under 1 ms, a VM's some 10 ms."""

_LENGTH = struct.Struct(">I")
_MOST = 1 << 20


class Refused(Exception):
    """The target is not a server agent of this run."""


def family_of(address: str) -> int:
    """AF_INET or AF_INET6 of an address written out."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Doorkeeper(threading.Thread):
    """Answers the handshake on a server's control port, one peer at a time."""

    def __init__(self, listener: socket.socket, nonce: str, endpoints: List[wire.Endpoint]) -> None:
        super().__init__(name="doorkeeper", daemon=True)
        self._listener = listener
        self._nonce = nonce
        self._endpoints = json.dumps(endpoints).encode()

    def run(self) -> None:
        """Serve until the process ends."""
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return  # the listener was closed: the agent stops
            with peer:
                peer.settimeout(TIMEOUT)
                try:
                    self._answer(peer)
                except (OSError, Refused):
                    continue  # a stranger: closed without a word

    def _answer(self, peer: socket.socket) -> None:
        theirs = _exactly(peer, wire.CHALLENGE_BYTES)
        mine = os.urandom(wire.CHALLENGE_BYTES)
        peer.sendall(wire.proof(self._nonce, "server", theirs) + mine)
        proof = _exactly(peer, wire.PROOF_BYTES)
        if not hmac.compare_digest(proof, wire.proof(self._nonce, "client", mine)):
            raise Refused("the peer does not know this run's nonce")
        tag = wire.proof(self._nonce, "endpoints", self._endpoints + theirs)
        peer.sendall(_LENGTH.pack(len(self._endpoints)) + self._endpoints + tag)
        peer.recv(1)  # the client resets first, so that no TIME_WAIT is left on either side


def introduce(control: wire.Endpoint, nonce: str, source: str) -> Set[wire.Endpoint]:
    """Prove this run to a server agent and have it proven; returns its data endpoints.

    :raises Refused: if nobody is there, or not an agent of this run.
    """
    where = f"{control[0]} port {control[1]}"
    with socket.socket(family_of(control[0]), socket.SOCK_STREAM) as link:
        link.settimeout(TIMEOUT)
        reset_on_close(link)
        try:
            if family_of(source) == link.family:
                link.bind((source, 0))
            link.connect(control)
            mine = os.urandom(wire.CHALLENGE_BYTES)
            link.sendall(mine)
            answer = _exactly(link, wire.PROOF_BYTES + wire.CHALLENGE_BYTES)
            proof, theirs = answer[: wire.PROOF_BYTES], answer[wire.PROOF_BYTES :]
            if not hmac.compare_digest(proof, wire.proof(nonce, "server", mine)):
                raise Refused(f"{where} is not a server agent of this run: wrong proof")
            link.sendall(wire.proof(nonce, "client", theirs))
            size = _LENGTH.unpack(_exactly(link, _LENGTH.size))[0]
            if size > _MOST:
                raise Refused(f"{where} is not a server agent of this run: bad length")
            text = _exactly(link, size)
            tag = _exactly(link, wire.PROOF_BYTES)
        except OSError as error:
            reason = error.strerror or str(error)
            raise Refused(f"{where} is not a server agent of this run: {reason}") from error
    if not hmac.compare_digest(tag, wire.proof(nonce, "endpoints", text + mine)):
        raise Refused(f"{where} is not a server agent of this run: wrong tag")
    return {(address, port) for address, port in json.loads(text)}


def vouched(spec: wire.ClientSpec) -> None:
    """Introduce this client to every server and check that each target is one of theirs.

    :raises Refused: before any data connection has been made.
    """
    known: Set[Tuple[str, int]] = set()
    for control in spec["controls"]:
        same = [
            b["source"] for b in spec["blocks"] if family_of(b["source"]) == family_of(control[0])
        ]
        known |= introduce(control, spec["nonce"], (same or [spec["blocks"][0]["source"]])[0])
    for block in spec["blocks"]:
        if (block["target"], block["target_port"]) not in known:
            raise Refused(
                f"{block['target']} port {block['target_port']} belongs to no server agent "
                "of this run"
            )


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            raise OSError(0, "closed the connection during the handshake")
        data += piece
    return data
