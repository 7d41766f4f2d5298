"""A run in words: lines for a terminal, sentences for a page."""

from __future__ import annotations

import textwrap
from pathlib import Path

from bench.results.cost import disturbed
from bench.results.format import AgentsMemory, Bound, Churn, EchoRound, MemoryPoint, Predicted, Run
from bench.units import count, latency, plural, printable, size

COLUMNS = 100
"""Most columns of a line of the summary."""


def summary(run: Run, folder: Path | None = None) -> list[str]:
    """Return the summary: connections held, rate, cost, limit, place of the report.

    :param folder: the run's directory; by default ``results/<run-id>``
    :return: lines of at most :data:`COLUMNS` columns; their number grows only with the length of
        the reason and with the latest echo round of each mode
    """
    m, counts = run.measured, run.measured.established
    lines = _wrap(f"{run.verdict.upper()}: {run.reason}")
    if counts.clients or counts.servers:
        lines += _wrap(
            f"held {count(counts.clients)} of {count(run.requested.connections)} (clients "
            f"{count(counts.clients)}, servers {count(counts.servers)}, ss {count(counts.ss)}), "
            f"lost {count(m.lost)}"
        )
        late = m.connect_latency_us
        # Failed steps took time too, so there is no rate.
        how = (
            f"found in {m.ramp_seconds:,.1f} s and {plural(len(m.steps), 'step')}"
            if m.steps
            else f"opened in {m.ramp_seconds:,.1f} s, {m.connections_per_second:,.0f} connections "
            "a second"
        )
        lines += _wrap(f"{how}, connect p50 {latency(late.p50)}, p99 {latency(late.p99)}")
        latest = {one.mode: (at, one) for at, one in enumerate(m.rounds, start=1)}
        for at, one in latest.values():
            lines += _wrap(f"echo round {at} of {len(m.rounds)}: {echo_round(one)}")
        if m.churn:
            lines += _wrap(f"churn: {churned(m.churn)}")
        if m.agents_memory and m.agents_memory.points:
            lines += _wrap(f"agents' memory: {agents_memory(m.agents_memory)}")
        lines += _wrap(f"cost per connection: {cost(run)['line']}")
        lines += _wrap(f"bound by: {_bound(run)}; {predicted(run)}")
    elif reached(run):
        lines += _wrap(
            f"the clients reported {count(reached(run))} of "
            f"{plural(run.requested.connections, 'connection')} held; they were not counted"
        )
    lines.append(f"report: {folder or Path('results') / run.run_id}/report.html")
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(printable(text), COLUMNS, subsequent_indent="  ")


def reached(run: Run) -> int:
    """Return the most connections held: as counted, else as the clients reported during the run."""
    return run.measured.established.clients or max((p.held for p in run.curve), default=0)


def cost(run: Run) -> dict[str, str]:
    """Return a connection's cost in words: ``kernel``, its ``ends``, ``userland``, ``line``."""
    kernel, user = (
        run.measured.kernel_bytes_per_connection,
        run.measured.userland_bytes_per_connection,
    )
    if kernel.both_ends is not None:
        found, ends = size(kernel.both_ends), "both ends, on one kernel"
        line = f"kernel {found} for both ends, on one kernel"
    elif kernel.server is None and kernel.client is None:
        found, ends = "not measured", "no phases to compare"
        line = "kernel not measured"
    else:
        found, ends = size(kernel.server), f"server; client {size(kernel.client)}"
        line = f"kernel server {found}, client {size(kernel.client)}"
    if disturbed(kernel):
        ends += "; other programs' sockets included"
        line += " (other programs' sockets included)"
    userland = f"server {size(user.server)}, client {size(user.client)}"
    if user.server is None and user.client is None:
        userland = "not measured"
    return {
        "kernel": found,
        "ends": ends,
        "userland": userland,
        "line": f"{line}; agents {userland}",
    }


