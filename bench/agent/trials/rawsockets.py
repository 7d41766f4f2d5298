"""Sockets for TCP in user space: segments that are sent and received beside this host's own TCP."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import struct
import time
from typing import Iterator

from bench import wire
from bench.agent.trials.segments import MSS, RST, SYN, Segment, pack, read

MARK = 0xC0
"""SO_MARK (socket(7)) of our own segments: it lets a filter distinguish them from the kernel's."""

ROOM = 2.0
"""Seconds within which there must be room for a segment."""

PAUSE = 0.001
"""Seconds until the kernel is asked again for memory."""

BUFFER = 1 << 23
"""Bytes for unread segments: the answers of a whole window, and more."""

SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
SO_ATTACH_FILTER = 26  # the same
ETH_P_ALL = 3  # include/uapi/linux/if_ether.h

_IS_RESET = (
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 0, 4, socket.IPPROTO_TCP),  # jeq, else to the end
    (0xB1, 0, 0, 0),  # ldxb 4 * ([0] & 0xf): the IP header's length
    (0x50, 0, 0, 13),  # ldb [x + 13]: the flags
    (0x45, 0, 1, RST),  # jset, else to the end
    (0x06, 0, 0, 0xFFFF),  # ret: the packet
    (0x06, 0, 0, 0),  # ret: nothing of it
)
"""Classic BPF (Documentation/networking/filter.rst): it passes IPv4 packets with an RST, so that
others do not fill the buffer."""


class Wire:
    """A raw socket from one address to one server endpoint."""

    def __init__(self, source: str, target: wire.Endpoint) -> None:
        self._source, self._target = source, target
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        try:
            self._raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            self._raw.bind((source, 0))
            self._raw.connect((target[0], 0))  # it now receives only this server's segments
            self._raw.setblocking(False)
        except OSError:
            self._raw.close()
            raise

    def send(self, port: int, seq: int, ack: int, flags: int, data: bytes = b"") -> None:
        """Send one segment from a port.

        :raises OSError: if there is no room for it within :data:`ROOM` seconds, or no route.
        """
        made = Segment(self._source, port, *self._target, seq, ack, flags, data)
        packed = pack(made, MSS if flags & SYN else b"")
        ends = time.monotonic() + ROOM
        while True:
            try:
                self._raw.send(packed)
                return
            except OSError as error:
                left = ends - time.monotonic()
                if left <= 0 or error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise
                if error.errno == errno.EAGAIN:  # the buffer is full
                    select.select([], [self._raw], [], left)
                else:  # POLLOUT reports the buffer only
                    time.sleep(PAUSE)

    def heard(self, seconds: float) -> Iterator[Segment]:
        """Yield segments of the target as they arrive, until none has arrived for ``seconds``."""
        while True:
            ready, _, _ = select.select([self._raw], [], [], seconds)
            if not ready:
                return
            with contextlib.suppress(BlockingIOError):
                while True:
                    found = read(self._raw.recv(65_535))
                    if found and (found.source, found.source_port) == self._target:
                        yield found

    def close(self) -> None:
        """Close the raw socket."""
        self._raw.close()


class Tap:
    """RSTs that leave this host, seen by packet(7): after all filters."""

    def __init__(self, target: wire.Endpoint) -> None:
        self._target = target
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in _IS_RESET))
        program = struct.pack("HL", len(_IS_RESET), ctypes.addressof(code))  # struct sock_fprog
        try:
            self._tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            self._tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            self._tap.setblocking(False)
        except OSError:
            self._tap.close()
            raise

    def resets(self, ports: range) -> int:
        """Return how many RSTs have left these ports for the target since the last call."""
        found = 0
        while True:
            try:
                packet, (_, _, kind, _, _) = self._tap.recvfrom(65_535)
            except BlockingIOError:
                return found
            one = read(packet) if kind == socket.PACKET_OUTGOING else None
            if one and (one.target, one.target_port) == self._target:
                found += bool(one.flags & RST and one.source_port in ports)

    def close(self) -> None:
        """Close the packet socket."""
        self._tap.close()
