"""Compute the sysctl values that a number of connections requires, and the plan to set them.

Pure functions from numbers to values; library/connlab_sysctl.py runs on the hosts.
Sources: Documentation/networking/ip-sysctl.rst and nf_conntrack-sysctl.rst,
Documentation/admin-guide/sysctl/{fs,net}.rst and the kernel files named at each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible.errors import AnsibleFilterError

PORT_RANGE = "net.ipv4.ip_local_port_range"
BUCKETS = "net.netfilter.nf_conntrack_buckets"
# sysctl.d(5) applies a file from the top. nr_open comes first, so that a nofile limit that is
# raised at the same time is never above it.
KEYS = (
    "fs.nr_open",
    "fs.file-max",
    "fs.epoll.max_user_watches",
    PORT_RANGE,
    "net.core.somaxconn",
    "net.core.netdev_max_backlog",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_tw_buckets",
    "net.netfilter.nf_conntrack_max",
    BUCKETS,
)
# Keys that exist only if the module is loaded: without it nothing is tracked, so none is missing.
IF_LOADED = frozenset(key for key in KEYS if key.startswith("net.netfilter."))
# Largest value of the sysctls above that the kernel keeps in an int.
INT_MAX = 2**31 - 1
# Descriptors that a process needs in addition to its connections (log, epoll, pipes).
DESCRIPTOR_RESERVE = 4096


class Value(NamedTuple):
    """A wanted value and its formula as text for a reader."""

    text: str
    formula: str


def power_of_two(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def with_spare(sockets: int) -> int:
    """Return `sockets` plus an eighth, plus 65,536 for the rest of the machine."""
    return min(sockets + sockets // 8 + 65_536, INT_MAX)


def computed(sockets: int, largest: int, memory_kib: int, page_bytes: int) -> dict[str, Value]:
    """Return the values that `sockets` TCP sockets on one kernel require, as in /proc/sys, by key.

    sockets: all on this kernel, in every network namespace; largest: the largest number in one
    namespace and one process; memory_kib: MemTotal; page_bytes: the page size, the unit of tcp_mem.
    """
    pages = memory_kib * 1024 // page_bytes
    # tcp_init_mem() and tcp_init(), net/ipv4/tcp.c: pressure at a sixteenth of memory, and a
    # maximum buffer of a 128th of memory, but no more than 6 MiB (receive) or 4 MiB (send).
    # An unread byte, or a FIN, costs its socket one page of tcp_mem. The hard limit of tcp_mem
    # stays at half of memory, because the sockets themselves need the rest.
    pressure = max(1, min(max(pages // 16, sockets), pages // 3))
    part = pressure * page_bytes // (2 * sockets)
    largest_buffer = memory_kib * 1024 // 128

    def buffers(default: int, most: int) -> str:
        # sk->sk_rcvbuf and sk_sndbuf start at the second figure; the kernel's default is enough.
        middle = min(default, max(4096, part // 4096 * 4096))
        return f"4096 {middle} {max(default, min(most, largest_buffer))}"

    burst = power_of_two(largest // 16)
    processes = "one process may hold all of a host's connections"
    values = {
        # alloc_fdtable(), fs/file.c, doubles the table: no limit between two powers is reached.
        "fs.nr_open": Value(
            str(min(max(power_of_two(largest + DESCRIPTOR_RESERVE), 1_048_576), 2**30)),
            f"power of two >= connections + {DESCRIPTOR_RESERVE}, {processes}",
        ),
        # files_maxfiles_init(), fs/file_table.c: counts every open file of the kernel.
        "fs.file-max": Value(str(with_spare(sockets)), "sockets x 9/8 + 65536"),
        # ep_insert(), fs/eventpoll.c: ENOSPC above it, counted per user over all namespaces.
        "fs.epoll.max_user_watches": Value(
            str(with_spare(sockets)), "sockets x 9/8 + 65536, each registered once"
        ),
        # 1024 is the first port that needs no privilege (ip_unprivileged_port_start).
        PORT_RANGE: Value("1024 65535", "all 64512 ports that need no privilege"),
        # listen(2): the accept queue. Kernels before 4.18 keep it in 16 bits.
        "net.core.somaxconn": Value(
            str(min(max(burst, 4096), 65_535)),
            "power of two >= connections / 16, 4096 to 65535: about a second of a fast ramp",
        ),
        # enqueue_to_backlog(), net/core/dev.c: one queue per CPU for every veth and macvlan.
        "net.core.netdev_max_backlog": Value(
            str(min(max(power_of_two(sockets // 16), 1024), 262_144)),
            "power of two >= sockets / 16, 1024 to 262144: a ramp's window or a drain's burst",
        ),
        # tcp_conn_request(), net/ipv4/tcp_input.c, when SYN cookies are off.
        "net.ipv4.tcp_max_syn_backlog": Value(
            str(min(max(burst, 4096), 262_144)), "power of two >= connections / 16, 4096 to 262144"
        ),
        "net.ipv4.tcp_rmem": Value(
            buffers(131_072, 6 * 2**20), "4096, half a socket's part of tcp_mem, memory / 128"
        ),
        "net.ipv4.tcp_wmem": Value(
            buffers(16_384, 4 * 2**20), "4096, half a socket's part of tcp_mem, memory / 128"
        ),
        "net.ipv4.tcp_mem": Value(
            f"{pressure * 3 // 4} {pressure} {pressure * 3 // 2}",
            "pressure at a page per socket, at least memory / 16, hard limit half of memory",
        ),
        # tcp_too_many_orphans(): above it the kernel resets the sockets that a dead process left.
        "net.ipv4.tcp_max_orphans": Value(
            str(min(sockets, INT_MAX)), "sockets: a process that ends leaves all of its own"
        ),
        # inet_twsk_alloc(), net/ipv4/inet_timewait_sock.c: above it TIME_WAIT is skipped.
        "net.ipv4.tcp_max_tw_buckets": Value(
            str(min(largest, INT_MAX)), "connections: all of a host's may be closed at once"
        ),
        # __nf_conntrack_alloc(), net/netfilter/nf_conntrack_core.c: counted per namespace.
        "net.netfilter.nf_conntrack_max": Value(
            str(with_spare(largest)), "connections x 9/8 + 65536, counted per namespace"
        ),
        # All namespaces share one hash table, which the kernel rounds up to whole pages of 8-byte
        # heads (nf_ct_alloc_hashtable()). 8192 heads fill a page of the largest size, 64 KiB.
        BUCKETS: Value(
            str(-(-with_spare(sockets) // 8192) * 8192), "a bucket per entry, in whole pages"
        ),
    }
    return {key: values[key] for key in KEYS}


def normal(text: object) -> str:
    """Return a sysctl's text with single spaces; the kernel prints tabs between figures."""
    return " ".join(str(text).split())


