"""What a host answers of itself: a small one with nothing set, for tests to change."""

from __future__ import annotations

from typing import Any

FACTS: dict[str, Any] = {
    "event": "facts",
    "hostname": "server1",
    "kernel": "6.1.0-56-cloud-amd64",
    "python": "3.11.2",
    "cpu": 2,
    "mem_total_kib": 995_612,
    "nofile_soft": 20_000,
    "nofile_hard": 20_000,
    "own_tasks": 5,
    "tracking": False,
    "cap_sys_resource": False,
    "sysctl": {},
    "addresses": [],
    "ehash_entries": 65_536,
    "roles": {},
}
