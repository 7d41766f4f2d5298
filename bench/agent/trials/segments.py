"""TCP segments over IPv4, packed and parsed by hand (RFC 9293 3.1)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple, Optional

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

MSS = struct.pack("!BBH", 2, 4, 1460)
"""Option *maximum segment size* (RFC 9293 3.2) of a path with Ethernet's 1,500 bytes."""

WINDOW = 65_535
"""The largest window that a header can offer without the scaling option (RFC 7323 2)."""

_HEADER = struct.Struct("!HHIIBBHHH")
_PSEUDO = struct.Struct("!4s4sBBH")
_CHECKSUM_AT = 16


class Segment(NamedTuple):
    """The content of one segment."""

    source: str
    source_port: int
    target: str
    target_port: int
    seq: int
    ack: int
    flags: int
    data: bytes


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): 0 for data that contains its own checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: bytes, target: bytes, length: int) -> bytes:
    """Return the pseudo-header that the checksum covers (RFC 9293 3.1).

    :param length: of the segment
    """
    return _PSEUDO.pack(source, target, 0, socket.IPPROTO_TCP, length)


def pack(segment: Segment, options: bytes = b"") -> bytes:
    """Return the TCP header and data of a segment; ``options`` must be a multiple of 4 bytes."""
    words = (_HEADER.size + len(options)) // 4
    made = bytearray(
        _HEADER.pack(
            segment.source_port,
            segment.target_port,
            segment.seq & 0xFFFFFFFF,
            segment.ack & 0xFFFFFFFF,
            words << 4,
            segment.flags,
            WINDOW,
            0,
            0,
        )
        + options
        + segment.data
    )
    ends = socket.inet_aton(segment.source), socket.inet_aton(segment.target)
    found = checksum(pseudo_header(*ends, len(made)) + made)
    made[_CHECKSUM_AT : _CHECKSUM_AT + 2] = struct.pack("!H", found)
    return bytes(made)


def read(packet: bytes) -> Optional[Segment]:
    """Return the segment in an IPv4 packet; None if the packet has none, or only a part."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    start = (packet[0] & 15) * 4
    total = struct.unpack("!H", packet[2:4])[0]
    if len(packet) < start + _HEADER.size or total > len(packet):
        return None
    fields = _HEADER.unpack_from(packet, start)
    data = packet[start + (fields[4] >> 4) * 4 : total]
    return Segment(
        socket.inet_ntoa(packet[12:16]),
        fields[0],
        socket.inet_ntoa(packet[16:20]),
        fields[1],
        fields[2],
        fields[3],
        fields[5],
        data,
    )
