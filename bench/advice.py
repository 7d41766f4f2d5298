"""What a run on a fleet has to be told, and what the owner of its hosts has to know."""

from __future__ import annotations

import math
from typing import Any

from bench.fit import NOFILE_MARGIN
from bench.fleet import End, Fleet
from bench.units import count

FIRST_SERVER_PORT = 5000
"""The port that scenarios listen on where nobody names others."""

FLOOR_MIB, RAMP_SECONDS = 768, 600
"""``memory_floor_mib`` and ``ramp_timeout_seconds`` of a scenario where nobody sets them."""

MOST_RAMP_SECONDS, MOST_ACTIVE, MOST_CONNECTIONS = 7_200, 1_024, 100_000_000
"""The most that a scenario takes for ``ramp_timeout_seconds``, ``active_workers`` and
``acceptors``, and ``connections``; the last is the tuning roles' bound too."""

NR_OPEN = 1_048_576
"""fs.nr_open where nothing asks for more: the kernel's default (fs/file.c), and the least that the
role tune_sysctl computes."""

NEIGHBOURS = 512
"""Neighbours that a kernel keeps for good: gc_thresh2 (arp(7)). On one network segment every
address is a neighbour, alias addresses too; above gc_thresh3 (1,024) their packets are dropped."""


def settings(fleet: Fleet) -> dict[str, Any]:
    """Fields of the scenario that have to differ from their defaults."""
    found: dict[str, Any] = {}
    if fleet.servers.ports > 1:
        last = FIRST_SERVER_PORT + fleet.servers.ports
        found["server_ports"] = list(range(FIRST_SERVER_PORT, last))
    if fleet.watch != "epoll":
        found["watch"] = fleet.watch
    floor = math.ceil(fleet.servers.ram.floor / 2**20)
    if floor != FLOOR_MIB:
        found["memory_floor_mib"] = floor
    for field, end in (("active_workers", fleet.clients), ("acceptors", fleet.servers)):
        at_once = min(end.cores, MOST_ACTIVE)
        if at_once > 1:
            found[field] = at_once
    patience = min(MOST_RAMP_SECONDS, math.ceil(2 * fleet.ramp.seconds))
    if patience > RAMP_SECONDS:
        found["ramp_timeout_seconds"] = patience
    return found


def sysctl(fleet: Fleet) -> dict[str, int]:
    """Kernel parameters that the hosts need and that the tuning roles do not compute."""
    found: dict[str, int] = {}
    if fleet.nofile > NR_OPEN:
        share = max(fleet.servers.largest, fleet.clients.largest)
        found["fs.nr_open"] = _power_of_two(max(fleet.nofile, share + NOFILE_MARGIN))
    neighbours = sum(end.hosts * end.addresses for end in (fleet.servers, fleet.clients))
    if neighbours > NEIGHBOURS:
        for number in (1, 2, 3):
            key = f"net.ipv4.neigh.default.gc_thresh{number}"
            found[key] = _power_of_two(neighbours) << (number - 1)
    return found


def notes(fleet: Fleet) -> list[str]:
    """What else there is to do, or to expect."""
    found = [
        f"boot {name} with thash_entries={end.ehash_entries} on the kernel command line: "
        f"by itself the kernel makes {count(end.ehash_default)} entries, with about "
        f"{math.ceil(end.largest / end.ehash_default)} connections in each"
        for name, end in (("servers", fleet.servers), ("clients", fleet.clients))
        if _crowded(end)
    ]
    if fleet.connections > MOST_CONNECTIONS:
        found.append(
            f"a run takes at most {count(MOST_CONNECTIONS)} connections: so many take several "
            "runs side by side, each on hosts and an inventory of its own"
        )
    if fleet.ramp.seconds > MOST_RAMP_SECONDS:
        found.append(
            f"a run's ramp ends after {count(MOST_RAMP_SECONDS)} s at the latest: "
            "more cores or more hosts open them faster"
        )
    return found


def _power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _crowded(end: End) -> bool:
    """Whether the kernel's own established-hash table has more connections than entries."""
    return end.largest > end.ehash_default
