from __future__ import annotations

from typing import Any

import pytest
from evidence import Found, hosts, measured
from runs import SCENARIO

from bench.diagnosis.diagnose import diagnose
from bench.diagnosis.verdict import verdict
from bench.results.format import Churn, EchoRound, Established, Latency, Liveness


def judged(**changes: Any) -> tuple[str, str]:
    seen = measured(1_000_000, **changes)
    return verdict(SCENARIO, seen, diagnose(SCENARIO, seen, Found(hosts())), "complete")


def test_verdict_passes_with_its_proof() -> None:
    assert judged() == (
        "pass",
        "1,000,000 connections held by all three counts, 1,000 of 1,000 echoes answered",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"established": Established(clients=1_000_001, servers=1_000_000, ss=1_000_000)}, "agree"),
        (
            {"established": Established(clients=1_000_000, servers=1_000_000, ss=9)},
            "9 of 1,000,000",
        ),
        ({"established": Established(clients=1_000_000, servers=1_000_000, ss=1_000_001)}, "agree"),
        ({"established": Established(clients=1_000_000, servers=1_000_001, ss=1_000_000)}, "agree"),
        ({"lost": 1}, "1 connection lost, expected at most 0"),
        ({"liveness": Liveness(mode="sample", asked=10, answered=9)}, "9 of 10 echoes"),
        ({"liveness": Liveness(mode="all", asked=10, answered=10, wrong=1)}, "1 wrong"),
        (
            {
                "liveness": Liveness(
                    mode="sample", asked=10, answered=7, unanswered={"client1": 1, "client2": 2}
                )
            },
            "7 of 10 echoes answered, 0 wrong; not answered: client1 1, client2 2",
        ),
        ({"liveness": Liveness(mode="sample")}, "0 of 0 echoes"),
        ({"left_after": 3}, "3 sockets left"),
    ],
)
def test_verdict_fails_with_its_reason(changes: dict[str, Any], said: str) -> None:
    found, reason = judged(**changes)
    assert found == "fail"
    assert said in reason


def test_as_many_lost_as_were_expected_pass() -> None:
    wanted = SCENARIO.model_copy(update={"expect_lost": 3})
    for lost, found in ((3, "pass"), (4, "fail")):
        seen = measured(1_000_000, lost=lost)
        judged = verdict(wanted, seen, diagnose(wanted, seen, Found(hosts())), "complete")
        assert judged[0] == found


def echo_round(**changed: Any) -> EchoRound:
    """A round over a million connections, whole unless something is said."""
    one = EchoRound(
        mode="pipelined",
        asked=1_000_000,
        answered=1_000_000,
        wrong=0,
        silent=0,
        seconds=12.0,
        latency_us=Latency(),
        client_cpu_seconds=10.0,
        server_cpu_seconds=12.0,
    )
    return one.model_copy(update=changed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answered": 999_999, "wrong": 1}, "999,999 of 1,000,000 bytes answered, 1 wrong"),
        ({"wrong": 1}, "1,000,000 of 1,000,000 bytes answered, 1 wrong"),
        ({"answered": 999_990, "silent": 10}, "0 wrong, 10 connections silent"),
        ({"asked": 999_990, "answered": 999_990}, "999,990 of 1,000,000 bytes answered"),
        ({"mode": "sequential", "asked": 8, "answered": 0, "silent": 8}, "0 of 8 bytes"),
        ({"mode": "sequential", "asked": 0, "answered": 0}, "0 of 0 bytes"),
    ],
)
def test_every_byte_of_a_round_has_to_be_answered(changes: dict[str, Any], said: str) -> None:
    bad = echo_round(**changes)
    found, reason = judged(rounds=[echo_round(), bad])
    assert found == "fail"
    assert reason.startswith(f"echo round 2 ({bad.mode}): ")
    assert said in reason


def test_rounds_are_part_of_the_proof() -> None:
    few = echo_round(mode="sequential", asked=100, answered=100)
    found, reason = judged(rounds=[echo_round(), echo_round(), few])
    assert found == "pass"
    assert reason.endswith("echoes answered, 2,000,100 bytes answered in 3 echo rounds")


def churned(lost: int = 0, **held: int) -> Churn:
    """Churn after which all counts are a million less what was lost, unless something is said."""
    left = dict.fromkeys(("clients", "servers", "ss"), 1_000_000 - lost)
    return Churn(
        closed=9_000_000,
        opened=9_000_000 - lost,
        lost=lost,
        seconds=900.0,
        held=Established(**{**left, **held}),
    )


def test_churn_is_part_of_the_proof() -> None:
    found, reason = judged(churn=churned(), rounds=[echo_round()])
    assert found == "pass"
    assert reason.endswith("in 1 echo round, 9,000,000 connections closed and reopened meanwhile")


def ended(held: int = 1_000_000, **counts: int) -> Established:
    """Counts at the end of the hold."""
    return Established(**{**dict.fromkeys(("clients", "servers", "ss"), held), **counts})


