import math
import random
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

proxy = load("reverse_proxy", "filter_plugins", "reverse_proxy")

FRONTENDS: list[dict[str, Any]] = [
    {"name": "control", "port": 4999, "mode": "plain"},
    {"name": "plain", "port": 5000},
    {"name": "header", "port": 5001, "mode": "proxy_protocol"},
    {"name": "transparent", "port": 5002, "server_port": 6002, "mode": "transparent"},
]


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "connections": "10000",
        "servers": ["198.18.0.1"],
        "frontends": FRONTENDS,
        "sources": ["198.18.211.1", "198.18.211.2"],
        "listen": ["198.18.211.1"],
        "processes": "",
        "bufsize": 16384,
        "table": 5002,
        "priority": 5002,
        "timeout_idle": "24h",
        "timeout_connect": "5s",
        **changes,
    }


def errors(**changes: Any) -> list[str]:
    prefixes, known = ["198.18.0.0/15", "fd63::/48"], ["198.18.0.1", "fd63::1", "198.18.4.0/24"]
    return list(proxy.reverse_proxy_errors(fields(**changes), prefixes, known))


def test_one_process_per_core_where_the_limit_can_be_raised() -> None:
    plan = proxy.reverse_proxy_plan({"nofile": 1_048_576, "cores": 2}, 500_000, "", 8)
    mean = 250_000
    assert plan["processes"] == 2
    assert plan["maxconn"] == mean + 5 * math.sqrt(mean) + proxy.CONNECTION_RESERVE
    assert plan["nofile"] == 2 * plan["maxconn"] + proxy.DESCRIPTOR_RESERVE + 8


def test_more_processes_where_it_cannot() -> None:
    plan = proxy.reverse_proxy_plan({"nofile": 20_000, "cores": 2}, 500_000, "", 8)
    assert plan["nofile"] <= 20_000
    assert plan["maxconn"] < 9_900
    # One process fewer, and one of them would be too full.
    fewer = proxy.reverse_proxy_plan(
        {"nofile": 20_000, "cores": 2}, 500_000, plan["processes"] - 1, 8
    )
    assert f"expected at least {plan['processes']}" in fewer["error"]


def test_one_core_and_room_enough_is_one_process_without_spread() -> None:
    plan = proxy.reverse_proxy_plan({"nofile": 20_000, "cores": 1}, 9_000, "", 8)
    assert (plan["processes"], plan["maxconn"]) == (1, 9_000 + proxy.CONNECTION_RESERVE)


@given(
    st.integers(1, 10**8),
    st.integers(1_200, 2**30),
    st.integers(1, 256),
    st.integers(1, 400),
)
def test_a_plan_keeps_to_the_limit_and_has_room_for_the_spread(
    share: int, nofile: int, cores: int, listeners: int
) -> None:
    plan = proxy.reverse_proxy_plan({"nofile": nofile, "cores": cores}, share, "", listeners)
    if "error" in plan:
        assert plan["error"].startswith("reverse_proxy_connections: ")
        assert share > nofile // 2
        return
    assert plan["nofile"] <= nofile
    assert plan["processes"] >= cores
    mean = share / plan["processes"]
    spread = 0 if plan["processes"] == 1 else proxy.SIGMAS * math.sqrt(mean)
    assert plan["maxconn"] >= mean + spread + proxy.CONNECTION_RESERVE
    # haproxy's own sum: two for each connection, its listeners, and what else it opens.
    assert plan["nofile"] >= 2 * plan["maxconn"] + listeners + 3 + 20


@given(st.integers(1, 10**7))
def test_the_room_for_a_usual_share_is_the_room_that_it_came_from(room: int) -> None:
    mean = proxy.usual_share(room)
    assert mean == 1 or mean + proxy.SIGMAS * math.sqrt(mean) <= room
    more = mean + 1
    assert more + proxy.SIGMAS * math.sqrt(more) > room


