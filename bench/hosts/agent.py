"""One agent as the controller sees it: its commands, its messages, and the limits on these."""

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
"""The most characters of an error line from a host."""

TRIALS = ("trial", "root")
"""Roles of an agent that runs one side of a small experiment."""

LAST_WORDS_SECONDS = 2.0
"""Seconds for the last output of an agent that has ended to arrive."""

NOT_PUT_BACK = "not put back: "
"""How a trial that changes hosts begins each line about something that it could not restore."""

MOST_NOT_PUT_BACK = 20
"""The most such lines that are kept for one trial: a guard changes fewer settings."""

UNASKED_A_SECOND = 20
"""Unsolicited events that an agent may send a second. It sends one, and two around an answer."""

UNASKED_AT_ONCE = 10_000
"""Further unsolicited events that may arrive at once: they pile up while the controller does not
read."""

UNASKED_BYTES_A_SECOND = 1 << 16
"""Bytes of unsolicited events that an agent may send a second. A tick with every possible errno and
every bucket has 14 KB; usual ones have less than 1 KB."""

UNASKED_BYTES_AT_ONCE = 1 << 22
"""Further bytes of them that may arrive at once: twice what an SSH window
(:data:`~bench.hosts.channel.WINDOW_BYTES`), a pipe and an agent's outbox hold."""

CLOCK_RATE, CLOCK_SECONDS = 2.0, 60.0
"""How much faster or slower than ours a host's clock may run (an emulated clock may be catching
up), and by how many seconds it may also be ahead or behind. The clock tells when a server's count
was taken, so a clock that stood still would hide connections that lead elsewhere."""


Message = dict[str, Any]


class Agent:
    """One agent on one host. A host may have several, since it may serve and connect."""

    def __init__(self, host: Host, role: str, link: Link, path: str, process: Process) -> None:
        self.host = host
        self.role = role
        self.link = link
        self.path = path
        self.process = process
        self.started = time.monotonic()
        self.heard = self.started
        """When it last sent something, or was started, monotonic seconds."""
        self.spoken = False
        """Whether it has sent anything yet."""
        self.quiet = False
        """Whether its silence has been reported."""
        self.planned: int | None = None
        """Connections of its part of the plan, once there is one. It cannot hold more."""
        self._asked = 1
        """Commands that it was sent, each of which has one answer. The first is its hello, which
        needs no command."""
        self._answered = self._unasked = self._unasked_bytes = 0
        self._clock = 0.0
        """Its own clock in its latest tick: seconds since it started."""
        self._first_tick: tuple[float, float] | None = None
        """When its first tick arrived, by our clock and by its own."""
        self.misspoken: LabError | None = None
        """The error of an invalid message. The agent is no longer listened to after that, so it
        may end before the error is handled."""
        self.last_error = ""
        self.not_put_back: list[str] = []
        """Its lines about what it could not restore, the first :data:`MOST_NOT_PUT_BACK`."""
        self._ear: threading.Thread | None = None
        self.ended = threading.Event()
        """Set when it is ordered to stop: it then needs no sign of life any more."""
        self.lost = False
        """Whether it is treated as dead: then it is killed rather than waited for."""
        self.gone = False
        """Whether it is known to have ended, and its file to be removed."""
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
        """Check that it may send this message now.

        :param size: of the message's line, bytes
        :raises ProtocolError: if it sends more than it may, or its clock is implausible.
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
                raise ProtocolError(f"{message['event']}: unsolicited answer")
            return
        self._unasked += 1
        self._unasked_bytes += size
        seconds = time.monotonic() - self.started
        if self._unasked > UNASKED_AT_ONCE + UNASKED_A_SECOND * seconds:
            raise ProtocolError(f"{self._unasked} unsolicited events")
        if self._unasked_bytes > UNASKED_BYTES_AT_ONCE + UNASKED_BYTES_A_SECOND * seconds:
            raise ProtocolError(f"{self._unasked_bytes} bytes of unsolicited events")

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
        """Return the exception that stands for an agent's error."""
        text = f"host {self.name}: {message.get('message', 'agent failed')}"
        # Only this program gives arguments to a trial: bad ones are a fault of the lab.
        bad_input = message.get("kind") == "input" and self.role not in TRIALS
        return InputError(text) if bad_input else LabError(text)

    def hear_errors(self) -> None:
        """Start to read its standard error, in a thread."""
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def await_last_words(self) -> None:
        """Wait for the last output on its standard error, at most :data:`LAST_WORDS_SECONDS`."""
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
        """Return the error for an agent that ended without an order to stop."""
        if self.misspoken is None:
            self.await_last_words()
        if self.misspoken is not None:
            return self.misspoken
        said = f": {self.last_error}" if self.last_error else ""
        return LabError(f"host {self.name}: the {self.role} agent ended unexpectedly{said}")

    def what(self) -> str:
        """Return the agent as something that may be left on its host."""
        return f"host {self.name}: the {self.role} agent {self.path}"
