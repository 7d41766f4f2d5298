"""Scenarios: what is accepted, and the one line that a mistake gets."""

from __future__ import annotations

import pytest

from bench import scenario
from bench.errors import InputError


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_loads(name: str) -> None:
    assert scenario.load(name).name == name


def test_settings_are_yaml() -> None:
    assert scenario.parse_settings(["connections=1_000", "watch=none", "server_ports=[1, 2]"]) == {
        "connections": 1000,
        "watch": "none",
        "server_ports": [1, 2],
    }


@pytest.mark.parametrize("value", ["[", "2026-99-99"])
def test_a_value_that_is_no_yaml_is_named(value: str) -> None:
    with pytest.raises(InputError) as refused:
        scenario.parse_settings([f"watch={value}"])
    assert str(refused.value) == f"--set watch: got {value!r}, expected a YAML value"


@pytest.mark.parametrize("text", ["connections", "=5", ""])
def test_settings_without_a_key_or_value(text: str) -> None:
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        scenario.parse_settings([text])


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("conections", 5, "conections: unknown field, expected one of accept_nap_ms, acceptors,"),
        ("name", "x", "name: unknown field"),
        ("connections", 0, "connections: got 0, expected greater than or equal to 1"),
        ("connections", -5, "connections: got -5, expected greater than or equal to 1"),
        ("connections", 10**9, "connections: got 1000000000, expected less than or equal to"),
        ("connections", "many", "connections: got 'many', expected a valid integer"),
        ("connections", True, "connections: got True, expected a valid integer"),
        ("connections", None, "connections: got None, expected a valid integer"),
        ("connect_rate", 0, "connect_rate: got 0, expected greater than 0"),
        ("connect_rate", 1e9, "connect_rate: got 1000000000.0, expected less than or equal"),
        ("hold_seconds", -1, "hold_seconds: got -1, expected greater than or equal to 0"),
        ("hold_seconds", 1e6, "hold_seconds: got 1000000.0, expected less than or equal"),
        ("hold_seconds", float("nan"), "hold_seconds: got nan, expected"),
        ("watch", "poll", "watch: got 'poll', expected 'epoll' or 'none'"),
        ("expect", "some", "expect: got 'some', expected 'all', 'floor' or 'limit'"),
        ("step", 0, "step: got 0, expected greater than 0"),
        ("step", 1.01, "step: got 1.01, expected less than or equal to 1"),
        ("resolution", 0, "resolution: got 0, expected greater than 0"),
        ("resolution", 2, "resolution: got 2, expected less than or equal to 1"),
        ("source_ports", "none", "source_ports: got 'none', expected 'plan' or 'kernel'"),
        ("nofile", "all", "nofile: got 'all', expected 'hard' or 'soft'"),
        ("path", "bent", "path: got 'bent', expected 'direct', 'routed' or 'proxied'"),
        ("family", 5, "family: got 5, expected 'auto', 4 or 6"),
        ("clients", 0, "clients: got 0, expected greater than or equal to 1"),
        ("workers", 0, "workers: got 0, expected greater than or equal to 1"),
        ("workers", 1025, "workers: got 1025, expected less than or equal to 1024"),
        ("workers", "two", "workers: got 'two', expected a valid integer"),
        ("echo_timeout_ms", 9, "echo_timeout_ms: got 9, expected greater than or equal to 10"),
        ("echo_timeout_ms", 120_001, "echo_timeout_ms: got 120001, expected less than or equal"),
        ("rounds", -1, "rounds: got -1, expected greater than or equal to 0"),
        ("rounds", 1001, "rounds: got 1001, expected less than or equal to 1000"),
        ("rounds", 1.5, "rounds: got 1.5, expected a valid integer"),
        ("round_window", 0, "round_window: got 0, expected greater than or equal to 1"),
        ("round_timeout_ms", 9, "round_timeout_ms: got 9, expected greater than or equal to 10"),
        ("sequential_sample", -1, "sequential_sample: got -1, expected greater than or equal"),
        ("server_ports", [], "server_ports: got \\[\\], expected at least 1 item$"),
        ("server_ports", [70000], "server_ports.0: got 70000, expected less than or equal"),
        ("server_ports", [80, 80], "server_ports: got \\[80, 80\\], expected no port twice"),
        ("control_port", 5000, "control_port: got 5000, expected a port not in server_ports"),
        ("memory_floor_mib", 15, "memory_floor_mib: got 15, expected greater than or equal to 16"),
        ("last_client_port", 1000, "first_client_port: got 1024, expected at most"),
    ],
)
def test_bad_fields_get_one_line(field: str, value: object, line: str) -> None:
    with pytest.raises(InputError, match=f"^scenario million: {line}") as caught:
        scenario.load("million", {field: value})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_what_the_lab_is_sized_for_is_the_default_alone() -> None:
    assert scenario.load("claim", {}, 77).connections == 1_000  # its own
    assert scenario.load("million", {}, 77).connections == 77
    assert scenario.load("million", {"connections": 5}, 77).connections == 5
    assert scenario.load("claim", {"connections": 5}, 77).connections == 5


