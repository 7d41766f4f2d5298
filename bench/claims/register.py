"""All claims, in the order in which they are told."""

from __future__ import annotations

import difflib
from typing import Any

from bench.claims import (
    addresses,
    buffers,
    closing,
    counting,
    descriptors,
    events,
    fourtuple,
    keystroke,
    lookups,
    memavailable,
    million,
    moderncost,
    nat,
    ports,
    pressure,
    processes,
    proxy,
    userland,
    watches,
)
from bench.claims.model import Claim
from bench.errors import InputError

_ALL: tuple[Claim[Any, Any], ...] = (
    addresses.PORT_MYTH,
    fourtuple.FOUR_TUPLE,
    ports.CLIENT_64K,
    ports.MORE_CLIENT_IPS,
    ports.MORE_SERVER_PORTS,
    ports.MORE_SERVER_IPS,
    descriptors.FD_LEVELS,
    million.MILLION,
    buffers.SOCKET_BUFFERS,
    closing.TIME_WAIT,
    pressure.BURST,
    events.MULTIPLEXERS,
    keystroke.KEYSTROKE,
    nat.NAT,
    proxy.REVERSE_PROXY,
    userland.USERLAND_TCP,
    processes.PROCESSES,
    counting.COUNT_BY_PORT,
    watches.EPOLL_WATCHES,
    lookups.HASH_TABLE,
    memavailable.MEMAVAILABLE,
    moderncost.MODERN_COST,
)

CLAIMS = {claim.id: claim for claim in _ALL}


def claim(name: str) -> Claim[Any, Any]:
    """The claim of that name. :raises InputError: for none, with the nearest names."""
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4) or list(CLAIMS)
        raise InputError(f"claim: got {name!r}, expected one of {', '.join(near)}")
    return CLAIMS[name]
