"""Hosts that answer as a test has them answer: the transport's Link without a host."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench import wire
from bench.hosts import scripts
from bench.inventory import Host

HELLO = {
    "event": "hello",
    "version": wire.VERSION,
    "pid": 1,
    "python": "3.11.2",
    "cores": 2,
    "nofile_hard": 20_000,
}
PATH = "/tmp/connlab.abcdefghij/agent.pyz"


class FakeProcess:
    """Answers each command with what ``react`` gives: events, bytes, or None for its end."""

    def __init__(self, react: Callable[[dict[str, Any]], Sequence[Any]]) -> None:
        self.out: queue.Queue[bytes | None] = queue.Queue()
        self.react = react
        self.told: list[str] = []
        self.beats = 0
        self.say(*react({"op": ""}))

    def say(self, *events: Any) -> None:
        for event in events:
            self.out.put(
                event if event is None or isinstance(event, bytes) else wire.encode(event).strip()
            )

    def write(self, data: bytes) -> None:
        message = wire.decode(data)
        if message["op"] == "beat":
            self.beats += 1
            return
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
    """A host: its Python, who else has it, and what of an agent stays on it."""

    def __init__(self, react: Callable[[dict[str, Any]], Sequence[Any]], python: str) -> None:
        self.process = FakeProcess(react)
        self.python = python
        self.files: set[str] = set()
        self.open = True
        self.held: Any = []
        self.remains: Any = {"processes": [], "folder": False}
        self.argv: list[str] = []
        self.swept = 0
        """How often the files of left locks were removed."""

    def give_up_after(self, seconds: float) -> None:
        self.lost_after = seconds

    def put(self, data: bytes, path: str) -> str:
        self.files.add(PATH)
        return PATH

    def remove(self, path: str) -> None:
        self.files.discard(path)

    def run(self, argv: Sequence[str], seconds: float = 30.0) -> str:
        if argv[0] == "sh":
            assert "sys.version_info" in argv[4]
            held = self.held if isinstance(self.held, str) else json.dumps(self.held)
            lines = [self.python] + [held] * (argv[-1] == scripts.OWNER)
            return "\n".join(lines) if self.python else ""
        assert argv[:2] == ["python3", "-c"]
        if argv[3] == scripts.NOBODY:
            self.swept += 1
            return "[]"
        assert argv[3] == PATH
        if isinstance(self.remains, Exception):
            raise self.remains
        self.files.discard(argv[3])
        return self.remains if isinstance(self.remains, str) else json.dumps(self.remains)

    def start(self, argv: Sequence[str]) -> FakeProcess:
        self.argv = list(argv)
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
