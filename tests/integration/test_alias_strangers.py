"""Addresses asked for on a segment with a stranger, by the real module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.perf.netns import Namespaces

ROLE = Path(__file__).parents[2] / "roles" / "alias_ips"
FREE = [f"198.18.1.{byte}" for byte in range(2, 66)]


def ip(segment: Namespaces, host: str, command: str) -> str:
    """Run ip(8) on a host."""
    return segment.run(host, "ip", *command.split())


@pytest.fixture
def segment() -> Iterator[Namespaces]:
    """A host and a stranger with an address of each family, and a prefix that it answers for."""
    hosts = {
        "host": ["198.18.1.1/15", "fd63:6f6e:6e6c:1::1/48"],
        "stranger": ["198.18.1.7/15", "fd63:6f6e:6e6c:1::7/48"],
    }
    with Namespaces(f"ask-t{os.getpid()}", hosts) as made:
        ip(made, "stranger", "route add local 198.19.5.0/24 dev lo")
        yield made


def mac(segment: Namespaces, host: str = "stranger") -> str:
    [link] = json.loads(segment.run(host, "ip", "-j", "link", "show", "dev", "data0"))
    return str(link["address"])


def state(segment: Namespaces) -> str:
    """What the host has of addresses and routes, as ip(8) shows it."""
    return ip(segment, "host", "-o addr show scope global") + ip(
        segment, "host", "route show table local"
    )


LIBRARY = """
import json, sys
sys.path.insert(0, sys.argv[1])
import connlab_neighbours as neighbours
print(json.dumps(neighbours.taken(neighbours.link("data0"), sys.argv[2:])))
"""


def taken(segment: Namespaces, *addresses: str) -> dict[str, str]:
    words = [sys.executable, "-c", LIBRARY, str(ROLE / "module_utils"), *addresses]
    answers: dict[str, str] = json.loads(segment.run("host", *words))
    return answers


def probe(segment: Namespaces, *words: str, **given: Any) -> dict[str, Any]:
    """What the module says on the host."""
    args = {"host": "client1", "interface": "data0", **given}
    command = ["ansible", "all", "-i", "client1,", "-c", "local", "-m", "connlab_alias_probe"]
    command += ["-a", json.dumps(args), "-e", f"ansible_python_interpreter={sys.executable}"]
    settings = {
        "ANSIBLE_LIBRARY": str(ROLE / "library"),
        "ANSIBLE_MODULE_UTILS": ":".join(
            str(role / "module_utils") for role in (ROLE, ROLE.parent / "lab_common")
        ),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.oneline",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [*segment.enter("host"), *command, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **settings},
    )
    said: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return said


def test_a_strangers_addresses_are_found_among_many_in_a_second(segment: Namespaces) -> None:
    before, began = state(segment), time.monotonic()
    wanted = [*FREE, "fd63:6f6e:6e6c:1::6", "fd63:6f6e:6e6c:1::7", "198.19.5.9"]
    stranger = mac(segment)
    assert taken(segment, *wanted) == dict.fromkeys(
        ["198.18.1.7", "fd63:6f6e:6e6c:1::7", "198.19.5.9"], stranger
    )
    assert time.monotonic() - began < 5
    assert state(segment) == before


def test_asking_teaches_the_stranger_nothing(segment: Namespaces) -> None:
    taken(segment, "198.18.1.7", "fd63:6f6e:6e6c:1::7")
    assert "198.18.1.1" not in segment.run("stranger", "ip", "neigh")


def test_an_address_of_another_interface_of_this_host_is_its_own(segment: Namespaces) -> None:
    ip(segment, "host", "link add link data0 name other0 type macvlan mode bridge")
    ip(segment, "host", "link set other0 up")
    ip(segment, "host", "addr add 198.18.1.50/15 dev other0")
    assert taken(segment, "198.18.1.50") == {}


@pytest.mark.parametrize("words", [(), ("--check",)])
def test_the_module_refuses_an_address_that_a_stranger_has(
    words: tuple[str, ...], segment: Namespaces
) -> None:
    before = state(segment)
    said = probe(segment, *words, addresses=["198.18.1.1", "198.18.1.6", "198.18.1.7"])
    assert said["msg"] == (
        f"host client1: alias_ips: 198.18.1.7 is taken: {mac(segment)} answers for it on data0"
    )
    assert state(segment) == before


def test_the_module_asks_for_a_whole_prefix_and_lets_free_ones_pass(segment: Namespaces) -> None:
    said = probe(segment, routes=["198.19.5.0/24"])
    assert said["msg"].startswith("host client1: alias_ips: 198.19.5.1 is taken: ")
    assert said["msg"].endswith(" on data0, and 251 more")
    free = probe(segment, addresses=["198.18.1.1", "198.18.1.6", "fd63:6f6e:6e6c:1::6"])
    assert (free["changed"], free["asked"]) == (False, 2)
