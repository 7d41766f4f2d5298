"""What is said of hosts that cannot be logged in to, over real sockets of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import paramiko
import pytest

from bench import transport
from bench.errors import LabError
from bench.inventory import Host


def host(port: int) -> Host:
    return Host("server1", ("servers",), "127.0.0.1", port, "lab", None, "/dev/null", ())


@contextlib.contextmanager
def answering(said: bytes, end: bool) -> Iterator[int]:
    """A port where one connection is told ``said``, and then closed or left waiting."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as held:

        def answer() -> None:
            made = held.enter_context(listener.accept()[0])
            made.sendall(said)
            if end:
                made.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_port_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LabError, match=rf"host server1: 127.0.0.1 port {port}: cannot be reached"):
        transport.connect(host(port))


def test_a_host_that_takes_too_long_for_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LOGIN_SECONDS", 0.3)
    slow = r"port \d+: no SSH session within 0\.3 s"
    with (
        answering(b"SSH-2.0-slow\r\n", end=False) as port,
        pytest.raises(LabError, match=slow),
    ):
        transport.connect(host(port))


def test_a_host_that_hangs_up() -> None:
    with answering(b"", end=True) as port, pytest.raises(LabError, match=rf"port {port}: .+"):
        transport.connect(host(port))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (paramiko.SSHException(" \x1b[2J\u2028\u202e\n"), r"\x1b[2J\u2028\u202e"),
        (paramiko.SSHException("é€\u00a0é"), "é€\u00a0é"),  # as everywhere else
        (paramiko.ChannelException(1, "\x9b2J" * 500), "no channel granted: " + r"\x9b2J" * 100),
        (paramiko.SSHException("x" * 1000), "x" * 300),
        (paramiko.SSHException(" "), "SSHException"),
    ],
)
def test_what_a_host_says_is_one_line_that_ends(error: Exception, reason: str) -> None:
    assert transport._reason(error) == reason
