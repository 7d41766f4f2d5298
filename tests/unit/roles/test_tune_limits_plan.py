import json
import resource
import subprocess
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st
from tune_loader import load

load("lab_common", "module_utils", "connlab_record")
plan_module = load("tune_limits", "filter_plugins", "tune_limits")
limits_module = load("tune_limits", "library", "connlab_limits")

ALL = "000001ffffffffff"
WITHOUT_SYS_RESOURCE = "000001fffeffffff"


def probe(**changes: Any) -> dict[str, Any]:
    return {
        "hard": 524288,
        "soft": 1024,
        "bounding_set": ALL,
        "login_hard": 524288,
        "nr_open": 1048576,
        **changes,
    }


def test_the_limit_of_a_million() -> None:
    assert plan_module.tune_limits_plan(probe(), 1_000_000, "", "raise") == {
        "wanted": 1_004_096,
        "effective": 1_004_096,
        "reported": {},
    }


def test_a_limit_of_just_nr_open_is_granted() -> None:
    for own in ("", 1_048_576):
        share = 1_048_576 - plan_module.DESCRIPTOR_RESERVE
        plan = plan_module.tune_limits_plan(probe(), share, own, "raise")
        assert plan == {"wanted": 1_048_576, "effective": 1_048_576, "reported": {}}
    with pytest.raises(AnsibleFilterError, match="wanted 1048577"):
        plan_module.tune_limits_plan(probe(), 1, 1_048_577, "raise")


def test_raise_keeps_what_a_session_has_and_exact_does_not() -> None:
    kept = plan_module.tune_limits_plan(probe(), 20_000, "", "raise")
    lowered = plan_module.tune_limits_plan(probe(), 20_000, "", "exact")
    assert (kept["effective"], lowered["effective"]) == (524288, 24096)


def test_a_host_whose_pid_1_cannot_raise_is_capped_and_says_so() -> None:
    seen = probe(hard=20_000, login_hard=20_000, bounding_set=WITHOUT_SYS_RESOURCE)
    plan = plan_module.tune_limits_plan(seen, 1_000_000, "", "raise")
    assert (plan["wanted"], plan["effective"]) == (1_004_096, 20_000)
    assert "CAP_SYS_RESOURCE" in plan["reported"]["nofile"]
    enough = plan_module.tune_limits_plan(seen, 10_000, "", "raise")
    assert (enough["effective"], enough["reported"]) == (20_000, {})


def test_a_computed_limit_stops_at_nr_open_and_a_persons_own_is_refused() -> None:
    plan = plan_module.tune_limits_plan(probe(), 2_000_000, "", "raise")
    assert plan["effective"] == 1048576
    assert "fs.nr_open" in plan["reported"]["nofile"]
    with pytest.raises(AnsibleFilterError, match=r"wanted 2000000, found fs\.nr_open 1048576"):
        plan_module.tune_limits_plan(probe(), 1, 2_000_000, "raise")
    planned = plan_module.tune_limits_plan(probe(), 1, 2_000_000, "raise", 2**21)
    assert planned["effective"] == 2_000_000


@pytest.mark.parametrize("nofile", ["many", "-1", 0, "1.5", "unlimited"])
def test_a_limit_that_is_none(nofile: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"tune_limits_nofile: .*expected"):
        plan_module.tune_limits_plan(probe(), 1, nofile, "raise")


@given(
    st.integers(1, 10**8),
    st.integers(1, 2**31),
    st.integers(1, 2**31),
    st.integers(64, 2**30),
    st.sampled_from([ALL, WITHOUT_SYS_RESOURCE]),
    st.sampled_from(["raise", "exact"]),
)
def test_no_plan_locks_a_login_out_or_falls_short_unsaid(
    share: int, hard: int, login_hard: int, nr_open: int, caps: str, state: str
) -> None:
    seen = probe(hard=hard, login_hard=login_hard, nr_open=nr_open, bounding_set=caps)
    plan = plan_module.tune_limits_plan(seen, share, "", state)
    assert plan["effective"] <= nr_open
    if caps == WITHOUT_SYS_RESOURCE:
        assert plan["effective"] <= login_hard
    if plan["effective"] < plan["wanted"]:
        assert str(plan["wanted"]) in plan["reported"]["nofile"]
        assert str(plan["effective"]) in plan["reported"]["nofile"]


def test_files_of_logins_and_of_every_service() -> None:
    files = plan_module.tune_limits_files("connlab", ["lab", "root"], [], 5000, 1024)
    assert list(files) == [
        "/etc/security/limits.d/90-connlab.conf",
        "/etc/systemd/system/service.d/90-connlab.conf",
    ]
    logins, services = files.values()
    assert [line for line in logins.splitlines() if not line.startswith("#")] == [
        "lab soft nofile 5000",
        "lab hard nofile 5000",
        "root soft nofile 5000",
        "root hard nofile 5000",
    ]
    assert services.splitlines()[1:] == ["[Service]", "LimitNOFILE=1024:5000"]


def test_files_of_services_by_name() -> None:
    names = ["nginx", "haproxy.service"]
    files = plan_module.tune_limits_files("connlab", ["lab"], names, 5000, 5000)
    assert list(files)[1:] == [
        "/etc/systemd/system/nginx.service.d/90-connlab.conf",
        "/etc/systemd/system/haproxy.service.d/90-connlab.conf",
    ]
    assert all(text.endswith("LimitNOFILE=5000\n") for text in list(files.values())[1:])


def test_the_probe_tells_what_this_process_really_has() -> None:
    seen = limits_module.look()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (seen["soft"], seen["hard"]) == (soft, hard)
    with open("/proc/sys/fs/nr_open", encoding="ascii") as stream:
        assert seen["nr_open"] == int(stream.read())
    assert int(seen["bounding_set"], 16) > 0
    assert json.dumps(seen)


def test_the_capability_bit_is_the_one_that_setrlimit_asks_for() -> None:
    """A child raises its hard limit just where may_raise says that it can."""
    with open("/proc/self/status", encoding="utf-8") as stream:
        effective = limits_module.field(stream.read(), "CapEff:", 0)
    code = (
        "import resource as r;h=r.getrlimit(r.RLIMIT_NOFILE)[1];"
        "r.setrlimit(r.RLIMIT_NOFILE,(h,h-1));r.setrlimit(r.RLIMIT_NOFILE,(h-1,h))"
    )
    done = subprocess.run(["python3", "-c", code], capture_output=True, check=False)
    assert (done.returncode == 0) == plan_module.may_raise(effective)


def test_the_login_service_is_an_ancestor_below_pid_1() -> None:
    pid = limits_module.login_service()
    with open(f"/proc/{pid}/status", encoding="utf-8") as stream:
        assert int(limits_module.field(stream.read(), "PPid:", 0)) in (0, 1)
