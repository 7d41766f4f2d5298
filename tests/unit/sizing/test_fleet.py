"""A fleet's plan: enough of everything, exact shares, never more hosts for more memory."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.errors import InputError
from bench.model import footprint
from bench.model.footprint import Machine
from bench.plan import tuples
from bench.scenario import Scenario
from bench.sizing import advice, fleet, layout
from bench.sizing.fleet import End, Fleet, Wanted
from bench.sizing.rates import BUILT_IN, Rate

GIB = 1 << 30
FIELDS = Scenario.model_fields


def wanted(**changes: Any) -> Wanted:
    usual = Wanted(
        connections=10_000_000, server=Machine(64 * GIB, 16), client=Machine(16 * GIB, 4)
    )
    return replace(usual, **changes)


def planned(**changes: Any) -> Fleet:
    return fleet.plan(wanted(**changes), BUILT_IN)


machines = st.builds(Machine, ram=st.integers(2 * GIB, 512 * GIB), cores=st.integers(1, 128))
wishes = st.builds(
    Wanted,
    connections=st.integers(1, 100_000_000),
    server=machines,
    client=machines,
    server_ports=st.integers(1, 1024),
    addresses_per_server=st.integers(1, 20),
    nofile=st.integers(25_000, 1 << 21),
    kernel=st.sampled_from(["4.19", "5.10", "6.1", "6.12.3", "6.18"]),
    watch=st.sampled_from(["epoll", "none"]),
    spare=st.fractions(0, Fraction(1, 4), max_denominator=100),
    floor=st.integers(16 << 20, 1 << 29),
)


def attempt(wish: Wanted) -> Fleet:
    try:
        return fleet.plan(wish, BUILT_IN)
    except InputError as error:
        assert str(error).startswith("--")
        assume(False)
        raise


@given(wishes)
def test_there_is_enough_of_everything(wish: Wanted) -> None:
    found = attempt(wish)
    assert found.tuples >= wish.connections
    for end in (found.servers, found.clients):
        assert sum(share.hosts * share.connections for share in end.shares) == wish.connections
        assert sum(share.hosts for share in end.shares) == end.hosts
        assert end.largest - end.shares[-1].connections <= 1
        assert 1 <= end.largest <= end.most == min(end.limits.values())
        assert end.ram.needed <= end.ram.given
        assert end.ehash_entries >= end.largest
        assert end.workers >= end.cores
        listeners = end.addresses * end.ports if end is found.servers else 0
        room = wish.nofile - fleet.RESERVE - listeners
        assert end.workers * room >= end.largest
        assert end.hosts == 1 or (end.hosts - 1) * end.most < wish.connections


@given(wishes, st.integers(0, 1 << 38), st.sampled_from(["server", "client"]))
def test_more_memory_never_needs_more_hosts(wish: Wanted, more: int, end: str) -> None:
    machine = getattr(wish, end)
    larger = replace(wish, **{end: replace(machine, ram=machine.ram + more)})
    few, many = attempt(larger), attempt(wish)
    assert few.servers.hosts <= many.servers.hosts
    assert few.clients.hosts <= many.clients.hosts


@given(wishes, st.integers(1, 10**7))
def test_fewer_connections_never_need_more(wish: Wanted, fewer: int) -> None:
    few = attempt(replace(wish, connections=max(1, wish.connections - fewer)))
    many = attempt(wish)
    assert few.servers.hosts <= many.servers.hosts
    assert few.clients.hosts <= many.clients.hosts
    assert few.servers.ram.needed <= many.servers.ram.needed or few.servers.hosts < (
        many.servers.hosts
    )


@given(
    st.integers(1, 3_000_000),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(2 * GIB, 8 * GIB),
)
def test_a_run_shares_the_connections_as_the_plan_says(
    connections: int, servers: int, ports: int, addresses: int, ram: int
) -> None:
    found = attempt(
        wanted(
            connections=connections,
            client=Machine(ram, 2),
            servers=servers if servers > 1 else None,
            server_ports=ports,
            addresses_per_server=addresses,
        )
    )
    start = layout.end(0, found.servers.hosts, addresses)
    sources = {
        f"client{number}": [str(block.first + at) for at in range(block.count)]
        for number, block in enumerate(
            layout.blocks(start, found.clients.hosts, found.clients.addresses)
        )
    }
    targets = [
        [(str(block.first + at), 5000 + port) for at in range(block.count) for port in range(ports)]
        for block in layout.blocks(0, found.servers.hosts, addresses)
    ]
    made = tuples.plan(
        connections,
        sources,
        [endpoint for of_server in targets for endpoint in of_server],
        fleet.FIRST_PORT,
        fleet.LAST_PORT,
    )
    assert made.capacity == found.tuples
    of_clients = sorted((made.share(name) for name in sources), reverse=True)
    assert of_clients == [s.connections for s in found.clients.shares for _ in range(s.hosts)]
    held = [made.held_by(of_server) for of_server in targets]
    assert sum(held) == connections
    assert max(held) <= found.servers.largest + found.clients.hosts * ports * addresses


def test_ten_million_on_one_server() -> None:
    found = planned()
    assert (found.servers.hosts, found.servers.decided_by) == (1, "none")
    assert (found.clients.hosts, found.clients.decided_by) == (3, "memory")
    assert found.clients.addresses == 52  # 3,333,334 / 64,512, rounded up
    assert found.tuples == 156 * 64_512
    assert found.servers.ehash_entries == 1 << 24
    assert found.servers.ehash_default == 524_288
    assert found.clients.ehash_default == 131_072


def test_the_model_agrees_with_the_run_that_ended_at_the_floor_of_3_9_gb() -> None:
    """epoll-3.9g held 946,951 with ``-m 4000`` and a floor of 64 MiB (docs/architecture.md)."""
    server = Machine(4_000 << 20, 1)
    found = planned(connections=1_000, server=server, spare=Fraction(0), floor=64 << 20)
    assert 0.97 < found.servers.most / 946_951 <= 1


def by_limit(name: str, end: End) -> bool:
    return end.decided_by == name and next(iter(end.limits)) == name and end.hosts > 1


def test_each_limit_can_decide() -> None:
    assert by_limit("memory", planned(connections=10**8).servers)
    assert by_limit("nofile", planned(nofile=1_024).servers)
    assert planned(servers=3).servers.decided_by == "option"
    assert planned(servers=1).servers.decided_by == "none"
    huge = Machine(1 << 48, 4)
    many = planned(connections=10**9, server=huge, nofile=40_000, client=Machine(4 * GIB, 4))
    assert by_limit("pids", many.servers)
    # Where memory is no bound, addresses are: 65,534 of them, times 64,512 ports.
    limits = planned(client=huge, server=huge, nofile=1 << 30).clients.limits
    assert limits["tuples"] == 65_534 * 64_512
    assert list(limits.values()) == sorted(limits.values())


def test_epoll_and_the_kernel_change_what_a_socket_takes() -> None:
    watched, bare = planned(), planned(watch="none")
    assert watched.servers.socket_bytes - bare.servers.socket_bytes == 128 + 64 + 16
    assert watched.clients.socket_bytes == bare.clients.socket_bytes
    assert planned(kernel="6.18").servers.socket_bytes > watched.servers.socket_bytes
    assert {name: planned(kernel=name).sizes_of for name in ("4.19", "5.15", "6.12", "7.0")} == {
        "4.19": "5.10",
        "5.15": "5.10",
        "6.12": "6.1",
        "7.0": "6.18",
    }


def test_the_ramp_is_paced_by_the_end_with_fewer_cores() -> None:
    found = fleet.plan(wanted(), Rate(1_000.0, "told")).ramp
    assert (found.seconds, found.connections_per_second, found.decided_by, found.source) == (
        pytest.approx(833.3),
        12_000.0,
        "clients",
        "told",
    )
    assert planned(server=Machine(64 * GIB, 1)).ramp.decided_by == "servers"
    assert planned(server=Machine(64 * GIB, 12)).ramp.decided_by == "both"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": Machine(GIB // 4, 1)}, r"--server-ram: got 256.00 MiB, expected at least 1,"),
        (
            {"client": Machine(GIB, 1)},
            r"--client-ram: got 1.00 GiB, expected at least 1,\d+ MiB",
        ),
        ({"servers": 2, "connections": 10**8}, "--servers: got 2, expected at least 7: memory"),
        ({"servers": 11, "connections": 10}, "--servers: got 11, expected at most one for each"),
        ({"nofile": 64}, "--nofile: got 64, expected at least 80: a server's agent"),
        ({"nofile": 99, "server_ports": 500}, "--nofile: got 99, expected at least 565: a server"),
        (
            {"connections": 10**10, "server": Machine(1 << 48, 16), "nofile": 1 << 24},
            r"need 157,\d+ client addresses and 1 server address, expected no more than "
            r"198.18.0.0/15 has usable among its 131,072: more --server-ports or",
        ),
        ({"connections": 10**12}, "hosts with more memory"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_option(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        planned(**changes)
    assert "\n" not in str(caught.value)


def test_the_least_memory_that_is_named_is_enough_and_no_less() -> None:
    for cores in (1, 64):
        small = replace(wanted(connections=1), server=Machine(GIB // 4, cores))
        with pytest.raises(InputError, match="--server-ram") as caught:
            fleet.plan(small, BUILT_IN)
        least = int(str(caught.value).split("at least ")[1].split(" MiB")[0].replace(",", ""))
        enough = Machine(least << 20, cores)
        assert fleet.plan(replace(small, server=enough), BUILT_IN).servers.most >= 1
        with pytest.raises(InputError, match=rf"^--server-ram: got .*at least {least:,} MiB"):
            fleet.plan(replace(small, server=Machine((least - 2) << 20, cores)), BUILT_IN)


def test_too_many_cores_for_the_processes_of_a_login() -> None:
    machine = Machine(64 * GIB, 12_000)
    with pytest.raises(InputError, match="--server-cores: got 12,000, expected at most the 10,749"):
        planned(server=machine)


@given(st.integers(1, 10**6))
def test_most_finds_the_edge(edge: int) -> None:
    assert footprint.most(lambda number: number <= edge) == edge
    assert footprint.most(lambda _: False) == 0


def test_a_run_is_told_what_differs_from_the_scenario() -> None:
    small = planned(connections=1_000, server=Machine(8 * GIB, 1), client=Machine(8 * GIB, 1))
    assert advice.settings(small) == {}
    assert advice.sysctl(small) == {}
    assert advice.notes(small) == []
    found = fleet.plan(
        wanted(
            connections=50_000_000,
            server_ports=3,
            watch="none",
            floor=1 << 30,
            nofile=3_000_000,
            client=Machine(16 * GIB, 2_000),
        ),
        Rate(10.0, "told"),
    )
    settings = advice.settings(found)
    assert settings == {
        "server_ports": [5000, 5001, 5002],
        "watch": "none",
        "memory_floor_mib": 1024,
        "active_workers": 1_024,
        "acceptors": 16,
        "ramp_timeout_seconds": 7_200,
    }
    Scenario.model_validate({"name": "x", "title": "x", **settings})
    assert advice.sysctl(found) == {"fs.nr_open": 1 << 24}
    assert any("a run's ramp ends after 7,200 s" in note for note in advice.notes(found))


def test_many_addresses_on_one_segment_need_room_for_neighbours() -> None:
    found = planned(connections=10**8, server=Machine(1 << 40, 16), client=Machine(1 << 38, 4))
    assert 1_024 < found.clients.hosts * found.clients.addresses < 2_048
    assert advice.sysctl(found) == {
        "net.ipv4.neigh.default.gc_thresh1": 2_048,
        "net.ipv4.neigh.default.gc_thresh2": 4_096,
        "net.ipv4.neigh.default.gc_thresh3": 8_192,
    }


def test_more_than_a_run_takes_is_said() -> None:
    found = planned(connections=200_000_000)
    assert any("a run takes at most 100,000,000" in note for note in advice.notes(found))


def test_constants_are_those_of_a_scenario() -> None:
    usual = Scenario(name="x", title="x")
    assert (usual.first_client_port, usual.last_client_port) == (fleet.FIRST_PORT, fleet.LAST_PORT)
    assert usual.memory_floor_mib << 20 == wanted().floor
    assert usual.watch == wanted().watch
    assert usual.active_workers == usual.acceptors == 1
    assert advice.most("connections") == 100_000_000
    assert advice.most("ramp_timeout_seconds") == 7_200
    assert advice.most("active_workers") == advice.most("acceptors") == 1_024


@pytest.mark.parametrize("more", [0, 1])
def test_a_prefix_may_be_given_out_to_its_last_block(more: int) -> None:
    """512 blocks of a /24: one for the server, and one for each client of 254 addresses."""
    clients = layout.ROOM - layout.end(0, 1, 1) + more

    def check() -> None:
        fleet._check_room(wanted(), 1, clients, 254)

    if more:
        with pytest.raises(InputError, match=r"^--connections: "):
            check()
    else:
        check()
    assert layout.end(layout.end(0, 1, 1), clients, 254) == layout.ROOM + more