def test_no_process_overflows_in_a_hundred_drawn_runs() -> None:
    share = 19_000
    plan = proxy.reverse_proxy_plan({"nofile": 20_000, "cores": 2}, share, "", 8)
    draw = random.Random(1)
    for _ in range(100):
        load = [0] * plan["processes"]
        for chosen in draw.choices(range(plan["processes"]), k=share):
            load[chosen] += 1
        assert max(load) <= plan["maxconn"]


@pytest.mark.parametrize(
    ("connections", "processes", "nofile", "line"),
    [
        (
            30_000,
            "1",
            20_000,
            "reverse_proxy_processes: 1: expected at least 4: 2 descriptors for each of 30,000 "
            "connections, and a service here has 20,000",
        ),
        (
            10**8,
            "",
            20_000,
            "reverse_proxy_connections: 100000000: expected at most 9544704: 2 descriptors for "
            "each of 100,000,000 connections, and a service here has 20,000",
        ),
        (100, "", 500, "nofile: 500: expected at least 776 for a service"),
        (100, "2.5", 20_000, "reverse_proxy_processes: '2.5': expected a whole number from 1"),
    ],
)
def test_what_cannot_be_carried(connections: int, processes: str, nofile: int, line: str) -> None:
    plan = proxy.reverse_proxy_plan({"nofile": nofile, "cores": 2}, connections, processes, 8)
    assert plan["error"].startswith(line)


def test_before_the_tuning_only_a_limit_that_stays_is_one() -> None:
    def error(nr_open: int, tuned: bool) -> str:
        probe = {"nofile": 20_000, "nr_open": nr_open, "cores": 2}
        return str(proxy.reverse_proxy_plan(probe, 30_000, "1", 8, tuned).get("error", ""))

    assert "reverse_proxy_processes: 1: expected at least 4" in error(1_048_576, False)
    assert error(20_000, False) == ""
    assert "reverse_proxy_processes: 1: expected at least 4" in error(20_000, True)


