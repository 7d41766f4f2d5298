"""Roles that are killed at any of their writes: a revert and another run heal what is left."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from role_beds import BEDS, MOST_WRITES, Bed, Fuse, SysctlBed, install, record_module

Make = Callable[[], Bed]


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Fuse:
    fuse = Fuse()
    install(monkeypatch, fuse)
    return fuse


@pytest.fixture(params=BEDS)
def make(request: pytest.FixtureRequest, tmp_path: Path, fuse: Fuse) -> Make:
    numbers = iter(range(10_000))
    return lambda: BEDS[request.param](tmp_path / str(next(numbers)), fuse)


def interrupted(make: Make, before: Callable[[Bed], object], act: str) -> Iterator[Bed]:
    """Yield a host for each write of an act at which it was killed."""
    for at in range(1, MOST_WRITES):
        bed = make()
        before(bed)
        with bed.fuse.blowing(at) as blown:
            bed.revert() if act == "revert" else bed.tune(int(act))
        if not blown[0]:
            assert at > 2  # something was written at all
            return
        yield bed
    raise AssertionError(f"more than {MOST_WRITES} writes")


def nothing(_: Bed) -> None:
    pass


def test_a_tune_killed_at_any_write_is_reverted_as_a_whole(make: Make) -> None:
    found = make().state()
    for bed in interrupted(make, nothing, "1"):
        bed.revert()
        assert bed.state() == found
        assert not bed.record.exists()


def test_a_tune_killed_at_any_write_converges_when_run_again(make: Make) -> None:
    whole = make()
    found = whole.state()
    whole.tune()
    for bed in interrupted(make, nothing, "1"):
        assert bed.tune()["remarks"] == []
        assert bed.state() == whole.state()
        assert not bed.tune()["changed"]
        bed.revert()
        assert bed.state() == found


def test_another_tune_killed_at_any_write_is_reverted_as_a_whole(make: Make) -> None:
    found = make().state()
    for bed in interrupted(make, Bed.tune_first, "2"):
        bed.revert()
        assert bed.state() == found


def test_another_tune_killed_at_any_write_converges_either_way(make: Make) -> None:
    found = make().state()
    for number in (1, 2):
        whole = make()
        whole.tune(1)
        whole.tune(number)
        for bed in interrupted(make, Bed.tune_first, "2"):
            assert bed.tune(number)["remarks"] == []
            assert bed.state() == whole.state()
            bed.revert()
            assert bed.state() == found


def test_two_tunes_killed_one_after_the_other_are_reverted_as_a_whole(make: Make) -> None:
    found = make().state()
    for bed in interrupted(make, Bed.tune_first, "2"):
        with bed.fuse.blowing(4):
            bed.tune(1)
        bed.revert()
        assert bed.state() == found


def test_a_revert_killed_at_any_write_goes_on_when_run_again(make: Make) -> None:
    found = make().state()
    for bed in interrupted(make, Bed.tune_first, "revert"):
        bed.revert()
        assert bed.state() == found
        assert not bed.revert()["changed"]


def test_a_tune_heals_a_revert_killed_at_any_write(make: Make) -> None:
    whole = make()
    found = whole.state()
    whole.tune(1)
    for bed in interrupted(make, Bed.tune_first, "revert"):
        assert bed.tune(1)["remarks"] == []
        assert bed.state() == whole.state()
        bed.revert()
        assert bed.state() == found


@pytest.mark.parametrize("act", ["revert", "tune"])
def test_a_process_that_is_killed_between_record_and_values_is_healed(
    tmp_path: Path, fuse: Fuse, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """With a signal, so that its lock goes with it and nothing is tidied up."""
    bed = SysctlBed(tmp_path / "host", fuse)
    found = bed.state()
    child = os.fork()
    if not child:
        try:
            with record_module.locked(bed.record.parent, 0):
                # In place of the rename that would end the second write, that of the file.
                names: list[object] = []
                replace = os.replace

                def kill_second(source: object, target: object) -> None:
                    names.append(target)
                    if len(names) == 2:
                        os.kill(os.getpid(), signal.SIGKILL)
                    replace(source, target)  # type: ignore[arg-type]

                monkeypatch.setattr(os, "replace", kill_second)
                bed.tune()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert bed.record.exists()
    assert (tmp_path / "host" / "etc" / ".connlab-90-x.conf").exists()
    with record_module.locked(bed.record.parent, 0):
        if act == "tune":
            assert bed.tune()["remarks"] == []
            assert bed.get("net.core.somaxconn") == "10000"
        bed.revert()
    assert bed.state() == found
