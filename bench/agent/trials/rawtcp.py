"""TCP in user space: connections of which this host's kernel knows nothing. Runs as root.

Segments leave and arrive by a raw socket (raw(7)). The kernel gets the same segments, finds no
socket that they belong to, and answers with RST (net/ipv4/tcp_ipv4.c ``tcp_v4_rcv``): what comes of
that is the experiment.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import random
import resource
import select
import socket
import struct
import sys
import time
from typing import Any, Dict, Iterator, List, Tuple

from bench.agent import sockets, workers
from bench.agent.stage import Misuse, Stage
from bench.agent.trials import door
from bench.agent.trials.segments import ACK, MSS, PSH, RST, SYN, Segment, pack, read

MARK = 0xC0
"""SO_MARK (socket(7)) of our own segments: a filter can tell them from the kernel's."""

FILES = 64
"""Open files that this process has while it holds connections of its own."""

WINDOW = 256
"""Handshakes under way at a time."""

RESEND = 1.0
"""Seconds until a SYN is sent again (RFC 6298 2: the initial RTO)."""

TRIES = 4
SETTLE = 0.3
"""Seconds in which a reply has come, if one is to come at all."""

ROOM = 2.0
"""Seconds in which there is room for a segment, if there is to be any at all."""

PAUSE = 0.001
"""Seconds until the kernel is asked again for memory."""

STEP = 60.0
"""Seconds that a step may take."""

BUFFER = 1 << 23
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
ETH_P_ALL = 3  # include/uapi/linux/if_ether.h
SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h

_IS_RESET = (
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 0, 4, socket.IPPROTO_TCP),  # jeq, else to the end
    (0xB1, 0, 0, 0),  # ldxb 4 * ([0] & 0xf): the IP header's length
    (0x50, 0, 0, 13),  # ldb [x + 13]: the flags
    (0x45, 0, 1, RST),  # jset, else to the end
    (0x06, 0, 0, 0xFFFF),  # ret: the packet
    (0x06, 0, 0, 0),  # ret: nothing of it
)
"""Classic BPF (Documentation/networking/filter.rst): of IPv4 packets those with an RST, so that
others do not fill the buffer."""


