"""From evidence to the limit that stopped a run: its host, its certainty, its evidence, its cure.

Every source yields findings (:mod:`~bench.diagnosis.errnos`, :mod:`~bench.diagnosis.counters`). The
most direct finding names the limit, and all findings that name the same limit are its evidence. An
answer or a message of the kernel is direct; a counter that fits a time-out is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bench.diagnosis.counters import counted, said
from bench.diagnosis.errnos import answered
from bench.diagnosis.findings import ANSWER, COUNTED, FLOOR, SAID, VAGUE, Evidence, Finding
from bench.model.catalogue import CATALOGUE
from bench.results.format import Diagnosis, Measured
from bench.scenario import Scenario
from bench.units import plural


def diagnose(scenario: Scenario, measured: Measured, found: Evidence) -> Diagnosis:
    """Return the limit that stopped the run; ``none`` if the run reached its goal."""
    if reached(scenario, measured) or (
        scenario.expect == "limit" and found.stopped_by == "complete"
    ):
        return _all_held(scenario, found)
    findings = sorted(_findings(scenario, measured, found), key=lambda one: one.rank)
    first = findings[0]
    agreeing = [one for one in findings if one.bound_by == first.bound_by]
    if first.rank <= ANSWER or (len(agreeing) > 1 and first.rank <= SAID):
        sure: Literal["certain", "likely", "unsure"] = "certain"
    else:
        sure = "likely" if first.rank < VAGUE else "unsure"
    return Diagnosis(
        bound_by=first.bound_by,
        end=first.end,
        host=first.host,
        sure=sure,
        evidence=list(dict.fromkeys(one.evidence for one in agreeing)),
        cure=first.cure,
    )


def _all_held(scenario: Scenario, found: Evidence) -> Diagnosis:
    """Return the diagnosis of a run that held all connections: ``none``, or ``tuples`` if there
    were no more four-tuples to try."""
    planned = found.predicted.limits.get("tuples") if found.predicted else None
    # A run that looks for a limit is given all four-tuples that there are.
    if scenario.expect == "limit" and planned is not None and scenario.connections >= planned:
        return Diagnosis(
            bound_by="tuples",
            end="path",
            sure="certain",
            evidence=[f"all {planned:,} four-tuples that addresses and ports allow were used"],
            cure=f"add {CATALOGUE['tuples'].raise_by}",
        )
    return Diagnosis(
        bound_by="none",
        sure="certain",
        evidence=[f"all {scenario.connections:,} connections were held"],
        cure="ask for more connections to find the limit",
    )


def reached(scenario: Scenario, measured: Measured) -> bool:
    """Return whether all connections of the scenario were held, by all three counts."""
    counts = measured.established
    held = min(counts.clients, counts.servers, counts.ss)
    return held >= scenario.connections - scenario.expect_lost


def _findings(scenario: Scenario, measured: Measured, found: Evidence) -> Iterator[Finding]:
    if found.stopped_by == "memory":
        yield _floor(scenario, found)
    yield from answered(scenario, measured, found)
    for name, host in sorted(found.hosts.items()):
        yield from said(name, host)
    yield from counted(scenario, measured, found)
    if found.stopped_by == "timeout":
        errors = _errors(found)
        yield Finding(
            COUNTED,
            "ramp_timeout_seconds",
            f"the ramp was stopped after {scenario.ramp_timeout_seconds:g} s"
            + (f" ({errors})" if errors else ""),
            "raise ramp_timeout_seconds, or max_in_flight and connect_rate",
        )
    yield _unnamed(measured, found)


def _floor(scenario: Scenario, found: Evidence) -> Finding:
    fell = f"really free memory fell to the floor of {scenario.memory_floor_mib:,} MiB"
    cure = "add memory or hosts, or lower memory_floor_mib"
    first = found.floor
    if first is None:  # the clients stopped just above the floor
        return Finding(FLOOR, "memory", fell, cure)
    seen = f"{first.host}: {fell} ({first.free_kib >> 10:,} MiB left)"
    return Finding(FLOOR, "memory", seen, cure, first.end, first.host)


def _errors(found: Evidence) -> str:
    """Return the errnos by host and side, in words; empty if none was counted."""
    return ", ".join(
        f"{host}, {side}: {name} {count:,}"
        for (side, host), errors in sorted(found.errors.items())
        for name, count in sorted(errors.items())
        if count
    )


def _unnamed(measured: Measured, found: Evidence) -> Finding:
    """Return a finding for a run in which no known limit left a trace: whatever evidence exists."""
    cure = "see raw/ and the hosts' kernel messages"
    if errors := _errors(found):
        return Finding(VAGUE, "errors", errors, cure)
    unseen = [
        f"{name}: {host.phases['peak'].missing['ss']}"
        for name, host in sorted(found.hosts.items())
        if "peak" in host.phases and "ss" in host.phases["peak"].missing
    ]
    if unseen:
        return Finding(
            VAGUE, "unknown", f"ss did not count ({unseen[0]})", "make ss work on that host"
        )
    seen = measured.established
    if len({seen.clients, seen.servers, seen.ss}) > 1:
        figures = f"clients {seen.clients:,}, servers {seen.servers:,}, ss {seen.ss:,}"
        return Finding(
            VAGUE,
            "unknown",
            f"the three counts disagree ({figures}) and no error explains it",
            cure,
        )
    if measured.lost:
        lost = f"{plural(measured.lost, 'connection')} lost without an error"
        return Finding(VAGUE, "lost", lost, cure)
    return Finding(VAGUE, "unknown", "no error and no counter explains it", cure)
