import dataclasses
from typing import Any

import pytest
from vm_parts import (
    IMAGE,
    fleet,
    host,
    lab_plan,
    parameters,
    plan,
    refusal,
    vm_arguments,
    vm_layout,
)


def running(lab: Any, **other: Any) -> dict[str, Any]:
    return {
        vm.name: plan.Found(
            **{
                "alive": True,
                "image": IMAGE,
                "configuration": vm_arguments.configuration(lab, vm, "tcg", IMAGE),
                "traces": True,
                **other,
            }
        )
        for vm in lab.vms
    }


def decide(lab: Any, found: dict[str, Any], kind: str = "tcg", image: str = IMAGE) -> Any:
    return plan.decide(lab, kind, image, found)


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_a_fleet_as_wanted_is_left_alone(machines: int) -> None:
    lab = fleet(machines)
    made = decide(lab, running(lab))
    assert made.empty
    assert made == lab_plan.Plan()


def test_nothing_there_is_made_from_nothing() -> None:
    made = decide(fleet(3), {})
    assert not made.empty
    assert made.start == ["server1", "client1", "client2"]
    assert not (made.stop or made.wipe or made.remove)
    assert made.reasons["server1"] == "it was not running"


@pytest.mark.parametrize(
    ("change", "stop", "wipe", "reason"),
    [
        ({"alive": False}, False, False, "it was not running"),
        ({"image": "/lab/image/0"}, True, True, "the image changed"),
        ({"image": "/lab/image/0", "alive": False}, False, True, "the image changed"),
        ({"configuration": "other"}, True, False, "its configuration"),
        # Made by an older version, or its note is lost.
        ({"configuration": ""}, True, False, "its configuration"),
    ],
)
def test_what_is_wrong_with_a_client_is_healed_and_no_other_is_touched(
    change: dict[str, Any], stop: bool, wipe: bool, reason: str
) -> None:
    lab = fleet(3)
    found = running(lab)
    found["client1"] = dataclasses.replace(found["client1"], **change)
    made = decide(lab, found)
    assert made.start == ["client1"]
    assert made.stop == ["client1"] * stop
    assert made.wipe == ["client1"] * wipe
    assert made.remove == []
    assert made.reasons == {"client1": reason}


def test_all_start_anew_with_the_one_where_their_data_links_meet() -> None:
    lab = fleet(3)
    found = running(lab)
    found["server1"].alive = False
    made = decide(lab, found)
    assert made.start == ["server1", "client1", "client2"]
    assert made.stop == ["client1", "client2"]
    assert made.wipe == []
    assert made.reasons == {
        "server1": "it was not running",
        "client1": "its data link ends in a machine that restarts",
        "client2": "its data link ends in a machine that restarts",
    }


def test_another_image_is_for_all() -> None:
    lab = fleet()
    made = decide(lab, running(lab), image="/lab/image/2")
    assert made.stop == made.wipe == made.start == ["server1", "client1"]
    assert set(made.reasons.values()) == {"the image changed"}


def test_another_accelerator_is_for_all_and_keeps_the_disks() -> None:
    lab = fleet()
    made = decide(lab, running(lab), kind="kvm")
    assert made.stop == made.start == ["server1", "client1"]
    assert made.wipe == []


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (2, 1), (4, 3)])
def test_another_number_of_machines_changes_every_data_link(before: int, after: int) -> None:
    made = decide(fleet(after), running(fleet(before)))
    gone = [f"client{number}" for number in range(after, before)]
    kept = [vm.name for vm in fleet(min(before, after)).vms]
    assert made.remove == gone
    assert made.stop == kept
    assert made.start == [vm.name for vm in fleet(after).vms]


@pytest.mark.parametrize("found", [plan.Found(alive=True), plan.Found(traces=True)])
def test_a_machine_that_is_not_wanted_is_removed(found: Any) -> None:
    lab = fleet()
    made = decide(lab, running(lab) | {"client7": found})
    assert made.remove == ["client7"]
    assert made.reasons == {"client7": "not in the inventory's groups any more"}
    assert not (made.start or made.stop or made.wipe)
    assert not made.empty


def test_a_disk_of_which_nothing_is_known_is_not_used() -> None:
    """It may stand on another image, or be half made: the note is written after it."""
    lab = fleet()
    made = decide(lab, running(lab) | {"client1": plan.Found(traces=True)})
    assert made.wipe == ["client1"]


def test_machines_that_do_not_fit_are_refused_by_their_sum() -> None:
    vms = vm_layout.lay_out(
        parameters(host("server1", memory_mib=4000), host("client1", memory_mib=5200))
    ).vms
    plan.check_memory(vms, 10_312)
    assert refusal(plan.check_memory, vms, 10_311) == (
        "server1 4000 + client1 5200 MiB, 300 MiB for each QEMU and 512 MiB to spare are "
        "10312 MiB, and MemAvailable is 10311 MiB: lower connections or lab_vm_memory_mib, "
        "or free memory"
    )


def test_without_a_machine_to_start_memory_does_not_matter() -> None:
    plan.check_memory([], 0)
    assert "MemAvailable is 0 MiB" in refusal(plan.check_memory, fleet().vms[:1], 0)
