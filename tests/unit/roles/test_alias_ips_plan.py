import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

plan_module = load("lab_common", "filter_plugins", "alias_ips")

PREFIXES = ["198.18.0.0/15", "fd63:6f6e:6e6c::/48"]


def expand(**fields: Any) -> list[str]:
    return plan_module.alias_ips_expand(fields)["addresses"]  # type: ignore[no-any-return]


def errors(**hosts: dict[str, Any]) -> list[str]:
    return plan_module.alias_ips_errors(hosts, PREFIXES)  # type: ignore[no-any-return]


def test_nothing_is_asked_for() -> None:
    assert plan_module.alias_ips_expand({}) == {"addresses": [], "routes": []}


def test_by_list_by_count_and_by_prefix_together() -> None:
    assert expand(
        alias_ips_list=["198.18.9.9", "fd63:6f6e:6e6c:1::9"],
        alias_ips_first="198.18.1.1",
        alias_ips_first6="fd63:6f6e:6e6c:1::1",
        alias_ips_count="2",
        alias_ips_prefix="198.18.2.0/30",
    ) == [
        "198.18.9.9",
        "fd63:6f6e:6e6c:1::9",
        "198.18.1.1",
        "198.18.1.2",
        "fd63:6f6e:6e6c:1::1",
        "fd63:6f6e:6e6c:1::2",
        "198.18.2.1",
        "198.18.2.2",
    ]


@given(st.integers(0, 255), st.integers(0, 300))
def test_a_count_never_leaves_its_block(last_byte: int, count: int) -> None:
    first = f"198.18.7.{last_byte}"
    usable = [f"198.18.7.{byte}" for byte in range(1, 255)]
    fits = count == 0 or (first in usable and last_byte + count <= 255)
    if fits:
        got = expand(alias_ips_first=first, alias_ips_count=count)
        assert len(got) == len(set(got)) == count
        assert set(got) <= set(usable)
        assert got == [f"198.18.7.{last_byte + offset}" for offset in range(count)]
    else:
        with pytest.raises(ValueError, match="expected"):
            expand(alias_ips_first=first, alias_ips_count=count)


def test_a_route_for_a_whole_prefix() -> None:
    wanted = plan_module.alias_ips_expand(
        {"alias_ips_method": "anyip", "alias_ips_prefix": "198.19.0.0/16"}
    )
    assert wanted == {"addresses": [], "routes": ["198.19.0.0/16"]}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"alias_ips_list": ["198.18.1.300"]}, "alias_ips_list[0]: 198.18.1.300: expected an IPv4"),
        ({"alias_ips_list": "198.18.1.3"}, "alias_ips_list: 198.18.1.3: expected a list"),
        ({"alias_ips_list": ["198.18.1.3"] * 2}, "alias_ips_list[1]: 198.18.1.3: expected an addr"),
        ({"alias_ips_list": ["224.0.0.1"]}, "alias_ips_list[0]: 224.0.0.1: expected an address"),
        ({"alias_ips_first": "198.18.1.1", "alias_ips_count": -1}, "alias_ips_count: -1: expected"),
        ({"alias_ips_first": "198.18.1.1", "alias_ips_count": 255}, "expected at most 254, from"),
        ({"alias_ips_first": "198.18.1.255", "alias_ips_count": 1}, "neither first nor last of"),
        ({"alias_ips_count": 3}, "alias_ips_first: nothing: expected the first"),
        ({"alias_ips_prefix": "198.18.1.1/24"}, "alias_ips_prefix: 198.18.1.1/24: expected a pref"),
        ({"alias_ips_prefix": "198.18.0.0/15"}, "expected at most 65534 addresses"),
        ({"alias_ips_method": "magic"}, "alias_ips_method: magic: expected address or anyip"),
        ({"alias_ips_method": "anyip"}, "alias_ips_prefix: nothing: expected a prefix"),
        (
            {"alias_ips_method": "anyip", "alias_ips_prefix": "fd63:6f6e:6e6c:1::/64"},
            "expected an IPv4 prefix",
        ),
        ({"alias_ips_list": ["10.0.0.1"]}, "alias address: 10.0.0.1: expected an address inside"),
        (
            {"alias_ips_method": "anyip", "alias_ips_prefix": "10.0.0.0/24"},
            "alias_ips_prefix: 10.0.0.0/24: expected an address inside",
        ),
        ({"lab_data_address": "nowhere"}, "lab_data_address: nowhere: expected an IPv4 or IPv6"),
    ],
)
def test_a_wrong_field_is_one_line_with_host_field_value_and_expectation(
    fields: dict[str, Any], line: str
) -> None:
    (found,) = errors(client7=fields)
    assert found.startswith("client7: ")
    assert line in found
    assert "\n" not in found


