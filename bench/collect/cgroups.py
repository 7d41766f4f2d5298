"""``cgroup``: limits, use and events of the agent's cgroups (cgroup-v2.rst), innermost first.

Each line is ``/<cgroup> <file> [<key>] <value>``, with the content of the files ``pids.max``,
``pids.current``, ``pids.events``, ``memory.max``, ``memory.current`` and ``memory.events``.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.collect import ParseError, number, shown

UNLIMITED = "max"


def parse(text: str) -> dict[str, dict[str, int]]:
    """Return cgroup to figure to value; events as ``pids.events:max``.

    A figure without a limit (``max``) is left out.

    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, dict[str, int]] = {}
    for row, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (3, 4) or not words[0].startswith("/"):
            raise ParseError(f"cgroup line {row}: {shown(line)} is not `/cgroup file [key] value`")
        group = found.setdefault(words[0], {})
        name, value = ":".join(words[1:-1]), words[-1]
        if value == UNLIMITED:
            continue
        group[name] = number(value, f"cgroup line {row}")
    return found


def rooms(groups: Mapping[str, Mapping[str, int]], limit: str, used: str) -> list[tuple[int, int]]:
    """Return (limit, used) of every cgroup that has both."""
    return [
        (group[limit], group[used]) for group in groups.values() if limit in group and used in group
    ]
