"""The phases of a run in order: prepare, ramp, hold, collect, drain. Evidence is kept as it comes,
so that a run that ends early keeps the evidence it has gathered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bench.diagnosis.findings import Floor
from bench.errors import LabError
from bench.hosts import kmsg, survey
from bench.hosts.agent import Agent
from bench.hosts.session import Session
from bench.model import capacity, headroom
from bench.plan import planning, specs
from bench.plan.topology import Topology
from bench.results import facts, words
from bench.results.format import (
    AgentsMemory,
    Churn,
    EchoRound,
    Established,
    HostRecord,
    Liveness,
    Phase,
    Predicted,
    Side,
    Step,
)
from bench.results.store import Store
from bench.run import drain, liveness, rounds, soak
from bench.run.ceiling import Ceiling
from bench.run.curve import Descent, Recorder, merge
from bench.run.strays import Strays
from bench.units import plural

START_SECONDS = 60.0
"""Time limit for an agent to fork its workers, to listen, and to complete the handshakes."""

PAIRS_A_SECOND = 50
"""Least rate at which pairs of client address and server endpoint are proven. A client has a window
of 128 handshakes of four round trips each: 106 a second if a round trip takes 300 ms. Between
namespaces on two cores the rate was 3,000 to 4,000 a second, in emulated machines a tenth of
that."""

COLLECT_SECONDS = 300.0
"""Time limit for one host's evidence, or one look at all its sockets: with a million sockets that
takes seconds, under emulation minutes."""

SETTLE_SECONDS = 10.0
"""Time without another accepted connection after which the servers are assumed to accept no more of
the connections that the clients see as established. Proxies in the path may be far behind both."""

POLL_SECONDS = 0.05
"""Time between two requests for the servers' counts."""


STRANGERS = 65_536
"""Other programs' connections that a server's agent may hold too: a full accept queue."""


@dataclass
class Evidence:
    """The evidence that a run has gathered so far."""

    hosts: dict[str, HostRecord] = field(default_factory=dict)
    predicted: Predicted | None = None
    peak: Established = field(default_factory=lambda: Established(clients=0, servers=0, ss=0))
    ramp_seconds: float = 0.0
    lost: int = 0
    lost_in_hold: int = 0
    held_end: Established | None = None
    retried: int = 0
    errors: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    """(``server`` or ``client``, host) to errno name to count."""
    latency: dict[int, int] = field(default_factory=dict)
    stopped_by: str = "complete"
    """Why the ramp ended: complete, lost, memory, timeout, or limit in a search for the limit."""
    floor: Floor | None = None
    """The agent that reached its memory floor first."""
    steps: list[Step] = field(default_factory=list)
    """Steps of a run that looks for its limit."""
    liveness: Liveness = field(default_factory=lambda: Liveness(mode="none"))
    rounds: list[EchoRound] = field(default_factory=list)
    churn: Churn | None = None
    agents_memory: AgentsMemory | None = None
    drain_seconds: float | None = None
    left_after: int | None = None
    resets_lost: int | None = None