class Wire:
    """A raw socket from one address to one server endpoint."""

    def __init__(self, source: str, target: Tuple[str, int]) -> None:
        self._source, self._target = source, target
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        try:
            self._raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            self._raw.bind((source, 0))
            self._raw.connect((target[0], 0))  # it now gets this server's segments alone
            self._raw.setblocking(False)
        except OSError:
            self._raw.close()
            raise

    def send(self, port: int, seq: int, ack: int, flags: int, data: bytes = b"") -> None:
        """Send one segment from a port.

        :raises OSError: if there was no room for it within :data:`ROOM` seconds, or no route.
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
                else:  # POLLOUT tells of the buffer alone
                    time.sleep(PAUSE)

    def heard(self, seconds: float) -> Iterator[Segment]:
        """Segments of the target as they come, until none has come for that long."""
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
    """RSTs that leave this host, by packet(7): after all filters."""

    def __init__(self, target: Tuple[str, int]) -> None:
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
        """How many have gone from these ports to the target since it was opened or last asked."""
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


class Stack:
    """Connections from consecutive ports, one each: two numbers is all that is kept of them."""

    def __init__(self, wire: Wire, ports: range) -> None:
        self._wire = wire
        self.ports = ports
        self._seq = array.array("I", bytes(4 * len(ports)))
        self._ack = array.array("I", bytes(4 * len(ports)))
        self._up = bytearray(len(ports))
        self.seconds = 0.0
        """That it took to shake hands."""

    @property
    def held(self) -> int:
        """Connections whose handshake is done and that were not reset."""
        return sum(self._up)

    @property
    def size(self) -> int:
        """Bytes of all that is kept of them."""
        return sum(sys.getsizeof(kept) for kept in (self._seq, self._ack, self._up))

    def open(self) -> Dict[str, int]:
        """Shake hands from every port; what came back: SYN-ACKs and RSTs."""
        seen = {"syn_acks": 0, "resets": 0}
        todo = iter(self.ports)
        tries: Dict[int, Tuple[int, float]] = {}
        began = time.monotonic()
        while time.monotonic() - began < STEP:
            for port in todo:
                self._seq[port - self.ports.start] = random.getrandbits(32)
                self._syn(port, 1, tries)
                if len(tries) >= WINDOW:
                    break
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
        """Hear what still comes: a server resets at once what it does not know."""
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
        """Send a byte on so many of those that are held; returns how many came back."""
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
        """Close all that are held by RST."""
        for place, up in enumerate(self._up):
            if up:
                self._up[place] = 0
                port = self.ports.start + place
                self._wire.send(port, self._seq[place], self._ack[place], RST | ACK)


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Have ``target`` prove itself, then take steps until the end of the input.

    ``first_port`` and ``count`` are the source ports of all steps. A step has ``do``:

    ``raw``: shake hands by hand from the first ``ports`` of them, at most ``FILES`` files open. The
    answer has ``syn_acks`` and ``resets`` that came, ``kernel_resets`` that this host's kernel has
    sent, ``held``, the ``seconds`` that it took and the ``bytes`` that are kept of them.
    ``echo``: a byte on ``ports`` of them; ``echoed``. ``reset``: close them all by RST.
    ``kernel``: ``ports`` connections by connect(2), from any port, closed again; ``held``,
    ``seconds``.
    """
    target = (str(args["target"][0]), int(args["target"][1]))
    ports = range(args["first_port"], args["first_port"] + args["count"])
    if not (ports and ports.start >= 1024 and ports.stop <= 65_536):
        raise Misuse(f"count: got {args['count']}, expected ports from 1024 to 65535")
    door.proven(args, [target])
    wire = Wire(args["source"], target)
    stack = Stack(wire, ports[:0])
    tap = Tap(target)
    stage.tell(mark=MARK, files=FILES)
    try:
        while True:
            step = stage.step() or {}
            if step.get("do") == "raw":
                stack.reset()
                tap.resets(ports)
                stack = Stack(wire, ports[: int(step["ports"])])
                with _few_files():
                    stage.tell(**_raw(stack, tap))
            elif step.get("do") == "echo":
                stage.tell(echoed=stack.echo(int(step["ports"])))
            elif step.get("do") == "reset":
                stack.reset()
                stage.tell()
            elif step.get("do") == "kernel":
                stage.tell(**_kernel(args["source"], target, int(step["ports"])))
            else:
                raise Misuse(f"do: got {step.get('do')!r}, expected raw, echo, reset or kernel")
    finally:
        stack.reset()
        tap.close()
        wire.close()


@contextlib.contextmanager
def _few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _raw(stack: Stack, tap: Tap) -> Dict[str, Any]:
    seen = stack.open()
    return {
        **seen,
        "kernel_resets": tap.resets(stack.ports),
        "held": stack.held,
        "seconds": stack.seconds,
        "bytes": stack.size,
    }


def _kernel(source: str, target: Tuple[str, int], count: int) -> Dict[str, Any]:
    """Open as many connections by connect(2), as many at a time; close them by RST."""
    workers.open_files("hard")
    held: List[socket.socket] = []
    began = time.monotonic()
    try:
        with select.epoll() as epoll:
            waiting: Dict[int, socket.socket] = {}
            while len(held) - len(waiting) < count and time.monotonic() - began < STEP:
                while len(held) < count and len(waiting) < WINDOW:
                    held.append(_begun(source, target))
                    waiting[held[-1].fileno()] = held[-1]
                    epoll.register(held[-1], select.EPOLLOUT)
                for number, _ in epoll.poll(1):
                    made = waiting.pop(number)
                    epoll.unregister(number)
                    code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if code:
                        raise OSError(code, os.strerror(code))
            return {"held": len(held) - len(waiting), "seconds": time.monotonic() - began}
    finally:
        for one in held:
            sockets.reset(one)


def _begun(source: str, target: Tuple[str, int]) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    sockets.choose_port_late(made)
    made.bind((source, 0))
    code = made.connect_ex(target)
    if code not in (0, errno.EINPROGRESS):
        made.close()
        raise OSError(code, os.strerror(code))
    return made
