"""All claims, in the order in which they are told."""

from __future__ import annotations

import difflib
from typing import Any

from bench.claims.model import Claim
from bench.claims.statements import (
    burst,
    client_64k,
    count_by_port,
    epoll_watches,
    fd_levels,
    four_tuple,
    hash_table,
    keystroke,
    memavailable,
    million,
    modern_cost,
    multiplexers,
    nat,
    port_myth,
    processes,
    reverse_proxy,
    socket_buffers,
    time_wait,
    userland_tcp,
)
from bench.errors import InputError

_ALL: tuple[Claim[Any, Any], ...] = (
    port_myth.PORT_MYTH,
    four_tuple.FOUR_TUPLE,
    client_64k.CLIENT_64K,
    client_64k.MORE_CLIENT_IPS,
    client_64k.MORE_SERVER_PORTS,
    client_64k.MORE_SERVER_IPS,
    fd_levels.FD_LEVELS,
    million.MILLION,
    socket_buffers.SOCKET_BUFFERS,
    time_wait.TIME_WAIT,
    burst.BURST,
    multiplexers.MULTIPLEXERS,
    keystroke.KEYSTROKE,
    nat.NAT,
    reverse_proxy.REVERSE_PROXY,
    userland_tcp.USERLAND_TCP,
    processes.PROCESSES,
    count_by_port.COUNT_BY_PORT,
    epoll_watches.EPOLL_WATCHES,
    hash_table.HASH_TABLE,
    memavailable.MEMAVAILABLE,
    modern_cost.MODERN_COST,
)

CLAIMS = {claim.id: claim for claim in _ALL}


def claim(name: str) -> Claim[Any, Any]:
    """The claim of that name. :raises InputError: for none, with the nearest names."""
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4) or list(CLAIMS)
        raise InputError(f"claim: got {name!r}, expected one of {', '.join(near)}")
    return CLAIMS[name]
