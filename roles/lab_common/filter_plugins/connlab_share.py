"""How many of a lab's connections fall to each host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

MOST_CONNECTIONS = 100_000_000


def whole_connections(connections: Any) -> int:
    """Return `connections` as a number (`-e connections=50000` arrives as text).

    Errors: AnsibleFilterError where it is not a whole number from 1 to 100,000,000.
    """
    text = str(connections).strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_CONNECTIONS:
        raise AnsibleFilterError(
            f"connections: {text!r}, expected a whole number from 1 to {MOST_CONNECTIONS:,}"
        )
    return int(text)


def connlab_shares(connections: Any, groups: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the sockets or tracked connections that each host has to hold.

    Clients share the connections evenly, servers too, both rounded up. A proxy holds two sockets
    for each connection through it. A router holds none, but every connection may pass it, so
    that all of them count for what it tracks.
    """
    total = whole_connections(connections)
    shares: dict[str, int] = {}
    for group, ends in (("servers", 1), ("clients", 1), ("proxies", 2)):
        members = groups.get(group) or []
        for host in members:
            shares[host] = shares.get(host, 0) + ends * -(-total // len(members))
    for host in groups.get("routers") or []:
        shares[host] = shares.get(host, 0) + total
    return shares


def connlab_share(connections: Any, groups: Mapping[str, Sequence[str]], host: str) -> int:
    """Return one host's part of `connlab_shares`; a host in none of the groups: all of it."""
    return connlab_shares(connections, groups).get(host, whole_connections(connections))


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return them by name."""
        return {"connlab_share": connlab_share, "connlab_shares": connlab_shares}
