"""Echoes as the controller asks for them, of two clients, and servers that answer wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import LabError
from bench.results.format import Liveness
from bench.run import liveness
from bench.scenario import Scenario


class _Named(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


class FakeSession:
    def __init__(self) -> None:
        self.asked: list[tuple[list[str], str, dict[str, Any]]] = []
        self.echoes = 1_000
        """That each server sends."""

    def ask(
        self,
        agents: Sequence[Any],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Any, dict[str, Any]]:
        self.asked.append(([one.name for one in agents], op, fields))
        if op == "answer":
            # What came to them that is of no client of this run.
            on = fields["on"]
            return {
                one: {"wrong": 0 if on else 3, "echoes": 1_000 if on else 1_000 + self.echoes}
                for one in agents
            }
        asked = fields["sample"]
        return {one: {"asked": asked, "answered": asked - 1, "wrong": 1} for one in agents}


def proven(sample: int, session: Any = None, **fields: Any) -> tuple[FakeSession, Liveness]:
    session = session or FakeSession()
    wanted = Scenario(name="test", title="test", liveness_sample=sample, **fields)
    clients: Any = [_Named(name="client1"), _Named(name="client2")]
    servers: Any = [_Named(name="server1"), _Named(name="server2")]
    held = dict.fromkeys(clients, 70)
    return session, liveness.prove(session, wanted, clients, servers, held, lambda: None)


def test_clients_share_the_sample() -> None:
    session, found = proven(101, echo_timeout_ms=1_234)
    assert session.asked == [
        (["server1", "server2"], "answer", {"on": True}),
        (
            ["client1", "client2"],
            "echo",
            {"mode": "sample", "sample": 50, "patience_ms": 1_234},
        ),
        (["server1", "server2"], "answer", {"on": False}),
    ]
    assert (found.mode, found.asked, found.answered) == ("sample", 100, 98)
    assert found.unanswered == {"client1": 1, "client2": 1}


def test_wrong_echoes_count_at_both_ends() -> None:
    assert proven(10)[1].wrong == 2 * 1 + 2 * 3


def test_of_a_small_sample_each_client_asks_one() -> None:
    assert proven(1)[0].asked[1][2]["sample"] == 1


def test_echoes_that_no_server_has_sent_are_not_believed() -> None:
    session = FakeSession()
    session.echoes = 49  # 98 of both, and as many are said to have come
    assert proven(101, session)[1].answered == 98
    session.echoes = 48
    with pytest.raises(
        LabError,
        match=r"^the clients report 98 answered echoes, but the servers answered 96: one of",
    ):
        proven(101, session)
