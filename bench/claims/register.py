"""All claims, in the order in which people meet them: one file each in ``statements``."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from bench.claims.model import Claim
from bench.errors import InputError

IDS = (
    "port-myth",
    "four-tuple",
    "client-64k",
    "more-client-ips",
    "more-server-ports",
    "more-server-ips",
    "fd-levels",
    "million",
    "socket-buffers",
    "time-wait",
    "burst",
    "multiplexers",
    "keystroke",
    "nat",
    "reverse-proxy",
    "userland-tcp",
    "processes",
    "count-by-port",
    "epoll-watches",
    "hash-table",
    "memavailable",
    "modern-cost",
)


def _load(name: str) -> Claim[Any, Any]:
    statement = importlib.import_module(f"bench.claims.statements.{name.replace('-', '_')}")
    claim: Claim[Any, Any] = statement.CLAIM
    return claim


CLAIMS = {name: _load(name) for name in IDS}


def claim(name: str) -> Claim[Any, Any]:
    """Return a claim by name. :raises InputError: if there is none, with the nearest names."""
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4) or list(CLAIMS)
        raise InputError(f"claim: got {name!r}, expected one of {', '.join(near)}")
    return CLAIMS[name]
