"""The agents of one run: start them, send commands, gather answers, and leave nothing behind."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, TypeVar

from bench import wire
from bench.errors import LabError
from bench.hosts import messages, scripts
from bench.hosts.agent import TRIALS, Agent, Message
from bench.hosts.inbox import Inbox
from bench.hosts.messages import ProtocolError
from bench.hosts.transport import COMMAND_SECONDS, Link, NotRemoved, drawn
from bench.interrupts import INTERRUPTS
from bench.inventory import Host
from bench.units import printable

QUIET_SECONDS = 5.0
"""Agents send something every second; an agent that is silent for this long is reported."""

BEAT_SECONDS = 2.0
"""Seconds between two signs of life to the agents; a quarter of the time that they wait, if that is
less."""

CHECK_SECONDS = 0.25
"""Seconds between two checks for silent agents."""

WIND_UP_SECONDS = COMMAND_SECONDS
"""Seconds for the work under way of an interrupted start: as long as a push may take."""

HELLO_SECONDS = 60.0
"""Seconds for an agent's hello; the time that it may be silent, if that is longer. A Python starts
in seconds on an emulated guest, and takes several times as long when all hosts of a lab share two
cores."""

Connect = Callable[[Host], Link]
Result = TypeVar("Result")


class Session:
    """Agents on several hosts, used as a context: at its end nothing of them stays."""

    def __init__(
        self,
        connect: Connect,
        bundle: bytes,
        *,
        silence: float = wire.SILENCE_SECONDS,
        doing: str | None = None,
    ) -> None:
        """Begin a session without agents.

        :param silence: seconds without a word after which either side treats the other as dead
        :param doing: what the session does, for others who want the same hosts; None if it only
            looks, and blocks nobody
        """
        self._connect = connect
        self._bundle = bundle
        self._silence = silence
        self._doing = doing
        self._inbox: Inbox[Agent, Message | Exception | None] = Inbox()
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._under_way: list[Future[Any]] = []
        """Work that is under way on several hosts at once."""
        self._pushing: dict[str, str] = {}
        """Paths that agents are being pushed to, and their hosts. No agent object has these paths
        yet, or any more."""
        self._checked = self._resumed = time.monotonic()
        self._closing = False
        self.agents: list[Agent] = []
        self._early: dict[Agent, Message] = {}
        """Answers of trials that arrived while others were asked: their steps may take long."""
        self.not_put_back: list[str] = []
        """What trials that change hosts reported, at their end, that they could not restore."""
        self.left: list[str] = []
        """What could not be cleaned up, one line each."""
        self.on_unasked: Callable[[Agent, Message], None] = lambda agent, message: None
        """Called with every event that answers no command: ``tick`` and ``floor``."""
        self.on_quiet: Callable[[Agent, float], None] = lambda agent, seconds: None
        """Called once with an agent that has been silent for :data:`QUIET_SECONDS`."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with INTERRUPTS.cleaning():
            self.close()
            if not self.left:
                return
            said = str(error) if isinstance(error, LabError) else ""
            lines = "; ".join(line for line in self.left if line not in said)
            if error is None:
                raise LabError(lines)
            if isinstance(error, LabError):
                if lines:
                    raise LabError(f"{error}; {lines}") from error
                return
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(lines) from error
            INTERRUPTS.say(lines)

    def start(self, hosts: Iterable[tuple[Host, str]]) -> list[Agent]:
        """Push and start an agent on every host, all at once; return them in that order.

        Nothing is pushed before all hosts have been reached and none of them is held by another
        run.

        The role ``trial`` starts one side of a small experiment (:mod:`bench.agent.stage`);
        ``root`` starts one as root, by sudo(8).

        :raises LabError: if a host cannot be reached or is held by another run, or its agent does
            not answer.
        :raises InputError: if a host has no Python that can run the agent.
        """
        wanted = list(hosts)
        INTERRUPTS.answers(self, self._open_ends)
        links = _results(self._together(self._reach, [(host,) for host, _ in wanted]))
        agents = _results(
            self._together(
                self._push,
                [(host, role, link) for (host, role), link in zip(wanted, links, strict=True)],
            )
        )
        # One second more than the silence, which has its own error line.
        seconds = max(self._silence, HELLO_SECONDS) + 1
        for agent, hello in self.gather(agents, "hello", seconds).items():
            if hello["version"] != wire.VERSION:
                raise LabError(f"host {agent.name}: agent speaks version {hello['version']}")
        # In the order asked for, not in the order of arrival.
        self.agents = [agent for agent in self.agents if agent not in agents] + agents
        return agents

    def _together(
        self, work: Callable[..., Result], each: Sequence[tuple[Any, ...]]
    ) -> list[Future[Result]]:
        """Do the same on all hosts at once, to the end.

        This uses no thread pool, because an interpreter waits for a pool's threads when it exits,
        however long they take.
        """
        futures: list[Future[Result]] = []
        for words in each:
            future: Future[Result] = Future()
            futures.append(future)
            with self._lock:
                self._under_way.append(future)
            threading.Thread(target=_settle, args=(future, work, words), daemon=True).start()
        # In short waits: the kernel may deliver a signal to another thread, and then nothing wakes
        # this one, in which Python handles signals.
        while wait(futures, CHECK_SECONDS).not_done:
            pass
        with self._lock:
            self._under_way = [future for future in self._under_way if future not in futures]
        return futures

    def _reach(self, host: Host) -> Link:
        """Return a link to a host that can run an agent and that no other run holds."""
        link = self._connect(host)
        with self._lock:
            late = self._closing
            if not late:
                self._links.append(link)
        if late:
            link.close()
            raise _interrupted(host)
        link.give_up_after(self._silence)
        scripts.look(host, link, self._doing)
        return link

    def _push(self, host: Host, role: str, link: Link) -> Agent:
        path = drawn("agent.pyz")
        with self._lock:
            if self._closing:
                raise _interrupted(host)
            self._pushing[path] = host.name
        try:
            return self._start(host, role, link, link.put(self._bundle, path))
        except NotRemoved as error:
            self.left.append(error.left)
            raise
        finally:
            with self._lock:
                self._pushing.pop(path, None)

    def _start(self, host: Host, role: str, link: Link, path: str) -> Agent:
        try:
            if self._closing:
                raise _interrupted(host)
            process = link.start(self._command(role, path))
        except BaseException:
            try:
                link.remove(path)
            except LabError as error:
                self.left.append(str(error))
            raise
        agent = Agent(host, role, link, path, process)
        agent.locked = self._doing is not None
        agent.hear_errors()
        with self._lock:  # close() in another thread may end the agent from now on
            late = self._closing
            if not late:
                self.agents.append(agent)
        if late:  # interrupted: close() does not know of this agent
            self.left += filter(None, [scripts.stop(agent)])
            raise _interrupted(host)
        threading.Thread(target=self._listen, args=(agent,), daemon=True).start()
        threading.Thread(target=self._beat, args=(agent,), daemon=True).start()
        return agent

    def _command(self, role: str, path: str) -> list[str]:
        lock: wire.LockOptions | None = None
        if self._doing:
            lock = {"owner": scripts.OWNER, "who": _who(), "run": self._doing}
        options: wire.AgentOptions = {"silence_seconds": self._silence, "lock": lock}
        sudo = ["sudo", "-n"] if role == "root" else []
        mode = "trial" if role in TRIALS else "run"
        return [*sudo, "python3", path, mode, json.dumps(options)]

    def _beat(self, agent: Agent) -> None:
        """Send signs of life to an agent, which closes everything without them."""
        every = min(BEAT_SECONDS, self._silence / 4)
        while not agent.ended.wait(every):
            try:
                agent.process.write(wire.encode({"op": "beat"}))
            except (OSError, EOFError):
                return  # it has ended, and its listener says so

    def _listen(self, agent: Agent) -> None:
        """Read what an agent sends until its end, or until a message is invalid."""
        try:
            for line in agent.process.lines():
                agent.heard, agent.spoken = time.monotonic(), True
                message = messages.read(line, agent.planned)
                agent.admit(message, len(line))
                self._inbox.put(agent, message, len(line) + 1024)
        except (ProtocolError, OSError) as error:
            agent.lost = True
            why = LabError(f"host {agent.name}: protocol: {printable(str(error))}")
            agent.misspoken = why
            self._inbox.put(agent, why, 1024)
        self._inbox.put(agent, None, 1024)

    def tell(self, agents: Iterable[Agent], op: str, **fields: Any) -> None:
        """Send one command to several agents; raise the first error after all have been sent."""
        problem: LabError | None = None
        for agent in agents:
            try:
                agent.tell({"op": op, **fields})
            except LabError as error:
                problem = problem or error
        if problem:
            raise problem

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
        """Gather one message of kind ``event`` from every agent.

        Meanwhile ticks go to ``on_unasked``.

        ``idle`` is called at least every second.

        :raises LabError: if an agent reports a fault, dies, falls silent, or takes too long.
        :raises InputError: if an agent rejects the command.
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
            if len(answers) < len(agents) and time.monotonic() >= until:
                late = next(agent for agent in agents if agent not in answers)
                raise LabError(
                    f"host {late.name}: the {late.role} agent did not answer {event} "
                    f"within {seconds:.0f} s"
                )
        return answers

    def wait(self, seconds: float, idle: Callable[[], None] = lambda: None) -> None:
        """Handle events for ``seconds``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._next(min(1.0, left))
            idle()

    def _next(self, seconds: float) -> tuple[Agent, Message] | None:
        """Return the next message that answers a command, or None if none arrives in time."""
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            came = self._inbox.get(min(CHECK_SECONDS, left))
            self._check_silence()
            if came is None:
                if time.monotonic() >= until:
                    return None
                continue
            agent, message = came
            if agent not in self.agents:
                continue  # dismissed: its last messages do not matter
            if message is None:
                agent.lost = True
                raise agent.obituary()
            if isinstance(message, Exception):
                raise message
            if message["event"] == "error":
                raise agent.problem(message)
            if message["event"] not in wire.UNASKED:
                return agent, message
            self.on_unasked(agent, message)
            if time.monotonic() >= until:
                return None

    def _check_silence(self) -> None:
        """Report agents that are silent, and give up those that are silent for too long."""
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        if now - self._checked > QUIET_SECONDS:  # this program itself did not listen
            self._resumed = now
        self._checked = now
        for agent in self.agents:
            silent = now - max(agent.heard, self._resumed)
            if silent > self.patience(agent):
                agent.lost = True
                first = "" if agent.spoken else " since it was started"
                raise LabError(
                    f"host {agent.name}: no word from the {agent.role} agent for "
                    f"{self.patience(agent):g} s{first}"
                )
            if silent > QUIET_SECONDS and not agent.quiet:
                self.on_quiet(agent, silent)
            agent.quiet = silent > QUIET_SECONDS

    def patience(self, agent: Agent) -> float:
        """Return the seconds of silence after which an agent is given up.

        Its first message may take longer: a Python may take longer to start than an agent may be
        silent.
        """
        return self._silence if agent.spoken else max(self._silence, HELLO_SECONDS)

    def dismiss(self, agents: Iterable[Agent]) -> None:
        """Stop some agents while the others go on.

        Raises only a KeyboardInterrupt, at its end.
        """
        ended = list(agents)
        self.agents = [agent for agent in self.agents if agent not in ended]
        with INTERRUPTS.cleaning():
            self._stop_all(ended)

    def close(self, *, drained: bool = False) -> None:
        """Stop every agent, remove what was pushed, close the connections.

        What could not be cleaned up is in ``left`` afterwards. Raises only a KeyboardInterrupt,
        when all that is done.

        :param drained: whether no connections are held, so that the order does not matter
        """
        # Clients first: their RSTs close both ends, and no side is left in TIME_WAIT. A trial that
        # runs as root restores its settings last, when nothing depends on them any more.
        first, then, last = ("client", "trial"), ("server",), ("root",)
        with INTERRUPTS.cleaning():
            with self._lock:
                self._closing = True
            for roles in [(*first, *then, *last)] if drained else [first, then, last]:
                self._stop_all([agent for agent in self.agents if agent.role in roles])
            self.agents.clear()
            self._wind_up()
            for link in self._links:
                with contextlib.suppress(Exception):
                    link.close()
            self._links.clear()
            self._inbox.close()
            INTERRUPTS.answers(self, None)

    def _wind_up(self) -> None:
        """Wait for what an interrupted start still pushes, and report what does not end.

        Links are closed only after that: what has been pushed has to be removed over them. A host
        that is still being reached or checked has nothing that could be left there.
        """
        with self._lock:
            pending = [future for future in self._under_way if not future.cancel()]
            pushing = bool(self._pushing)
        if pushing:
            wait(pending, WIND_UP_SECONDS)
        with self._lock:
            self.left += [
                f"host {name}: {path} may be left" for path, name in self._pushing.items()
            ]
            self._pushing.clear()

    def _stop_all(self, agents: Sequence[Agent]) -> None:
        with ThreadPoolExecutor(max(1, len(agents))) as pool:
            self.left += filter(None, pool.map(scripts.stop, agents))
        for agent in agents:
            self._early.pop(agent, None)
            agent.await_last_words()
            self.not_put_back += [f"host {agent.name}: {line}" for line in agent.not_put_back]

    def _open_ends(self) -> list[str]:
        """Return what is not cleaned up yet."""
        pushed = [f"host {name}: {path}" for path, name in list(self._pushing.items())]
        return [agent.what() for agent in self.agents if not agent.gone] + pushed


def _interrupted(host: Host) -> LabError:
    return LabError(f"host {host.name}: interrupted")


def _settle(future: Future[Result], work: Callable[..., Result], words: tuple[Any, ...]) -> None:
    """Do the work of a future, unless it has been cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work(*words)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    """Return all results; the first error is raised."""
    return [future.result() for future in futures]


def _who() -> str:
    """Return the user and machine of this controller."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{platform.node()}"
