"""Open files of a trial's own: refused where its limits are, and closed at its end."""

from __future__ import annotations

import resource

import pytest
from beds import Bed

from bench.errors import LabError
from bench.hosts.trials import Trials


@pytest.fixture
def trials(bed: Bed):
    with Trials(bed.connect) as made:
        yield made


def test_a_process_is_refused_at_its_soft_limit(trials: Trials, bed: Bed) -> None:
    one = trials.begin(bed.inventory().hosts["server"], "openfiles")
    hard = one.first["hard"]
    assert hard == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert one.go(limit=[100, hard])["limit"] == ""
    full = one.go(fill=1000)
    assert (full["own"], full["errno"]) == (100, "EMFILE")
    assert full["files"] > 100
    one.go(drop=True)
    few = one.go(fill=10)
    assert (few["opened"], few["errno"]) == (10, "")
    assert one.go(limit=[hard + 1, hard])["limit"] == "EINVAL"


def test_what_one_process_may_have_is_not_shared_with_another(trials: Trials, bed: Bed) -> None:
    one = trials.begin(bed.inventory().hosts["server"], "openfiles")
    one.go(limit=[80, 80])
    assert one.go(together=[2, 1000])["each"] == [[80, "EMFILE"], [80, "EMFILE"]]
    assert one.go(together=[3, 5])["each"][0][1] == ""


def test_nobody_raises_a_limit_above_nr_open(trials: Trials, bed: Bed) -> None:
    one = trials.begin(bed.inventory().hosts["server"], "openfiles")
    above = one.first["nr_open"] + 1
    assert one.go(limit=[one.first["soft"], above])["limit"] == "EPERM"


def test_bad_arguments_are_named(trials: Trials, bed: Bed) -> None:
    host = bed.inventory().hosts["server"]
    with pytest.raises(LabError, match="openfiles: got most, expected no arguments"):
        trials.begin(host, "openfiles", most=5)
    with pytest.raises(LabError, match=r"logins: users: got \[\], expected a list"):
        trials.begin(host, "logins", users=[])
    with pytest.raises(LabError, match="logins: hard: got None, expected 256 to"):
        trials.begin(host, "logins", users=["root"])


def test_a_login_tells_its_hard_limit_or_why_there_was_none(trials: Trials, bed: Bed) -> None:
    one = trials.begin(
        bed.inventory().hosts["server"], "logins", users=["root", "no-such-user"], hard=300
    )
    users = one.first["users"]
    assert users["root"]["hard"] >= 300 and users["root"]["said"] == ""
    assert users["no-such-user"]["hard"] is None and "no-such-user" in users["no-such-user"]["said"]
