"""``conntrack_stat``: ``/proc/net/stat/nf_conntrack`` (net/netfilter/nf_conntrack_standalone.c)."""

from __future__ import annotations

import re

from bench.collect import ParseError, shown

_HEX = re.compile("[0-9a-fA-F]{1,16}")
"""At most 64 bits."""


def parse(text: str) -> dict[str, int]:
    """Return counter to its sum over processors.

    The text has a line of names, then a line of hexadecimal values for each processor.

    ``drop`` counts packets that were dropped because the table was full, ``early_drop`` entries
    that were removed to make room, ``insert_failed`` clashes. ``entries`` is the size of the same
    table on every line.

    :raises ParseError: if a line cannot be understood
    """
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows:
        return {}
    names, found = rows[0], dict.fromkeys(rows[0], 0)
    for number, words in enumerate(rows[1:], 2):
        if len(words) != len(names):
            raise ParseError(
                f"conntrack_stat line {number}: {len(words)} values for {len(names)} names"
            )
        if not all(map(_HEX.fullmatch, words)):
            raise ParseError(f"conntrack_stat line {number}: {shown(' '.join(words))} is not hex")
        values = [int(word, 16) for word in words]
        for name, value in zip(names, values, strict=True):
            found[name] = value if name == "entries" else found[name] + value
    return found