class Conduct:
    """The conduct of one scenario: it leads the agents of one session through all phases."""

    def __init__(
        self,
        topology: Topology,
        session: Session,
        recorder: Recorder,
        store: Store,
        run_id: str,
        nonce: str,
    ) -> None:
        self.topology = topology
        self.scenario = scenario = topology.scenario
        self.session = session
        self.recorder = recorder
        self.found = Evidence()
        self._store = store
        self._run_id = run_id
        self._nonce = nonce
        self._short_of_memory = False
        self._descent = Descent(scenario.memory_floor_mib * 1024)
        self._newest: dict[Agent, Mapping[str, Any]] = {}
        self._planned: dict[Agent, int] = {}
        self._listening: dict[Agent, int] = {}
        """Number of a server's listeners on each endpoint."""
        self._ending: dict[Agent, int] = {}
        """Planned connections that end at a server."""
        self.servers = [agent for agent in session.agents if agent.role == "server"]
        self.clients = [agent for agent in session.agents if agent.role == "client"]
        self._strays: Strays | None = None
        self._waiting = 0
        """Sockets in TIME_WAIT on the servers' ports before the first connection."""
        session.on_unasked = self._unasked
        session.on_quiet = self._quiet

    def all(self) -> None:
        """Lead the run through all phases."""
        self.prepare()
        self.ramp()
        self.hold()
        self.drain()

    def _quiet(self, agent: Agent, seconds: float) -> None:
        """Report a silent host, which may come back."""
        points = self.recorder.points
        self.recorder.note(
            self.recorder.phase,
            f"no word from {agent.name} for {seconds:.0f} s; given up after "
            f"{self.scenario.silence_seconds:g} s",
            points[-1].mem_available_kib if points else 0,
        )

    def _unasked(self, agent: Agent, message: Mapping[str, Any]) -> None:
        if message["event"] == "alive":
            return
        if message["event"] == "floor":
            self._at_the_floor(agent.name, _side(agent), int(message["mem_free_kib"]))
            return
        self.recorder.tick(agent.name, agent.role, message)
        if self.scenario.expect == "floor":
            self._descent.tick(
                (agent.name, _side(agent)), float(message["t"]), int(message["mem_free_kib"])
            )
        if self._strays:
            self._strays.tick(agent, agent.role, message)
        self._newest[agent] = message
        self.found.errors[agent.role, agent.name] = dict(message["errors"])
        self.found.retried = sum(int(self._newest[one]["retried"]) for one in self._newest)

    def _at_the_floor(self, host: str, side: Side, free_kib: int) -> None:
        self._short_of_memory = True
        self.found.floor = self.found.floor or Floor(host, side, free_kib)

    def prepare(self) -> None:
        """Collect facts, start listeners and handshakes, collect ``before``, and predict."""
        self.recorder.enter("prepare")
        self.found.hosts.update(survey.hosts(self.session, self.session.agents))
        scenario, topology = self.scenario, self.topology
        tuples = planning.plan_there(topology, self.found.hosts)
        self._planned = {agent: tuples.share(agent.name) for agent in self.clients}
        for agent, planned in self._planned.items():
            agent.planned = planned
        for agent in self.servers:
            ends = topology.endpoints(agent.host)
            self._ending[agent] = tuples.held_by(ends)
            agent.planned = self._ending[agent] * (1 + scenario.retries) + STRANGERS
            spec = specs.server(topology, agent.host, tuples, self._nonce)
            agent.tell({"op": "serve", "spec": spec})
        serving = self.session.gather(self.servers, "serving", START_SECONDS)
        self._listening = {
            agent: int(message["workers"]) if scenario.listener == "reuseport" else 1
            for agent, message in serving.items()
        }
        for agent in self.clients:
            share = specs.client(topology, agent.host, tuples, self._nonce)
            agent.tell({"op": "prepare", "spec": share})
        proof = START_SECONDS + tuples.pairs / PAIRS_A_SECOND
        self.session.gather(self.clients, "prepared", proof)
        # Every target has proven that it belongs to this run; now connections may come.
        self.session.ask(self.servers, "open", "opened", START_SECONDS)
        self._waiting = self._time_waits()
        texts = self.collect("before")
        predicted = capacity.predict(topology, self.found.hosts, texts, tuples.capacity)
        self.found.predicted = predicted
        if predicted.forecast:
            said = words.forecast(predicted, scenario.memory_floor_mib)
            self.recorder.note("forecast", said, predicted.forecast.mem_available_kib)

    def ramp(self) -> None:
        """Open every connection of the plan, or stop at the first limit.

        A run that looks for its limit comes as near to it as the scenario says.

        :raises LabError: if clients hold connections that no server has
        """
        self.recorder.enter("ramp")
        if self.scenario.path != "proxied":  # proxies hold connections of their own
            self._strays = Strays(self._ahead(), self._ending)
        self.recorder.restart()
        began = time.monotonic()
        if self.scenario.expect == "limit":
            self._find_ceiling()
            self.found.ramp_seconds = time.monotonic() - began
        else:
            self._open_all(began)
        self._strays = None

    def _ahead(self) -> int:
        """Return by how many connections the clients may be ahead of the servers' accepts."""
        scenario = self.scenario
        places = 0
        for agent in self.servers:
            listeners = len(self.topology.endpoints(agent.host))
            listeners *= self._listening.get(agent, 1)
            host = self.found.hosts.get(agent.name)
            queue = headroom.number(host, "net.core.somaxconn") if host else None
            backlog = scenario.backlog if queue is None else min(scenario.backlog, queue)
            places += listeners * (backlog + 1)
        return places + len(self.clients) * scenario.max_in_flight

    def _stop_strays(self) -> None:
        found = self._strays.found() if self._strays else 0
        if found:
            raise LabError(
                f"the clients hold {plural(found, 'connection')} more than the servers have "
                "accepted: some lead elsewhere; everything is closed"
            )

    def _find_ceiling(self) -> None:
        ceiling = Ceiling(
            self.session,
            self.scenario,
            self.recorder,
            self._planned,
            self.servers,
            lambda: self._short_of_memory,
            self._stop_strays,
        )
        self.found.steps = ceiling.steps
        self.found.stopped_by = ceiling.find()
        self.found.latency = ceiling.latency

    def _memory_ends(self) -> bool:
        """Return whether the ramp has to end because a host is short of memory.

        A server at its floor stops accepting, and connections under way are lost. With ``expect:
        floor`` the clients stop before that, so that connections under way are still accepted. (A
        run that looks for any limit goes on to the floor itself, and drops the connections that
        were not accepted.)
        """
        near = self._descent.near()
        if near:
            self._at_the_floor(*near)
        return self._short_of_memory

    def _open_all(self, began: float) -> None:
        scenario, found = self.scenario, self.found
        halted = False

        def watch() -> None:
            nonlocal halted
            self.recorder.sample()
            self._stop_strays()
            late = time.monotonic() - began > scenario.ramp_timeout_seconds
            short = self._memory_ends()
            if not halted and (short or late):
                halted = True
                found.stopped_by = "memory" if short else "timeout"
                self.session.tell(self.clients, "halt")

        grace = scenario.connect_timeout_ms / 1000 * (scenario.retries + 1) + START_SECONDS
        ended = self.session.ask(
            self.clients, "ramp", "ramped", scenario.ramp_timeout_seconds + grace, watch
        )
        found.ramp_seconds = time.monotonic() - began
        found.latency = merge(message["latency"] for message in ended.values())
        found.lost = sum(int(message["lost"]) for message in ended.values())
        for message in ended.values():
            if message["reason"] == "memory":
                found.stopped_by = "memory"
            elif message["reason"] == "lost" and found.stopped_by == "complete":
                found.stopped_by = "lost"
        self._settle(sum(int(message["held"]) for message in ended.values()))

    def _settle(self, held: int) -> None:
        """Wait until the servers have accepted all that the clients hold, or accept no more."""
        most = -1
        began = gained = time.monotonic()
        while (now := time.monotonic()) - gained < SETTLE_SECONDS:
            status = self.session.ask(self.servers, "status", "status", COLLECT_SECONDS)
            accepted = sum(int(message["held"]) for message in status.values())
            if accepted >= held or now - began > self.scenario.ramp_timeout_seconds:
                return
            if accepted > most:
                most, gained = accepted, now
            self.session.wait(POLL_SECONDS)
            self._stop_strays()

    def hold(self) -> None:
        """Hold the connections: count them three ways, prove by echoes that both ends are alive,
        count again at the end."""
        scenario, found = self.scenario, self.found
        began = time.monotonic()
        self.recorder.enter("hold", scenario.hold_seconds)
        self.recorder.sample(force=True)
        self.collect("peak")
        counting = time.monotonic() - began
        found.peak = self._counts("peak")
        if scenario.liveness != "none" and found.peak.clients:
            held = {agent: found.hosts[agent.name].phases["peak"].held for agent in self.clients}
            found.liveness = liveness.prove(
                self.session, scenario, self.clients, self.servers, held, self.recorder.sample
            )
        for one in rounds.rounds(
            self.session, scenario, self.clients, self.servers, found.peak.clients, self.recorder
        ):
            found.rounds.append(one)
        # The counting at the end takes as long as now, and belongs to the hold too.
        rest = began + scenario.hold_seconds - time.monotonic() - counting
        if scenario.churn_percent or scenario.round_every_seconds:
            self._soak(rest)
        else:
            self.session.wait(rest, self.recorder.sample)
        alive = self.session.ask(self.clients, "verify", "verified", COLLECT_SECONDS)
        dead = sum(int(message["dead"]) for message in alive.values())
        found.lost += dead
        found.lost_in_hold += dead
        self.collect("hold_end")
        for client, message in alive.items():
            own = found.hosts[client.name].phases["hold_end"].held
            if message["alive"] != own:
                raise LabError(
                    f"host {client.name}: protocol: verified: alive: got {message['alive']}, "
                    f"expected the {own} held"
                )
        found.held_end = self._counts("hold_end")
        if found.churn:
            found.churn = found.churn.model_copy(update={"held": found.held_end})

    def _soak(self, seconds: float) -> None:
        found = self.found
        peak = {agent: found.hosts[agent.name].phases["peak"].held for agent in self.clients}
        if not sum(peak.values()):
            return
        if self.scenario.path != "proxied" and self.scenario.churn_percent:
            self._strays = Strays(self._ahead(), self._ending, counted="held")
        lost = found.lost
        soaking = soak.Soak(
            self.session,
            self.scenario,
            self.clients,
            self.servers,
            self.recorder,
            lambda: self._short_of_memory,
            self._stop_strays,
        )
        earlier = list(found.rounds)
        try:
            soaking.hold(peak, seconds, len(earlier) + 1)
        finally:  # an interrupted hold keeps what it has
            found.rounds = earlier + soaking.rounds
            found.churn, found.agents_memory = soaking.churn, soaking.memory
            found.lost = lost + soaking.lost
            found.lost_in_hold = soaking.lost
            self._strays = None

    def drain(self) -> None:
        """Close everything from the client side and prove that nothing is left."""
        self.recorder.enter("drain")
        ended = drain.everything(
            self.session, self.scenario, self.clients, self.servers, self.recorder.sample
        )
        self.found.resets_lost, self.found.drain_seconds = ended
        self.recorder.sample(force=True)
        self.collect("after", state="connected")
        after = [self.found.hosts[server.name].phases["after"] for server in self.servers]
        if any(phase.established is None for phase in after):
            return  # without a count nothing is proven
        left = self._counts("after").ss
        # The sockets of an earlier, killed agent stay in TIME-WAIT and outlive its run.
        if left and self._waiting:
            left -= min(left, self._waiting, self._time_waits())
        self.found.left_after = left

    def _time_waits(self) -> int:
        """Return the sockets in TIME_WAIT on the servers' ports."""
        ports = sorted(self.scenario.server_ports)
        told = self.session.ask(
            self.servers,
            "count",
            "counted",
            COLLECT_SECONDS,
            ranges=[(ports[0], ports[-1])],
            side="local",
            states=["time-wait"],
            by="none",
        )
        return sum(int(message["total"]) for message in told.values())

    def collect(self, phase: str, state: str = "established") -> dict[str, Mapping[str, str]]:
        """Collect every host's evidence of a phase; keep it raw and parsed. Return texts by host.

        :param state: state of the servers' sockets to count, as ss(8) names it
        """
        for agent in self.session.agents:
            server = agent.role == "server"
            count = self.topology.endpoints(agent.host) if server else None
            agent.tell({"op": "collect", "phase": phase, "count": count, "state": state})
        told = self.session.gather(
            self.session.agents, "collected", COLLECT_SECONDS, self.recorder.sample
        )
        taken = datetime.now(UTC)
        # Hosts that share this machine's kernel may not read its messages; the controller can.
        log = kmsg.read() if self.topology.inventory.underlay else ""
        for agent, message in told.items():
            if log:
                message["texts"].setdefault("kernel_log", log)
            facts.check_phase(agent.name, message, phase)
            self._store.write_raw(self._run_id, agent.name, phase, message["texts"])
            self.found.hosts[agent.name].phases[phase] = facts.phase(message, taken)
        return {agent.name: message["texts"] for agent, message in told.items()}

    def _counts(self, phase: str) -> Established:
        def of(agents: Sequence[Agent]) -> list[Phase]:
            return [self.found.hosts[agent.name].phases[phase] for agent in agents]

        return Established(
            clients=sum(one.held for one in of(self.clients)),
            servers=sum(one.held for one in of(self.servers)),
            ss=sum(one.established or 0 for one in of(self.servers)),
        )


def _side(agent: Agent) -> Side:
    return "server" if agent.role == "server" else "client"
