from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from runs import host as record

from bench.errors import InputError, LabError
from bench.inventory import Host, Inventory
from bench.plan import planning
from bench.plan.topology import Topology
from bench.results.format import HostRecord
from bench.scenario import Scenario


def host(name: str, group: str, *addresses: str) -> Host:
    return Host(name, (group,), name, 22, "lab", None, None, addresses)


LAB = Inventory(
    "test",
    "local",
    {
        "server1": host("server1", "servers", "198.18.0.1", "fd63:6f6e:6e6c::1"),
        "client1": host("client1", "clients", "198.18.1.1", "198.18.1.2"),
        "client2": host("client2", "clients", "198.18.2.1"),
    },
    False,
    None,
    None,
)


def found(**addresses: list[str]) -> dict[str, HostRecord]:
    usual = {name: list(one.data_addresses) for name, one in LAB.hosts.items()}
    made = {}
    for name, listed in (usual | addresses).items():
        made[name] = record("servers" if name == "server1" else "clients")
        made[name].addresses = listed
    return made


def scenario(**fields: Any) -> Scenario:
    return Scenario(
        name="test", title="test", first_client_port=60_000, last_client_port=60_999, **fields
    )


def topology(**fields: Any) -> Topology:
    return Topology(scenario(**fields), LAB)


def test_addresses_that_hosts_have_not_are_counted() -> None:
    every = planning.planned(topology())
    assert planning.there(topology(), found()) == (
        {name: list(addresses) for name, addresses in every.items()},
        0,
    )
    there, missing = planning.there(
        topology(), found(client1=["198.18.1.1", "10.0.0.1"], client2=[])
    )
    assert (dict(there), missing) == ({"client1": ["198.18.1.1"], "client2": []}, 2)
    # One route for a whole prefix has them all.
    assert planning.there(topology(), found(client1=["198.18.1.0/24"]))[1] == 0


def test_a_server_without_its_address_is_a_fault() -> None:
    with pytest.raises(LabError, match="host server1: address fd63:6f6e:6e6c::1 is not"):
        planning.there(topology(family=6), found(server1=["198.18.0.1"]))
    # One that the run does not use is of no interest.
    assert planning.there(topology(), found(server1=["198.18.0.1"]))[1] == 0


def test_tuples_are_of_one_address_family_each() -> None:
    assert planning.tuples(topology(), planning.planned(topology())) == 3_000
    assert planning.tuples(topology(server_ports=[1, 2]), planning.planned(topology())) == 6_000
    assert planning.tuples(topology(), {"client1": []}) == 0
    six = {"client1": ["fd63:6f6e:6e6c::2"]}
    assert planning.tuples(topology(), six) == 0
    assert planning.tuples(topology(family=6), six) == 1_000


def test_more_than_there_are_is_refused_unless_a_limit_is_looked_for() -> None:
    with pytest.raises(InputError, match="expected at most the 3000 tuples"):
        planning.plan_for(topology(connections=3_001))
    made = planning.plan_for(topology(connections=3_001, expect="limit"))
    assert sum(made.share(name) for name in made.blocks) == made.capacity == 3_000
    fewer = planning.plan_for(topology(connections=5, expect="limit"))
    assert sum(fewer.share(name) for name in fewer.blocks) == 5


def test_more_pairs_than_can_be_proven_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_PAIRS", 299)
    ports = list(range(5_000, 5_100))
    assert planning.plan_for(topology(connections=299, server_ports=ports)).pairs <= 299
    with pytest.raises(InputError, match="got 300 pairs of client address and server endpoint, "):
        planning.plan_for(topology(connections=900, server_ports=ports))
    # Blocks that begin anew at the first source port are of the same pair.
    many = planning.plan_for(topology(connections=2_900, server_ports=[5_000]))
    assert many.pairs == 3


def test_without_any_tuple_there_is_no_plan() -> None:
    nobody = replace(LAB, hosts={**LAB.hosts, "client1": host("client1", "clients")})
    with pytest.raises(InputError, match="at most the 0 tuples"):
        planning.plan_for(Topology(scenario(expect="limit"), nobody), {"client1": []})
