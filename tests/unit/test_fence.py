"""Addresses that no lab may use, and the one word that lets some of them in."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import fence, scenario
from bench.errors import InputError
from bench.inventory import Host, Inventory
from bench.plan import planning
from bench.plan.topology import Topology

V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)


def within(*networks: str) -> st.SearchStrategy[fence.Address]:
    return st.one_of(*(st.ip_addresses(network=network) for network in networks))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8.8.8.8", "a public address, which only lab_allow_public: true lets in"),
        ("2606:4700:4700::1111", "a public address, which only lab_allow_public: true lets in"),
        ("100.64.0.1", "a provider's shared address (RFC 6598), which only lab_allow_public: tru"),
        ("192.0.2.1", "an address for documentation (RFC 5737), which only"),
        ("2001:db8::1", "an address for documentation (RFC 3849), which only"),
        ("169.254.198.1", "a link-local address (RFC 3927), which only"),
        ("fe80::1", "a link-local address (RFC 4291), which only"),
        ("240.0.0.1", "a reserved address (RFC 1112), which only"),
        ("172.32.0.1", "a public address"),
        ("198.20.0.0", "a public address"),
    ],
)
def test_what_the_word_lets_in(text: str, said: str) -> None:
    address = ipaddress.ip_address(text)
    assert fence.refusal(address).startswith(said)
    assert fence.refusal(address, public=True) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("224.0.0.1", "a multicast address (RFC 5771), which no lab may use"),
        ("239.255.255.255", "a multicast address"),
        ("ff02::1", "a multicast address (RFC 4291), which no lab may use"),
        ("169.254.169.254", "a cloud's metadata service, which no lab may use"),
        ("169.254.170.2", "a cloud's metadata service"),
        ("100.100.100.200", "a cloud's metadata service"),
        ("fd00:ec2::254", "a cloud's metadata service"),
        ("255.255.255.255", "the broadcast address (RFC 919), which no lab may use"),
        ("0.0.0.0", "no host's address (RFC 1122, this network), which no lab may use"),
        ("0.1.2.3", "no host's address"),
        ("::", "no host's address (RFC 4291, unspecified), which no lab may use"),
        ("::ffff:10.0.0.1", "an IPv4 address in IPv6 (RFC 4291, mapped), which no lab may use"),
        ("::10.0.0.1", "an IPv4 address in IPv6 (RFC 4291, compatible)"),
        ("64:ff9b::808:808", "an IPv4 address in IPv6 (RFC 6052, translated)"),
        ("2002:808:808::1", "an IPv4 address in IPv6 (RFC 3056, 6to4)"),
        ("2001::1", "an IPv4 address in IPv6 (RFC 4380, Teredo)"),
        ("fe80::1%eth0", "an address of one link (RFC 4007, scoped), which no lab may use"),
        ("fd63::1%2", "an address of one link"),
    ],
)
def test_what_no_word_lets_in(text: str, said: str) -> None:
    address = ipaddress.ip_address(text)
    for public in (False, True):
        assert fence.refusal(address, public=public).startswith(said)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "::1", "10.0.0.1", "172.31.255.1", "192.168.1.1", "198.19.0.1", "fd63::1"]
)
def test_what_is_free(text: str) -> None:
    assert fence.refusal(ipaddress.ip_address(text)) == ""


@given(V4 | V6)
def test_the_word_only_lets_in_and_what_is_let_in_is_one_hosts(address: fence.Address) -> None:
    plain, lifted = fence.refusal(address), fence.refusal(address, public=True)
    assert not (lifted and not plain)
    if not lifted:
        assert not (address.is_multicast or address.is_unspecified)
        assert address != ipaddress.IPv4Address("255.255.255.255")
        assert getattr(address, "ipv4_mapped", None) is None
    if not plain:
        assert address.is_private and not address.is_link_local


@given(V4 | V6)
def test_no_address_of_the_internet_passes_without_the_word(address: fence.Address) -> None:
    if address.is_global or not (address.is_private or address.is_loopback):
        assert fence.refusal(address)


@given(within("224.0.0.0/4", "ff00::/8", "0.0.0.0/8", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16"))
def test_no_word_lets_these_in(address: fence.Address) -> None:
    assert fence.refusal(address, public=True).endswith(", which no lab may use")


@given(V6, st.text("abcdefgh0123456789", min_size=1, max_size=8))
def test_no_scope_slips_through(address: ipaddress.IPv6Address, scope: str) -> None:
    assert fence.refusal(ipaddress.IPv6Address(f"{address}%{scope}"), public=True)


@given(V4)
def test_an_ipv4_address_is_no_other_one_in_ipv6(address: ipaddress.IPv4Address) -> None:
    for form in (f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"):
        if form != "::0.0.0.1":  # the same number as ::1
            assert fence.refusal(ipaddress.ip_address(form), public=True)


@given(within("10.0.0.0/8", "192.168.0.0/16"), st.integers(8, 30))
def test_a_networks_own_addresses_are_no_hosts(address: ipaddress.IPv4Address, bits: int) -> None:
    network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    edges = {network.network_address, network.broadcast_address}
    for edge in edges:
        assert f"address of {network}" in fence.refusal(edge, [network], public=True)
    if address not in edges:
        assert fence.refusal(address, [network]) == ""


def test_the_edges_of_small_networks_are_hosts() -> None:
    for text in ("10.0.0.0/31", "10.0.0.0/32", "fd63::/127"):
        network = ipaddress.ip_network(text)
        assert fence.refusal(network.network_address, [network]) == ""
    network6 = ipaddress.ip_network("fd63::/64")
    assert fence.refusal(network6.network_address, [network6]) == (
        "the routers' anycast (RFC 4291) address of fd63::/64"
    )
    assert fence.refusal(network6.broadcast_address, [network6]) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("198.18.64.0/18", ""),
        ("fd63::/48", ""),
        ("198.16.0.0/13", "a network with public addresses, which only lab_allow_public: true let"),
        ("0.0.0.0/0", "a network with no host's address (RFC 1122, this network), which no lab m"),
        ("169.254.169.0/24", "a network with a cloud's metadata service, which no lab may use"),
    ],
)
def test_whole_networks(text: str, said: str) -> None:
    assert fence.refusal_of_network(ipaddress.ip_network(text)).startswith(said)
    assert bool(fence.refusal_of_network(ipaddress.ip_network(text))) == bool(said)
    lifted = fence.refusal_of_network(ipaddress.ip_network(text), public=True)
    assert bool(lifted) == said.endswith(("no lab m", "no lab may use"))


@pytest.mark.parametrize(("public", "address"), [(False, "8.8.8.8"), (True, "169.254.169.254")])
def test_no_plan_connects_to_what_is_outside_the_fence(public: bool, address: str) -> None:
    hosts = {
        name: Host(name, (group,), name, 22, "lab", None, None, (data,), public=public)
        for name, group, data in (("s", "servers", address), ("c", "clients", "198.18.1.1"))
    }
    found = Inventory("test", "remote", hosts, False, None, None)
    with pytest.raises(InputError, match=rf"^inventory test: target {address}: got a "):
        planning.plan_for(Topology(scenario.load("million", {"connections": 10}), found))
