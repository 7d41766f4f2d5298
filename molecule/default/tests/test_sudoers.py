"""docs/sudoers allows what a benchmark reads, and nothing else."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

SUDOERS = Path(__file__).parents[3] / "docs" / "sudoers"
LOGIN = "connlab-least"
BOUNDED = "/usr/bin/timeout -s KILL 60"
PLACE = "/etc/sudoers.d/zz-connlab-least"


@pytest.fixture
def login(host: Host) -> Iterator[str]:
    """Create a login with the rights that the file grants, for one test."""
    text = SUDOERS.read_text(encoding="utf-8").replace("\nlab ", f"\n{LOGIN} ")
    with host.sudo():
        host.check_output(f"useradd --no-create-home --shell /bin/sh {LOGIN}")
        try:
            host.check_output(f"umask 337; printf %s {shlex.quote(text)} > {PLACE}")
            host.check_output(f"visudo -cf {PLACE}")
            yield LOGIN
        finally:
            host.check_output(f"rm -f {PLACE}; userdel {LOGIN}")


def sudo(host: Host, login: str, command: str) -> tuple[int, str]:
    """Return exit status and output of a command that the login runs with sudo(8)."""
    with host.sudo():
        done = host.run(f"su {login} -c {shlex.quote(f'sudo -n {command}')}")
    return int(done.rc), str(done.stdout) + str(done.stderr)


def test_what_a_benchmark_reads_can_be_read(host: Host, login: str) -> None:
    status, text = sudo(host, login, f"{BOUNDED} /usr/bin/cat /proc/slabinfo")
    assert (status, text.startswith("slabinfo - version")) == (0, True)
    # A host that shares a kernel may not read its messages: the kernel's answer, not sudo's.
    status, text = sudo(host, login, f"{BOUNDED} /usr/bin/dmesg")
    assert status == 0 or "read kernel buffer failed" in text


@pytest.mark.parametrize(
    "command",
    [
        "true",
        "cat /etc/shadow",
        "cat /proc/slabinfo",
        f"{BOUNDED} /usr/bin/cat /etc/shadow",
        f"{BOUNDED} /usr/bin/cat /proc/slabinfo /etc/shadow",
        f"{BOUNDED} /usr/bin/dmesg --clear",
        f"{BOUNDED} true",
        "/usr/bin/timeout -s KILL 61 /usr/bin/dmesg",
        "python3 -c 'print(1)'",
        "kill -KILL 1",
    ],
)
def test_nothing_else_is_allowed(host: Host, login: str, command: str) -> None:
    status, text = sudo(host, login, command)
    assert status == 1
    assert "password is required" in text
