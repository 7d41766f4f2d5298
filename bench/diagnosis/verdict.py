"""The verdict of a run against its scenario's expectation, and its reason in one sentence."""

from __future__ import annotations

from bench.diagnosis.diagnose import reached
from bench.results.format import Diagnosis, Measured, Verdict
from bench.scenario import Scenario
from bench.units import plural

NO_LIMIT = ("none", "unknown", "errors", "lost", "ramp_timeout_seconds")
"""Names in ``bound_by`` that stand for no limit."""


def verdict(
    scenario: Scenario, measured: Measured, diagnosis: Diagnosis, stopped_by: str
) -> tuple[Verdict, str]:
    """Return the verdict and its reason.

    :param stopped_by: why the ramp ended: complete, lost, limit, memory or timeout
    """
    counts = measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    unmet = _unmet(scenario, measured, diagnosis, stopped_by, held)
    if unmet is not None:
        return "fail", (
            f"{held:,} of {plural(scenario.connections, 'connection')} held{unmet}, bound by "
            f"{named(diagnosis)}: {'; '.join(diagnosis.evidence)}; {diagnosis.cure}"
        )
    if not counts.clients == counts.servers == counts.ss:
        return "fail", (
            f"the three counts disagree: clients {counts.clients:,}, servers "
            f"{counts.servers:,}, ss {counts.ss:,}"
        )
    if measured.lost > scenario.expect_lost:
        return "fail", (
            f"{plural(measured.lost, 'connection')} lost, expected at most {scenario.expect_lost:,}"
        )
    live = measured.liveness
    if live.wrong or live.answered < live.asked or (live.mode != "none" and not live.asked):
        silent = ", ".join(f"{host} {count:,}" for host, count in live.unanswered.items())
        return "fail", (
            f"{live.answered:,} of {plural(live.asked, 'echo')} answered, {live.wrong:,} wrong"
            + (f"; not answered: {silent}" if silent else "")
        )
    gone = measured.churn.lost if measured.churn else 0
    for number, one in enumerate(measured.rounds, start=1):
        wanted = counts.clients - gone if one.mode == "pipelined" else one.asked
        if one.wrong or one.answered < max(1, one.asked, wanted):
            return "fail", (
                f"echo round {number} ({one.mode}): {one.answered:,} of "
                f"{plural(max(one.asked, wanted), 'byte')} answered, {one.wrong:,} wrong, "
                f"{plural(one.silent, 'connection')} silent"
            )
    end = measured.held_end
    left = counts.clients - measured.lost_in_hold
    if end and not end.clients == end.servers == end.ss == left:
        return "fail", (
            f"at the end of the hold the three counts disagree: clients {end.clients:,}, servers "
            f"{end.servers:,}, ss {end.ss:,}, expected {left:,}"
        )
    if measured.left_after is None and measured.drain_seconds is not None:
        return "fail", "the sockets left after the drain were not counted"
    if measured.left_after:
        return "fail", f"{plural(measured.left_after, 'socket')} left after the drain"
    echoes = f", {live.answered:,} of {plural(live.asked, 'echo')} answered" if live.asked else ""
    if measured.rounds:
        total = sum(one.answered for one in measured.rounds)
        answered, count = plural(total, "byte"), plural(len(measured.rounds), "echo round")
        echoes += f", {answered} answered in {count}"
    if measured.churn:
        echoes += f", {plural(measured.churn.opened, 'connection')} closed and reopened meanwhile"
    where = ""
    if scenario.expect == "floor":
        where = f" above the memory floor of {scenario.memory_floor_mib:,} MiB"
    elif scenario.expect == "limit":
        where = f", then bound by {named(diagnosis)} ({diagnosis.sure})"
    return "pass", f"{plural(held, 'connection')} held by all three counts{where}{echoes}"


def named(diagnosis: Diagnosis) -> str:
    """Return the limit's name and its host."""
    return f"{diagnosis.bound_by} on {diagnosis.host}" if diagnosis.host else diagnosis.bound_by


def _unmet(
    scenario: Scenario, measured: Measured, diagnosis: Diagnosis, stopped_by: str, held: int
) -> str | None:
    """Return in words which part of the expectation was not met; None if all of it was met."""
    if scenario.expect == "floor":
        ended = stopped_by == "memory" and diagnosis.bound_by == "memory"
        return None if ended and held > 0 else ", memory floor not reached"
    if scenario.expect == "limit":
        found = held > 0 and diagnosis.bound_by not in NO_LIMIT and diagnosis.sure != "unsure"
        return None if found or stopped_by == "complete" else ", no limit could be named"
    return None if reached(scenario, measured) else ""
