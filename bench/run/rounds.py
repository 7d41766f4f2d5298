"""Echo rounds: one byte on every held connection, one byte back, as if typed in each session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bench.hosts.agent import Agent
from bench.hosts.session import Session
from bench.results import words
from bench.results.format import EchoRound
from bench.run.curve import Recorder, latency, merge
from bench.scenario import Scenario

Mode = Literal["pipelined", "sequential"]

START_SECONDS = 300.0
"""Time that a round may take on top of the time of its messages; silent connections use it."""

SLOWEST = {"pipelined": 500, "sequential": 50}
"""Least rate of a round, in messages a second: emulated hosts are that slow."""

SILENCES = 10
"""Connections without an answer for which a client waits the full time limit."""


def rounds(
    session: Session,
    scenario: Scenario,
    clients: Sequence[Agent],
    servers: Sequence[Agent],
    held: int,
    recorder: Recorder,
) -> Iterator[EchoRound]:
    """Yield the rounds that the scenario asks for, each when it is over.

    :param held: connections that all clients hold
    """
    modes: list[tuple[Mode, int]] = [("pipelined", held)] * scenario.rounds
    if scenario.sequential_sample:
        modes.append(("sequential", min(scenario.sequential_sample, held)))
    if not modes or not held:
        return
    asking = Asking(session, scenario, clients, servers, recorder)
    asking.servers_answer(True)
    for number, (mode, wanted) in enumerate(modes, start=1):
        yield asking.round(number, mode, wanted)
    asking.servers_answer(False)


class Asking:
    """Rounds over the connections between some clients and their servers."""

    def __init__(
        self,
        session: Session,
        scenario: Scenario,
        clients: Sequence[Agent],
        servers: Sequence[Agent],
        recorder: Recorder,
    ) -> None:
        self._session, self._scenario, self._recorder = session, scenario, recorder
        self._clients, self._servers = clients, servers

    def servers_answer(self, on: bool) -> None:
        """Have the servers answer single bytes, or stop."""
        self._session.ask(self._servers, "answer", "answering", START_SECONDS, on=on, how="byte")

    def round(self, number: int, mode: Mode, wanted: int) -> EchoRound:
        """Run one round over that many connections, spread over the clients.

        A sequential round goes from client to client, so that one message is under way at a time.
        """
        began = self._servers_spent()
        if mode == "pipelined":
            told = self._ask(self._clients, mode, number, 0, wanted)
        else:
            told = self._one_by_one(number, wanted)
        spent = self._servers_spent() - began
        seconds = [float(message["seconds"]) for message in told]
        made = EchoRound(
            mode=mode,
            asked=_total(told, "asked"),
            answered=_total(told, "answered"),
            wrong=_total(told, "wrong"),
            silent=_total(told, "silent"),
            seconds=round(max(seconds) if mode == "pipelined" else sum(seconds), 6),
            latency_us=latency(merge(message["latency"] for message in told)),
            client_cpu_seconds=round(sum(float(one["cpu_seconds"]) for one in told), 6),
            server_cpu_seconds=round(max(0.0, spent), 6),
        )
        points = self._recorder.points
        available = points[-1].mem_available_kib if points else 0
        self._recorder.note(f"round {number}", words.echo_round(made), available)
        return made

    def _servers_spent(self) -> float:
        answers = self._session.ask(self._servers, "status", "status", START_SECONDS).values()
        return sum(float(message["cpu_seconds"]) for message in answers)

    def _one_by_one(self, number: int, wanted: int) -> list[Mapping[str, Any]]:
        count = len(self._clients)
        told: list[Mapping[str, Any]] = []
        for at, client in enumerate(self._clients):
            share = wanted * (at + 1) // count - wanted * at // count
            if share:  # 0 means all connections in the message
                told += self._ask([client], "sequential", number, share, share)
        return told

    def _ask(
        self, clients: Sequence[Agent], mode: Mode, number: int, sample: int, most: int
    ) -> list[Mapping[str, Any]]:
        patience = self._scenario.round_timeout_ms
        seconds = START_SECONDS + most / SLOWEST[mode] + SILENCES * patience / 1000
        return list(
            self._session.ask(
                clients,
                "round",
                "rounded",
                seconds,
                self._recorder.sample,
                number=number,
                mode=mode,
                sample=sample,
                window=self._scenario.round_window,
                patience_ms=patience,
            ).values()
        )


def _total(told: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(message[name]) for message in told)
