"""Connections of this network namespace, counted by port, state or remote address."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from typing import Any

from bench import wire
from bench.agent import diag

_MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4 address that is mapped to IPv6 (RFC 4291 section 2.5.5.2)."""

_NAMES = {number: name for name, number in wire.TCP_STATES.items()}


def peer(cells: Any) -> str:
    """Return a remote address as text; an IPv4-mapped IPv6 address as the IPv4 address."""
    if isinstance(cells, int):
        return socket.inet_ntop(socket.AF_INET, struct.pack("=I", cells))
    packed = struct.pack("=4I", *cells)
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[len(_MAPPED) :])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _named(by: str, key: Any) -> str:
    if by == "port":
        return str(socket.ntohs(key))
    return _NAMES.get(key, str(key)) if by == "state" else peer(key)


def count(spec: wire.CountSpec) -> wire.Counted:
    """Return how many sockets there are in some states and on some ports.

    IPv4 and IPv6 are dumped one after the other. An IPv4 connection of an IPv6 socket is only in
    the second dump.

    :raises Unreadable: with the reason, if the kernel does not answer
    """
    began = time.monotonic()
    by, side = spec["by"], spec["side"]
    code = diag.bytecode(spec["ranges"], side)
    counts: Counter[str] = Counter()
    total = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        fields = {"port": diag.PORT[side], "state": diag.STATE, "peer": diag.PEER[family]}
        asked = diag.request(family, spec["states"], code)
        found = diag.dump(asked, fields.get(by, diag.FAMILY))
        total += sum(found.values())
        if by != "none":
            for key, number in found.items():
                counts[_named(by, key)] += number
    return {
        "event": "counted",
        "counts": dict(counts),
        "total": total,
        "seconds": round(time.monotonic() - began, 6),
    }
