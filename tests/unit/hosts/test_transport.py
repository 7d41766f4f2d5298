"""What is said of hosts that cannot be logged in to, over real sockets of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import paramiko
import pytest

from bench.errors import LabError
from bench.hosts import transport
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


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that answers no SYN: its queue is full (listen(2))."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        contextlib.ExitStack() as held,
    ):
        where = listener.getsockname()
        for _ in range(3):
            made = held.enter_context(socket.socket())
            made.setblocking(False)
            made.connect_ex(where)
        yield where[1]


def found(*ports: int) -> list[tuple[object, ...]]:
    """Addresses as a lookup gives them."""
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    return [(*kind, ("127.0.0.1", port)) for port in ports]


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(transport, "REACH_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(10) and found())
    began = time.monotonic()
    line = r"^host server1: 127.0.0.1 port 9: no address within 0.3 s$"
    try:
        with pytest.raises(LabError, match=line):
            transport.connect(host(9))
    finally:
        ended.set()
    assert time.monotonic() - began < 5


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        LabError, match=r"^host server1: 127.0.0.1 port 9: cannot be reached by SSH$"
    ):
        transport.connect(host(9))


@pytest.mark.parametrize("answer", [UnicodeError("label too long"), ()])
def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    def odd(*_: object, **__: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return list(found())

    monkeypatch.setattr(socket, "getaddrinfo", odd)
    with pytest.raises(
        LabError, match=r"^host server1: 127.0.0.1 port 9: cannot be reached by SSH$"
    ):
        transport.connect(host(9))


def test_many_addresses_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REACH_SECONDS", 0.5)
    with silent() as port:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found(*[port] * 40))
        began = time.monotonic()
        line = r"^host server1: 127.0.0.1 port 9: no answer within 0.5 s$"
        with pytest.raises(LabError, match=line):
            transport.connect(host(9))
        assert time.monotonic() - began < 8


def test_a_silent_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REACH_SECONDS", 2.0)
    with silent() as mute, answering(b"", end=True) as port:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found(mute, port))
        with pytest.raises(LabError, match=r"port 9: (?!no answer|cannot be)"):
            transport.connect(host(9))


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