def test_a_lab_without_errors() -> None:
    hosts = {
        f"client{index}": {
            "lab_data_address": f"198.18.{index}.1",
            "lab_data_address6": f"fd63:6f6e:6e6c:{index}::1",
            "alias_ips_first": f"198.18.{index}.1",
            "alias_ips_count": 254,
        }
        for index in range(1, 33)
    }
    assert errors(server1={"lab_data_address": "198.18.0.1"}, **hosts) == []


@pytest.mark.parametrize(
    ("one", "other", "line"),
    [
        (
            {"lab_data_address": "198.18.1.1"},
            {"lab_data_address": "198.18.1.1"},
            "b: lab_data_address: 198.18.1.1: expected an address that no other host has, "
            "it is a's lab_data_address",
        ),
        (
            {"alias_ips_first": "198.18.1.1", "alias_ips_count": 10},
            {"alias_ips_list": ["198.18.1.10"]},
            "b: alias address: 198.18.1.10: expected an address that no other host has, "
            "it is a's alias address",
        ),
        (
            {"alias_ips_method": "anyip", "alias_ips_prefix": "198.18.1.0/24"},
            {"alias_ips_list": ["198.18.1.10"]},
            "a: alias_ips_prefix: 198.18.1.0/24: expected no address of another host, "
            "198.18.1.10 is b's",
        ),
        (
            {"alias_ips_method": "anyip", "alias_ips_prefix": "198.18.0.0/16"},
            {"alias_ips_method": "anyip", "alias_ips_prefix": "198.18.1.0/24"},
            "b: alias_ips_prefix: 198.18.1.0/24: expected no address of another host, "
            "198.18.0.0/16 is a's",
        ),
    ],
)
def test_hosts_that_overlap(one: dict[str, Any], other: dict[str, Any], line: str) -> None:
    assert errors(a=one, b=other) == [line]


def test_a_prefix_of_the_lab_that_is_none() -> None:
    (line,) = plan_module.alias_ips_errors({}, ["198.18.0.0/33"])
    assert line.startswith("all hosts: lab_prefixes[0]: 198.18.0.0/33: expected a prefix")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 254)), max_size=12))
def test_errors_are_found_just_where_two_hosts_share_an_address(
    pairs: list[tuple[int, int]],
) -> None:
    hosts = {f"h{index}": {"alias_ips_list": []} for index in range(4)}
    for host, byte in set(pairs):
        hosts[f"h{host}"]["alias_ips_list"].append(f"198.18.0.{byte}")
    shared = len(set(pairs)) - len({byte for _, byte in pairs})
    assert len(errors(**hosts)) == shared


def test_the_prefixes_of_the_lab_are_for_benchmarks_or_private() -> None:
    assert all(not ipaddress.ip_network(prefix).is_global for prefix in PREFIXES)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"lab_data_address": "8.8.8.8"}, "lab_data_address: 8.8.8.8: expected an address of the"),
        ({"alias_ips_list": ["8.8.8.8"]}, "alias address: 8.8.8.8: expected an address of the lab"),
        (
            {"alias_ips_prefix": "8.8.8.0/24", "alias_ips_method": "anyip"},
            "alias_ips_prefix: 8.8.8.0/24: expected a prefix of the lab's own: a network with publ",
        ),
    ],
)
def test_public_addresses_need_their_word(fields: dict[str, Any], line: str) -> None:
    hosts = {"a": {"lab_data_address": "198.18.1.1", **fields}}
    (found,) = plan_module.alias_ips_errors(hosts, ["0.0.0.0/0"])
    assert found.startswith(f"a: {line}")
    assert found.endswith("which only lab_allow_public: true lets in")
    assert plan_module.alias_ips_errors(hosts, ["0.0.0.0/0"], True) == []


def test_no_word_lets_metadata_in() -> None:
    for fields in (
        {"alias_ips_list": ["169.254.169.254"]},
        {"alias_ips_prefix": "169.254.169.0/24", "alias_ips_method": "anyip"},
    ):
        hosts = {"a": {"lab_data_address": "198.18.1.1", **fields}}
        (found,) = plan_module.alias_ips_errors(hosts, ["0.0.0.0/0"], True)
        assert "a cloud's metadata service, which no lab may use" in found
