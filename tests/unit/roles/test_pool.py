"""The hosts that the lab's own inventories make of the numbers they are given."""

import ipaddress
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[3]
GROUPS = ("servers", "clients", "routers", "proxies")
FEW = {"lab_clients": 3, "lab_routers": 2, "lab_proxies": 2}


def plain(value: Any) -> Any:
    """Return inventory data without the mark on composed text."""
    if isinstance(value, dict):
        if set(value) == {"__ansible_unsafe"}:
            return value["__ansible_unsafe"]
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def listed(substrate: str, **given: object) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return the groups' hosts and the hosts' variables."""
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "--list"]
    command += ["-i", str(PROJECT / "inventory" / substrate), "-e", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listing = plain(json.loads(done.stdout))
    groups = {group: listing.get(group, {}).get("hosts", []) for group in GROUPS}
    return groups, listing["_meta"]["hostvars"]


@pytest.mark.parametrize(("substrate", "clients"), [("local", 2), ("vm", 1)])
def test_a_plain_lab_has_a_server_and_clients_alone(substrate: str, clients: int) -> None:
    groups, hosts = listed(substrate)
    assert groups["servers"] == ["server1"]
    assert groups["clients"] == [f"client{number}" for number in range(1, clients + 1)]
    assert (groups["routers"], groups["proxies"]) == ([], [])
    server = hosts["server1"]
    assert (server["alias_ips_count"], server["alias_ips_list"]) == (1, [])
    assert server["lab_routed_addresses"] == []


@pytest.mark.parametrize("substrate", ["local", "vm"])
def test_numbers_make_the_groups_and_no_address_is_met_twice(substrate: str) -> None:
    groups, hosts = listed(substrate, **FEW, lab_server_addresses=3, lab_proxy_addresses=4)
    assert [len(groups[group]) for group in GROUPS] == [1, 3, 2, 2]
    made = [hosts[name] for group in GROUPS for name in groups[group]]
    reached = {(host["ansible_host"], host.get("ansible_port")) for host in made}
    blocks = {ipaddress.ip_network(f"{host['lab_data_address']}/24", False) for host in made}
    assert len(reached) == len(blocks) == len({h["lab_data_address6"] for h in made}) == 8
    for host in made:
        assert host["alias_ips_first"] == host["lab_data_address"]
        assert host["alias_ips_first6"] == host["lab_data_address6"]
    counts = [hosts[name]["alias_ips_count"] for name in ("server1", "proxy2", "router1")]
    assert counts == [3, 4, 2]
    routed = hosts["server1"]["lab_routed_addresses"]
    assert hosts["server1"]["alias_ips_list"] == routed != []
    # Inside the lab's prefix, outside of what a host has to itself: only a route leads there.
    for each in map(ipaddress.ip_address, routed):
        assert each in ipaddress.ip_network("198.18.0.0/15")
        assert not any(each in block for block in blocks)


@pytest.mark.parametrize(("connections", "count"), [(20_000, 3), (1_000_000, 8)])
def test_clients_have_the_addresses_asked_for_or_more(connections: int, count: int) -> None:
    _, hosts = listed("local", connections=connections, lab_client_addresses=3)
    assert hosts["client1"]["alias_ips_count"] == count


def test_management_addresses_tell_hosts_apart() -> None:
    _, hosts = listed("local")
    names = ("server1", "client1", "client32", "router2", "proxy8")
    last = [hosts[name]["ansible_host"].rsplit(".", 1)[1] for name in names]
    assert last == ["1", "2", "33", "102", "118"]


def test_a_virtual_machines_port_and_memory_follow_from_what_it_is() -> None:
    given = {"connections": 100_000, "lab_ssh_port_base": 22400, "lab_router_base_mib": 512}
    _, hosts = listed("vm", **FEW, **given, lab_router_bytes=1048, lab_proxy_bytes=10486)
    names = ("server1", "client8", "router2", "proxy8")
    assert [hosts[name]["ansible_port"] for name in names] == [22401, 22409, 22422, 22438]
    assert hosts["router1"]["lab_vm_memory_mib"] == 512 + 100_000 * 1048 // 2**20
    assert hosts["proxy1"]["lab_vm_memory_mib"] == 512 + 50_000 * 10486 // 2**20
