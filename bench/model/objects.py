"""Kernel objects that make up one end of a TCP connection, and what each object costs.

Sizes come from the host's own slabinfo and include the rounding by slab. If a cache is not visible
(it is merged into another cache and the links are unknown, or slabinfo could not be read), the
table below is used: sizes from ``/proc/slabinfo`` of Debian's 5.10 and 6.1 cloud kernels and of a
6.18 kernel, x86-64 (``tests/data``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.collect.slab import Cache

_COMMON = {
    "sock_inode_cache": 16384 / 19,
    "dentry": 4096 / 21,
    "eventpoll_epi": 128.0,
    "eventpoll_pwq": 64.0,
    "ep_head": 16.0,
    "tcp_bind_bucket": 128.0,
    "lsm_file_cache": 4096 / 170,
    "lsm_inode_cache": 32.0,
    "nf_conntrack": 256.0,
}

_OPTIONAL = ("ep_head", "tcp_bind2_bucket", "lsm_file_cache", "lsm_inode_cache")

TABLE: dict[tuple[int, int], dict[str, float]] = {
    # No ep_head (since 5.11, fs/eventpoll.c), no tcp_bind2_bucket (since 6.1), no inode blobs.
    (5, 10): {
        **_COMMON,
        "TCP": 32768 / 14,
        "TCPv6": 32768 / 13,
        "filp": 256.0,
        "eventpoll_pwq": 4096 / 56,
        "ep_head": 0.0,
        "tcp_bind2_bucket": 0.0,
        "lsm_inode_cache": 0.0,
    },
    (6, 1): {
        **_COMMON,
        "TCP": 32768 / 14,
        "TCPv6": 32768 / 13,
        "filp": 256.0,
        "tcp_bind2_bucket": 64.0,
    },
    (6, 18): {
        **_COMMON,
        "TCP": 32768 / 13,
        "TCPv6": 32768 / 13,
        "filp": 4096 / 21,
        "tcp_bind2_bucket": 128.0,
    },
}
"""Kernel release to bytes per object. A release in between uses the row of the older release."""


def release(kernel: str) -> tuple[int, int]:
    """Return the major and minor number of ``uname -r``.

    :raises ValueError: if the text does not start with them
    """
    match = re.match(r"([0-9]{1,5})\.([0-9]{1,5})", kernel)
    if not match:
        raise ValueError(f"kernel {kernel!r} does not start with a release such as 6.1")
    return int(match[1]), int(match[2])


def row_release(kernel: str) -> tuple[int, int]:
    """Return the release whose row applies to ``uname -r``; before the oldest row, the oldest."""
    wanted = release(kernel)
    known = [key for key in TABLE if key <= wanted]
    return max(known) if known else min(TABLE)


def row(kernel: str) -> dict[str, float]:
    """Return the table's row for ``uname -r``."""
    return TABLE[row_release(kernel)]


def parts(
    server: bool, watched: bool = False, tracked: bool = False, v6: bool = False, sources: int = 1
) -> dict[str, float]:
    """Return the objects of one end of an established, idle connection, by cache.

    :param watched: whether the end is registered with an epoll instance
    :param tracked: whether conntrack is active in its network namespace
    :param sources: addresses that a client connects from; one ``tcp_bind_bucket`` serves a port
        on all of them, a ``tcp_bind2_bucket`` one address and port (net/ipv4/inet_hashtables.c).
        An accepted socket shares its listener's.
    """
    found: dict[str, float] = {"TCPv6" if v6 else "TCP": 1}
    names = ["sock_inode_cache", "dentry", "filp", "lsm_file_cache", "lsm_inode_cache"]
    if watched:
        names += ["eventpoll_epi", "eventpoll_pwq", "ep_head"]
    if tracked:
        names.append("nf_conntrack")
    found |= dict.fromkeys(names, 1.0)
    if not server:
        found |= {"tcp_bind_bucket": 1 / max(1, sources), "tcp_bind2_bucket": 1}
    return found


def each(name: str, kernel: str, caches: Mapping[str, Cache], aliases: Mapping[str, str]) -> float:
    """Return the bytes that one object of a cache costs on this host."""
    if name in caches:
        return caches[name].bytes_each
    identity = aliases.get(name)
    if identity:
        for shown, cache in caches.items():
            if aliases.get(shown) == identity:
                return cache.bytes_each
    if name in _OPTIONAL and caches and aliases:
        return 0.0  # the host showed every cache and alias: its kernel does not have this one
    return row(kernel)[name]


def endpoint_bytes(
    wanted: Mapping[str, float],
    kernel: str,
    caches: Mapping[str, Cache],
    aliases: Mapping[str, str],
) -> float:
    """Return the slab bytes of one end of a connection made of these parts."""
    return sum(count * each(name, kernel, caches, aliases) for name, count in wanted.items())
