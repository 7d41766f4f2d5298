"""The kernel's messages on this machine, which hosts that share its kernel may not read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

DEVICE = Path("/dev/kmsg")

LARGEST = 8192
"""Bytes of the largest record (kernel/printk/printk.c, CONSOLE_EXT_LOG_MAX)."""


def read(device: Path = DEVICE) -> str:
    """Return all messages, oldest first, as dmesg(1) prints them; empty if they cannot be read."""
    try:
        handle = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return "".join(map(line, records(lambda: os.read(handle, LARGEST))))
    finally:
        os.close(handle)


def records(next_one: Callable[[], bytes]) -> Iterator[bytes]:
    """Yield the records of the device, one for each read (Documentation/ABI/testing/dev-kmsg)."""
    while True:
        try:
            record = next_one()
        except BrokenPipeError:  # overwritten meanwhile: the next read continues after the gap
            continue
        except OSError:  # EAGAIN: no more
            return
        if not record:
            return
        yield record


def line(record: bytes) -> str:
    """Return ``level,number,microseconds,flags;message`` as ``[seconds.microseconds] message``."""
    head, _, rest = record.decode(errors="replace").partition(";")
    message = rest.partition("\n")[0]
    microseconds = int(head.split(",")[2])
    return f"[{microseconds // 1_000_000:5d}.{microseconds % 1_000_000:06d}] {message}\n"
