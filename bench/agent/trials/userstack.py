"""TCP in user space: handshakes, echoes and resets of many connections, by one process."""

from __future__ import annotations

import array
import itertools
import random
import sys
import time
from typing import Dict, Tuple

from bench.agent.trials.rawsockets import Wire
from bench.agent.trials.segments import ACK, PSH, RST, SYN, Segment

WINDOW = 256
"""Handshakes under way at a time."""

RESEND = 1.0
"""Seconds until a SYN is sent again (RFC 6298 2: the initial RTO)."""

TRIES = 4
"""The most SYNs that are sent for a connection."""

SETTLE = 0.3
"""Seconds within which a reply must arrive."""

OPEN = 60.0
"""Seconds that all handshakes may take."""


class Stack:
    """Connections from consecutive ports, one each: only two numbers are kept for each."""

    def __init__(self, wire: Wire, ports: range) -> None:
        self._wire = wire
        self.ports = ports
        self._seq = array.array("I", bytes(4 * len(ports)))
        self._ack = array.array("I", bytes(4 * len(ports)))
        self._up = bytearray(len(ports))
        self.seconds = 0.0
        """Duration of the handshakes, s."""

    @property
    def held(self) -> int:
        """Connections whose handshake is complete and that were not reset."""
        return sum(self._up)

    @property
    def size(self) -> int:
        """Bytes of everything that is kept for the connections."""
        return sum(sys.getsizeof(kept) for kept in (self._seq, self._ack, self._up))

    def open(self) -> Dict[str, int]:
        """Do the handshake from every port; return what was received: SYN-ACKs and RSTs."""
        seen = {"syn_acks": 0, "resets": 0}
        todo = iter(self.ports)  # one iterator for all windows: each continues where the last ended
        tries: Dict[int, Tuple[int, float]] = {}
        began = time.monotonic()
        while time.monotonic() - began < OPEN:
            for port in itertools.islice(todo, WINDOW - len(tries)):
                self._seq[port - self.ports.start] = random.getrandbits(32)
                self._syn(port, 1, tries)
            if not tries:
                break
            for one in self._wire.heard(0.02):
                if one.target_port in self.ports:
                    self._answer(one, tries, seen)
                if len(tries) < WINDOW // 2:
                    break
            now = time.monotonic()
            for port, (count, last) in list(tries.items()):
                if now - last > RESEND:
                    del tries[port]
                    if count < TRIES:
                        self._syn(port, count + 1, tries)
        self.seconds = time.monotonic() - began
        self._listen(seen)
        return seen

    def _listen(self, seen: Dict[str, int]) -> None:
        """Receive what still arrives: a server resets unknown connections at once."""
        for one in self._wire.heard(SETTLE):
            if one.target_port in self.ports:
                self._answer(one, {}, seen)

    def _syn(self, port: int, count: int, tries: Dict[int, Tuple[int, float]]) -> None:
        tries[port] = count, time.monotonic()
        self._wire.send(port, self._seq[port - self.ports.start], 0, SYN)

    def _answer(
        self, one: Segment, tries: Dict[int, Tuple[int, float]], seen: Dict[str, int]
    ) -> None:
        place = one.target_port - self.ports.start
        if one.flags & RST:
            seen["resets"] += 1
            tries.pop(one.target_port, None)
            self._up[place] = 0
        elif one.flags & (SYN | ACK) == SYN | ACK:
            if tries.pop(one.target_port, None) is not None:
                seen["syn_acks"] += 1
                self._seq[place] = one.ack
                self._ack[place] = (one.seq + 1) & 0xFFFFFFFF
                self._up[place] = 1
            self._wire.send(one.target_port, self._seq[place], self._ack[place], ACK)

    def echo(self, count: int) -> int:
        """Send a byte on ``count`` of the held connections; return how many came back."""
        held = [place for place, up in enumerate(self._up) if up]
        chosen = held[:: max(1, len(held) // count)][:count]
        waiting = {}
        for place in chosen:
            byte = bytes([place % 256])
            waiting[place] = byte
            port = self.ports.start + place
            self._wire.send(port, self._seq[place], self._ack[place], PSH | ACK, byte)
            self._seq[place] = (self._seq[place] + 1) & 0xFFFFFFFF
        right = 0
        for one in self._wire.heard(RESEND):
            place = one.target_port - self.ports.start
            if one.data and waiting.get(place) == one.data:
                del waiting[place]
                right += 1
                self._ack[place] = (one.seq + len(one.data)) & 0xFFFFFFFF
                self._wire.send(one.target_port, self._seq[place], self._ack[place], ACK)
            if not waiting:
                break
        return right

    def reset(self) -> None:
        """Close all held connections by RST."""
        for place, up in enumerate(self._up):
            if up:
                self._up[place] = 0
                port = self.ports.start + place
                self._wire.send(port, self._seq[place], self._ack[place], RST | ACK)
