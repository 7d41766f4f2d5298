"""Every alias address is on the data interface, can be bound, and comes back at boot."""

import ipaddress
import json
from collections.abc import Callable

from conftest import Variables
from testinfra.host import Host
from tune_loader import load

plan = load("lab_common", "filter_plugins", "alias_ips")


def wanted(variables: Variables) -> list[str]:
    """Return the addresses that the inventory gives to the host."""
    addresses = plan.alias_ips_expand(plan.alias_ips_fields(variables))["addresses"]
    assert variables["lab_data_address"] in addresses
    return list(addresses)


def test_the_interface_has_them(host: Host, variables: Variables) -> None:
    shown = json.loads(host.check_output(f"ip -j addr show dev {variables['lab_data_interface']}"))
    have = {entry["local"] for entry in shown[0]["addr_info"]}
    assert set(wanted(variables)) <= have


def test_clients_have_more_than_their_own(variables: Variables) -> None:
    assert len(wanted(variables)) == (6 if "clients" in variables["group_names"] else 2)


def test_each_can_be_the_source_of_a_connection(host: Host, variables: Variables) -> None:
    code = (
        "import socket,sys\n"
        "for a in sys.argv[1:]:\n"
        " socket.socket(socket.AF_INET6 if ':' in a else socket.AF_INET).bind((a, 0))\n"
        "print(len(sys.argv) - 1)"
    )
    addresses = wanted(variables)
    done = host.check_output(f'python3 -c "{code}" {" ".join(addresses)}')
    assert int(done) == len(addresses)


def test_a_drop_in_brings_back_just_those_that_the_role_added(
    host: Host, variables: Variables, record: Callable[[str], Variables]
) -> None:
    added = record("alias_ips")["added"]
    own = {
        str(ipaddress.ip_address(variables[field]))
        for field in ("lab_data_address", "lab_data_address6")
    }
    assert set(added) == set(wanted(variables)) - own
    interface, lab = variables["lab_data_interface"], variables["lab_name"]
    dropin = host.file(f"/etc/systemd/network/10-{interface}.network.d/90-{lab}.conf")
    assert dropin.exists == bool(added)
    if added:
        lines = dropin.content_string.splitlines()
        lasting = [line.split("=")[1].split("/")[0] for line in lines if "Address=" in line]
        assert sorted(lasting) == sorted(added)
