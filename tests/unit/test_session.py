"""The agents as one: what each kind of failure becomes, and that nothing is left behind."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from bench import session, wire
from bench.errors import InputError, LabError
from bench.inventory import Host
from bench.session import Session

HELLO = {"event": "hello", "version": wire.VERSION, "pid": 1, "python": "3.11.2", "cores": 2}


def host(name: str) -> Host:
    return Host(name, ("servers",), "192.0.2.1", 22, "lab", None, None, ("198.18.0.1",))


class FakeProcess:
    """Answers each command with what ``react`` gives: events, bytes, or None for its end."""

    def __init__(self, react: Callable[[dict[str, Any]], Sequence[Any]]) -> None:
        self.out: queue.Queue[bytes | None] = queue.Queue()
        self.react = react
        self.told: list[str] = []
        self.say(*react({"op": ""}))

    def say(self, *events: Any) -> None:
        for event in events:
            self.out.put(
                event if event is None or isinstance(event, bytes) else wire.encode(event).strip()
            )

    def write(self, data: bytes) -> None:
        message = wire.decode(data)
        self.told.append(message["op"])
        self.say(*self.react(message))

    def lines(self) -> Iterator[bytes]:
        while (line := self.out.get()) is not None:
            yield line

    def errors(self) -> Iterator[bytes]:
        yield b"Traceback: the last words"

    def close(self) -> None:
        self.out.put(None)


class FakeLink:
    def __init__(self, react: Callable[[dict[str, Any]], Sequence[Any]], python: str) -> None:
        self.process = FakeProcess(react)
        self.python = python
        self.files: set[str] = set()
        self.open = True

    def put(self, data: bytes, name: str) -> str:
        self.files.add("/tmp/connlab.x/" + name)
        return "/tmp/connlab.x/" + name

    def remove(self, path: str) -> None:
        self.files.discard(path)

    def run(self, argv: Sequence[str], seconds: float = 30.0) -> str:
        if argv[0] == "python3":
            if not self.python:
                raise LabError("python3: not found")
            return self.python + "\n"
        return ""

    def start(self, argv: Sequence[str]) -> FakeProcess:
        return self.process

    def close(self) -> None:
        self.open = False


def links(
    react: Callable[[dict[str, Any]], Sequence[Any]], python: str = "3.11"
) -> tuple[list[FakeLink], Callable[[Host], FakeLink]]:
    made: list[FakeLink] = []

    def connect(to: Host) -> FakeLink:
        made.append(FakeLink(react, python))
        return made[-1]

    return made, connect


def answering(message: dict[str, Any]) -> Sequence[Any]:
    if message["op"] == "":
        return [HELLO]
    return [{"event": "tick", "held": 1}, {"event": message["op"] + "ed", "op": message["op"]}]


def test_asks_all_and_sorts_ticks_from_answers() -> None:
    made, connect = links(answering)
    ticks: list[str] = []
    with Session(connect, b"zip") as agents:
        agents.on_unasked = lambda agent, message: ticks.append(agent.name)
        agents.start([(host("a"), "server"), (host("b"), "client")])
        assert [agent.name for agent in agents.agents] == ["a", "b"]
        told = agents.ask(agents.agents, "halt", "halted", 5)
        assert {agent.name for agent in told} == {"a", "b"}
        agents.wait(0.05)
    assert sorted(ticks) == ["a", "b"]
    assert all(link.process.told[-1] == "stop" for link in made)
    assert all(not link.files and not link.open for link in made)


@pytest.mark.parametrize(
    ("reaction", "kind", "line"),
    [
        ({"event": "error", "kind": "fault", "message": "worker died"}, LabError, "worker died"),
        ({"event": "error", "kind": "refused", "message": "stranger"}, LabError, "stranger"),
        ({"event": "error", "kind": "input", "message": "bad"}, InputError, "bad"),
        (None, LabError, "the server agent ended unexpectedly: Traceback: the last words"),
        (b"Segmentation fault", LabError, "not a message: b'Segmentation fault'"),
    ],
)
def test_what_an_agent_says_becomes_one_line(
    reaction: Any, kind: type[Exception], line: str
) -> None:
    made, connect = links(lambda m: [HELLO] if m["op"] == "" else [reaction])
    with pytest.raises(kind, match=f"^host a: .*{line}"), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
        agents.ask(agents.agents, "facts", "facts", 5)
    assert not made[0].files
    assert not made[0].open


def test_no_answer_in_time() -> None:
    _, connect = links(lambda m: [HELLO] if m["op"] == "" else [])
    with (
        pytest.raises(LabError, match="host a: the server agent did not answer facts within 0 s"),
        Session(connect, b"zip") as agents,
    ):
        agents.start([(host("a"), "server")])
        agents.ask(agents.agents, "facts", "facts", 0.05)


def test_silence_is_taken_for_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SILENCE_SECONDS", 0.05)
    _, connect = links(lambda m: [HELLO] if m["op"] == "" else [])
    with (
        pytest.raises(LabError, match="host a: no word from the server agent"),
        Session(connect, b"zip") as agents,
    ):
        agents.start([(host("a"), "server")])
        agents.wait(5)


@pytest.mark.parametrize(
    ("python", "line"),
    [
        ("", "host a: python3: not found, expected 3.9 or newer"),
        ("3.8", "host a: python3: got 3.8, expected 3.9 or newer"),
    ],
)
def test_a_host_without_a_python_that_serves(python: str, line: str) -> None:
    made, connect = links(answering, python)
    with pytest.raises(InputError, match=line), Session(connect, b"zip") as agents:
        agents.start([(host("a"), "server")])
    assert not made[0].files
    assert not made[0].open


def test_an_agent_of_another_version() -> None:
    _, connect = links(lambda m: [{**HELLO, "version": 99}] if m["op"] == "" else [])
    with (
        pytest.raises(LabError, match="host a: agent speaks version 99"),
        Session(connect, b"zip") as agents,
    ):
        agents.start([(host("a"), "server")])
