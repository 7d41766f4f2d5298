"""``/proc/slabinfo`` version 2.1 (mm/slab_common.c, man 5 slabinfo); only root may read it.

SLUB merges caches of similar size and flags, and prints them under one name: a line may hold
several kinds of object. With Linux 6.18, ``eventpoll_epi`` is also ``tcp_bind_bucket`` and
``tcp_bind2_bucket``. The links of ``/sys/kernel/slab`` show which caches merged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bench.collect import ParseError, shown
from bench.units import MOST_WHOLE

_N = "[0-9]{1,19}"
"""A number with at most 19 digits, which is below 2^64."""

_LINE = re.compile(
    rf"(?P<name>\S+)\s+(?P<active>{_N})\s+(?P<objects>{_N})\s+(?P<size>{_N})"
    rf"\s+(?P<per>{_N})\s+(?P<pages>{_N})(?:\s+: tunables(?:\s+[0-9]+){{3}})?"
    rf"(?:\s+: slabdata\s+[0-9]+\s+(?P<slabs>{_N})\s+[0-9]+)?(?:\s+: .*)?\s*"
)


class Cache(NamedTuple):
    """One slab cache."""

    name: str
    active: int
    """Objects that are allocated, or wait in a processor's own slab."""
    objects: int
    """Objects that the slabs have room for."""
    object_bytes: int
    """Distance from one object to the next, padding included."""
    objects_per_slab: int
    pages_per_slab: int
    slabs: int
    page_bytes: int

    @property
    def slab_bytes(self) -> int:
        """Memory that the cache takes from the machine, used or not."""
        return self.slabs * self.pages_per_slab * self.page_bytes

    @property
    def bytes_each(self) -> float:
        """Memory of one object when slabs are full, with its share of the slab's remainder."""
        return self.pages_per_slab * self.page_bytes / self.objects_per_slab


def parse(text: str, page_bytes: int = 4096) -> dict[str, Cache]:
    """Return slab caches by name. Lines of one name are added up (two modules may use one name).

    :param page_bytes: the host's page size
    :raises ParseError: if a line cannot be understood or the version is not 2.1
    """
    found: dict[str, Cache] = {}
    for row, line in enumerate(text.splitlines(), 1):
        where = f"slabinfo line {row}"
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("slabinfo - version:"):
            if line.split(":")[1].split()[:1] != ["2.1"]:
                raise ParseError(f"{where}: {shown(line)}: only version 2.1 is known")
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise ParseError(f"{where}: {shown(line)} is not a slab cache")
        name, *figures, listed = match.groups()
        active, objects, size, per, pages = map(int, figures)
        if not per or not pages:
            raise ParseError(f"{where}: {shown(line)}: no object fits a slab")
        slabs = -(-objects // per) if listed is None else int(listed)
        cache = Cache(name, active, objects, size, per, pages, slabs, page_bytes)
        if slabs * pages * page_bytes > MOST_WHOLE:
            raise ParseError(f"{where}: {shown(line)}: more memory than there are addresses")
        found[cache.name] = _sum(found[cache.name], cache) if cache.name in found else cache
    return found


def _sum(one: Cache, two: Cache) -> Cache:
    """Return two lines of one name as one cache of the first's shape, as large as both together."""
    pages = one.slabs * one.pages_per_slab + two.slabs * two.pages_per_slab
    return Cache(
        one.name,
        one.active + two.active,
        one.objects + two.objects,
        one.object_bytes,
        one.objects_per_slab,
        one.pages_per_slab,
        -(-pages // one.pages_per_slab),
        one.page_bytes,
    )


SOCKET_CACHES = (
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "dentry",
    "filp",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "lsm_file_cache",
    "lsm_inode_cache",
    "nf_conntrack",
    "skbuff_head_cache",
    "skbuff_fclone_cache",
    "skbuff_small_head",
)
"""Caches that connections allocate from (net/, fs/eventpoll.c, fs/file_table.c, security/)."""


def parse_aliases(text: str) -> dict[str, str]:
    """Parse ``slab_aliases``: ``name target`` for every link in ``/sys/kernel/slab``.

    :return: alias to the merged cache's identity, such as ``:A-0000128``
    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, str] = {}
    for row, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) not in (0, 2):
            raise ParseError(f"slab_aliases line {row}: {shown(line)} is not `name target`")
        if words:
            found[words[0]] = words[1]
    return found


def shared(caches: Iterable[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return those lines of slabinfo that merged, each with the socket caches that it holds.

    ``{"pid": "eventpoll_epi"}`` means that the line ``pid`` also holds epoll items.
    """
    found = {}
    for cache in caches:
        identity = aliases.get(cache)
        ours = [name for name in SOCKET_CACHES if identity and aliases.get(name) == identity]
        if ours and ours != [cache]:
            found[cache] = "+".join(ours)
    return found
