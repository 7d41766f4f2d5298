"""Ask the network whether another host has an address, before this host takes it.

IPv4 addresses are asked for with ARP probes (RFC 5227 2.1.1), IPv6 addresses with the neighbour
solicitations of Duplicate Address Detection (RFC 4862 5.4). Both come from the unspecified address,
so no neighbour learns anything from them, and nothing changes on this host. All addresses are asked
for together.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PROBES = 3
"""Number of probes for each address (RFC 5227 1.1 PROBE_NUM): a frame may be lost."""

GAP = 0.25
"""Seconds from one round of probes to the next. RFC 5227 has 1 to 2 for any kind of link; a
benchmark's data plane answers within milliseconds."""

LAST = 0.5
"""Seconds to wait for answers after the last probe."""

PACE = 10_000
"""Maximum number of probes a second: every host of the segment has to process each broadcast."""

PACE_STEP = 0.01
"""Seconds between two bursts of probes."""

BUFFER = 1 << 22
"""Size of the receive buffer, bytes."""

# include/uapi/linux/if_ether.h, if_arp.h, if.h, sockios.h, if_packet.h, asm-generic/socket.h
ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
ARPHRD_ETHER = 1
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_NOARP = 0x1, 0x8, 0x40, 0x80
SIOCGIFFLAGS, SIOCGIFHWADDR = 0x8913, 0x8927
PACKET_ADD_MEMBERSHIP, PACKET_MR_ALLMULTI = 1, 2
SOL_PACKET = 263
SO_ATTACH_FILTER = 26

BROADCAST = b"\xff" * 6
REQUEST, REPLY = 1, 2
"""ARP operations (RFC 826)."""

SOLICITATION, ADVERTISEMENT = 135, 136
"""ICMPv6 types (RFC 4861 4.3, 4.4)."""

HOP_LIMIT = 255
"""Hop limit of all messages of neighbour discovery (RFC 4861 7.1): none came through a router."""

_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_HEAD = (ARPHRD_ETHER, 0x0800, 6, 4)
_IPV6 = struct.Struct("!IHBB16s16s")
_NEIGHBOUR = struct.Struct("!BBHI16s")
_UNSPECIFIED = bytes(16)

_IS_NEIGHBOUR = (
    (0x30, 0, 0, 20),  # ldb [20]: the next header
    (0x15, 0, 3, socket.IPPROTO_ICMPV6),  # jeq, else to the end
    (0x30, 0, 0, 54),  # ldb [54]: the type
    (0x15, 2, 0, SOLICITATION),  # jeq to the instruction that accepts the frame
    (0x15, 1, 0, ADVERTISEMENT),  # the same
    (0x06, 0, 0, 0),  # ret: drop the frame
    (0x06, 0, 0, 0xFFFF),  # ret: accept the frame
)
"""Classic BPF (Documentation/networking/filter.rst) that accepts only the IPv6 frames of neighbour
discovery, so that a host under load does not fill the buffer."""


class Link(NamedTuple):
    """An interface as the kernel describes it."""

    name: str
    flags: int
    """netdevice(7)."""
    kind: int
    """ARPHRD_*, the kind of hardware."""
    mac: bytes


