"""The nofile limit that a new session of the login and a service really have."""

import subprocess
from collections.abc import Callable

from conftest import Variables
from testinfra.host import Host
from tune_loader import load

load("lab_common", "module_utils", "connlab_record")
formulas = load("tune_limits", "filter_plugins", "tune_limits")
shares = load("lab_common", "filter_plugins", "connlab_share")

Session = Callable[..., subprocess.CompletedProcess[str]]


def test_a_new_session_has_the_limit_that_the_record_claims(
    new_session: Session, variables: Variables, record: Callable[[str], Variables]
) -> None:
    done = new_session("id -un; ulimit -Hn; ulimit -Sn")
    settings = record("tune_limits")["settings"]
    assert done.stdout.split() == [
        variables["ansible_user"],
        settings["nofile.hard"]["set"],
        settings["nofile.soft"]["set"],
    ]


def test_the_limit_is_what_the_connections_ask_for_or_the_shortfall_is_reported(
    host: Host, variables: Variables, record: Callable[[str], Variables]
) -> None:
    kept = record("tune_limits")
    share = shares.connlab_share(
        variables["connections"], variables["groups"], variables["inventory_hostname"]
    )
    hard = kept["settings"]["nofile.hard"]
    assert int(hard["wanted"]) == share + formulas.DESCRIPTOR_RESERVE
    assert int(hard["set"]) <= int(host.check_output("cat /proc/sys/fs/nr_open"))
    if int(hard["set"]) >= int(hard["wanted"]):
        assert kept["reported"] == {}
        return
    bounding_set = host.check_output("grep CapBnd /proc/1/status").split()[1]
    assert not formulas.may_raise(bounding_set)
    assert "CAP_SYS_RESOURCE" in kept["reported"]["nofile"]


def test_a_service_that_systemd_starts_gets_it_too(
    host: Host, record: Callable[[str], Variables]
) -> None:
    script = "ulimit -Hn; ulimit -Sn"
    done = host.check_output(
        f"sudo -n systemd-run --quiet --wait --pipe --collect sh -c '{script}'"
    )
    assert done.split() == [record("tune_limits")["settings"]["nofile.hard"]["set"], "1024"]