def test_good_fields_have_no_errors() -> None:
    assert errors() == []
    assert errors(servers=["198.18.4.77", "198.18.0.1"]) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"frontends": []}, "reverse_proxy_frontends: []: expected a list"),
        ({"frontends": "5000"}, "reverse_proxy_frontends: '5000': expected a list"),
        ({"frontends": [5000]}, "reverse_proxy_frontends[0]: 5000: expected name, port"),
        (
            {"frontends": [*FRONTENDS, {"name": "more", "port": 5000}]},
            "reverse_proxy_frontends[4].port: 5000: expected a port of its own, "
            "reverse_proxy_frontends[1] has it",
        ),
        (
            {"frontends": [*FRONTENDS, {"name": "plain", "port": 5009}]},
            "reverse_proxy_frontends[4].name: plain: expected a name of its own",
        ),
        (
            {"frontends": [{"name": "a b", "port": 1}]},
            "reverse_proxy_frontends[0].name: 'a b': expected letters",
        ),
        (
            {"frontends": [{"name": "a", "port": 1, "mode": "tproxy"}]},
            "reverse_proxy_frontends[0].mode: tproxy: expected plain, proxy_protocol or "
            "transparent",
        ),
        (
            {"frontends": [{"name": "a", "port": 70_000}]},
            "reverse_proxy_frontends[0].port: '70000': expected a whole number from 1 to 65,535",
        ),
        (
            {"frontends": [{"name": "a"}]},
            "reverse_proxy_frontends[0].port: '': expected a whole number",
        ),
        (
            {"frontends": [{"name": "a", "port": 1, "prot": 2}]},
            "reverse_proxy_frontends[0].prot: expected name, port, server_port or mode",
        ),
        (
            {"frontends": [*FRONTENDS, {"name": "more", "port": 6002}]},
            "reverse_proxy_frontends[4].server_port: 6002: expected another one than that of "
            "reverse_proxy_frontends[3]",
        ),
        ({"servers": []}, "reverse_proxy_servers: []: expected the IPv4 address of a server"),
        (
            {"servers": ["198.18.0.1", "192.0.2.1"]},
            "reverse_proxy_servers[1]: 192.0.2.1: expected an address inside 198.18.0.0/15",
        ),
        (
            {"servers": ["198.18.0.1", "198.18.1.1"]},
            "reverse_proxy_servers[1]: 198.18.1.1: expected an address of a host of the group "
            "servers",
        ),
        ({"servers": ["fd63::1"]}, "reverse_proxy_servers[0]: fd63::1: expected an IPv4 address"),
        (
            {"sources": ["198.18.211.1", "198.18.211.1"]},
            "reverse_proxy_sources[1]: 198.18.211.1: expected an address that is not named twice",
        ),
        ({"listen": "198.18.211.1"}, "reverse_proxy_listen: '198.18.211.1': expected the IPv4"),
        ({"connections": "many"}, "reverse_proxy_connections: 'many': expected a whole number"),
        ({"processes": 0}, "reverse_proxy_processes: '0': expected a whole number from 1"),
        ({"bufsize": 10}, "reverse_proxy_bufsize: '10': expected a whole number from 1,024"),
        ({"table": 254}, "reverse_proxy_table: 254: expected a table of its own"),
        ({"priority": 0}, "reverse_proxy_rule_priority: '0': expected a whole number from 1"),
        ({"timeout_idle": "soon"}, "reverse_proxy_timeout_idle: soon: expected a time such as"),
        ({"timeout_connect": "5"}, "reverse_proxy_timeout_connect: 5: expected a time such as"),
    ],
)
def test_each_error_is_one_line_of_field_value_and_what_was_expected(
    changes: dict[str, Any], line: str
) -> None:
    found = errors(**changes)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_whole_refuses_what_only_looks_like_a_number() -> None:
    with pytest.raises(AnsibleFilterError, match="expected a whole number from 1 to 9"):
        proxy.whole("field", "\u0663", 1, 9)


def test_only_the_first_proxy_has_transparent_frontends() -> None:
    first = proxy.reverse_proxy_frontends(FRONTENDS)
    other = proxy.reverse_proxy_frontends(FRONTENDS, False)
    assert [each["name"] for each in other] == ["control", "plain", "header"]
    assert first[:3] == other
    assert first[1] == {"name": "plain", "port": 5000, "server_port": 5000, "mode": "plain"}
    assert first[3]["server_port"] == 6002


def test_the_ports_of_all_pairs_are_what_a_frontend_reaches() -> None:
    assert proxy.reverse_proxy_reach(["a", "b"], ["c"], [1024, 65535]) == 2 * 64_512


def test_routing_of_the_proxy_and_of_a_server() -> None:
    frontends = proxy.reverse_proxy_frontends(FRONTENDS)
    rule = {"priority": 7, "table": 8, "from": "198.18.0.1", "sport": 6002}
    assert proxy.reverse_proxy_routing(frontends, ["198.18.0.1"], 8, 7, "data0") == {
        "rules": [{**rule, "iif": "data0"}],
        "routes": [{"table": 8, "via": "", "dev": "data0"}],
    }
    assert proxy.reverse_proxy_routing(
        frontends, ["198.18.0.1"], 8, 7, "data0", "198.18.211.1"
    ) == {
        "rules": [{**rule, "iif": ""}],
        "routes": [{"table": 8, "via": "198.18.211.1", "dev": "data0"}],
    }
    plain = proxy.reverse_proxy_frontends(FRONTENDS, False)
    nothing: dict[str, list[Any]] = {"rules": [], "routes": []}
    assert proxy.reverse_proxy_routing(plain, ["198.18.0.1"], 8, 7, "data0") == nothing
    assert proxy.reverse_proxy_routing(frontends, [], 8, 7, "data0") == nothing
