"""Source ports used up over namespaces, to the connection, and put back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import CLIENT, CLIENT6
from beds import Bed

from bench import scenario
from bench.claims import portrange, portspace
from bench.claims.lab import Lab
from bench.claims.statements import four_tuple, port_myth
from bench.hosts import survey
from bench.plan.topology import Topology

RANGE = "20000 20499"
SECOND = "198.18.1.2"


@pytest.fixture
def lab(bed: Bed, tmp_path: Path) -> Lab:
    inventory = bed.inventory([CLIENT, SECOND, CLIENT6])
    hosts, _ = survey.look(Topology(scenario.load("claim"), inventory), bed.connect)
    return Lab(inventory, hosts, bed.connect, tmp_path, print)


@pytest.mark.parametrize("family", [4, 6])
def test_the_kernel_s_range_holds_as_many_as_it_has_ports(bed: Bed, lab: Lab, family: int) -> None:
    before = bed.net.run("client", "sysctl", "-n", portrange.RANGE)
    row = portspace.filled(lab, lab.client, RANGE, family=family)
    assert row.exact and row.held == row.allowed == 500
    assert row.refused["EADDRNOTAVAIL"] > 0
    assert (row.family, row.addresses, row.targets) == (family, 1, 1)
    assert bed.net.run("client", "sysctl", "-n", portrange.RANGE) == before


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [({"client_addresses": 2}, 2), ({"server_ports": [5000, 5001, 5002]}, 3)],
)
def test_each_address_or_port_brings_as_many(lab: Lab, fields: dict, pairs: int) -> None:
    row = portspace.filled(lab, lab.client, RANGE, **fields)
    assert row.exact and row.held == 500 * pairs


def test_ports_bound_one_by_one(lab: Lab) -> None:
    row = portspace.planned(lab, lab.client, RANGE)
    assert row.exact and (row.held, row.refused) == (500, {})


def test_the_addresses_are_those_that_connections_come_from(lab: Lab) -> None:
    few = port_myth.PortMythParameters(connections=100)
    assert port_myth.measure_port_myth(lab, few).client_addresses == 2


def test_a_second_connection_by_each_of_the_four(lab: Lab) -> None:
    found = four_tuple.measure_four_tuple(lab, four_tuple.FourTupleParameters(families=[4, 6]))
    assert found.cases["IPv4"]["client address"] == "admitted"
    assert found.cases["IPv6"]["server address"] is None  # there is no second one
    assert four_tuple.judge_four_tuple(found).verdict == "depends"
