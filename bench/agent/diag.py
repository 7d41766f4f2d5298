"""The kernel's socket diagnostics, sock_diag(7): TCP sockets, counted by one of their fields.

A request names socket states and port ranges. The kernel itself drops all other sockets
(net/ipv4/inet_diag.c, inet_diag_bc_run()). It sends one struct inet_diag_msg per socket, nearly
always of the same length. So a datagram is read by strides, in a few calls for some 260 sockets.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from typing import Any, List, Literal, NamedTuple, Optional, Sequence, Tuple

from bench import wire
from bench.agent.probe import Unreadable

PATIENCE = 10.0
"""Seconds for one datagram of a dump: the kernel answers within the system call that asks."""

TRIES = 5
"""Tries to get a dump that is not torn."""

DATAGRAM = 1 << 16
"""Room for one datagram, bytes. The kernel sends none above 32 KiB, however large the buffer is
(net/netlink/af_netlink.c, netlink_recvmsg()), and prepares the next one only when one is taken. So
a larger buffer or a larger SO_RCVBUF would not help."""

# linux/netlink.h
_NETLINK_SOCK_DIAG = 4
_NLMSG_NOOP, _NLMSG_ERROR, _NLMSG_DONE = 1, 2, 3
_NLM_F_REQUEST, _NLM_F_MULTI, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 1, 2, 0x10, 0x300
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id

# linux/sock_diag.h and linux/inet_diag.h
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, ext, states; any id
_REQ_BYTECODE = 1
_BC_JMP = 1
_BC_GE_LE = {"local": (2, 3), "peer": (4, 5)}  # S_GE and S_LE, D_GE and D_LE
_OP = struct.Struct("=BBH")  # inet_diag_bc_op: code, yes, no
_LEAST = _HEADER.size + 72  # with struct inet_diag_msg, without attributes

_SOCKET = struct.unpack("=I", struct.pack("=HH", _SOCK_DIAG_BY_FAMILY, _NLM_F_MULTI))[0]
"""Type and flags of a message with a socket, as the one word that they fill."""


class Field(NamedTuple):
    """A field of a message with a socket.

    ``offset`` counts from struct nlmsghdr on; ``code`` is the type of its cells as in Python's
    struct; ``cells`` is their number.
    """

    offset: int
    code: Literal["B", "H", "I"]
    cells: int

    @property
    def size(self) -> int:
        """Size of one cell, bytes."""
        return struct.calcsize("=" + self.code)


FAMILY = Field(16, "B", 1)
STATE = Field(17, "B", 1)
PORT = {"local": Field(20, "H", 1), "peer": Field(22, "H", 1)}
PEER = {socket.AF_INET: Field(40, "I", 1), socket.AF_INET6: Field(40, "I", 4)}


class Part(NamedTuple):
    """The content of one datagram.

    ``keys``: one field of every socket; ``done``: whether it was the last datagram; ``torn``:
    whether the dump is torn.
    """

    keys: List[Any]
    done: bool = False
    torn: bool = False


def bytecode(ranges: Sequence[Tuple[int, int]], side: str) -> bytes:
    """Return the kernel's filter for one side's ports in any of the ranges, both ends included.

    An operation moves on by ``yes`` or ``no`` bytes. Reaching the end accepts a socket; going 4
    bytes beyond it drops the socket. A target of ``no`` has to be on the path of the ``yes`` (both:
    inet_diag_bc_run() and inet_diag_bc_audit()). The port to compare with is the ``no`` of a second
    operation. Every range but the last is followed by 4 bytes, a jump to the end.
    """
    from_low, to_high = _BC_GE_LE[side]
    code = b""
    for low, high in reversed(ranges):
        jump = _OP.pack(_BC_JMP, 4, 4 + len(code)) if code else b""
        least = _OP.pack(from_low, 8, 20) + _OP.pack(0, 0, low)
        most = _OP.pack(to_high, 8, 12) + _OP.pack(0, 0, high)
        code = least + most + jump + code
    return code


def request(family: int, states: Sequence[str], code: bytes) -> bytes:
    """Return the request for a dump of one family's TCP sockets.

    It has a message header, struct inet_diag_req_v2 and the filter. It asks for no attribute:
    ``ext`` is 0.


    """
    mask = 0
    for name in states:
        mask |= 1 << wire.TCP_STATES[name]
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, mask)
    body += struct.pack("=HH", 4 + len(code), _REQ_BYTECODE) + code
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body


def strided(data: memoryview, field: Field) -> Optional[Part]:
    """Read a datagram whose messages are all sockets and of one length; return None for any other.

    If the first length divides the datagram, and stands wherever a message would begin, then the
    messages do begin there.
    """
    if len(data) < _LEAST or len(data) % 4:
        return None
    words = data.cast("I")
    length = words[0]
    if length < _LEAST or length % 4 or len(data) % length:
        return None
    number, step = len(data) // length, length // 4
    if words[::step].tolist().count(length) < number:
        return None
    if words[1::step].tolist().count(_SOCKET) < number:
        return None
    first, step = field.offset // field.size, length // field.size
    cells = data.cast(field.code)
    columns = [cells[first + at :: step].tolist() for at in range(field.cells)]
    return Part(columns[0] if field.cells == 1 else list(zip(*columns)))


def plain(data: memoryview, field: Field) -> Part:
    """Read a datagram message by message.

    :raises Unreadable: if the kernel refuses, with the errno's name, or if a message is cut short
    """
    key = struct.Struct(f"={field.cells}{field.code}").unpack_from
    keys: List[Any] = []
    done = torn = False
    at, end = 0, len(data)
    while at < end and not done:
        if end - at < _HEADER.size:
            raise Unreadable("sock_diag: a message is cut short")
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        least = _LEAST if kind == _SOCK_DIAG_BY_FAMILY else _HEADER.size
        if kind == _NLMSG_ERROR:
            least += 4
        if not least <= length <= end - at:
            raise Unreadable(f"sock_diag: a message of type {kind} is cut short")
        torn = torn or bool(flags & _NLM_F_DUMP_INTR)
        if kind == _SOCK_DIAG_BY_FAMILY:
            found = key(data, at + field.offset)
            keys.append(found[0] if field.cells == 1 else found)
        elif kind in (_NLMSG_ERROR, _NLMSG_DONE):
            if length >= _HEADER.size + 4:
                (status,) = struct.unpack_from("=i", data, at + _HEADER.size)
                if status < 0:
                    raise Unreadable(_reason(-status))
            done = kind == _NLMSG_DONE
        elif kind != _NLMSG_NOOP:
            raise Unreadable(f"sock_diag: a message of the unknown type {kind}")
        at += (length + 3) & ~3
    return Part(keys, done, torn)


def _reason(number: int) -> str:
    """Return what went wrong, by errno name (errno(3))."""
    name = errno.errorcode.get(number, str(number))
    # net/ipv4/inet_diag.c inet_diag_lock_handler(): no handler, and none could be loaded
    hint = "; is the kernel module tcp_diag loaded?" if number == errno.ENOENT else ""
    return f"sock_diag: {name} ({os.strerror(number)}){hint}"


def _dump(asked: bytes, field: Field) -> Optional[Counter[Any]]:
    """Make one dump and count its sockets by a field; return None if it is torn.

    Python resumes calls that a signal interrupts (PEP 475).
    """
    found: Counter[Any] = Counter()
    torn = False
    room = memoryview(bytearray(DATAGRAM))
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(PATIENCE)
        kernel.sendto(asked, (0, 0))
        while True:
            size = kernel.recv_into(room, 0, socket.MSG_TRUNC)
            if size > DATAGRAM:
                raise Unreadable(f"sock_diag: a datagram of {size} bytes, {DATAGRAM} at most")
            data = room[:size]
            part = strided(data, field) or plain(data, field)
            found.update(part.keys)
            torn = torn or part.torn
            if part.done:
                return None if torn else found


def dump(asked: bytes, field: Field) -> Counter[Any]:
    """Return the sockets that a request asks for, counted by a field.

    :raises Unreadable: with the reason, if the kernel does not answer
    """
    try:
        for _ in range(TRIES):
            found = _dump(asked, field)
            if found is not None:
                return found
    except OSError as error:  # without an errno: the timeout of settimeout()
        raise Unreadable(_reason(error.errno) if error.errno else f"sock_diag: {error}") from error
    raise Unreadable(f"sock_diag: {TRIES} dumps, each torn by changes (NLM_F_DUMP_INTR)")
