"""Compute each host's share of a lab's connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

MOST_CONNECTIONS = 100_000_000


def whole_connections(connections: Any) -> int:
    """Return `connections` as a number (`-e connections=50000` arrives as text).

    Errors: AnsibleFilterError if it is not a whole number from 1 to 100,000,000.
    """
    text = str(connections).strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_CONNECTIONS:
        raise AnsibleFilterError(
            f"connections: {text!r}, expected a whole number from 1 to {MOST_CONNECTIONS:,}"
        )
    return int(text)


def connlab_shares(connections: Any, groups: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the number of sockets or tracked connections that each host has to hold.

    The connections are divided evenly among the clients, and among the servers, rounded up. A proxy
    holds two sockets for each connection through it. A router holds no sockets, but every
    connection may pass it, so it has to be able to track all of them.
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
    """Return one host's share of `connlab_shares`, or all connections if it is in no group."""
    return connlab_shares(connections, groups).get(host, whole_connections(connections))


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"connlab_share": connlab_share, "connlab_shares": connlab_shares}
