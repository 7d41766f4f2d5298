"""Routing by source port: rules, the route of their table, and the drop-in that restores them.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.connlab_ip import Ip

# Forms of IPPROTO_TCP that ip(8) prints, with or without /etc/protocols; it always accepts 6.
TCP = ("tcp", "ipproto-6", "6", 6)
# include/uapi/linux/rtnetlink.h: the table that ip(8) omits, and a type as number or name.
RT_TABLE_MAIN = 254
RTN_LOCAL = ("2", "local")
CONF = Path("/proc/sys/net/ipv4/conf")


def rule_words(rule: Mapping[str, Any]) -> str:
    """Return a rule in the syntax of ip-rule(8).

    It has a protocol, so that it does not apply to the kernel's other lookups for an interface,
    such as whether to answer an ARP request (arp_process(), net/ipv4/arp.c), which have none.
    """
    iif = f" iif {rule['iif']}" if rule["iif"] else ""
    return (
        f"priority {rule['priority']} from {rule['from']}{iif} ipproto 6 "
        f"sport {rule['sport']} table {rule['table']}"
    )


def route_words(route: Mapping[str, Any]) -> str:
    """Return a route in the syntax of ip-route(8): all addresses local, or via another host."""
    if route["via"]:
        return f"default via {route['via']} dev {route['dev']} table {route['table']}"
    return f"local default dev {route['dev']} scope host table {route['table']}"


def rules_there(ip: Ip, priorities: Collection[int], tables: Collection[int]) -> list[str]:
    """Return the existing rules with these priorities or tables, in the same syntax.

    A rule may exist twice: one from the role and one from systemd-networkd.
    """
    there = []
    for entry in ip.json("-4", "-N", "rule", "show"):
        if entry["priority"] not in priorities and int(entry.get("table", 0)) not in tables:
            continue
        source = entry.get("src", "all")
        if "srclen" in entry:
            source = f"{source}/{entry['srclen']}"
        iif = f" iif {entry['iif']}" if entry.get("iif") else ""
        protocol = 6 if entry.get("ipproto") in TCP else entry.get("ipproto", "any")
        there.append(
            f"priority {entry['priority']} from {source}{iif} ipproto {protocol} "
            f"sport {entry.get('sport', 'any')} table {entry.get('table')}"
        )
    return there


def routes_there(ip: Ip, tables: Collection[int]) -> list[str]:
    """Return the existing routes of these tables, in the same syntax."""
    there = []
    # ip(8) fails for a table that never had a route, but not for all tables.
    for entry in ip.json("-4", "-N", "route", "show", "table", "all"):
        table = int(entry.get("table", RT_TABLE_MAIN))
        if table not in tables:
            continue
        if entry.get("type") in RTN_LOCAL and entry["dst"] == "default":
            there.append(f"local default dev {entry['dev']} scope host table {table}")
            continue
        via = f" via {entry['gateway']}" if "gateway" in entry else ""
        there.append(f"{entry['dst']}{via} dev {entry.get('dev', '')} table {table}")
    return there


def dropin(
    lab_name: str, rules: Iterable[Mapping[str, Any]], routes: Iterable[Mapping[str, Any]]
) -> str:
    """Return the systemd-networkd drop-in that restores rules and routes (systemd.network(5)).

    It applies at boot, and when networkd restarts, which removes rules that it does not know
    (ManageForeignRoutingPolicyRules= in networkd.conf(5)).
    """
    parts = [
        f"# Lab {lab_name}: return routes of transparent connections. Written by the role\n"
        "# reverse_proxy, reverted by playbooks/revert.yml.\n"
    ]
    for rule in rules:
        iif = f"IncomingInterface={rule['iif']}\n" if rule["iif"] else ""
        parts.append(
            f"[RoutingPolicyRule]\nPriority={rule['priority']}\nFrom={rule['from']}\n{iif}"
            f"IPProtocol=tcp\nSourcePort={rule['sport']}\nTable={rule['table']}\n"
        )
    for route in routes:
        way = f"Gateway={route['via']}\n" if route["via"] else "Type=local\nScope=host\n"
        parts.append(f"[Route]\nDestination=0.0.0.0/0\n{way}Table={route['table']}\n")
    return "\n".join(parts)


def misrouted(ip: Ip, interface: str, peers: Iterable[str], conf: Path = CONF) -> list[str]:
    """Return one line for each peer whose packets the kernel would drop on arrival.

    With rp_filter 1 a packet has to arrive on the interface of the route to its sender. The larger
    of the interface's value and that of "all" counts (ip-sysctl.rst; __fib_validate_source(),
    net/ipv4/fib_frontend.c).
    """
    strict = max(
        int((conf / name / "rp_filter").read_text(encoding="ascii")) for name in ("all", interface)
    )
    if strict != 1:
        return []
    lines = []
    for peer in peers:
        way = ip.json("-4", "route", "get", peer)[0].get("dev", "")
        if way != interface:
            lines.append(
                f"net.ipv4.conf.{interface}.rp_filter: 1: expected 0 or 2, or a route to {peer} "
                f"via {interface}: it goes via {way}"
            )
    return lines


def listing(rules: Iterable[str], routes: Iterable[str]) -> str:
    """Return rules and routes one per line, for --diff."""
    lines = [*(f"rule {each}" for each in rules), *(f"route {each}" for each in routes)]
    return "".join(f"{each}\n" for each in lines)
