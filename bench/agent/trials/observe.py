"""What a host shows of itself while others are at work: files of /proc, and processes' memory."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List

from bench.agent import probe
from bench.agent.stage import Misuse, Stage

FILES = re.compile(r"/proc/(slabinfo|meminfo|net/[a-z0-9_/]+|sys/net/[a-z0-9_/]+)\Z")
"""What may be read: counters and limits, nobody's secrets."""


def run(stage: Stage, args: Dict[str, Any]) -> Dict[str, Any]:
    """Look once for ``args`` and once for each step, until the end.

    ``files`` [path] are told as ``texts`` {path: text}, absent where they cannot be read; ``named``
    as ``processes`` and ``pss_kib``, the proportional set size of all processes of that name
    (proc(5), smaps_rollup); ``log`` true as ``log``, the kernel's newest messages.
    """
    step = args
    while True:
        stage.tell(**look(step))
        step = stage.step() or {}


def look(step: Dict[str, Any]) -> Dict[str, Any]:
    """One look."""
    texts = {}
    for path in step.get("files") or []:
        if not FILES.match(path):
            raise Misuse(f"files: got {path}, expected a file of counters in /proc")
        try:
            texts[path] = probe.text(path)
        except probe.Unreadable:
            continue
    found: Dict[str, Any] = {"texts": texts}
    if step.get("named"):
        pids = named(str(step["named"]))
        found.update(processes=len(pids), pss_kib=probe.pss_kib(pids))
    if step.get("log"):
        try:
            rows = probe.output([probe.tool("dmesg")]).splitlines(True)
            found["log"] = "".join(rows[-probe.LOG_LINES :])
        except probe.Unreadable:
            found["log"] = ""
    return found


def named(name: str) -> List[int]:
    """Processes of that name (``/proc/PID/comm``)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if probe.text(f"/proc/{entry}/comm").strip() == name:
                    found.append(int(entry))
            except probe.Unreadable:  # it ended meanwhile
                continue
    return found
