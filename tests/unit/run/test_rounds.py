"""Echo rounds as the controller leads them, over a session that plays the agents."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from bench.results.format import EchoRound, Latency
from bench.run import rounds
from bench.run.curve import Progress, Recorder
from bench.scenario import Scenario
from bench.wire import SILENCE_SECONDS


class FakeSession:
    def __init__(self) -> None:
        self.asked: list[tuple[list[str], str, float, dict[str, Any]]] = []
        self.spent = 1.0

    def ask(
        self,
        agents: Sequence[Any],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Any, dict[str, Any]]:
        self.asked.append((list(agents), op, seconds, fields))
        self.spent += 0.25
        return {one: self.answer(one, op, fields) for one in agents}

    def answer(self, one: str, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        if op == "status":
            return {"cpu_seconds": self.spent}
        if op != "round":
            return {}
        asked = fields["sample"] or 500
        return {
            "asked": asked,
            "answered": asked - 3,
            "wrong": 1,
            "silent": 2,
            "seconds": {"client1": 2.0, "client2": 3.0}[one],
            "latency": {"9": asked - 3},
            "cpu_seconds": 0.5,
        }


def led(held: int = 1000, **fields: Any) -> tuple[FakeSession, list[EchoRound], list[Progress]]:
    session: Any = FakeSession()
    shown: list[Progress] = []
    scenario = Scenario(name="test", title="test", **fields)
    recorder = Recorder(held, io.StringIO(), shown.append)
    clients: Any = ["client1", "client2"]
    servers: Any = ["server1"]
    made = list(rounds.rounds(session, scenario, clients, servers, held, recorder))
    return session, made, shown


def test_no_rounds_ask_nobody() -> None:
    assert led()[:2][1] == []
    assert led()[0].asked == led(held=0, rounds=3)[0].asked == []


def test_rounds_in_order_between_servers_that_answer() -> None:
    session, made, shown = led(rounds=2, round_window=7, round_timeout_ms=900)
    steps = [(op, fields.get("number"), fields.get("on")) for _, op, _, fields in session.asked]
    one = [("status", None, None), ("round", 1, None), ("status", None, None)]
    two = [("status", None, None), ("round", 2, None), ("status", None, None)]
    assert steps == [("answer", None, True), *one, *two, ("answer", None, False)]
    assert {fields["how"] for _, op, _, fields in session.asked if op == "answer"} == {"byte"}
    agents, _, seconds, fields = session.asked[2]
    assert (agents, seconds) == (["client1", "client2"], 300 + 1000 / 500 + 9)
    assert fields == {
        "number": 1,
        "mode": "pipelined",
        "sample": 0,
        "window": 7,
        "patience_ms": 900,
    }
    assert made[0] == made[1]
    assert made[0] == EchoRound(
        mode="pipelined",
        asked=1000,
        answered=994,
        wrong=2,
        silent=4,
        seconds=3.0,
        latency_us=Latency(p50=9, p90=9, p99=9, p999=9, max=9),
        client_cpu_seconds=1.0,
        server_cpu_seconds=0.5,
    )
    assert [now.phase for now in shown] == ["round 1", "round 2"]
    assert shown[0].note == (
        "994 of 1,000 bytes answered, 2 wrong, 4 silent, pipelined, in 3.000 s, "
        "1500.0 µs of CPU each, p50 9 µs, p99 9 µs"
    )


def test_a_sequential_round_goes_from_client_to_client() -> None:
    session, made, _ = led(sequential_sample=11)
    asked = [(who, fields["sample"]) for who, op, _, fields in session.asked if op == "round"]
    assert asked == [(["client1"], 5), (["client2"], 6)]
    (one,) = made
    assert (one.mode, one.asked, one.seconds) == ("sequential", 11, 5.0)


def test_a_sample_is_no_larger_than_what_is_held_and_spares_a_client_with_none() -> None:
    session, made, _ = led(held=1, sequential_sample=10_000)
    asked = [(who, fields["sample"]) for who, op, _, fields in session.asked if op == "round"]
    assert (asked, made[0].asked) == ([(["client2"], 1)], 1)


def test_a_round_may_take_longer_than_an_agent_may_be_silent() -> None:
    assert rounds.START_SECONDS > SILENCE_SECONDS  # ticks tell that it lives meanwhile
