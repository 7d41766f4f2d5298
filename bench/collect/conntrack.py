"""``conntrack_stat``: ``/proc/net/stat/nf_conntrack`` (net/netfilter/nf_conntrack_standalone.c)."""

from __future__ import annotations


def parse(text: str) -> dict[str, int]:
    """Counter to its sum over processors: a line of names, then a line of hex for each.

    ``drop`` counts packets dropped because the table was full, ``early_drop`` entries that had to
    make room, ``insert_failed`` clashes. ``entries`` is the same table's size on every line.

    :raises ValueError: if a line cannot be understood
    """
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows:
        return {}
    names, found = rows[0], dict.fromkeys(rows[0], 0)
    for number, words in enumerate(rows[1:], 2):
        if len(words) != len(names):
            raise ValueError(
                f"conntrack_stat line {number}: {len(words)} values for {len(names)} names"
            )
        try:
            values = [int(word, 16) for word in words]
        except ValueError:
            raise ValueError(f"conntrack_stat line {number}: {words} is not hex") from None
        for name, value in zip(names, values, strict=True):
            found[name] = value if name == "entries" else found[name] + value
    return found