def figures(text: str) -> list[int] | None:
    """Return the whole numbers of a value, or None if it has anything else."""
    try:
        return [int(word) for word in text.split()] or None
    except ValueError:
        return None


def raised(key: str, found: str, wanted: str) -> str:
    """Return the value that satisfies both `found` and `wanted`; it lowers nothing.

    It takes the larger of each figure, and the wider port range. A value that does not have the
    same number of figures (a name, for example) cannot be compared and becomes the wanted one.
    """
    old, new = figures(found), figures(wanted)
    if old is None or new is None or len(old) != len(new):
        return normal(wanted)
    if key == PORT_RANGE and len(old) == 2:
        return f"{min(old[0], new[0])} {max(old[1], new[1])}"
    return " ".join(str(max(pair)) for pair in zip(old, new, strict=True))


def wishes(extra: Mapping[str, Any], state: str) -> dict[str, tuple[str, str]]:
    """Return the user's own values as {key: (value, state)}.

    Errors: AnsibleFilterError, naming the key, if a value, a state or a key is invalid.
    """
    result = {}
    for key, entry in extra.items():
        name = str(key).replace("/", ".") if "/" in str(key).split(".", 1)[0] else str(key)
        value, how = entry, state
        if isinstance(entry, Mapping):
            value, how = entry.get("value"), str(entry.get("state", state))
        plain = isinstance(value, str | int) and not isinstance(value, bool)
        if not plain or not normal(value) or "\n" in str(value):
            raise AnsibleFilterError(
                f"tune_sysctl_extra: {name}: {value!r}, expected a number or a line of text"
            )
        if how not in ("raise", "exact"):
            raise AnsibleFilterError(
                f"tune_sysctl_extra: {name}: state {how!r}, expected raise or exact"
            )
        if not name or ".." in name or not set(name) <= _KEY_CHARACTERS:
            raise AnsibleFilterError(
                f"tune_sysctl_extra: {name!r}, expected a key such as net.core.somaxconn"
            )
        result[name] = (normal(value), how)
    return result


