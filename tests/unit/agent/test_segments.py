"""TCP segments made by hand."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent.trials.segments import ACK, MSS, SYN, Segment, checksum, pack, pseudo_header, read

ADDRESS = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))
PORT = st.integers(0, 65_535)
NUMBER = st.integers(0, 2**32 - 1)
FLAGS = st.integers(0, 255)
SEGMENT = st.builds(
    Segment,
    ADDRESS,
    PORT,
    ADDRESS,
    PORT,
    NUMBER,
    NUMBER,
    st.integers(0, 255),
    st.binary(max_size=9),
)


def packet(segment: Segment, tcp: bytes) -> bytes:
    """The segment in an IPv4 header without options (RFC 791 3.1)."""
    ends = socket.inet_aton(segment.source) + socket.inet_aton(segment.target)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends + tcp


def test_checksum_is_that_of_the_rfc() -> None:
    # RFC 1071, section 3: these words add up to ddf2.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(bytes.fromhex("0001f203f4f5f6f7ff")) == checksum(
        bytes.fromhex("0001f203f4f5f6f7ff00")
    )


def test_a_syn_is_that_of_a_kernel() -> None:
    made = pack(Segment("198.18.1.1", 20_000, "198.18.0.1", 5_000, 1, 0, SYN, b""), MSS)
    assert made.hex() == "4e20138800000001000000006002ffff" + made[16:18].hex() + "0000020405b4"


@given(SEGMENT, st.sampled_from([b"", MSS]))
def test_what_is_made_reads_back_and_has_a_right_checksum(segment: Segment, options: bytes) -> None:
    made = pack(segment, options)
    ends = socket.inet_aton(segment.source), socket.inet_aton(segment.target)
    assert checksum(pseudo_header(*ends, len(made)) + made) in (0, 0xFFFF)
    assert read(packet(segment, made)) == segment


@given(SEGMENT, st.integers(0, 59))
def test_a_part_of_a_packet_is_none(segment: Segment, length: int) -> None:
    whole = packet(segment, pack(segment))
    assert read(whole[: min(length, len(whole) - 1)]) is None


@pytest.mark.parametrize(("place", "value"), [(0, 0x65), (9, 17)])
def test_what_is_no_tcp_over_ipv4_is_none(place: int, value: int) -> None:
    segment = Segment("198.18.1.1", 1, "198.18.0.1", 2, 3, 4, ACK, b"")
    other = bytearray(packet(segment, pack(segment)))
    other[place] = value
    assert read(bytes(other)) is None
