"""One run: start the agents, lead the phases, assemble the evidence into a :class:`Run`, end the
agents."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.agent import bundle
from bench.diagnosis import diagnose
from bench.diagnosis.verdict import verdict as judge
from bench.errors import InputError, LabError
from bench.hosts.agent import Agent
from bench.hosts.session import Connect, Session
from bench.interrupts import INTERRUPTS
from bench.inventory import Inventory
from bench.plan.planning import plan_for
from bench.plan.topology import Topology
from bench.results import cost, page
from bench.results.format import (
    CurvePoint,
    Diagnosis,
    HostRecord,
    KernelBytes,
    Latency,
    Measured,
    Predicted,
    Requested,
    Run,
    UserlandBytes,
    Verdict,
    Workers,
)
from bench.results.store import Store
from bench.run import curve
from bench.run.phases import Conduct, Evidence
from bench.scenario import Scenario

_pages = ThreadPoolExecutor(1, "page")
"""Thread that draws the pages of all runs: matplotlib keeps its font files open per thread."""

Progress = Callable[[curve.Progress], None]


def run(
    scenario: Scenario,
    inventory: Inventory,
    store: Store,
    connect: Connect,
    progress: Progress,
) -> Run:
    """Run one scenario on one inventory, to the end.

    The results directory is checked before a host is touched. Once the hosts are reached, results
    are written whatever happens: a run that failed or was interrupted is kept with verdict
    ``aborted`` and all evidence gathered so far.

    :param progress: called about once a second with the progress of the run
    :raises InputError: for a plan that cannot be made or a run that cannot be kept; no host was
        touched
    :raises LabError: if the lab failed
    """
    topology = Topology(scenario, inventory)
    plan_for(topology)
    started = datetime.now(UTC)
    with contextlib.ExitStack() as stack:
        hosts = [(host, "server") for host in topology.servers]
        hosts += [(host, "client") for host in topology.clients]
        run_id, _ = store.create(scenario.name, started, len(hosts), scenario.hold_seconds)
        session = stack.enter_context(
            Session(
                connect,
                bundle.build().data,
                silence=scenario.silence_seconds,
                doing=f"run {scenario.name}",
            )
        )
        try:
            samples = stack.enter_context(store.samples(run_id))
            recorder = curve.Recorder(scenario.connections, samples, progress)

            def quiet(agent: Agent, seconds: float) -> None:
                text = f"no word from {agent.name} for {seconds:.0f} s since its agent was started"
                text += f"; given up after {session.patience(agent):g} s"
                recorder.note("prepare", text, 0)

            session.on_quiet = quiet
            session.start(hosts)
        except BaseException:
            store.discard(run_id)
            raise
        nonce = secrets.token_hex(16)
        conduct = Conduct(topology, session, recorder, store, run_id, nonce)

        @INTERRUPTS.cleaning()
        def keep(ended: tuple[Verdict, str] | None) -> Run:
            broken: Exception | None = None
            gathered = topology, conduct.found, recorder.points, run_id, started
            try:
                made = _assemble(*gathered, ended)
            except Exception as error:  # whatever is wrong with the evidence, the run is kept
                broken = error
                made = _assemble(*gathered, ended or ("aborted", _unreckoned(error)), bare=True)
            drawn = _pages.submit(page.render, made)
            with ThreadPoolExecutor(1) as pool:
                written = pool.submit(store.write, made)
                # At the same time, because a slow disk must not keep connections open.
                session.close(drained=ended is None)
            written.result()
            store.write_page(run_id, drawn.result())
            if broken and not ended:
                raise broken
            return made

        try:
            conduct.all()
        except InputError:
            with INTERRUPTS.cleaning():
                session.close()
                store.discard(run_id)
            raise
        except KeyboardInterrupt:
            with contextlib.suppress(LabError):  # a full disk: the run is still interrupted
                keep(("aborted", "interrupted"))
            raise
        except Exception as error:
            with contextlib.suppress(LabError):
                keep(("aborted", str(error) or type(error).__name__))
            raise
        return keep(None)


UNKNOWN = Diagnosis(bound_by="unknown", sure="unsure")
"""The diagnosis of a run without one."""


def _unreckoned(error: Exception) -> str:
    return f"internal error: figures: {type(error).__name__}: {error}"


def _assemble(
    topology: Topology,
    found: Evidence,
    points: list[CurvePoint],
    run_id: str,
    started: datetime,
    ended: tuple[Verdict, str] | None,
    bare: bool = False,
) -> Run:
    """Assemble a run.

    :param ended: its verdict and reason, if they are known
    :param bare: leave out figures computed from evidence, so that assembling cannot fail
    """
    scenario, inventory = topology.scenario, topology.inventory
    held, seconds = found.peak.clients, found.ramp_seconds
    measured = Measured(
        established=found.peak,
        ramp_seconds=round(seconds, 3),
        connections_per_second=round(held / seconds, 1) if seconds else 0.0,
        lost=found.lost,
        lost_in_hold=found.lost_in_hold,
        held_end=found.held_end,
        retried=found.retried,
        errors=curve.added(found.errors.values()),
        liveness=found.liveness,
        rounds=found.rounds,
        churn=found.churn,
        agents_memory=found.agents_memory,
        drain_seconds=found.drain_seconds,
        left_after=found.left_after,
        resets_lost=found.resets_lost,
        steps=found.steps,
        **(NOT_RECKONED if bare else _reckoned(found, inventory.underlay)),
    )
    diagnosis = UNKNOWN if bare else diagnose.diagnose(scenario, measured, found)
    verdict, reason = ended or judge(scenario, measured, diagnosis, found.stopped_by)
    return Run(
        schema_=1,
        run_id=run_id,
        scenario=scenario.name,
        substrate=inventory.substrate,
        verdict=verdict,
        reason=reason,
        started=started,
        finished=datetime.now(UTC),
        config=scenario.model_dump(mode="json"),
        requested=Requested(connections=scenario.connections),
        measured=measured,
        predicted=found.predicted
        or Predicted(max_connections=0, bound_by="unknown", kernel_bytes_per_connection=0.0),
        bound_by=diagnosis.bound_by,
        diagnosis=diagnosis,
        curve=points,
        hosts=found.hosts,
        packages=packages(),
        image=_image(inventory.state),
    )


NOT_RECKONED: dict[str, Any] = {
    "connect_latency_us": Latency(),
    "kernel_bytes_per_connection": KernelBytes(),
    "userland_bytes_per_connection": UserlandBytes(),
}


def _reckoned(found: Evidence, shared_kernel: bool) -> dict[str, Any]:
    """Return the fields of :class:`Measured` that are computed from the hosts' output."""
    return {
        "connect_latency_us": curve.latency(found.latency),
        "kernel_bytes_per_connection": cost.kernel_bytes(found.hosts, shared_kernel),
        "userland_bytes_per_connection": cost.userland_bytes(found.hosts),
        "workers": _workers(found.hosts),
    }


def _workers(hosts: Mapping[str, HostRecord]) -> Workers:
    """Return the agent processes by side, and the PSS of one before the first connection."""
    before = {
        name: host.phases["before"] for name, host in hosts.items() if "before" in host.phases
    }

    def of(group: str) -> int:
        return sum(phase.workers for name, phase in before.items() if group in hosts[name].groups)

    processes = sum(phase.workers for phase in before.values())
    pss = sum(phase.pss_kib for phase in before.values())
    return Workers(
        server=of("servers"),
        client=of("clients"),
        pss_kib_each=round(pss / processes, 1) if processes else 0.0,
    )


def packages() -> dict[str, str]:
    """Return the versions of the controller's Python packages."""
    return dict(sorted((one.metadata["Name"], one.version) for one in metadata.distributions()))


def _image(state: Path | None) -> dict[str, Any]:
    """Return the manifest of the hosts' image; empty if the lab built none."""
    if state is None or not (state / "lab.json").is_file():
        return {}
    path = state / "lab.json"
    try:
        path = Path(json.loads(path.read_text(encoding="utf-8"))["image"]) / "manifest.json"
        found: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        return {"unreadable": f"{path}: {type(error).__name__}: {error}"}
    return found