def echo_round(one: EchoRound) -> str:
    """Return an echo round in one line."""
    spent = one.client_cpu_seconds + one.server_cpu_seconds
    each = f", {1e6 * spent / one.asked:.1f} µs of CPU each" if one.asked else ""
    wrong = f", {count(one.wrong)} wrong" if one.wrong else ""
    silent = f", {count(one.silent)} silent" if one.silent else ""
    late = one.latency_us
    return (
        f"{count(one.answered)} of {plural(one.asked, 'byte')} answered{wrong}{silent}, "
        f"{one.mode}, in {one.seconds:,.3f} s{each}, p50 {latency(late.p50)}, "
        f"p99 {latency(late.p99)}"
    )


def churned(done: Churn) -> str:
    """Return the outcome of churn in one line."""
    pace = f", {done.closed / done.seconds:,.0f} a second" if done.seconds else ""
    errors = ", ".join(f"{name} {count(times)}" for name, times in done.errors.items())
    late = done.latency_us
    return (
        f"{count(done.closed)} closed{pace}, {count(done.opened)} reopened, lost "
        f"{count(done.lost)}{f' ({errors})' if errors else ''}, connect p50 {latency(late.p50)}, "
        f"p99 {latency(late.p99)}"
    )


def agents_memory(memory: AgentsMemory) -> str:
    """Return the agents' memory at the end of the hold, and its trend, in one line."""

    def side(name: str, kib: int, slope: float | None) -> str:
        return f"{name} {kib:,} KiB" + ("" if slope is None else f" ({slope:+,.1f} KiB a minute)")

    last = memory.points[-1]
    return ", ".join(
        (
            side("servers", last.server_kib, memory.server_kib_per_minute),
            side("clients", last.client_kib, memory.client_kib_per_minute),
        )
    )


def soaked(done: Churn | None, memory: MemoryPoint) -> str:
    """Return the state of a long hold in one line."""
    churn = f"{churned(done)}; " if done else ""
    return f"{churn}agents' memory: {agents_memory(AgentsMemory(points=[memory]))}"


def _bound(run: Run) -> str:
    """Return the limit that bound, and its host."""
    where = f" on {run.diagnosis.host}" if run.diagnosis and run.diagnosis.host else ""
    return f"{run.bound_by}{where}"


def whose(one: Bound) -> str:
    """Return the host of a limit, or else the end or ends that it belongs to."""
    return "both ends" if one.end == "both" else one.host or one.end


def predicted(run: Run) -> str:
    """Return the prediction in words."""
    if not run.predicted.limits and not run.predicted.max_connections:
        return "there was no prediction"
    most = count(run.predicted.max_connections)
    return f"the model expected at most {most} ({run.predicted.bound_by})"


def forecast(made: Predicted, floor_mib: int) -> str:
    """Return what will be left of the servers' memory, in one line; empty without a forecast.

    :param floor_mib: the memory that the run must leave, in MiB
    """
    one = made.forecast
    if one is None:
        return ""
    left = one.mem_free_expected_kib
    slab, rest = (
        f"{kib * 1024 / one.connections:,.0f} B"
        for kib in (one.slab_kib, one.descriptors_kib + one.agents_kib)
    )
    taken = one.mem_free_kib - left
    end = (
        f"which leaves {size(left * 1024)} free"
        if left >= 0
        else f"{size(-left * 1024)} more than is free"
    )
    memory = made.limits.get("memory")
    most = (
        ""
        if memory is None
        else f"; all hosts together have memory for {count(memory)} above {floor_mib:,} MiB"
    )
    return (
        f"{one.host} has MemFree {size(one.mem_free_kib * 1024)}, "
        f"MemAvailable {size(one.mem_available_kib * 1024)}; "
        f"{plural(one.connections, 'connection')} x ({slab} slab + {rest} tables and agents) = "
        f"{size(taken * 1024)}, {end}{most}"
    )
