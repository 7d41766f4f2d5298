"""``/proc/meminfo`` (fs/proc/meminfo.c)."""

from __future__ import annotations

import re

from bench.collect import ParseError, number, shown

_LINE = re.compile(r"([^:\s][^:]*):\s+([0-9]+)( kB)?\s*")


def parse(text: str) -> dict[str, int]:
    """Return field to KiB (the kernel prints kB).

    Fields that count pages, such as ``HugePages_Total``, are not sizes and are left out.

    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, int] = {}
    for row, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise ParseError(f"meminfo line {row}: {shown(line)} is not `Field: count kB`")
        if match[3]:
            found[match[1]] = number(match[2], f"meminfo line {row}")
    return found
