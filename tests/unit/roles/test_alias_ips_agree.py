"""The role and the benchmark each work out a host's addresses from the same variables."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

from bench import inventory
from bench.errors import InputError

roles = load("lab_common", "filter_plugins", "alias_ips")

OWN = {"client1": "198.18.1.1", "server1": "198.18.0.1"}
ALLOWED = [ipaddress.ip_network(text) for text in ("198.18.0.0/15", "fd63:6f6e:6e6c::/48")]

four = st.integers(0, 5_000).map(lambda step: str(ipaddress.ip_address("198.18.2.250") + step))
six = st.integers(0, 70_000).map(
    lambda step: str(ipaddress.ip_address("fd63:6f6e:6e6c::fffe") + step)
)
counts = st.integers(0, 600)
prefixes = st.builds(
    lambda address, length: str(ipaddress.ip_network(f"{address}/{length}", strict=False)),
    four,
    st.integers(23, 32),
)
hosts = st.fixed_dictionaries(
    {},
    optional={
        "alias_ips_list": st.lists(four | six, max_size=4),
        "alias_ips_first": four,
        "alias_ips_first6": six,
        "alias_ips_count": counts | counts.map(str),
        "alias_ips_prefix": prefixes,
        "alias_ips_method": st.sampled_from(["address", "anyip"]),
    },
)


def by_the_role(fields: dict[str, Any]) -> list[str] | None:
    """Addresses that the role gives the host beside its own; None where it refuses."""
    variables = {"lab_data_address": OWN["client1"], **fields}
    if roles.alias_ips_errors(
        {"client1": roles.alias_ips_fields(variables)}, ["198.18.0.0/15", "fd63:6f6e:6e6c::/48"]
    ):
        return None
    expanded = roles.alias_ips_expand(roles.alias_ips_fields(variables))
    routed = [ipaddress.ip_network(route) for route in expanded["routes"]]
    return [*expanded["addresses"], *(str(one) for route in routed for one in route.hosts())]


def by_the_benchmark(fields: dict[str, Any]) -> list[str] | None:
    """The same as the benchmark has it."""
    listing = {
        "_meta": {
            "hostvars": {
                "server1": {"lab_data_address": OWN["server1"]},
                "client1": {"lab_data_address": OWN["client1"], **fields},
            }
        },
        "servers": {"hosts": ["server1"]},
        "clients": {"hosts": ["client1"]},
    }
    try:
        found = inventory.from_listing("test", listing).hosts["client1"].data_addresses
    except InputError:
        return None
    return [address for address in found if address != OWN["client1"]]


@given(hosts)
def test_they_agree_on_which_addresses_a_host_has(fields: dict[str, Any]) -> None:
    wanted, planned = by_the_role(fields), by_the_benchmark(fields)
    if wanted is not None and planned is not None:
        assert sorted(wanted) == sorted(planned)