_KEY_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/@:")


def tune_sysctl_keys(extra: Mapping[str, Any]) -> list[str]:
    """Return every key to read: the computed ones and the user's own."""
    return [*KEYS, *(key for key in wishes(extra, "raise") if key not in KEYS)]


def tune_sysctl_plan(
    probe: Mapping[str, Any],
    sockets: int,
    largest: int,
    extra: Mapping[str, Any],
    state: str,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the plan for a kernel, from its current values.

    probe: {"memory_kib", "page_bytes", "keys": {key: {"found": text or None, "writable"}}};
    only: plan only these keys. The plan has {"settings": [{key, found, wanted, value, formula}]}
    with the keys that can be written here, and {"elsewhere": {key: {found, wanted, state, why}}}
    with the others.
    """
    own = wishes(extra, state)
    goals = {
        key: (value.text, state, value.formula)
        for key, value in computed(
            int(sockets), int(largest), int(probe["memory_kib"]), int(probe["page_bytes"])
        ).items()
    }
    goals.update({key: (text, how, "tune_sysctl_extra") for key, (text, how) in own.items()})
    settings, elsewhere = [], {}
    for key, (wanted, how, formula) in goals.items():
        seen = probe["keys"].get(key)
        if seen is None or (only is not None and key not in only):
            continue
        found = None if seen["found"] is None else normal(seen["found"])
        if found is not None and seen["writable"]:
            value = raised(key, found, wanted) if how == "raise" else wanted
            settings.append(
                {"key": key, "found": found, "wanted": wanted, "value": value, "formula": formula}
            )
        elif found is not None or key not in IF_LOADED or key in own:
            elsewhere[key] = {
                "found": found,
                "wanted": wanted,
                "state": how,
                "why": "no such key here" if found is None else "read-only here",
            }
    return {"settings": settings, "elsewhere": elsewhere}


def tune_sysctl_unwritable(plans: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys that at least one of the hosts could not write, in a fixed order."""
    keys = {key for plan in plans for key in plan.get("elsewhere", {})}
    return [key for key in KEYS if key in keys] + sorted(keys - set(KEYS))


def tune_sysctl_elsewhere(
    plan: Mapping[str, Any], underlay: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the status of each key that a host could not write.

    underlay: {"settings", "reported"} of the machine underneath, or None if the lab does not own
    one. Returns {"observed": {key: {found, set, wanted, where}}, "reported": {key: why}}.
    """
    observed, reported = {}, {}
    below = underlay or {}
    for key, entry in plan["elsewhere"].items():
        found, wanted = entry["found"], entry["wanted"]
        if key in below.get("settings", {}):
            observed[key] = {**below["settings"][key], "where": "underlay"}
            continue
        enough = raised(key, found, wanted) == found if found is not None else False
        if found is not None and (enough if entry["state"] == "raise" else found == wanted):
            observed[key] = {"found": found, "set": found, "wanted": wanted, "where": "host"}
            continue
        if underlay is None:
            why = "and the inventory has no machine underneath (group underlay)"
        else:
            why = "and the machine underneath: " + str(
                below.get("reported", {}).get(key, "has not been tuned in this run")
            )
        has = "nothing" if found is None else found
        reported[key] = f"wanted {wanted}, found {has}: {entry['why']}, {why}"
    return {"observed": observed, "reported": reported}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "tune_sysctl_keys": tune_sysctl_keys,
            "tune_sysctl_plan": tune_sysctl_plan,
            "tune_sysctl_unwritable": tune_sysctl_unwritable,
            "tune_sysctl_elsewhere": tune_sysctl_elsewhere,
        }
