"""A router translates addresses, and is set up to do so again after a reboot."""

import json
from collections.abc import Callable

from conftest import Variables
from testinfra.host import Host
from tune_loader import load

testinfra_hosts = ["ansible://routers"]

load("lab_common", "module_utils", "connlab_ip")
nft = load("nat_router", "module_utils", "connlab_nft")


def sysctl(host: Host, key: str) -> int:
    """Return a kernel parameter."""
    return int(host.check_output(f"cat /proc/sys/{key.replace('.', '/')}"))


def test_the_kernels_table_is_what_the_inventory_asks_for(host: Host, variables: Variables) -> None:
    listing = json.loads(host.check_output("sudo -n nft -j list table inet connlab_nat"))
    first = variables["lab_data_address"]
    second = first.removesuffix(".1") + ".2"
    assert nft.shown(listing) == {
        "interface": variables["lab_data_interface"],
        "destinations": ["198.19.0.0/16"],
        "addresses": [first, second],
        "ports": [1024, 65535],
    }


def test_it_forwards_and_tells_nobody_of_a_shorter_way(host: Host, variables: Variables) -> None:
    interface = variables["lab_data_interface"]
    assert sysctl(host, "net.ipv4.ip_forward") == 1
    assert sysctl(host, "net.ipv4.conf.all.send_redirects") == 0
    assert sysctl(host, f"net.ipv4.conf.{interface}.send_redirects") == 0


def test_it_can_track_every_connection(
    host: Host, variables: Variables, record: Callable[[str], Variables]
) -> None:
    assert sysctl(host, "net.netfilter.nf_conntrack_max") >= variables["connections"]
    assert record("nat_router")["reported"] == {}


def test_a_boot_brings_the_same_table_back(host: Host, variables: Variables) -> None:
    name = f"{variables['lab_name']}-nat.service"
    assert host.check_output(f"systemctl is-enabled {name}") == "enabled"
    before = host.check_output("sudo -n nft list table inet connlab_nat")
    host.check_output("sudo -n nft delete table inet connlab_nat")
    host.check_output(f"sudo -n systemctl start {name}")
    assert host.check_output("sudo -n nft list table inet connlab_nat") == before