def link(name: str) -> Link:
    """Return an interface. Errors: OSError if there is none of this name."""
    socket.if_nametoindex(name)  # refuses a long name, which the requests would truncate
    request = struct.pack("16s24x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = fcntl.ioctl(any_socket, SIOCGIFFLAGS, request)
        hardware = fcntl.ioctl(any_socket, SIOCGIFHWADDR, request)
    kind, mac = struct.unpack_from("H6s", hardware, 16)
    return Link(name, struct.unpack_from("H", flags, 16)[0], kind, mac)


def own_macs() -> set[bytes]:
    """Return the hardware addresses of all this host's own Ethernet interfaces."""
    links = [link(name) for _, name in socket.if_nameindex()]
    return {each.mac for each in links if each.kind == ARPHRD_ETHER}


def silent(interface: Link) -> str:
    """Return why an interface resolves no addresses, or an empty string if it does."""
    if interface.flags & IFF_LOOPBACK:
        return "a loopback interface"
    if interface.flags & IFF_NOARP:
        return "an interface without ARP"
    return ""


def arp_probe(mac: bytes, address: str) -> bytes:
    """Return the Ethernet frame of an ARP probe: a request from the sender 0.0.0.0."""
    wanted = ipaddress.IPv4Address(address).packed
    body = _ARP.pack(*_ARP_HEAD, REQUEST, mac, bytes(4), bytes(6), wanted)
    return _ethernet(BROADCAST, mac, ETH_P_ARP, body)


def solicitation(mac: bytes, address: str) -> bytes:
    """Return the Ethernet frame of a neighbour solicitation that detects a duplicate.

    It goes from the unspecified address to the solicited-node multicast address of `address`
    (RFC 4291 2.7.1), without the option that names the sender (RFC 4861 4.3).
    """
    wanted = ipaddress.IPv6Address(address).packed
    group = bytes.fromhex("ff0200000000000000000001ff") + wanted[13:]
    body = _NEIGHBOUR.pack(SOLICITATION, 0, 0, 0, wanted)
    pseudo = _UNSPECIFIED + group + struct.pack("!I3xB", len(body), socket.IPPROTO_ICMPV6)
    body = _NEIGHBOUR.pack(SOLICITATION, 0, checksum(pseudo + body), 0, wanted)
    head = _IPV6.pack(6 << 28, len(body), socket.IPPROTO_ICMPV6, HOP_LIMIT, _UNSPECIFIED, group)
    # RFC 2464 7: 33:33 and the last four bytes of the group.
    return _ethernet(b"\x33\x33" + group[12:], mac, ETH_P_IPV6, head + body)


def _ethernet(to: bytes, mac: bytes, kind: int, body: bytes) -> bytes:
    # The shortest frame is 60 bytes without its checksum (IEEE 802.3), and not every driver pads.
    return (to + mac + struct.pack("!H", kind) + body).ljust(60, b"\0")


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def claim(frame: bytes) -> tuple[str, bytes] | None:
    """Return the address that a frame's sender has or is about to take, and its MAC; or None.

    In ARP that is the sender's address, in requests too, or the address that another host probes.
    In neighbour discovery it is the target of an advertisement or of another host's duplicate
    address detection.
    """
    kind = frame[12:14]
    if kind == struct.pack("!H", ETH_P_ARP):
        return _arp_claim(frame[14:])
    if kind == struct.pack("!H", ETH_P_IPV6):
        return _neighbour_claim(frame[6:12], frame[14:])
    return None


def _arp_claim(body: bytes) -> tuple[str, bytes] | None:
    if len(body) < _ARP.size:
        return None
    *head, operation, mac, sender, _, target = _ARP.unpack_from(body)
    if tuple(head) != _ARP_HEAD or operation not in (REQUEST, REPLY):
        return None
    if any(sender):
        return socket.inet_ntoa(sender), mac
    return (socket.inet_ntoa(target), mac) if operation == REQUEST else None


def _neighbour_claim(mac: bytes, body: bytes) -> tuple[str, bytes] | None:
    if len(body) < _IPV6.size + _NEIGHBOUR.size:
        return None
    version, _, following, hops, source, _ = _IPV6.unpack_from(body)
    kind, code, _, _, target = _NEIGHBOUR.unpack_from(body, _IPV6.size)
    if (version >> 28, following, hops, code) != (6, socket.IPPROTO_ICMPV6, HOP_LIMIT, 0):
        return None
    # A solicitation with a source address looks for a neighbour; without one it detects duplicates.
    if kind == ADVERTISEMENT or (kind == SOLICITATION and source == _UNSPECIFIED):
        return str(ipaddress.IPv6Address(target)), mac
    return None


class Wire:
    """ARP and neighbour discovery on one interface, through packet(7). Needs root."""

    def __init__(self, interface: Link) -> None:
        """Open the sockets. Errors: OSError, also without CAP_NET_RAW."""
        self._sockets: list[socket.socket] = []
        try:
            for protocol in (ETH_P_ARP, ETH_P_IPV6):
                self._open(interface, protocol)
        except BaseException:
            self.close()
            raise

    def _open(self, interface: Link, protocol: int) -> None:
        # Without a protocol until it is bound, so that no frame of another interface is queued.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sockets.append(opened)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        if protocol == ETH_P_IPV6:
            code = b"".join(struct.pack("HBBI", *each) for each in _IS_NEIGHBOUR)
            kept = ctypes.create_string_buffer(code)
            program = struct.pack("HL", len(_IS_NEIGHBOUR), ctypes.addressof(kept))
            opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            # Another host's detection goes to a group that this host has not joined yet.
            index = socket.if_nametoindex(interface.name)
            members = struct.pack("iHH8s", index, PACKET_MR_ALLMULTI, 0, bytes(8))
            opened.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, members)
        opened.bind((interface.name, protocol))
        opened.setblocking(False)

    def send(self, frame: bytes) -> None:
        """Send a frame; it is dropped if the queue is full. Errors: OSError for other reasons."""
        try:
            self._sockets[0].send(frame)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise

    def heard(self, seconds: float) -> Iterator[bytes]:
        """Yield the frames of other hosts as they arrive, for `seconds`."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            ready, _, _ = select.select(self._sockets, [], [], left)
            for each in ready:
                try:
                    frame, (_, _, kind, _, _) = each.recvfrom(2048)
                except BlockingIOError:
                    continue
                if kind != socket.PACKET_OUTGOING:
                    yield frame

    def close(self) -> None:
        """Close the sockets."""
        while self._sockets:
            self._sockets.pop().close()


def taken(interface: Link, addresses: Iterable[str], wire: Wire | None = None) -> dict[str, str]:
    """Return the addresses that another host has, each with that host's MAC.

    Takes PROBES rounds of GAP seconds, or longer if PACE requires it, and then LAST seconds.

    Errors: OSError if nothing can be sent.
    """
    wanted = list(dict.fromkeys(str(ipaddress.ip_address(each)) for each in addresses))
    frames = [(solicitation if ":" in each else arp_probe)(interface.mac, each) for each in wanted]
    found: dict[str, str] = {}
    if not wanted:
        return found
    own, left = own_macs() | {interface.mac}, set(wanted)
    opened = wire or Wire(interface)
    try:
        for seconds in _rounds(opened, frames):
            for claimed in map(claim, opened.heard(seconds)):
                if claimed and claimed[0] in left and claimed[1] not in own:
                    found[claimed[0]] = claimed[1].hex(":")
                    left.discard(claimed[0])
            if not left:
                break
    finally:
        opened.close()
    return {each: found[each] for each in wanted if each in found}


def _rounds(wire: Wire, frames: list[bytes]) -> Iterator[float]:
    """Send all frames PROBES times; yield the seconds to listen after each burst."""
    burst = int(PACE * PACE_STEP)
    for number in range(PROBES):
        ends = time.monotonic() + GAP
        for start in range(0, len(frames), burst):
            for frame in frames[start : start + burst]:
                wire.send(frame)
            yield PACE_STEP
        if number < PROBES - 1:
            yield max(ends - time.monotonic(), 0.0)
    yield LAST
