from typing import Any

import pytest
from tune_loader import load

layout = load("lab_common", "module_utils", "connlab_layout")
files = load("lab_common", "module_utils", "connlab_files")
plan = load("lab_common", "module_utils", "connlab_plan")

IMAGE = "/lab/image/1"
SERVER = layout.Host("server1", "192.0.2.1/24", ("198.18.0.1/15", "fd63:6f6e:6e6c::1/48"))
CLIENT = layout.Host("client1", "192.0.2.2/24", ("198.18.1.1/15",))
LAB = layout.Lab(
    "connlab", (SERVER, CLIENT), "192.0.2.254/32", "192.0.2.0/26", "data0", "mgmt0", 1024
)


def running(host: Any, **other: Any) -> Any:
    fields = {
        "alive": True,
        "processes": True,
        "namespace": True,
        "links": frozenset({"lo", "data0", "mgmt0"}),
        "ehash": 1024,
        "image": IMAGE,
        "configuration": files.configuration(LAB, host),
        "traces": True,
    }
    return plan.Found(**{**fields, **other})


def decide(switch: bool = True, **found: Any) -> Any:
    both = {"server1": running(SERVER), "client1": running(CLIENT), **found}
    return plan.decide(LAB, IMAGE, both, switch)


def test_a_lab_as_wanted_is_left_alone() -> None:
    assert decide().empty


def test_a_bigger_table_is_fine() -> None:
    assert decide(client1=running(CLIENT, ehash=4096)).empty


def test_nothing_there_is_made_from_nothing() -> None:
    made = decide(False, server1=plan.Found(), client1=plan.Found())
    assert made.network == made.start == ["server1", "client1"]
    assert not (made.stop or made.wipe or made.remove)


@pytest.mark.parametrize(
    ("found", "stop", "wipe", "network", "reason"),
    [
        (running(CLIENT, alive=False, processes=False), False, False, False, "not running"),
        (running(CLIENT, alive=False), True, False, False, "supervisor was gone"),
        (running(CLIENT, ehash=512), True, False, True, "table of 512 buckets"),
        # The kernel shows the machine's shared table as a negative number.
        (running(CLIENT, ehash=-262144), True, False, True, "table of -262144 buckets"),
        (running(CLIENT, links=frozenset({"lo", "mgmt0"})), True, False, True, "links"),
        (running(CLIENT, namespace=False, links=frozenset()), True, False, True, "namespace"),
        (running(CLIENT, image="/lab/image/0"), True, True, False, "image changed"),
        (running(CLIENT, configuration="other"), True, False, False, "addresses"),
    ],
)
def test_what_is_wrong_with_a_host_is_healed(
    found: Any, stop: bool, wipe: bool, network: bool, reason: str
) -> None:
    made = decide(client1=found)
    assert made.start == ["client1"]
    assert made.stop == ["client1"] * stop
    assert made.wipe == ["client1"] * wipe
    assert made.network == ["client1"] * network
    assert reason in made.reasons["client1"]


def test_without_the_switch_every_host_gets_its_links_anew() -> None:
    made = decide(False)
    assert made.stop == made.network == made.start == ["server1", "client1"]


@pytest.mark.parametrize(
    "found",
    [running(CLIENT), plan.Found(traces=True), plan.Found(namespace=True)],
)
def test_a_host_that_is_not_wanted_is_removed(found: Any) -> None:
    made = decide(client2=found)
    assert made.remove == ["client2"]
    assert not made.start


def test_a_kernel_without_tables_per_namespace_is_no_reason_to_start_hosts_anew() -> None:
    lab = layout.Lab(*(getattr(LAB, name) for name in list(LAB.__dataclass_fields__)[:-1]), 0)
    found = {"server1": running(SERVER, ehash=-4), "client1": running(CLIENT, ehash=-4)}
    assert plan.decide(lab, IMAGE, found, True).empty


def test_files_give_fixed_addresses_and_no_way_out() -> None:
    made = files.host_files(LAB, SERVER)
    assert made["etc/hostname"] == "server1\n"
    data = made["etc/systemd/network/10-data0.network"]
    assert "Name=data0" in data
    assert data.count("[Address]") == 2
    assert "Address=fd63:6f6e:6e6c::1/48" in data
    assert "Address=192.0.2.1/24" in made["etc/systemd/network/10-mgmt0.network"]
    assert not any("Gateway" in text or "[Route]" in text for text in made.values())


def test_hosts_know_each_other_by_data_address() -> None:
    lines = files.hosts_file(LAB).splitlines()
    assert "198.18.1.1 client1" in lines
    assert "192.0.2.2 client1-mgmt" in lines


def test_configuration_changes_with_the_addresses() -> None:
    other = layout.Host("client1", "192.0.2.2/24", ("198.18.1.9/15",))
    assert files.configuration(LAB, CLIENT) != files.configuration(LAB, other)


def test_nspawn_gets_the_namespace_and_a_path_it_can_read() -> None:
    arguments = files.nspawn_arguments(LAB, CLIENT, "/lab:1/etc-hosts", 20_000)
    assert "--network-namespace-path=/run/netns/connlab-client1" in arguments
    assert r"--bind-ro=/lab\:1/etc-hosts:/etc/hosts" in arguments
    assert "--rlimit=RLIMIT_NOFILE=20000" in arguments


def test_last_words_have_neither_colours_nor_nspawns_own_noise() -> None:
    console = (
        "\x1b[0;1;31m!!!!!!\x1b[0m Failed to allocate manager object.\r\n\r\nExiting PID 1...\r\n"
        'Attempted to remove disk file system under "/run/x", and we can\'t allow that.\n'
    )
    assert files.last_words(console) == (
        "!!!!!! Failed to allocate manager object. / Exiting PID 1..."
    )
