"""From evidence to the limit that bound: on which host, how sure, what shows it, what cures it.

Every source is asked for what it shows (:mod:`~bench.diagnosis.errnos`,
:mod:`~bench.diagnosis.counters`); the most direct finding names the limit, and all others that name
the same one stand beside it. Direct is what the kernel itself answered or wrote; a counter that
fits a time-out is not.
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


def diagnose(scenario: Scenario, measured: Measured, found: Evidence) -> Diagnosis:
    """The limit that stopped the run; ``none`` where it reached what was asked."""
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
    """All that was asked for: no limit bound, unless there was nothing more to ask for."""
    planned = found.predicted.limits.get("tuples") if found.predicted else None
    # Who looks for a limit is given as many as there are.
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
    """Whether all that was asked for was held, by all three counts."""
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
    if first is None:  # the clients stopped just short of it
        return Finding(FLOOR, "memory", fell, cure)
    seen = f"{first.host}: {fell} ({first.free_kib >> 10:,} MiB left)"
    return Finding(FLOOR, "memory", seen, cure, first.end, first.host)


def _errors(found: Evidence) -> str:
    """What system calls answered, by host and side; empty if nothing was counted."""
    return ", ".join(
        f"{host}, {side}: {name} {count:,}"
        for (side, host), errors in sorted(found.errors.items())
        for name, count in sorted(errors.items())
        if count
    )


def _unnamed(measured: Measured, found: Evidence) -> Finding:
    """No limit left a trace that is known here: say what there is."""
    cure = "see raw/ and the hosts' kernel messages"
    if errors := _errors(found):
        return Finding(VAGUE, "errors", errors, cure)
    unseen = [
        f"{name}: {host.phases['peak'].missing['ss']}"
        for name, host in sorted(found.hosts.items())
        if "peak" in host.phases and "ss" in host.phases["peak"].missing
    ]
    if unseen:
        return Finding(VAGUE, "unknown", f"ss did not count ({unseen[0]})", "make ss work there")
    seen = measured.established
    if len({seen.clients, seen.servers, seen.ss}) > 1:
        figures = f"clients {seen.clients:,}, servers {seen.servers:,}, ss {seen.ss:,}"
        return Finding(
            VAGUE,
            "unknown",
            f"the three counts disagree ({figures}) and no error tells why",
            cure,
        )
    if measured.lost:
        lost = f"{measured.lost:,} connections were lost without an error"
        return Finding(VAGUE, "lost", lost, cure)
    return Finding(VAGUE, "unknown", "no error and no counter tells why", cure)
