"""``/proc/meminfo`` (fs/proc/meminfo.c)."""

from __future__ import annotations

import re

_LINE = re.compile(r"([^:\s][^:]*):\s+(\d+)( kB)?\s*")


def parse(text: str) -> dict[str, int]:
    """Field to KiB (what the kernel prints as kB). Fields that count pages, such as
    ``HugePages_Total``, are no sizes and are left out.

    :raises ValueError: if a line cannot be understood
    """
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise ValueError(f"meminfo line {number}: {line!r} is not `Field: count kB`")
        if match[3]:
            found[match[1]] = int(match[2])
    return found
