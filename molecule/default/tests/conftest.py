"""Fixtures of the tests on the lab's hosts: inventory variables, records, new sessions."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from testinfra.utils import ansible_runner

PROJECT = Path(__file__).parents[3]
sys.path.insert(0, str(PROJECT / "tests" / "unit"))

Variables = dict[str, Any]


def unmarked(value: Any) -> Any:
    """Return inventory data as plain values.

    `ansible-inventory --list` of ansible-core 2.19 prints text that an inventory plugin composed
    as {"__ansible_unsafe": text}; testinfra takes that for the value.
    """
    if isinstance(value, dict):
        if set(value) == {"__ansible_unsafe"}:
            return value["__ansible_unsafe"]
        return {key: unmarked(inner) for key, inner in value.items()}
    return [unmarked(inner) for inner in value] if isinstance(value, list) else value


marked_inventory = ansible_runner.get_ansible_inventory
ansible_runner.get_ansible_inventory = lambda *args: unmarked(marked_inventory(*args))


@pytest.fixture
def variables(host: Host) -> Variables:
    """Return the host's inventory variables."""
    return dict(host.ansible.get_variables())


@pytest.fixture
def record(host: Host) -> Callable[[str], Variables]:
    """Return a function that reads a role's record on the host.

    It reads as the login, because the record has to be readable by all users.
    """

    def read(role: str) -> Variables:
        return dict(json.loads(host.check_output(f"cat /var/lib/connlab/{role}.json")))

    return read


@pytest.fixture
def new_session(variables: Variables) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command in a new login, without a shared connection."""

    def run(
        command: str, *options: str, user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "ssh",
                *("-F", "none", "-o", "ControlPath=none", "-o", "BatchMode=yes"),
                *options,
                *shlex.split(variables["ansible_ssh_common_args"]),
                *("-i", variables["ansible_ssh_private_key_file"]),
                *("-p", str(variables.get("ansible_port", 22))),
                f"{user or variables['ansible_user']}@{variables['ansible_host']}",
                command,
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run
