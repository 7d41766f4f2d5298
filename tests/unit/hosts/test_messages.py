"""The boundary: what agents write gets through, and nothing else, whatever it is."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench import wire
from bench.hosts import messages
from bench.hosts.messages import EVENTS, ProtocolError, read

TICK = {
    "event": "tick",
    "t": 1.5,
    "held": 7,
    "opened": 9,
    "closed": 2,
    "lost": 1,
    "retried": 3,
    "in_flight": 4,
    "errors": {"ECONNREFUSED": 3},
    "latency": {"0": 1, str(wire.BUCKETS - 1): 6},
    "mem_available_kib": 100,
    "mem_free_kib": 90,
    "slab_kib": 10,
}
RAMPED = {
    "event": "ramped",
    "reason": "complete",
    "tried": 7,
    "held": 7,
    "lost": 0,
    "errors": {},
    "latency": {"3": 7},
    "seconds": 0.25,
}
ROUNDED = {
    "event": "rounded",
    "asked": 10,
    "answered": 7,
    "wrong": 1,
    "silent": 2,
    "seconds": 0.1,
    "latency": {"3": 7},
    "cpu_seconds": 0.01,
}
CHURNED = {
    "event": "churned",
    "closed": 30,
    "opened": 28,
    "lost": 2,
    "errors": {"ETIMEDOUT": 12},
    "latency": {"3": 28},
    "seconds": 30.1,
}
COLLECTED = {
    "event": "collected",
    "phase": "peak",
    "texts": {"ss_s": "Total: 7\n", "kernel_log": "\x1b[31m\ud800 raw"},
    "missing": {"slabinfo": "permission denied"},
    "held": 7,
    "held_each": [3, 4],
    "established": None,
    "workers": 2,
    "pss_kib": 1000,
}
FACTS = {
    "event": "facts",
    "hostname": "server1",
    "kernel": "6.1.0",
    "python": "3.11.2",
    "cpu": 2,
    "mem_total_kib": 1000,
    "nofile_soft": 1024,
    "nofile_hard": -1,
    "own_tasks": 5,
    "tracking": False,
    "cap_sys_resource": False,
    "sysctl": {"net.core.somaxconn": "4096"},
    "addresses": ["198.18.0.1", "198.18.1.0/24"],
    "ehash_entries": 1024,
    "roles": {"tune_sysctl": {"settings": {"a": {"found": "1", "set": "2", "where": "host"}}}},
}
VALID: list[dict[str, Any]] = [
    {
        "event": "hello",
        "version": 1,
        "pid": 7,
        "python": "3.9.2",
        "cores": 2,
        "nofile_hard": 20_000,
    },
    {"event": "alive"},
    {"event": "error", "kind": "fault", "message": "worker 3 died"},
    FACTS,
    {"event": "serving", "workers": 2},
    {"event": "prepared", "workers": 1},
    {"event": "opened"},
    {"event": "halted"},
    {"event": "stopped"},
    TICK,
    {"event": "floor", "mem_free_kib": 1, "floor_kib": 2},
    RAMPED,
    {"event": "answering", "on": True, "echoes": 3, "wrong": 0},
    {"event": "echoed", "asked": 10, "answered": 9, "wrong": 1, "dropped": 0},
    ROUNDED,
    CHURNED,
    {"event": "memory", "own_kib": 20_000},
    COLLECTED,
    {"event": "counted", "counts": {"5000": 3}, "total": 3, "seconds": 0.5},
    {"event": "verified", "alive": 7, "dead": 3},
    {"event": "drained", "closed": 7, "seconds": 0.5},
    {"event": "status", "held": 7, "errors": {}, "cpu_seconds": 0.5},
    {"event": "told", "found": {"a": [1, 2.5, None, "x"]}},
]


def line(message: Any) -> bytes:
    return json.dumps(message).encode()


def test_every_event_has_an_example() -> None:
    assert {message["event"] for message in VALID} == set(EVENTS)


@pytest.mark.parametrize("message", VALID, ids=lambda message: message["event"])
def test_what_agents_write_gets_through(message: dict[str, Any]) -> None:
    found = read(wire.encode(message), 10)
    assert found["event"] == message["event"]
    if message["event"] not in ("facts", "collected"):
        assert found == message


def test_text_is_made_fit_to_be_shown_or_kept() -> None:
    shown = read(line({"event": "error", "kind": "fault", "message": "\x1b[2J\rworker\u202e"}))
    assert shown["message"] == r"\x1b[2J\rworker\u202e"
    kept = read(line(COLLECTED))["texts"]["kernel_log"]
    assert kept == "\x1b[31m? raw"  # evidence stays as printed, as far as UTF-8 has it
    kept.encode()


def test_what_a_host_has_more_to_say_of_than_is_shown_is_cut() -> None:
    error = read(line({"event": "error", "kind": "fault", "message": "x" * 50_000}))
    assert error["message"] == "x" * 4096
    ports = ",".join(str(port) for port in range(1, 65_536, 2))  # no list is longer
    found = read(line({**FACTS, "sysctl": {"net.ipv4.ip_local_reserved_ports": ports}}))
    assert found["sysctl"]["net.ipv4.ip_local_reserved_ports"] == ports
    missing = {"ss_s": "no " * 5000}
    assert len(read(line({**COLLECTED, "missing": missing}))["missing"]["ss_s"]) == 256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("net.core.somaxconn", "4096"),
        ("net.core.somaxconn", "-1"),
        ("fs.file-max", "9223372036854775807"),
        ("fs.file-max", "18446744073709551615"),
        ("net.ipv4.tcp_ehash_entries", "-262144"),  # of a namespace that shares the table
        ("net.ipv4.ip_local_port_range", "32768 60999"),
        ("net.ipv4.ip_local_port_range", "7 7"),
        ("net.ipv4.ip_local_reserved_ports", ""),
        ("net.ipv4.ip_local_reserved_ports", "0-65535"),
        ("net.ipv4.ip_local_reserved_ports", "8080,9000-9010,65535"),
        ("net.ipv4.tcp_mem", "287901 383868 575802"),
        ("net.some.other", "what² ever"),
    ],
)
def test_what_kernels_print_of_their_parameters_gets_through(key: str, value: str) -> None:
    assert read(line({**FACTS, "sysctl": {key: value}}))["sysctl"] == {key: value}


def test_what_a_host_answers_for_gets_through() -> None:
    addresses = ["198.18.0.1", "198.18.1.0/24", "0.0.0.0/0", "fd63:6f6e::1", "fe80::/64", "::/0"]
    assert read(line({**FACTS, "addresses": addresses}))["addresses"] == addresses


def test_a_line_that_is_just_long_enough_is_taken() -> None:
    def long(size: int) -> bytes:
        text = line({"event": "error", "kind": "fault", "message": ""})
        return text[:-2] + b"x" * (size - len(text)) + text[-2:]

    most = messages.SHORT_BYTES
    assert len(long(most)) == most and read(long(most))["kind"] == "fault"
    with pytest.raises(ProtocolError, match=f"^a line of {most + 1} .* {most} for its kind$"):
        read(long(most + 1))


def test_no_line_of_any_kind_is_longer_than_the_longest() -> None:
    most = wire.LINE_BYTES
    with pytest.raises(ProtocolError, match=rf"^a line of {most + 1} bytes, .* at most {most}$"):
        read(b'{"event":"collected","x":"' + b"x" * (most - 27) + b'"}')


def test_a_damaged_record_of_a_role_is_named_and_no_fault_of_the_agent() -> None:
    roles = {
        "tune_sysctl": {"settings": ["a"]},
        "alias_ips": 7,
        "tune_limits": {"unreadable": "\x1bnot JSON"},
        "nat_router": {"settings": {"a": {"found": {"deep": 1}}}},
    }
    found = read(line({**FACTS, "roles": roles}))["roles"]
    assert all(set(record) == {"unreadable"} for record in found.values())
    assert found["tune_limits"]["unreadable"] == r"\x1bnot JSON"


CASES: list[tuple[dict[str, Any], str]] = [
    ({**TICK, "held": -1}, "tick: held: got -1, expected"),
    ({**TICK, "held": 11}, "tick: held: got 11, expected at most the 10 planned"),
    ({**TICK, "held": 1.5}, "tick: held: got 1.5, expected"),
    ({**TICK, "held": "7"}, "tick: held: got '7', expected"),
    ({**TICK, "held": True}, "tick: held: got True, expected"),
    ({**TICK, "held": None}, "tick: held: got None, expected"),
    ({**TICK, "t": 1e300}, "tick: t: got 1e+300, expected"),
    ({**TICK, "opened": 1 << 60}, "tick: opened: got"),
    ({**TICK, "latency": {str(10**12): 1}}, "tick: latency: got bucket '1000000000000', expected"),
    ({**TICK, "latency": {str(wire.BUCKETS): 1}}, "tick: latency: got bucket"),
    ({**TICK, "latency": {"-1": 1}}, "tick: latency: got bucket '-1'"),
    ({**TICK, "latency": {"+1": 1}}, "tick: latency: got bucket"),
    ({**TICK, "latency": {"01": 1}}, "tick: latency: got bucket"),
    ({**TICK, "latency": {"٣": 1}}, "tick: latency: got bucket"),
    ({**TICK, "latency": {"1": -1}}, "tick: latency: got -1"),
    ({**TICK, "errors": {"<b>": 1}}, "tick: errors: got '<b>', expected an errno"),
    ({**TICK, "errors": []}, "tick: errors: got"),
    ({**TICK, "more": 1}, "tick: more: got 1, expected"),
    ({key: value for key, value in TICK.items() if key != "lost"}, "tick: lost: missing"),
    ({**RAMPED, "reason": "done"}, "ramped: reason: got 'done', expected"),
    ({**RAMPED, "tried": 11}, "ramped: tried: got 11, expected at most"),
    (
        {"event": "echoed", "asked": 10, "answered": 999, "wrong": 0, "dropped": 0},
        "echoed: answered: got 999, expected at most the 10 planned",
    ),
    (
        {"event": "echoed", "asked": 5, "answered": 6, "wrong": 0, "dropped": 0},
        "echoed: answered, wrong, dropped: got 6, 0, 0, expected at most the 5 asked",
    ),
    (
        {"event": "echoed", "asked": 5, "answered": 5, "wrong": 1, "dropped": 0},
        "echoed: answered, wrong, dropped: got 5, 1, 0",
    ),
    ({**ROUNDED, "silent": 3}, "rounded: answered, wrong, silent: got 7, 1, 3"),
    ({**ROUNDED, "latency": {"3": 8}}, "rounded: latency: expected at most the 7 answered"),
    ({**CHURNED, "opened": 29}, "churned: opened, lost: got 29, 2, expected at most the 30 closed"),
    ({**CHURNED, "lost": 11, "opened": 1}, "churned: lost: got 11, expected at most the 10"),
    ({**CHURNED, "latency": {"3": 29}}, "churned: latency: expected at most the 28 opened"),
    ({**CHURNED, "closed": -1}, "churned: closed: got -1"),
    ({"event": "memory", "own_kib": -1}, "memory: own_kib: got -1"),
    ({**COLLECTED, "texts": {"../../.ssh/authorized_keys": "x"}}, "collected: texts: got '../../"),
    ({**COLLECTED, "texts": {"/etc/passwd": "x"}}, "collected: texts: got '/etc/passwd'"),
    ({**COLLECTED, "texts": {"ss_s/": "x"}}, "collected: texts: got 'ss_s/'"),
    ({**COLLECTED, "missing": {"..": "x"}}, "collected: missing: got '..'"),
    ({**COLLECTED, "phase": "../x"}, "collected: phase: got '../x'"),
    ({**COLLECTED, "held_each": [3, 3]}, "collected: held_each: adds up to 6, expected 7"),
    ({**COLLECTED, "held": 8, "held_each": [-1, 9]}, "collected: held_each"),
    ({**FACTS, "cpu": 0}, "facts: cpu: got 0, expected"),
    ({**FACTS, "roles": {"../x": {}}}, "facts: roles: got '../x', expected the name of a role"),
    ({**FACTS, "addresses": "198.18.0.1"}, "facts: addresses: got"),
    ({**FACTS, "addresses": ["junk"]}, "facts: addresses.0: got 'junk', expected an address"),
    ({**FACTS, "addresses": ["198.18.0.1", "1.2.3.4/33"]}, "facts: addresses.1: got '1.2.3.4/33'"),
    ({**FACTS, "kernel": "junk"}, "facts: kernel: got 'junk', expected a release such as 6.1.0"),
    ({**FACTS, "kernel": "6.²"}, "facts: kernel: got '6.²', expected a release"),
    ({**FACTS, "mem_total_kib": 0}, "facts: mem_total_kib: got 0, expected"),
    *(
        (
            {**FACTS, "sysctl": {"net.core.somaxconn": value}},
            "facts: sysctl: net.core.somaxconn: got '",
        )
        for value in ("²", "9" * 5_000, str(1 << 64), "", "x", "1 2", "--1", "1\n")
    ),
    *(
        (
            {**FACTS, "sysctl": {"net.ipv4.ip_local_port_range": value}},
            f"facts: sysctl: net.ipv4.ip_local_port_range: got {value!r}, expected a first and",
        )
        for value in ("x", "1", "60999 32768", "1 65536", "1-2", "1 2 3", "² 9")
    ),
    *(
        (
            {**FACTS, "sysctl": {"net.ipv4.ip_local_reserved_ports": value}},
            f"facts: sysctl: net.ipv4.ip_local_reserved_ports: got {value!r}, expected ports",
        )
        for value in ("0-99999999999", "0-65536", "2,1", "1,1", "1-9,9", "9-1", "1,", ",", "x")
    ),
    *(
        ({**FACTS, "sysctl": {"net.ipv4.tcp_mem": value}}, "facts: sysctl: net.ipv4.tcp_mem: got ")
        for value in ("a b c", "1 2", "1 2 3 4", "1  2 3")
    ),
    (
        {"event": "floor", "mem_free_kib": 1 << 40, "floor_kib": 1},
        "floor: mem_free_kib: got 1099511627776, expected less than the floor of 1",
    ),
    ({"event": "floor", "mem_free_kib": 2, "floor_kib": 2}, "floor: mem_free_kib: got 2, expected"),
    ({"event": "verified", "alive": 7, "dead": 4}, "verified: got 11, expected at most the 10"),
    ({"event": "hello"}, "hello: version: missing"),
    ({"event": "nonsense"}, "event: got 'nonsense', expected a known event"),
    ({"event": ["tick"]}, "event: got \"['tick']\", expected a known event"),
    ({}, "event: got 'None', expected a known event"),
]


@pytest.mark.parametrize(("message", "said"), CASES)
def test_what_no_agent_writes_is_named(message: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(line(message), 10)
    assert str(refused.value).startswith(said)
    assert len(str(refused.value)) < 500


NOTHING, DEEP = "^not a message: '", "^nested more than 16 deep$"
TOO_LONG = "^a line of [0-9]+ bytes, expected at most [0-9]+ for its kind$"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", NOTHING),
        (b"\xff\xfe", NOTHING),
        (b"7", NOTHING),
        (b"[]", NOTHING),
        (b'"tick"', NOTHING),
        (b'{"event":', NOTHING),
        (b'{"event":"told","x":NaN}', NOTHING),
        (b'{"event":"told","x":-Infinity}', NOTHING),
        (b'{"event":"told","x":1e999}', "^a number that is not finite$"),
        (b'{"event":"told","x":' + b"9" * 10_000 + b"}", NOTHING),
        (b"[" * 1_000_000, TOO_LONG),
        (b'{"event":"told","x":' + b"[" * 100_000, NOTHING),
        (b'{"event":"told","x":' + b"[" * 20 + b"]" * 20 + b"}", DEEP),
        (b'{"event":' * 500 + b"1" + b"}" * 500, DEEP),
        (b"x" * (wire.LINE_BYTES + 1), "^a line of [0-9]+ bytes, expected at most"),
        (b'{"event":"tick","x":"' + b"x" * messages.SHORT_BYTES + b'"}', TOO_LONG),
        (b'{"event":"told","x":[' + b'{"b":[]},' * 120_000 + b"1]}", TOO_LONG),
        (b'{"x":"' + b"x" * messages.SHORT_BYTES + b'","event":"collected"}', TOO_LONG),
    ],
    ids=range(18),
)
def test_lines_that_are_no_message_end_soon(text: bytes, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(ProtocolError, match=said):
        read(text, 10)
    assert time.monotonic() - began < 5


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([-1, 0, 1 << 64, "../x", "\x1b[2J", "\ud800", math.inf]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def numbers(value: Any) -> list[float]:
    """All numbers within a value."""
    if isinstance(value, dict):
        return [one for item in value.values() for one in numbers(item)]
    if isinstance(value, list):
        return [one for item in value for one in numbers(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@given(st.sampled_from(VALID), st.data(), st.none() | st.integers(0, 100))
def test_a_field_of_anything_gets_through_only_as_what_it_is_to_be(
    message: dict[str, Any], data: st.DataObject, planned: int | None
) -> None:
    field = data.draw(st.sampled_from([*message, "extra"]))
    changed = {**message, field: data.draw(anything)}
    try:
        found = read(line(changed), planned)
    except ProtocolError:
        return
    if found["event"] == "told":
        return
    assert all(math.isfinite(one) and one >= -1 for one in numbers(found))
    json.dumps(found).encode()
    if planned is not None and "held" in found:
        assert found["held"] <= planned


@given(st.binary(max_size=200))
@example(b'{"event":"tick"}')
def test_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except ProtocolError as refused:
        assert str(refused).isprintable()
    else:
        assert found["event"] in EVENTS


@given(st.lists(st.text(max_size=5)), st.integers(1, 30))
def test_depth_is_bounded(texts: list[str], depth: int) -> None:
    value: Any = texts
    for _ in range(depth):
        value = [value]
    deepest = depth + 2
    if deepest > messages.MOST_DEPTH:
        with pytest.raises(ProtocolError, match="deep"):
            read(line({"event": "told", "x": value}))
    else:
        assert read(line({"event": "told", "x": value}))["x"] == value
