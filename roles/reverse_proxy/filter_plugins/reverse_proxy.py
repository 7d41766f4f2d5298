"""Check the variables of reverse proxies, and plan their processes and their routing."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

MODES = ("plain", "proxy_protocol", "transparent")
# haproxy's configuration manual, 2.6, section 4.2: characters of a proxy's name.
NAME = re.compile(r"[A-Za-z0-9_.:-]+")
# The same, section 2.4, without times below a millisecond or without a unit.
TIME = re.compile(r"[1-9][0-9]*(ms|s|m|h|d)")
# haproxy.c, 2.6: global.maxsock is 2 x maxconn, one for each listener, 3 for each thread (epoll and
# a pipe) and about 20 more (standard streams, stats socket and its 10 connections).
DESCRIPTOR_RESERVE = 256
# Additional connections: through the control port, and to the stats socket.
CONNECTION_RESERVE = 64
SIGMAS = 5
"""Headroom in standard deviations. SO_REUSEPORT distributes by hash (reuseport_select_sock(),
net/core/sock_reuseport.c), so a process's share is binomial: with 5 sigma one run in a million
overfills a process."""
MOST_CONNECTIONS = 100_000_000
# A process with less room than this is not worth starting.
LEAST_ROOM = 256
MOST_PROCESSES = 1024
"""Maximum number of processes on a host: with 20,000 descriptors each, ten million connections."""
# sysctl_nr_open_max, fs/file.c: INT_MAX, rounded down to the bits of a word.
MOST_NR_OPEN = 2**31 - 64
# include/uapi/linux/rtnetlink.h, enum rt_class_t: unspec, and default, main and local.
RESERVED_TABLES = (0, 253, 254, 255)
MOST_TABLE = 2**32 - 1
# fib_default_rules_init(), net/ipv4/fib_rules.c: local is 0, main 32766.
MOST_PRIORITY = 32_765


def usual_share(room: int) -> int:
    """Return the largest mean load at which a process's load stays within `room` at `SIGMAS`.

    It solves mean + SIGMAS x sqrt(mean) = room: the standard deviation of a binomial share is at
    most sqrt(mean).
    """
    return max(1, math.floor((math.sqrt(room + SIGMAS**2 / 4) - SIGMAS / 2) ** 2))


def room_needed(connections: int, processes: int) -> int:
    """Return the connections that each of `processes` must have room for; a single one, for all.

    This is the inverse of `usual_share`.
    """
    if processes == 1:
        return connections + CONNECTION_RESERVE
    mean = connections / processes
    return math.ceil(mean + SIGMAS * math.sqrt(mean)) + CONNECTION_RESERVE


def whole(field: str, value: Any, least: int, most: int) -> int:
    """Return `value` as a number. Errors: AnsibleFilterError, one line, if it is not in range."""
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise AnsibleFilterError(
            f"{field}: {text!r}: expected a whole number from {least:,} to {most:,}"
        )
    return int(text)


def planned(
    probe: Mapping[str, Any], connections: Any, processes: Any, listeners: int, tuned: bool
) -> dict[str, int]:
    """Return `reverse_proxy_plan` without its "error". Errors: AnsibleFilterError."""
    share = whole("reverse_proxy_connections", connections, 1, MOST_CONNECTIONS)
    hard, cores = int(probe["nofile"]), max(1, int(probe["cores"]))
    if not tuned and hard >= int(probe["nr_open"]):
        hard = MOST_NR_OPEN
    reserve = DESCRIPTOR_RESERVE + int(listeners)
    room = (hard - reserve) // 2
    if room < LEAST_ROOM:
        raise AnsibleFilterError(
            f"nofile: {hard}: expected at least {2 * LEAST_ROOM + reserve} for a service"
        )
    roomy = usual_share(room - CONNECTION_RESERVE)
    alone = room_needed(share, 1) <= room
    least = 1 if alone else max(2, math.ceil(share / roomy))
    why = f"2 descriptors for each of {share:,} connections, and a service here has {hard:,}"
    if least > MOST_PROCESSES:
        raise AnsibleFilterError(
            f"reverse_proxy_connections: {share}: expected at most {MOST_PROCESSES * roomy}: {why}"
        )
    own = str(processes).strip()
    count = max(cores, least)
    if own:
        count = whole("reverse_proxy_processes", own, 1, MOST_PROCESSES)
        if count < least:
            raise AnsibleFilterError(
                f"reverse_proxy_processes: {count}: expected at least {least}: {why}"
            )
    maxconn = room_needed(share, count)
    return {"processes": count, "maxconn": maxconn, "nofile": 2 * maxconn + reserve}


def reverse_proxy_plan(
    probe: Mapping[str, Any], connections: Any, processes: Any, listeners: int, tuned: bool = True
) -> dict[str, Any]:
    """Return the plan {"processes", "maxconn", "nofile"} for `connections` on one host.

    If the host cannot carry them, return {"error"}, one line. Each connection takes two descriptors
    of its process, one for each end.

    probe: {"nofile", "nr_open", "cores"}: the hard limit that a service can have here, fs.nr_open,
    and processors; processes: the user's own number, or "" for the computed one: one per core, or
    more if the limit is too low for that; listeners: listening sockets of each process; tuned:
    whether fs.nr_open has its final value. Before, a limit equal to fs.nr_open does not count,
    because it may still rise.
    """
    try:
        return planned(probe, connections, processes, listeners, tuned)
    except AnsibleFilterError as error:
        return {"error": str(error)}


def reverse_proxy_frontends(
    frontends: Sequence[Mapping[str, Any]], first: bool = True
) -> list[dict[str, Any]]:
    """Return the frontends with all their fields, in order, as numbers and text.

    first: whether this is the lab's first proxy, which has the transparent frontends.
    """
    return [
        {
            "name": str(each["name"]),
            "port": int(each["port"]),
            "server_port": int(each.get("server_port") or each["port"]),
            "mode": str(each.get("mode", "plain")),
        }
        for each in frontends
        if first or each.get("mode") != "transparent"
    ]


def frontend_errors(frontends: Any) -> list[str]:
    """Return one line for each error in `reverse_proxy_frontends`."""
    field = "reverse_proxy_frontends"
    if not isinstance(frontends, Sequence) or isinstance(frontends, str) or not frontends:
        return [f"{field}: {frontends!r}: expected a list of name, port, server_port and mode"]
    lines: list[str] = []
    names: dict[str, int] = {}
    ports: dict[int, int] = {}
    modes: dict[int, tuple[int, str]] = {}
    for index, each in enumerate(frontends):
        at = f"{field}[{index}]"
        if not isinstance(each, Mapping):
            lines.append(f"{at}: {each!r}: expected name, port, server_port and mode")
            continue
        unknown = sorted(set(map(str, each)) - {"name", "port", "server_port", "mode"})
        lines += [f"{at}.{key}: expected name, port, server_port or mode" for key in unknown]
        name = str(each.get("name", ""))
        if not NAME.fullmatch(name):
            lines.append(f"{at}.name: {name!r}: expected letters, digits and _.:-")
        elif names.setdefault(name, index) != index:
            lines.append(
                f"{at}.name: {name}: expected a name of its own, {field}[{names[name]}] has it"
            )
        mode = str(each.get("mode", "plain"))
        if mode not in MODES:
            lines.append(f"{at}.mode: {mode}: expected {', '.join(MODES[:-1])} or {MODES[-1]}")
        try:
            port = whole(f"{at}.port", each.get("port", ""), 1, 65_535)
            server_port = whole(f"{at}.server_port", each.get("server_port") or port, 1, 65_535)
        except AnsibleFilterError as error:
            lines.append(str(error))
            continue
        if ports.setdefault(port, index) != index:
            lines.append(
                f"{at}.port: {port}: expected a port of its own, {field}[{ports[port]}] has it"
            )
        other, its_mode = modes.setdefault(server_port, (index, mode))
        if "transparent" in (mode, its_mode) and mode != its_mode:
            # The server sends all answers of that port to the first proxy.
            lines.append(
                f"{at}.server_port: {server_port}: expected another one than that of "
                f"{field}[{other}]: a transparent frontend has the server's port for itself"
            )
    return lines


def address_errors(field: str, values: Any, prefixes: Iterable[Any], what: str) -> list[str]:
    """Return one line for each value that is not an IPv4 address inside one of the prefixes."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        return [f"{field}: {values!r}: expected the IPv4 address of {what}, or more of them"]
    allowed = [net for net in map(ipaddress.ip_network, map(str, prefixes)) if net.version == 4]
    lines = []
    seen: set[str] = set()
    for index, value in enumerate(values):
        at = f"{field}[{index}]"
        try:
            address = ipaddress.IPv4Address(str(value).strip())
        except ValueError:
            lines.append(f"{at}: {value}: expected an IPv4 address")
            continue
        if not any(address in prefix for prefix in allowed):
            inside = ", ".join(map(str, allowed)) or "lab_prefixes, which has no IPv4"
            lines.append(f"{at}: {value}: expected an address inside {inside}")
        if str(address) in seen:
            lines.append(f"{at}: {value}: expected an address that is not named twice")
        seen.add(str(address))
    return lines