@pytest.mark.parametrize(
    ("end", "lost"),
    [
        (ended(clients=999_999), 0),
        (ended(servers=1_000_001), 0),
        (ended(servers=0), 0),
        (ended(ss=999_999), 0),
        (ended(), 1),
        (ended(999_999), 0),
    ],
)
def test_counts_that_disagree_at_the_end_of_the_hold(end: Established, lost: int) -> None:
    found, reason = judged(held_end=end, lost_in_hold=lost)
    assert found == "fail"
    assert reason.startswith("at the end of the hold the three counts disagree: clients ")
    assert reason.endswith(f", expected {1_000_000 - lost:,}")


def test_what_was_lost_in_the_hold_is_not_there_at_its_end() -> None:
    lenient = SCENARIO.model_copy(update={"expect_lost": 7})
    for end, verdict_ in ((ended(999_993), "pass"), (ended(), "fail")):
        seen = measured(1_000_000, held_end=end, lost=7, lost_in_hold=7)
        assert verdict(lenient, seen, diagnose(lenient, seen, Found(hosts())), "complete")[0] == (
            verdict_
        )


def test_what_churn_has_lost_fails_unless_it_was_expected() -> None:
    found, reason = judged(churn=churned(lost=7), lost=7)
    assert (found, reason) == ("fail", "7 connections lost, expected at most 0")
    lenient = SCENARIO.model_copy(update={"expect_lost": 7})
    few = echo_round(asked=999_993, answered=999_993)
    seen = measured(1_000_000, churn=churned(lost=7), lost=7, rounds=[few])
    diagnosed = diagnose(lenient, seen, Found(hosts()))
    assert verdict(lenient, seen, diagnosed, "complete")[0] == "pass"
    seen.rounds.append(echo_round(asked=999_992, answered=999_992))
    assert "999,992 of 999,993 bytes" in verdict(lenient, seen, diagnosed, "complete")[1]


def test_verdict_without_echoes_or_drain() -> None:
    changes: dict[str, Any] = {"liveness": Liveness(mode="none"), "left_after": None}
    assert judged(**changes, drain_seconds=None)[0] == "pass"
    assert judged(**changes) == ("fail", "the sockets left after the drain were not counted")


def floored(held: int = 983_120, stopped_by: str = "memory", **changes: Any) -> tuple[str, str]:
    wanted = SCENARIO.model_copy(update={"expect": "floor", "memory_floor_mib": 64})
    seen = measured(held, **changes)
    diagnosis = diagnose(wanted, seen, Found(hosts(), stopped_by=stopped_by))
    return verdict(wanted, seen, diagnosis, stopped_by)


def test_ending_at_the_floor_may_be_what_was_expected() -> None:
    assert floored() == (
        "pass",
        "983,120 connections held by all three counts above the memory floor of 64 MiB, "
        "1,000 of 1,000 echoes answered",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held": 1_000_000}, "memory floor not reached, bound by none: all 1,000,000 connections"),
        ({"stopped_by": "timeout"}, "memory floor not reached, bound by ramp_timeout_seconds"),
        ({"stopped_by": "complete", "lost": 0}, "memory floor not reached"),
        ({"held": 0, "liveness": Liveness(mode="none")}, "0 of 1,000,000 connections held, memory"),
        ({"established": Established(clients=9, servers=8, ss=9)}, "the three counts disagree"),
        ({"lost": 1}, "1 connection lost"),
        ({"liveness": Liveness(mode="sample", asked=10, answered=9)}, "9 of 10 echoes"),
        ({"left_after": 3}, "3 sockets left"),
    ],
)
def test_the_floor_is_met_only_with_everything_alive(changes: dict[str, Any], said: str) -> None:
    found, reason = floored(**changes)
    assert found == "fail"
    assert said in reason


def test_the_floor_fails_a_run_that_expects_all() -> None:
    seen = measured(983_120)
    diagnosis = diagnose(SCENARIO, seen, Found(hosts(), stopped_by="memory"))
    assert verdict(SCENARIO, seen, diagnosis, "memory")[0] == "fail"


def limited(errors: dict[str, dict[str, int]], **changes: Any) -> tuple[str, str]:
    wanted = SCENARIO.model_copy(update={"expect": "limit"})
    seen = measured(19_936, **changes)
    diagnosis = diagnose(wanted, seen, Found(hosts(), errors, stopped_by="limit"))
    return verdict(wanted, seen, diagnosis, "limit")


def test_a_limit_that_was_looked_for_and_named_passes() -> None:
    assert limited({"server": {"EMFILE": 3}}) == (
        "pass",
        "19,936 connections held by all three counts, then bound by nofile on server1 (certain), "
        "1,000 of 1,000 echoes answered",
    )


@pytest.mark.parametrize(
    ("errors", "changes", "said"),
    [
        ({}, {}, "no limit could be named, bound by unknown"),
        ({"client": {"EPIPE": 2}}, {}, "no limit could be named, bound by errors"),
        ({"server": {"EMFILE": 3}}, {"lost": 1}, "1 connection lost"),
        (
            {"server": {"EMFILE": 3}},
            {"liveness": Liveness(mode="sample", asked=10, answered=9)},
            "9 of 10 echoes",
        ),
    ],
)
def test_a_limit_without_a_name_or_with_the_dead_fails(
    errors: dict[str, dict[str, int]], changes: dict[str, Any], said: str
) -> None:
    found, reason = limited(errors, **changes)
    assert found == "fail"
    assert said in reason
