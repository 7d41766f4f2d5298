"""The sysctl values a number of connections asks for, and the plan to reach them.

Pure functions from numbers to values; what runs on the hosts is in library/connlab_sysctl.py.
Sources: Documentation/networking/ip-sysctl.rst and nf_conntrack-sysctl.rst,
Documentation/admin-guide/sysctl/{fs,net}.rst and the kernel files named at each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible.errors import AnsibleFilterError

PORT_RANGE = "net.ipv4.ip_local_port_range"
BUCKETS = "net.netfilter.nf_conntrack_buckets"
# sysctl.d(5) applies a file from its top. nr_open comes first: whoever raises a nofile limit
# between two lines must not find it above nr_open.
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
# Only where the module is loaded: without it nothing is tracked and nothing is missing.
IF_LOADED = frozenset(key for key in KEYS if key.startswith("net.netfilter."))
# The sysctls above that the kernel keeps in an int.
INT_MAX = 2**31 - 1
# Descriptors that a process which holds connections has open besides (log, epoll, pipes).
DESCRIPTOR_RESERVE = 4096


class Value(NamedTuple):
    """A wanted value and the formula it comes from, for people to read."""

    text: str
    formula: str


def power_of_two(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def with_spare(sockets: int) -> int:
    """Return `sockets`, an eighth on top, and 65,536 for the rest of the machine."""
    return min(sockets + sockets // 8 + 65_536, INT_MAX)


def computed(sockets: int, largest: int, memory_kib: int, page_bytes: int) -> dict[str, Value]:
    """Return what `sockets` TCP sockets on one kernel ask for, by key, as /proc/sys prints it.

    sockets: all on this kernel, in every network namespace; largest: most in one namespace and
    one process; memory_kib: MemTotal; page_bytes: the page size, the unit of tcp_mem.
    """
    pages = memory_kib * 1024 // page_bytes
    # tcp_init_mem() and tcp_init(), net/ipv4/tcp.c: pressure at a sixteenth of memory, and a
    # largest buffer of a 128th of memory, 6 MiB (receive) or 4 MiB (send) at the most.
    # A byte that nobody has read, or a FIN, costs its socket one page of tcp_mem. Its hard limit
    # stays at half of memory: what TCP takes there is gone for the sockets themselves.
    pressure = max(1, min(max(pages // 16, sockets), pages // 3))
    part = pressure * page_bytes // (2 * sockets)
    largest_buffer = memory_kib * 1024 // 128

    def buffers(default: int, most: int) -> str:
        # sk->sk_rcvbuf and sk_sndbuf start at the second figure; the kernel's own is enough.
        middle = min(default, max(4096, part // 4096 * 4096))
        return f"4096 {middle} {max(default, min(most, largest_buffer))}"

    burst = power_of_two(largest // 16)
    processes = "one process may hold all of a host's connections"
    values = {
        # alloc_fdtable(), fs/file.c, doubles the table: a limit between two powers is not reached.
        "fs.nr_open": Value(
            str(min(max(power_of_two(largest + DESCRIPTOR_RESERVE), 1_048_576), 2**30)),
            f"power of two >= connections + {DESCRIPTOR_RESERVE}, {processes}",
        ),
        # files_maxfiles_init(), fs/file_table.c: counts every open file of the kernel.
        "fs.file-max": Value(str(with_spare(sockets)), "sockets x 9/8 + 65536"),
        # ep_insert(), fs/eventpoll.c: ENOSPC beyond it, counted per user over all namespaces.
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
        # tcp_too_many_orphans(): beyond it the kernel resets what a process left when it ended.
        "net.ipv4.tcp_max_orphans": Value(
            str(min(sockets, INT_MAX)), "sockets: a process that ends leaves all of its own"
        ),
        # inet_twsk_alloc(), net/ipv4/inet_timewait_sock.c: beyond it TIME_WAIT is cut short.
        "net.ipv4.tcp_max_tw_buckets": Value(
            str(min(largest, INT_MAX)), "connections: all of a host's may be closed at once"
        ),
        # __nf_conntrack_alloc(), net/netfilter/nf_conntrack_core.c: counted per namespace.
        "net.netfilter.nf_conntrack_max": Value(
            str(with_spare(largest)), "connections x 9/8 + 65536, counted per namespace"
        ),
        # The hash table is one for all namespaces, and the kernel rounds it up to whole pages of
        # 8-byte heads (nf_ct_alloc_hashtable()): 8192 of them fill the largest page size, 64 KiB.
        BUCKETS: Value(
            str(-(-with_spare(sockets) // 8192) * 8192), "a bucket per entry, in whole pages"
        ),
    }
    return {key: values[key] for key in KEYS}


def normal(text: object) -> str:
    """Return a sysctl's text with single spaces: the kernel prints tabs between figures."""
    return " ".join(str(text).split())


def figures(text: str) -> list[int] | None:
    """Return the whole numbers of a value, or None where it is not made of them."""
    try:
        return [int(word) for word in text.split()] or None
    except ValueError:
        return None


def raised(key: str, found: str, wanted: str) -> str:
    """Return the value that grants what both grant: nothing is lowered.

    Figures one by one take the larger, a port range the wider; a value that is not made of the
    same number of figures (a name, for example) cannot be compared and becomes the wanted one.
    """
    old, new = figures(found), figures(wanted)
    if old is None or new is None or len(old) != len(new):
        return normal(wanted)
    if key == PORT_RANGE and len(old) == 2:
        return f"{min(old[0], new[0])} {max(old[1], new[1])}"
    return " ".join(str(max(pair)) for pair in zip(old, new, strict=True))


def wishes(extra: Mapping[str, Any], state: str) -> dict[str, tuple[str, str]]:
    """Return a person's own values as {key: (value, state)}.

    Errors: AnsibleFilterError, naming the key, where a value is not one.
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
    """Return every key to look at: those computed and a person's own."""
    return [*KEYS, *(key for key in wishes(extra, "raise") if key not in KEYS)]


def tune_sysctl_plan(
    probe: Mapping[str, Any],
    sockets: int,
    largest: int,
    extra: Mapping[str, Any],
    state: str,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what to set on a kernel, from what it has.

    probe: {"memory_kib", "page_bytes", "keys": {key: {"found": text or None, "writable"}}};
    only: look at these keys alone. Returns {"settings": [{key, found, wanted, value, formula}]}
    of what can be written here and {"elsewhere": {key: {found, wanted, state, why}}} of the rest.
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
    """Return the keys that any of these hosts' plans could not write, in a fixed order."""
    keys = {key for plan in plans for key in plan.get("elsewhere", {})}
    return [key for key in KEYS if key in keys] + sorted(keys - set(KEYS))


def tune_sysctl_elsewhere(
    plan: Mapping[str, Any], underlay: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return where each key that a host could not write stands now.

    underlay: {"settings", "reported"} of the machine underneath, None where the lab does not own
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
        """Return them by name."""
        return {
            "tune_sysctl_keys": tune_sysctl_keys,
            "tune_sysctl_plan": tune_sysctl_plan,
            "tune_sysctl_unwritable": tune_sysctl_unwritable,
            "tune_sysctl_elsewhere": tune_sysctl_elsewhere,
        }
