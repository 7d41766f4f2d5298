"""A clock that can be stepped, for one process and its children: what settimeofday(2) does to all.

Read by Python as it starts (site(1)), where this directory is in PYTHONPATH. The file that
CONNLAB_CLOCK names has the seconds by which time() is off; none: it is right. The monotonic clock
is left alone, as the kernel does.
"""

from __future__ import annotations

import datetime
import os
import time

_PATH = os.environ.get("CONNLAB_CLOCK", "/run/connlab-clock")
_TIME, _TIME_NS = time.time, time.time_ns


def _offset() -> int:
    try:
        with open(_PATH, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return cls.fromtimestamp(time.time(), tz)


time.time = lambda: _TIME() + _offset()
time.time_ns = lambda: _TIME_NS() + _offset() * 1_000_000_000
datetime.datetime = _Datetime  # type: ignore[misc]
