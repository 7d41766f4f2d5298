"""The agents of one run as one: start them, tell them, hear them, and leave nothing behind."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from bench import wire
from bench.errors import InputError, LabError
from bench.inventory import Host
from bench.transport import Link, Process

SILENCE_SECONDS = 60.0
"""Agents speak every second; one that says nothing for this long is taken for dead."""

STOP_SECONDS = 20.0
"""How long agents get to close what they hold when they are told to stop."""

OLDEST_PYTHON = (3, 9)

TRIALS = ("trial", "root")
"""Roles of one side of a small experiment."""

LAST_WORDS_SECONDS = 2.0
"""For what an agent that has ended wrote last to arrive."""

NOT_PUT_BACK = "not put back: "
"""How a trial that changes hosts begins its line on what it could not put back."""

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

Connect = Callable[[Host], Link]
Message = dict[str, Any]


class Agent:
    """One agent on one host. ``id`` is host and role, since a host may serve and connect."""

    def __init__(self, host: Host, role: str, link: Link, path: str, process: Process) -> None:
        self.host = host
        self.role = role
        self.link = link
        self.path = path
        self.process = process
        self.heard = time.monotonic()
        self.last_error = ""
        self.ear: threading.Thread | None = None
        """Hears its standard error."""

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one command. :raises LabError: if the agent is gone."""
        try:
            self.process.write(wire.encode(message))
        except (OSError, EOFError) as error:
            raise LabError(self.obituary()) from error

    def obituary(self) -> str:
        """What to say of an agent that ended without having been told to."""
        said = f": {self.last_error}" if self.last_error else ""
        return f"host {self.name}: the {self.role} agent ended unexpectedly{said}"


