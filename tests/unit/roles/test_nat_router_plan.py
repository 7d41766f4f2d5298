from typing import Any

import pytest
from tune_loader import load

plan = load("nat_router", "filter_plugins", "nat_router")

OWN = ["198.18.201.1", "198.18.201.2"]
PREFIXES = ["198.18.0.0/15", "fd63:6f6e:6e6c::/48"]


def fields(**given: Any) -> dict[str, Any]:
    """Return a router's fields as the role's defaults have them, and some others."""
    usual = {"destinations": ["198.19.0.0/16"], "addresses": None, "count": 1}
    usual |= {"ports": "1024-65535", "conntrack_max": 20000, "established_timeout": ""}
    return usual | given


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ({}, OWN[:1]),
        ({"count": "2"}, OWN),
        ({"addresses": [OWN[1]]}, [OWN[1]]),
        ({"addresses": []}, []),
    ],
)
def test_addresses_are_the_first_or_those_named(given: Any, addresses: list[str]) -> None:
    assert plan.nat_router_translation(fields(**given), OWN, PREFIXES) == {
        "destinations": ["198.19.0.0/16"],
        "addresses": addresses,
        "ports": [1024, 65535],
    }


def test_own_addresses_are_the_data_address_and_the_ipv4_aliases() -> None:
    expanded = {"addresses": ["198.18.201.2", "198.18.201.1", "fd63:6f6e:6e6c:201::1"]}
    assert plan.nat_router_own(expanded, "198.18.201.1") == OWN


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"ports": "1024"}, "nat_router_ports: 1024: expected two ports as A-B"),
        ({"ports": "9-8"}, "nat_router_ports: 9-8: expected two ports"),
        ({"ports": "0-8"}, "nat_router_ports: 0-8: expected two ports"),
        ({"ports": "1-65536"}, "nat_router_ports: 1-65536: expected two ports"),
        ({"ports": "1-²"}, "nat_router_ports: 1-²: expected two ports"),
        ({"addresses": "x"}, "nat_router_addresses: x: expected a list"),
        ({"addresses": ["x"]}, r"nat_router_addresses\[0\]: x: expected an IPv4 address"),
        (
            {"addresses": [OWN[0], "198.18.201.3"]},
            r"nat_router_addresses\[1\]: 198.18.201.3: expected an address of this host, it has "
            "198.18.201.1, 198.18.201.2",
        ),
        ({"addresses": [OWN[0]] * 2}, r"nat_router_addresses\[1\]: .* not named twice"),
        ({"count": 3}, "nat_router_address_count: 3: expected a whole number from 1 to 2"),
        ({"count": 0}, "nat_router_address_count: 0: expected a whole number from 1 to 2"),
        ({"conntrack_max": "x"}, "nat_router_conntrack_max: x: expected a whole number"),
        ({"established_timeout": 0}, "nat_router_established_timeout: 0: expected a whole"),
        ({"destinations": []}, "nat_router_destinations: none: expected at least one prefix"),
        ({"destinations": "198.19.0.0/16"}, "nat_router_destinations: .*: expected a list"),
        ({"destinations": ["10.0.0.0/8"]}, "expected a prefix inside 198.18.0.0/15"),
        ({"destinations": ["198.19.0.1/16"]}, "expected an IPv4 prefix such as 198.19.0.0/16"),
        ({"destinations": ["fd63::/48"]}, "expected an IPv4 prefix such as 198.19.0.0/16"),
        ({"destinations": ["198.18.0.0/15"]}, "without this router's own 198.18.201.1"),
        ({"destinations": ["198.19.0.0/16"] * 2}, "expected a prefix that is not named twice"),
    ],
)
def test_bad_input_is_one_line_with_field_value_and_what_was_expected(
    given: Any, line: str
) -> None:
    with pytest.raises(plan.AnsibleFilterError, match=line) as caught:
        plan.nat_router_translation(fields(**given), OWN, PREFIXES)
    assert "\n" not in str(caught.value)
    assert plan.nat_router_error(fields(**given), OWN, PREFIXES) == str(caught.value)


def test_nothing_is_said_of_what_is_right() -> None:
    assert plan.nat_router_error(fields(established_timeout="600"), OWN, PREFIXES) == ""


def test_destinations_are_as_ip_shows_them() -> None:
    given = ["198.19.0.1", "198.19.128.0/255.255.128.0"]
    assert plan.nat_router_networks(given, ["198.18.0.0/15"]) == [
        "198.19.0.1/32",
        "198.19.128.0/17",
    ]


@pytest.mark.parametrize("given", [["0.0.0.0/0"], ["198.20.0.0/16"], "198.19.0.0/16", ["x"]])
def test_clients_refuse_what_routers_refuse(given: Any) -> None:
    error = plan.nat_router_networks_error(given, ["198.18.0.0/15"])
    assert error.startswith("nat_router_destinations") and "\n" not in error
    assert plan.nat_router_networks_error(["198.19.0.0/16"], ["198.18.0.0/15"]) == ""
