"""Names that become files: what a path component may look like."""

from __future__ import annotations

import re

LONGEST = 253
"""Most characters of a host name (RFC 1035 section 2.3.4, as text); a file's name may have 255
bytes (limits.h, NAME_MAX)."""

EXPECTED = f"1 to {LONGEST} of the characters A-Z a-z 0-9 . _ - and neither a dot nor a dash first"

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def safe(name: object) -> bool:
    """Return whether a name is text that is safe as one path component, on a screen or typed."""
    return isinstance(name, str) and len(name) <= LONGEST and bool(_SAFE.fullmatch(name))
