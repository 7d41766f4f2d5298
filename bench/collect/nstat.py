"""``nstat -az``: the kernel's SNMP counters, absolute, including counters that are 0."""

from __future__ import annotations

from bench.collect import ParseError, shown
from bench.units import signed


def parse(text: str) -> dict[str, int]:
    """Return counter name to value since the network namespace was created.

    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        # Some gauges (such as TcpMaxConn, -1) are signed.
        value = signed(words[1]) if len(words) in (2, 3) else None
        if value is None:
            raise ParseError(f"nstat line {number}: {shown(line)} is not `Counter value rate`")
        found[words[0]] = value
    return found
