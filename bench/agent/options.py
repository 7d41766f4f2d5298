"""The options of an agent: ``python3 agent.pyz run|trial OPTIONS``, with OPTIONS as JSON."""

from __future__ import annotations

import json
import re
from typing import Any, List, Tuple, cast

from bench.wire import AgentOptions

MODES = ("run", "trial")
SILENCE_SECONDS = 1.0, 3600.0
"""Least and most seconds that an agent may wait for its controller."""

_OWNER = re.compile(r"[0-9a-f]{16}\Z")


def parse(argv: List[str]) -> Tuple[str, AgentOptions]:
    """Return mode and options.

    :raises ValueError: with one line, if they are invalid.
    """
    if len(argv) != 2 or argv[0] not in MODES:
        raise ValueError(f"arguments: got {argv!r}, expected {' or '.join(MODES)} and options")
    try:
        found = json.loads(argv[1])
    except (ValueError, RecursionError):
        raise ValueError(f"options: got {argv[1][:80]!r}, expected a JSON object") from None
    least, most = SILENCE_SECONDS
    silence: Any = found.get("silence_seconds") if isinstance(found, dict) else None
    if type(silence) not in (int, float) or not least <= silence <= most:
        raise ValueError(f"silence_seconds: got {silence!r}, expected {least:g} to {most:g}")
    return argv[0], {"silence_seconds": float(silence), "lock": _lock(found.get("lock"))}


def _lock(found: Any) -> Any:
    if found is None:
        return None
    if not isinstance(found, dict) or set(found) != {"owner", "who", "run"}:
        raise ValueError(f"lock: got {found!r}, expected owner, who and run")
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"lock: got {found!r}, expected strings")
    if not _OWNER.match(found["owner"]):
        raise ValueError(f"lock: owner: got {found['owner']!r}, expected 16 hex digits")
    return cast(Any, found)
