"""The captured evidence in ``tests/data`` as events of an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"
HELD = {"5.10": 20_000, "6.1": 20_000, "6.18": 10_000}
KERNELS = tuple(HELD)


def texts(kernel: str, phase: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in (DATA / kernel / phase).iterdir()}


def collected(kernel: str, phase: str, **changes: Any) -> dict[str, Any]:
    held = HELD[kernel] if phase == "peak" else 0
    event = {
        "event": "collected",
        "phase": phase,
        "texts": texts(kernel, phase) | {"limits": (DATA / "limits").read_text()},
        "missing": {},
        "held": held,
        "established": held,
        "workers": 2,
        "pss_kib": 9_000 + held // 50,
    }
    return event | changes