def stranger_errors(values: Sequence[Any], known: Iterable[str]) -> list[str]:
    """Return one line for each address in `reverse_proxy_servers` that no server has.

    known: the addresses of all servers, and the prefixes that are local as a whole.
    """
    networks = [ipaddress.ip_network(each) for each in known]
    return [
        f"reverse_proxy_servers[{index}]: {value}: expected an address of a host of the group "
        "servers"
        for index, value in enumerate(values)
        if not any(ipaddress.ip_address(str(value).strip()) in network for network in networks)
    ]


def reverse_proxy_errors(
    fields: Mapping[str, Any], prefixes: Sequence[Any], known: Sequence[str]
) -> list[str]:
    """Return one line for each error in a host's reverse_proxy_* fields, none if all are valid.

    prefixes: the only permitted prefixes; known: the addresses and local prefixes of all servers,
    which a proxy may connect to. Lines have the form "field: value: expected ...".
    """
    lines = frontend_errors(fields["frontends"])
    strange = address_errors("reverse_proxy_servers", fields["servers"], prefixes, "a server")
    lines += strange or stranger_errors(fields["servers"], known)
    lines += address_errors("reverse_proxy_sources", fields["sources"], prefixes, "this proxy")
    lines += address_errors("reverse_proxy_listen", fields["listen"], prefixes, "this proxy")
    checks = [
        ("reverse_proxy_connections", fields["connections"], 1, MOST_CONNECTIONS),
        ("reverse_proxy_bufsize", fields["bufsize"], 1024, 1_048_576),
        ("reverse_proxy_table", fields["table"], 1, MOST_TABLE),
        ("reverse_proxy_rule_priority", fields["priority"], 1, MOST_PRIORITY),
    ]
    if str(fields["processes"]).strip():
        checks.append(("reverse_proxy_processes", fields["processes"], 1, MOST_PROCESSES))
    for check in checks:
        try:
            if whole(*check) in RESERVED_TABLES and check[0] == "reverse_proxy_table":
                lines.append(f"{check[0]}: {check[1]}: expected a table of its own, not the main")
        except AnsibleFilterError as error:
            lines.append(str(error))
    lines += [
        f"reverse_proxy_{field}: {fields[field]}: expected a time such as 30s or 24h"
        for field in ("timeout_idle", "timeout_connect")
        if not TIME.fullmatch(str(fields[field]))
    ]
    return lines