def test_what_is_held_at_a_limit_has_to_prove_that_it_lives() -> None:
    with pytest.raises(InputError, match=r"^scenario ceiling: liveness: got 'none', expect"):
        scenario.load("ceiling", {"liveness": "none"})
    assert scenario.load("million", {"liveness": "none"}).liveness == "none"


@pytest.mark.parametrize(
    "field", ["rounds", "sequential_sample", "round_every_seconds", "churn_percent"]
)
def test_rounds_need_a_server_that_watches(field: str) -> None:
    line = f"^scenario million: {field}: got 2, expected 0 with watch: none$"
    with pytest.raises(InputError, match=line):
        scenario.load("million", {"watch": "none", field: 2})
    assert scenario.load("million", {"watch": "none", field: 0}).watch == "none"
    assert scenario.load("million", {field: 2}).watch == "epoll"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"expect": "floor"}, "churn_percent: got 1, expected 0 with expect: floor"),
        ({"expect": "limit"}, "churn_percent: got 1, expected 0 with expect: limit"),
        ({"source_ports": "kernel"}, "churn_percent: got 1, expected 0 with source_ports: kernel"),
        (
            {"connect_rate": 5_000},
            "churn_percent: got 1, expected at most 0.5: 5,000 of 1,000,000 connections a second",
        ),
        (
            {"connections": 10_000_000, "churn_percent": 12.5},
            "churn_percent: got 12.5, expected at most 10: 1,000,000 of 10,000,000 connections a "
            "second",
        ),
        ({"churn_percent": 50.1}, "churn_percent: got 50.1, expected less than or equal to 50"),
        ({"churn_percent": -1}, "churn_percent: got -1, expected greater than or equal to 0"),
        ({"churn_percent": float("nan")}, "churn_percent: got nan, expected"),
    ],
)
def test_churn_is_bounded(fields: dict[str, object], line: str) -> None:
    with pytest.raises(InputError, match=f"^scenario million: {line}"):
        scenario.load("million", {"churn_percent": 1, **fields})
    assert scenario.load("million", {**fields, "churn_percent": 0}).churn_percent == 0


@pytest.mark.parametrize(
    ("hold", "every", "least"), [(10, 0.5, "1"), (86_400, 60, "86.4"), (3_600, 3.5, "3.6")]
)
def test_rounds_throughout_a_hold_are_bounded(hold: int, every: float, least: str) -> None:
    line = f"round_every_seconds: got {every:g}, expected 0 or at least {least} with hold_seconds"
    with pytest.raises(InputError, match=f"^scenario million: {line}: {hold}$"):
        scenario.load("million", {"hold_seconds": hold, "round_every_seconds": every})
    fields = {"hold_seconds": hold, "round_every_seconds": float(least)}
    assert scenario.load("million", fields).round_every_seconds == float(least)


def test_a_soak_renews_every_connection_several_times() -> None:
    one = scenario.load("soak")
    assert (one.connections, one.hold_seconds, one.expect_lost) == (200_000, 900, 0)
    assert one.churn_percent / 100 * one.hold_seconds >= 5
    assert one.hold_seconds / one.round_every_seconds >= 10
    assert one.liveness == "all"


def test_a_keystroke_is_typed_on_all_and_on_some_alone() -> None:
    one = scenario.load("keystroke")
    assert (one.rounds, one.sequential_sample, one.connections) == (2, 10_000, 1_000_000)


def test_agents_are_as_many_as_they_need_to_be_unless_a_scenario_says() -> None:
    one = scenario.load("ceiling")
    assert (one.workers, one.nofile, one.source_ports) == (None, "hard", "plan")
    assert scenario.load("ceiling", {"workers": 2}).workers == 2


def test_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"scenario: got 'milion', expected one of .*million"):
        scenario.load("milion")


def test_a_scenario_expects_all_connections_unless_it_says_otherwise() -> None:
    assert {name: scenario.load(name).expect for name in scenario.names()} == {
        "ceiling": "limit",
        "claim": "all",
        "epoll-3.9g": "floor",
        "keystroke": "all",
        "million": "all",
        "million-3.9g": "all",
        "soak": "all",
    }


@pytest.mark.parametrize(("name", "watch"), [("million-3.9g", "none"), ("epoll-3.9g", "epoll")])
def test_a_million_on_a_small_machine_fits_its_bounds(name: str, watch: str) -> None:
    one = scenario.load(name)
    assert (one.connections, one.watch, one.liveness) == (1_000_000, watch, "sample")
    assert scenario.load(name, {}, 20_000).connections == 20_000  # the lab's size, as in million
    assert one.connections / one.drain_rate < 180
    assert one.connections / 4_700 < one.ramp_timeout_seconds
    assert one.memory_floor_mib < 100  # MiB: about what is free at the peak
