"""``nstat -az``: the kernel's SNMP counters, absolute, those that are 0 included."""

from __future__ import annotations


def parse(text: str) -> dict[str, int]:
    """Counter name to value since the network namespace was made.

    :raises ValueError: if a line cannot be understood
    """
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        # Some gauges (such as TcpMaxConn, -1) are signed.
        if len(words) not in (2, 3) or not words[1].lstrip("-").isdigit():
            raise ValueError(f"nstat line {number}: {line!r} is not `Counter value rate`")
        found[words[0]] = int(words[1])
    return found