def reverse_proxy_reach(
    sources: Sequence[str], servers: Sequence[str], port_range: Sequence[int]
) -> int:
    """Return the number of connections that one frontend can have to its servers.

    Each connection needs a source port of ip_local_port_range for which the four-tuple is free, for
    each source address, server address and port (__inet_check_established(),
    net/ipv4/inet_hashtables.c).
    """
    return len(sources) * len(servers) * (int(port_range[1]) - int(port_range[0]) + 1)


def reverse_proxy_routing(
    frontends: Sequence[Mapping[str, Any]],
    servers: Sequence[str],
    table: Any,
    priority: Any,
    interface: str,
    gateway: str = "",
) -> dict[str, list[dict[str, Any]]]:
    """Return the {"rules", "routes"} for the answers of transparent connections.

    gateway: on a server, the proxy's address that answers go to. Empty on the proxy itself, which
    accepts the answers as local although they go to the clients' addresses.
    """
    ports = dict.fromkeys(e["server_port"] for e in frontends if e["mode"] == "transparent")
    rules = [
        {
            "priority": int(priority),
            "table": int(table),
            "from": str(server),
            "sport": port,
            "iif": "" if gateway else interface,
        }
        for server in servers
        for port in ports
    ]
    if not rules:
        return {"rules": [], "routes": []}
    return {"rules": rules, "routes": [{"table": int(table), "via": gateway, "dev": interface}]}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "reverse_proxy_errors": reverse_proxy_errors,
            "reverse_proxy_frontends": reverse_proxy_frontends,
            "reverse_proxy_plan": reverse_proxy_plan,
            "reverse_proxy_reach": reverse_proxy_reach,
            "reverse_proxy_routing": reverse_proxy_routing,
        }
