"""One agent as the controller knows it: what it was told, what it says, and what it may say."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from bench import wire
from bench.errors import InputError, LabError
from bench.hosts.messages import ProtocolError
from bench.hosts.transport import Link, Process
from bench.inventory import Host
from bench.units import printable

MOST_ERROR = 500
"""Characters of a host's line of error."""

TRIALS = ("trial", "root")
"""Roles of one side of a small experiment."""

LAST_WORDS_SECONDS = 2.0
"""For what an agent that has ended wrote last to arrive."""

NOT_PUT_BACK = "not put back: "
"""How a trial that changes hosts begins each line on what it could not put back."""

MOST_NOT_PUT_BACK = 20
"""Such lines that are kept of one trial: a guard changes fewer settings."""

UNASKED_A_SECOND = 20
"""Events without a question that an agent may send, of which it sends one, two around an answer."""

UNASKED_AT_ONCE = 10_000
"""As many more may come at a time: what has piled up while nobody read."""

UNASKED_BYTES_A_SECOND = 1 << 16
"""The same in bytes: a tick with every errno that there is and every bucket has 14 KB, and usual
ones have less than 1."""

UNASKED_BYTES_AT_ONCE = 1 << 22
"""As many more bytes at a time: what an SSH window (:data:`~bench.hosts.channel.WINDOW_BYTES`), a
pipe and an agent's outbox hold is half of that."""

CLOCK_RATE, CLOCK_SECONDS = 2.0, 60.0
"""How much faster or slower than ours the clock of a host may run, such as an emulated one that
catches up, and by how much it may be ahead or behind besides. One that stood still would hide
connections that lead elsewhere: it is told by the clock when a server's count was taken."""


Message = dict[str, Any]


class Agent:
    """One agent on one host. ``id`` is host and role, since a host may serve and connect."""

    def __init__(self, host: Host, role: str, link: Link, path: str, process: Process) -> None:
        self.host = host
        self.role = role
        self.link = link
        self.path = path
        self.process = process
        self.started = time.monotonic()
        self.heard = self.started
        """When it last said something, or was started, monotonic seconds."""
        self.spoken = False
        """Whether it has said anything yet."""
        self.quiet = False
        """Whether its silence has been mentioned."""
        self.planned: int | None = None
        """Connections of its part of the plan, once there is one: it cannot hold more."""
        self._asked = 1
        """Commands that it was told, each of which has one answer; its hello needs none."""
        self._answered = self._unasked = self._unasked_bytes = 0
        self._clock = 0.0
        """Its own, in its latest tick: seconds since it began."""
        self._first_tick: tuple[float, float] | None = None
        """When the first one came, by our clock, and its own."""
        self.misspoken: LabError | None = None
        """What it said that makes no sense. It is not listened to since, and its output is closed,
        so that it may end before that is heard of."""
        self.last_error = ""
        self.not_put_back: list[str] = []
        """Its lines on what it could not put back, the first :data:`MOST_NOT_PUT_BACK`."""
        self._ear: threading.Thread | None = None
        self.ended = threading.Event()
        """Set when it is told to stop: then it needs no sign of life any more."""
        self.lost = False
        """Whether it is taken for dead: then it is killed rather than waited for."""
        self.gone = False
        """Whether it was seen to have ended, and its file to be removed."""
        self.locked = False
        """Whether it holds its host's lock."""

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one command. :raises LabError: if the agent is gone or does not read."""
        self._asked += 1
        try:
            self.process.write(wire.encode(message))
        except TimeoutError as error:
            raise LabError(f"host {self.name}: the {self.role} agent {error}") from error
        except (OSError, EOFError) as error:
            raise self.obituary() from error

    def admit(self, message: Message, size: int) -> None:
        """See that it may say this now.

        :param size: of the line that it came in, bytes
        :raises ProtocolError: if it says more than it may, or its clock runs as no clock does.
        """
        self._count(message, size)
        if message["event"] == "tick":
            self._check_clock(float(message["t"]))

    def _count(self, message: Message, size: int) -> None:
        if message["event"] == "error":  # that ends the run
            return
        if message["event"] not in wire.UNASKED:
            self._answered += 1
            if self._answered > self._asked:
                raise ProtocolError(f"{message['event']}: nobody asked for it")
            return
        self._unasked += 1
        self._unasked_bytes += size
        seconds = time.monotonic() - self.started
        if self._unasked > UNASKED_AT_ONCE + UNASKED_A_SECOND * seconds:
            raise ProtocolError(f"{self._unasked} events that nobody asked for")
        if self._unasked_bytes > UNASKED_BYTES_AT_ONCE + UNASKED_BYTES_A_SECOND * seconds:
            raise ProtocolError(f"{self._unasked_bytes} bytes of events that nobody asked for")

    def _check_clock(self, t: float) -> None:
        now = time.monotonic()
        self._first_tick = self._first_tick or (now, t)
        began, first = self._first_tick
        least = max(self._clock, first + (now - began) / CLOCK_RATE - CLOCK_SECONDS)
        most = CLOCK_RATE * (now - self.started) + CLOCK_SECONDS
        if not least <= t <= most:
            raise ProtocolError(f"tick: t: got {t}, expected {round(least, 3)} to {round(most, 3)}")
        self._clock = t

    def problem(self, message: Message) -> Exception:
        """Return the exception that an agent's error is here."""
        text = f"host {self.name}: {message.get('message', 'agent failed')}"
        # What a trial is told comes from this program alone: its bad input is a fault of the lab.
        bad_input = message.get("kind") == "input" and self.role not in TRIALS
        return InputError(text) if bad_input else LabError(text)

    def hear_errors(self) -> None:
        """Begin to hear its standard error, in a thread."""
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def await_last_words(self) -> None:
        """Wait for what it wrote last to its standard error, :data:`LAST_WORDS_SECONDS` at most."""
        if self._ear is not None:
            self._ear.join(LAST_WORDS_SECONDS)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.process.errors():
                text = printable(line.decode(errors="replace").strip())[:MOST_ERROR]
                if text:
                    self.last_error = text
                if text.startswith(NOT_PUT_BACK) and len(self.not_put_back) < MOST_NOT_PUT_BACK:
                    self.not_put_back.append(text)

    def obituary(self) -> LabError:
        """What to say of an agent that ended without having been told to."""
        if self.misspoken is not None:
            return self.misspoken
        self.await_last_words()
        said = f": {self.last_error}" if self.last_error else ""
        return LabError(f"host {self.name}: the {self.role} agent ended unexpectedly{said}")

    def what(self) -> str:
        """The agent as something that may be left on its host."""
        return f"host {self.name}: the {self.role} agent {self.path}"
