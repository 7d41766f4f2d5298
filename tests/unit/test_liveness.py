"""Echoes: counted over all clients, and by the client whose were not answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from bench import liveness, scenario
from bench.session import Agent, Session

REPLIES = {
    "client1": {"asked": 50, "answered": 50, "wrong": 0},
    "client2": {"asked": 50, "answered": 41, "wrong": 2},
}


class Asked:
    """A session whose agents have answered already."""

    def ask(self, agents: list[Any], op: str, *words: Any, **fields: Any) -> dict[Any, Any]:
        if op == "echo":
            return {agent: REPLIES[agent.name] for agent in agents}
        return {agent: {"wrong": 3} for agent in agents}


def agents(*names: str) -> list[Agent]:
    return [cast(Agent, _Named(name=name)) for name in names]


class _Named(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_who_was_not_answered_is_kept() -> None:
    clients = agents("client1", "client2")
    found = liveness.prove(
        cast(Session, Asked()),
        scenario.load("million", {"liveness_sample": 100}),
        clients,
        agents("server1"),
        dict.fromkeys(clients, 70),
        lambda: None,
    )
    assert (found.asked, found.answered, found.wrong) == (100, 91, 5)
    assert found.unanswered == {"client2": 9}
