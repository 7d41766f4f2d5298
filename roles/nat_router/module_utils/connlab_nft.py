"""The lab's nftables table: its text, and its translation as nft(8) lists it.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.connlab_ip import Runner

FAMILY, TABLE, CHAIN = "inet", "connlab_nat", "postrouting"
SRCNAT = 100
"""Priority of source translation: NF_IP_PRI_NAT_SRC, include/uapi/linux/netfilter_ipv4.h."""

TCP = (6, "tcp")
"""nft(8)'s values for the protocol: 1.0.6 prints the number (RFC 9293: 6), later ones the name."""

Translation = Mapping[str, Any]
"""interface: the outgoing interface; destinations: prefixes; addresses: the addresses to translate
to, none for the interface's own (masquerade); ports: [first, last]."""


def target(translation: Translation) -> str:
    """Return the target of the translation as a statement of nft(8).

    With several addresses each new connection takes the next one: conntrack evaluates the rule once
    for a connection, and keeps the result. An address range would instead tie a client's address to
    one of them (find_best_ips_proto(), net/netfilter/nf_nat_core.c, hashes both addresses), so one
    client could not use the ports of two addresses.
    """
    first, last = translation["ports"]
    addresses: Sequence[str] = translation["addresses"]
    if not addresses:
        return f"masquerade to :{first}-{last}"
    if len(addresses) == 1:
        return f"snat ip to {addresses[0]}:{first}-{last}"
    turns = ", ".join(f"{turn} : {address}" for turn, address in enumerate(addresses))
    return f"snat ip to numgen inc mod {len(addresses)} map {{ {turns} }} : {first}-{last}"


def ruleset(translation: Translation) -> str:
    """Return the text for `nft -f` that replaces the lab's table atomically."""
    rules = "".join(
        f'\t\toifname "{translation["interface"]}" ip daddr {prefix} '
        f"meta l4proto tcp {target(translation)}\n"
        for prefix in translation["destinations"]
    )
    return (
        # Adding a table that exists is no error, but deleting one that does not exist would be.
        f"add table {FAMILY} {TABLE}\n"
        f"delete table {FAMILY} {TABLE}\n"
        f"table {FAMILY} {TABLE} {{\n"
        f"\tchain {CHAIN} {{\n"
        f"\t\ttype nat hook postrouting priority srcnat; policy accept;\n"
        f"{rules}"
        f"\t}}\n"
        f"}}\n"
    )


def shown(listing: Mapping[str, Any]) -> Translation | None:
    """Return a table's translation, from `nft -j list table`; None if the table does anything else.

    All rules have to have the same interface, target and ports.
    """
    entries = [entry for entry in listing["nftables"] if "metainfo" not in entry]
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    rules = [entry["rule"] for entry in entries if "rule" in entry]
    if len(entries) != 1 + len(chains) + len(rules) or len(chains) != 1:
        return None
    at = {key: chains[0].get(key) for key in ("name", "type", "hook", "prio", "policy")}
    if at != {
        **{"name": CHAIN, "type": "nat", "hook": "postrouting"},
        **{"prio": SRCNAT, "policy": "accept"},
    }:
        return None
    try:
        done = [_rule(rule["expr"]) for rule in rules]
    except (KeyError, TypeError, ValueError):
        return None
    if not done or any(other[0] != done[0][0] for other in done):
        return None
    return {**done[0][0], "destinations": [prefix for _, prefix in done]}


def _rule(parts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """Return a rule's translation and its destination. Errors: KeyError, TypeError, ValueError."""
    by, to, protocol, action = parts
    if by["match"]["left"] != {"meta": {"key": "oifname"}}:
        raise ValueError(by)
    if to["match"]["left"] != {"payload": {"protocol": "ip", "field": "daddr"}}:
        raise ValueError(to)
    if protocol["match"]["left"] != {"meta": {"key": "l4proto"}}:
        raise ValueError(protocol)
    if protocol["match"]["right"] not in TCP:
        raise ValueError(protocol)
    if any(part["match"]["op"] != "==" for part in (by, to, protocol)):
        raise ValueError(parts)
    where = to["match"]["right"]
    # nft prints a prefix of 32 bits as an address.
    prefix = f"{where}/32" if isinstance(where, str) else "{addr}/{len}".format(**where["prefix"])
    ((kind, said),) = action.items()
    ports = said["port"]
    common = {
        "interface": by["match"]["right"],
        "ports": list(ports["range"]) if isinstance(ports, Mapping) else [ports, ports],
    }
    if kind == "masquerade":
        return {**common, "addresses": []}, prefix
    if kind != "snat" or said["family"] != "ip":
        raise ValueError(action)
    address = said["addr"]
    if isinstance(address, str):
        return {**common, "addresses": [address]}, prefix
    pairs = address["map"]["data"]["set"]
    turns = address["map"]["key"]["numgen"]
    if turns != {"mode": "inc", "mod": len(pairs), "offset": 0}:
        raise ValueError(turns)
    return {**common, "addresses": [each for _, each in sorted(pairs)]}, prefix


class Nft:
    """nft(8) on this host."""

    def __init__(self, module: Runner) -> None:
        self.module = module
        self.path = module.get_bin_path("nft", required=True, opt_dirs=["/usr/sbin", "/sbin"])

    def has_table(self) -> bool:
        """Return whether the lab's table exists."""
        code, out, err = self.module.run_command([self.path, "-j", "list", "tables"])
        if code:
            raise ValueError(f"nft list tables: {err.strip()}")
        named = [entry["table"] for entry in json.loads(out)["nftables"] if "table" in entry]
        return any((each["family"], each["name"]) == (FAMILY, TABLE) for each in named)

    def translation(self) -> Translation | None:
        """Return the translation of the lab's table; None if there is none or it was changed."""
        if not self.has_table():
            return None
        code, out, err = self.module.run_command([self.path, "-j", "list", "table", FAMILY, TABLE])
        if code:
            raise ValueError(f"nft list table: {err.strip()}")
        return shown(json.loads(out))

    def load(self, text: str) -> None:
        """Load a ruleset. Errors: ValueError with nft's message; nothing is changed then."""
        code, _, err = self.module.run_command([self.path, "-f", "-"], data=text)
        if code:
            raise ValueError(f"nft: {err.strip().splitlines()[0]}")

    def delete(self) -> None:
        """Delete the lab's table."""
        self.load(f"delete table {FAMILY} {TABLE}\n")
