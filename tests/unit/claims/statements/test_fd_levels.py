"""Verdicts on what bounds open files, from invented figures."""

from __future__ import annotations

import pytest

from bench.claims.statements.fd_levels import FdLevelsFound, judge_fd_levels

LEVELS = FdLevelsFound(
    soft=256,
    process_open=256,
    process_errno="EMFILE",
    soft_above_hard="EINVAL",
    hard_raised="EPERM",
    hard=256,
    together=512,
    nr_open=1_048_576,
    at_nr_open="",
    above_nr_open="EPERM",
    file_max=2_000,
    system_open=2_000,
    system_errno="ENFILE",
    root_opened=200,
    root_errno="",
    star=2_000,
    star_ordinary=2_000,
    star_root=1_048_576,
    before_root=1_048_576,
    locks_ordinary=2_000,
    locks_root=-1,
    inherited=3_000,
    named_root=2_000,
    too_high=None,
    too_high_said="su: Permission denied",
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "depends"),
        ({"together": 256}, "confirmed"),
        ({"process_errno": ""}, "refuted"),
        ({"hard_raised": ""}, "refuted"),
        ({"above_nr_open": ""}, "refuted"),
        ({"system_errno": "", "system_open": 5_000}, "refuted"),
        ({"system_errno": "", "system_open": 1_500}, "inconclusive"),
        ({"system_errno": "", "system_open": 2_100}, "inconclusive"),  # the count is not exact
        ({"system_errno": "EMFILE"}, "inconclusive"),
        ({"process_open": 250}, "inconclusive"),
        ({"file_max": None, "shared": "one kernel"}, "not measurable here"),
    ],
)
def test_levels_are_judged_by_what_refused(changes, verdict) -> None:
    assert judge_fd_levels(LEVELS.model_copy(update=changes)).verdict == verdict


def test_what_was_measured_stands_beside_what_was_not() -> None:
    told = judge_fd_levels(LEVELS.model_copy(update={"file_max": None, "shared": "one kernel"}))
    assert told.reason == "one kernel"
    assert "EMFILE at 256 files" in told.measured and "ENFILE" not in told.measured


@pytest.mark.parametrize(
    ("opened", "refused", "said"),
    [
        (200, "", "(and spares CAP_SYS_ADMIN)"),
        (1_017, "EMFILE", "(and spares CAP_SYS_ADMIN)"),  # its own nofile ended it, not file-max
        (0, "ENFILE", "(and does not spare CAP_SYS_ADMIN)"),
        (30, "ENFILE", "(and does not spare CAP_SYS_ADMIN)"),  # the count is not exact
    ],
)
def test_only_the_limit_of_the_system_tells_whether_it_spares_root(opened, refused, said) -> None:
    changes = {"root_opened": opened, "root_errno": refused}
    for together in (256, 512):
        seen = LEVELS.model_copy(update={**changes, "together": together})
        assert said in judge_fd_levels(seen).reason


def test_where_root_may_not_raise_a_limit_nr_open_is_not_named() -> None:
    told = judge_fd_levels(LEVELS.model_copy(update={"at_nr_open": "EPERM"}))
    assert "above fs.nr_open;" not in told.measured


def test_a_line_for_all_skips_root_only_where_it_did() -> None:
    assert "skipped root" in judge_fd_levels(LEVELS).measured
    reached = LEVELS.model_copy(update={"locks_root": 2_000})
    assert "skipped root" not in judge_fd_levels(reached).measured


@pytest.mark.parametrize(
    ("too_high", "words"),
    [
        (None, "got no session"),
        (3_000, "kept the 3,000 of who opened"),
        (20_000, "fs.nr_open got 20,000"),
    ],
)
def test_a_login_above_nr_open_is_told_as_seen(too_high, words) -> None:
    assert words in judge_fd_levels(LEVELS.model_copy(update={"too_high": too_high})).measured
