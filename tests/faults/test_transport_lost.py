"""A host that is cut off while it is being waited for, in namespaces: given up in time."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from sshd import Sshd, nothing_left

from bench.errors import LabError
from bench.hosts.transport import LOST_SECONDS, SshLink
from bench.perf.netns import Namespaces

ADDRESS = "198.18.0.1"
GIVEN_UP = 2.0
CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")


@pytest.fixture
def net() -> Iterator[Namespaces]:
    assert os.geteuid() == 0, "these tests make network namespaces: run them as root"
    hosts = {"server": [f"{ADDRESS}/15"], "client": ["198.18.1.1/15"]}
    with Namespaces(f"lost-t{os.getpid()}", hosts) as made:
        yield made


def inside(net: Namespaces, name: str, work: Callable[[], Result]) -> Result:
    """Do something in a namespace; sockets and threads made there stay in it."""

    def entered() -> Result:
        with open(f"/run/netns/{net.name(name)}") as place:
            assert ctypes.CDLL(None, use_errno=True).setns(place.fileno(), CLONE_NEWNET) == 0
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()


@pytest.mark.parametrize("writing", [False, True], ids=["idle", "writing"])
def test_a_host_that_is_cut_off_is_given_up(net: Namespaces, tmp_path: Path, writing: bool) -> None:
    server = Sshd(tmp_path, address=ADDRESS)
    with nothing_left():
        inside(net, "server", server.__enter__)
        link = inside(net, "client", lambda: SshLink(server.host(), lost_seconds=GIVEN_UP))
        try:
            process = link.start(["cat"])
            process.write(b"here\n")
            assert next(process.lines()) == b"here"
            net.run("server", "ip", "link", "set", "data0", "down")
            begun = time.monotonic()
            if writing:
                process.write(b"gone\n")
            assert list(process.errors()) == [b"connection lost"]
            assert GIVEN_UP / 2 < time.monotonic() - begun < GIVEN_UP + 4
            with pytest.raises(LabError, match=r"^host server1: echo: connection lost$"):
                link.run(["echo", "hello"], 8)
        finally:
            link.close()
            server.__exit__()


def test_when_a_host_is_given_up_can_be_chosen(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server:
        link = SshLink(server.host())
        try:
            assert _user_timeout(link) == LOST_SECONDS
            link.give_up_after(7.5)
            assert _user_timeout(link) == 7.5
        finally:
            link.close()


def _user_timeout(link: SshLink) -> float:
    return link._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
