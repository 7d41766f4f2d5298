#!/usr/bin/python
"""Ansible module: ask the network whether alias addresses are free."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from itertools import islice
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.connlab_ip import Ip
from ansible.module_utils.connlab_neighbours import (
    ARPHRD_ETHER,
    IFF_RUNNING,
    IFF_UP,
    link,
    silent,
    taken,
)

DOCUMENTATION = r"""
module: connlab_alias_probe
short_description: Ask the network whether alias addresses are free
description:
  - Sends ARP probes (RFC 5227) and neighbour solicitations (RFC 4862) for the addresses that this
    host does not have yet, all together, in about a second. Fails where another host answers.
  - Changes nothing, and does the same in check mode.
options:
  host:
    description: Name of the host, for messages.
    type: str
    required: true
  interface:
    description: The interface that gets the addresses.
    type: str
    required: true
  addresses:
    description: Addresses that the interface gets.
    type: list
    elements: str
    default: []
  routes:
    description: Prefixes that become local as a whole (method anyip).
    type: list
    elements: str
    default: []
author: connlab
"""
EXAMPLES = r"""
- name: Check that an address is free
  connlab_alias_probe:
    host: client1
    interface: data0
    addresses: [198.18.1.2]
"""
RETURN = r"""
asked:
  description: Number of addresses that were asked for.
  returned: always
  type: int
wanted:
  description: The parameters of the request, interface, addresses and routes.
  returned: always
  type: dict
unasked:
  description: The reason why no address was asked for, if the interface resolves no addresses.
  returned: always
  type: str
"""

MOST_OF_PREFIX = 1 << 16
"""Number of addresses of a prefix that are asked for, starting with the first. The
inventory reader in bench/ accepts no larger prefix."""

NAMED = 3
"""Number of taken addresses that the message names."""


def candidates(ip: Ip, addresses: Iterable[str], routes: Iterable[str]) -> list[str]:
    """Return the addresses that this host does not have yet on any interface."""
    have = {
        entry["local"]
        for each in ip.json("addr", "show")
        for entry in each.get("addr_info", [])
        if "local" in entry
    }
    local = ip.routes()
    wanted = list(addresses)
    for route in routes:
        if route not in local:
            usable = islice(ipaddress.ip_network(route).hosts(), MOST_OF_PREFIX)
            wanted += [str(each) for each in usable]
    return [each for each in wanted if each not in have]


def refusal(host: str, interface: str, answers: dict[str, str]) -> str:
    """Return the error message for addresses that other hosts have."""
    named = [f"{each} is taken: {mac} answers for it" for each, mac in answers.items()]
    more = f", and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"host {host}: alias_ips: {', '.join(named[:NAMED])} on {interface}{more}"


def probe(given: dict[str, Any], ip: Ip) -> dict[str, Any]:
    """Ask for the missing addresses. Errors: ValueError, one line, if one is taken; OSError."""
    wanted = {field: given[field] for field in ("interface", "addresses", "routes")}
    result = {"changed": False, "asked": 0, "wanted": wanted, "unasked": ""}
    missing = candidates(ip, given["addresses"], given["routes"])
    if not missing:
        return result
    host, interface = given["host"], link(given["interface"])
    unasked = silent(interface)
    if unasked:
        return {**result, "unasked": f"{interface.name} is {unasked}: no host to ask"}
    if interface.kind != ARPHRD_ETHER:
        raise ValueError(
            f"host {host}: alias_ips_interface: {interface.name} is hardware of type "
            f"{interface.kind}, expected Ethernet ({ARPHRD_ETHER}): addresses cannot be asked for"
        )
    if not interface.flags & IFF_UP or not interface.flags & IFF_RUNNING:
        raise ValueError(
            f"host {host}: alias_ips_interface: {interface.name} has no link, expected one that is "
            "up: addresses cannot be asked for"
        )
    answers = taken(interface, missing)
    if answers:
        raise ValueError(refusal(host, interface.name, answers))
    return {**result, "asked": len(missing)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "interface": {"type": "str", "required": True},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "routes": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        result = probe(module.params, Ip(module))
    except ValueError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        given = module.params
        said = f"host {given['host']}: alias_ips: {given['interface']}: {error.strerror or error}"
        module.fail_json(msg=f"{said}: the network cannot be asked for addresses")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
