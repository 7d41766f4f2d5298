"""Socket options that both the engine and the trials set."""

from __future__ import annotations

import socket
import struct

LINGER_RST = struct.pack("ii", 1, 0)
"""Value of SO_LINGER (socket(7), ``struct linger``): on, with time 0. close(2) then sends a RST,
and no TIME_WAIT is left (net/ipv4/tcp.c ``__tcp_close``)."""

IP_BIND_ADDRESS_NO_PORT = 24
"""From ip(7), include/uapi/linux/in.h; Python's socket module has the name only after 3.9."""


def reset_on_close(made: socket.socket) -> None:
    """Make close() of a socket send a RST."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)


def reset(made: socket.socket) -> None:
    """Close a socket by RST."""
    reset_on_close(made)
    made.close()


def choose_port_late(made: socket.socket) -> None:
    """Make bind(2) with port 0 take no port: connect(2) chooses one, free for its four-tuple.

    Without it bind(2) would take a port for all targets at once (net/ipv4/inet_hashtables.c
    ``__inet_hash_connect``).
    """
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