class Session:
    """Agents on several hosts, used as a context: on the way out nothing of them stays."""

    def __init__(self, connect: Connect, bundle: bytes) -> None:
        self._connect = connect
        self._bundle = bundle
        self._inbox: queue.Queue[tuple[Agent, Message | None]] = queue.Queue()
        self._lock = threading.Lock()
        self.agents: list[Agent] = []
        self._early: dict[Agent, Message] = {}
        """What trials have answered while others were asked: their steps may take long."""
        self.not_put_back: list[str] = []
        """What trials that change hosts said of what they could not put back, when they ended."""
        self.on_unasked: Callable[[Agent, Message], None] = lambda agent, message: None
        """Called with every event that answers no command: ``tick`` and ``floor``."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, hosts: Iterable[tuple[Host, str]]) -> list[Agent]:
        """Push and start an agent on every host, all at once; returns them in that order.

        The role ``trial`` starts one side of a small experiment (:mod:`bench.agent.stage`),
        ``root`` the same as root by sudo(8).

        :raises LabError: if a host cannot be reached or its agent does not answer.
        :raises InputError: if a host has no Python that can run it.
        """
        wanted = list(hosts)
        with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
            started = [pool.submit(self._start, host, role) for host, role in wanted]
        problems = [future.exception() for future in started]
        for problem in problems:
            if problem is not None:
                raise problem
        agents = [future.result() for future in started]
        for agent, hello in self.gather(agents, "hello", 30).items():
            if hello["version"] != wire.VERSION:
                raise LabError(f"host {agent.name}: agent speaks version {hello['version']}")
        # In the order asked for, not in the order of arrival.
        self.agents = [agent for agent in self.agents if agent not in agents] + agents
        return agents

    def _start(self, host: Host, role: str) -> Agent:
        link = self._connect(host)
        try:
            _check_python(host, link)
            path = link.put(self._bundle, "agent.pyz")
        except BaseException:
            link.close()
            raise
        try:
            process = link.start(_command(role, path))
        except BaseException:
            with contextlib.suppress(LabError):
                link.remove(path)
            link.close()
            raise
        agent = Agent(host, role, link, path, process)
        with self._lock:
            self.agents.append(agent)
        threading.Thread(target=self._listen, args=(agent,), daemon=True).start()
        agent.ear = threading.Thread(target=self._listen_errors, args=(agent,), daemon=True)
        agent.ear.start()
        return agent

    def _listen(self, agent: Agent) -> None:
        for line in agent.process.lines():
            try:
                self._inbox.put((agent, wire.decode(line)))
            except wire.WireError as error:
                self._inbox.put((agent, {"event": "error", "kind": "fault", "message": str(error)}))
        self._inbox.put((agent, None))

    def _listen_errors(self, agent: Agent) -> None:
        for line in agent.process.errors():
            text = line.decode(errors="replace").strip()
            if text:
                agent.last_error = text

    def tell(self, agents: Iterable[Agent], op: str, **fields: Any) -> None:
        """Send the same command to several agents."""
        for agent in agents:
            agent.tell({"op": op, **fields})

    def ask(
        self,
        agents: Sequence[Agent],
        op: str,
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> dict[Agent, Message]:
        """Send a command and gather the answers, by agent."""
        self.tell(agents, op, **fields)
        return self.gather(agents, event, seconds, idle)

    def gather(
        self,
        agents: Sequence[Agent],
        event: str,
        seconds: float,
        idle: Callable[[], None] = lambda: None,
    ) -> dict[Agent, Message]:
        """One message of kind ``event`` from every agent; ticks go to ``on_unasked`` meanwhile.

        ``idle`` is called at least every second.

        :raises LabError: if an agent reports a fault, dies, falls silent, or takes too long.
        :raises InputError: if an agent rejects what it was told.
        """
        answers = {
            agent: self._early.pop(agent)
            for agent in agents
            if self._early.get(agent, {}).get("event") == event
        }
        until = time.monotonic() + seconds
        while len(answers) < len(agents):
            heard = self._next(min(1.0, max(0.0, until - time.monotonic())))
            idle()
            if heard is not None:
                agent, message = heard
                if message["event"] == event and agent in agents:
                    answers[agent] = message
                elif agent.role in TRIALS:
                    self._early[agent] = message
            elif time.monotonic() >= until:
                late = next(agent for agent in agents if agent not in answers)
                raise LabError(
                    f"host {late.name}: the {late.role} agent did not answer {event} "
                    f"within {seconds:.0f} s"
                )
        return answers

    def wait(self, seconds: float, idle: Callable[[], None] = lambda: None) -> None:
        """Listen for that long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._next(min(1.0, left))
            idle()

    def _next(self, seconds: float) -> tuple[Agent, Message] | None:
        """The next message that answers a command, or None if none came in time."""
        until = time.monotonic() + seconds
        while True:
            try:
                agent, message = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self._check_silence()
                return None
            if agent not in self.agents:
                continue  # dismissed: its last words are of no interest
            agent.heard = time.monotonic()
            if message is None:
                raise LabError(agent.obituary())
            if message["event"] in wire.UNASKED:
                self.on_unasked(agent, message)
            elif message["event"] == "error":
                raise _as_exception(agent, message)
            else:
                return agent, message
            if time.monotonic() >= until:
                return None

    def _check_silence(self) -> None:
        now = time.monotonic()
        for agent in self.agents:
            if now - agent.heard > SILENCE_SECONDS:
                raise LabError(
                    f"host {agent.name}: no word from the {agent.role} agent for "
                    f"{SILENCE_SECONDS:.0f} s"
                )

    def dismiss(self, agents: Iterable[Agent]) -> None:
        """Stop some agents while the others go on. Never raises."""
        ended = list(agents)
        self.agents = [agent for agent in self.agents if agent not in ended]
        with uninterrupted():
            self._stop_all(ended)

    def close(self, *, drained: bool = False) -> None:
        """Stop every agent, remove what was pushed, close the connections. Never raises.

        :param drained: whether no connection is held, so that the order does not matter.
        """
        # Clients first: their RSTs close both ends, and no side is left in TIME_WAIT. What a trial
        # has set as root goes back last, when nothing depends on it any more.
        first, then, last = ("client", "trial"), ("server",), ("root",)
        with uninterrupted():
            for roles in [(*first, *then, *last)] if drained else [first, then, last]:
                self._stop_all([agent for agent in self.agents if agent.role in roles])
        self.agents.clear()

    def _stop_all(self, agents: Sequence[Agent]) -> None:
        with ThreadPoolExecutor(max(1, len(agents))) as pool:
            list(pool.map(_stop, agents))
        for agent in agents:
            self._early.pop(agent, None)
            if agent.ear is not None:
                agent.ear.join(LAST_WORDS_SECONDS)
            if agent.last_error.startswith(NOT_PUT_BACK):
                self.not_put_back.append(f"host {agent.name}: {agent.last_error}")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C wait: cleaning up half would leave what this exists to remove."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(role: str, path: str) -> list[str]:
    plain = ["python3", path]
    if role not in TRIALS:
        return plain
    return [*(["sudo", "-n"] if role == "root" else []), *plain, "trial"]


def _stop(agent: Agent) -> None:
    with contextlib.suppress(LabError):
        agent.tell({"op": "stop"})
    with contextlib.suppress(LabError, OSError, EOFError):
        # The agent's exit ends the lines; `run` waits for that on the host itself.
        agent.link.run(
            [
                "timeout",
                str(int(STOP_SECONDS)),
                "sh",
                "-c",
                'while [ -e "$1" ]; do sleep 0.05; done',
                "sh",
                agent.path,
            ]
        )
    with contextlib.suppress(OSError, EOFError):
        agent.process.close()
    with contextlib.suppress(LabError, OSError, EOFError):
        agent.link.remove(agent.path)
    with contextlib.suppress(OSError, EOFError):
        agent.link.close()


def _check_python(host: Host, link: Link) -> None:
    wanted = ".".join(str(part) for part in OLDEST_PYTHON)
    try:
        found = link.run(["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        version = tuple(int(part) for part in found.strip().split("."))
    except (LabError, ValueError):
        raise InputError(
            f"host {host.name}: python3: not found, expected {wanted} or newer"
        ) from None
    if version < OLDEST_PYTHON:
        raise InputError(
            f"host {host.name}: python3: got {found.strip()}, expected {wanted} or newer"
        )


def _as_exception(agent: Agent, message: Message) -> Exception:
    text = f"host {agent.name}: {message.get('message', 'agent failed')}"
    # What a trial is told comes from this program alone: if it makes no sense, the lab has failed.
    bad_input = message.get("kind") == "input" and agent.role not in TRIALS
    return InputError(text) if bad_input else LabError(text)
