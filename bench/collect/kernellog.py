"""``kernel_log``: the kernel's own messages (dmesg(1)) that report a limit."""

from __future__ import annotations

import re

TELLING = {
    # net/ipv4/tcp.c tcp_check_oom(), tcp_out_of_memory()
    "tcp_mem": r"TCP: out of memory",
    "tcp_max_orphans": r"too many orphaned sockets",
    # net/netfilter/nf_conntrack_core.c
    "nf_conntrack_max": r"nf_conntrack: .*table full, dropping packet",
    # net/ipv4/tcp_input.c tcp_syn_flood_action()
    "backlog": r"Possible SYN flooding on port",
    # fs/file_table.c alloc_empty_file()
    "fs.file-max": r"file-max limit \d+ reached",
    # kernel/cgroup/pids.c, mm/oom_kill.c
    "pids": r"fork rejected by pids controller",
    "memory": r"Out of memory: Killed process|oom-kill:",
    # net/core/neighbour.c, net/sched/sch_generic.c dev_watchdog()
    "gc_thresh3": r"neighbou?r table overflow",
    "link": r"NETDEV WATCHDOG",
}
"""Limit to the message that reports it."""

MOST_LINE = 2_048
"""Characters of a message to search: the kernel writes 1,024 at most (kernel/printk
``PRINTKRB_RECORD_MAX``), and dmesg(1) puts a time before them."""

_ANY = re.compile("|".join(TELLING.values()))


def telling(text: str) -> list[str]:
    """Return the messages that report a limit, as printed, oldest first."""
    return [line for line in text.splitlines() if _ANY.search(line, 0, MOST_LINE)]


def fresh(before: list[str], after: list[str]) -> dict[str, list[str]]:
    """Return limit to the messages that have come since ``before``."""
    old = set(before)
    found: dict[str, list[str]] = {}
    for line in after:
        if line in old:
            continue
        for name, pattern in TELLING.items():
            if re.search(pattern, line[:MOST_LINE]):
                found.setdefault(name, []).append(line)
    return found
