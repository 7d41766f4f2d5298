"""How the controller reaches a host: SSH by paramiko, one connection, pinned host key."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

import paramiko

from bench.errors import LabError
from bench.inventory import Host

REACH_SECONDS = 15.0
"""For a host to accept a TCP connection."""

LOGIN_SECONDS = 60.0
"""For the key exchange and the login after that: seconds on an emulated guest that nobody else is
asking, several times as long where all hosts of a lab share two cores."""

COMMAND_SECONDS = 30.0
KEEPALIVE_SECONDS = 10

# paramiko reports what it also raises; one line for the user is enough.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class Process(Protocol):
    """A program on a host: lines in, lines out."""

    def write(self, data: bytes) -> None:
        """Write to its standard input. :raises OSError: if it is gone."""

    def lines(self) -> Iterator[bytes]:
        """Lines of its standard output until it ends."""

    def errors(self) -> Iterator[bytes]:
        """Lines of its standard error until it ends."""

    def close(self) -> None:
        """Close its standard input and both outputs."""


class Link(Protocol):
    """A connection to a host."""

    def put(self, data: bytes, name: str) -> str:
        """Write a file, mode 0700, into a new private directory; return its path."""

    def remove(self, path: str) -> None:
        """Remove a file that :meth:`put` wrote and its directory; fine if it is gone."""

    def run(self, argv: Sequence[str]) -> str:
        """Run to the end and return standard output. :raises LabError: if it fails."""

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program."""

    def close(self) -> None:
        """Close the connection."""


class _SshProcess:
    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def write(self, data: bytes) -> None:
        self._channel.sendall(data)

    def lines(self) -> Iterator[bytes]:
        return _split(self._channel.recv)

    def errors(self) -> Iterator[bytes]:
        return _split(self._channel.recv_stderr)

    def close(self) -> None:
        self._channel.close()


def _split(receive: Callable[[int], bytes]) -> Iterator[bytes]:
    rest = b""
    while True:
        try:
            chunk = receive(1 << 16)
        except OSError:
            chunk = b""
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


class SshLink:
    """SSH to one host, the host key checked against the inventory's known_hosts."""

    def __init__(self, host: Host) -> None:
        """Connect. :raises LabError: if the host cannot be reached, or its key is not the one."""
        self.host = host
        self._client = paramiko.SSHClient()
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            reached = socket.create_connection((host.address, host.port), REACH_SECONDS)
        except TimeoutError:
            raise _unreachable(host, f"no answer within {REACH_SECONDS:.0f} s") from None
        except OSError as error:
            raise _unreachable(host, "cannot be reached by SSH") from error
        try:
            if host.known_hosts:
                self._client.load_host_keys(host.known_hosts)
            else:
                self._client.load_system_host_keys()
            self._client.connect(
                host.address,
                port=host.port,
                username=host.user,
                key_filename=host.key_file,
                look_for_keys=host.key_file is None,
                allow_agent=host.key_file is None,
                timeout=LOGIN_SECONDS,
                banner_timeout=LOGIN_SECONDS,
                auth_timeout=LOGIN_SECONDS,
                sock=reached,
            )
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._client.close()
            reached.close()
            raise _unreachable(host, _reason(error)) from error
        transport = self._client.get_transport()
        assert transport is not None
        transport.set_keepalive(KEEPALIVE_SECONDS)
        self._transport = transport

    def _open(self, command: str) -> paramiko.Channel:
        try:
            channel = self._transport.open_session(timeout=COMMAND_SECONDS)
            channel.exec_command(command)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LabError(f"host {self.host.name}: {_reason(error)}") from error
        return channel

    def run(self, argv: Sequence[str]) -> str:
        """Run to the end and return standard output. :raises LabError: if it fails."""
        channel = self._open(shlex.join(argv) + " 2>&1")
        channel.settimeout(COMMAND_SECONDS)
        output = b"\n".join(_split(channel.recv)).decode(errors="replace")
        status = channel.recv_exit_status()
        channel.close()
        if status:
            last = output.strip().splitlines()[-1:] or [f"exit status {status}"]
            raise LabError(f"host {self.host.name}: {argv[0]}: {last[0]}")
        return output

    def put(self, data: bytes, name: str) -> str:
        """Write a file into a new private directory, check its sha256, return its path."""
        folder = self.run(["mktemp", "-d", "/tmp/connlab.XXXXXXXXXX"]).strip()
        path = f"{folder}/{name}"
        try:
            with self._client.open_sftp() as sftp:
                with sftp.open(path, "wx") as file:
                    file.write(data)
                sftp.chmod(path, 0o700)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LabError(f"host {self.host.name}: {path}: {_reason(error)}") from error
        found = self.run(["sha256sum", path]).split()[0]
        if found != hashlib.sha256(data).hexdigest():
            raise LabError(f"host {self.host.name}: {path}: sha256 is not that of what was sent")
        return path

    def remove(self, path: str) -> None:
        """Remove a file that :meth:`put` wrote and its directory; fine if it is gone."""
        folder = PurePosixPath(path).parent
        if folder.parent == PurePosixPath("/tmp") and folder.name.startswith("connlab."):
            self.run(["rm", "-rf", "--", str(folder)])

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program; it ends when its standard input is closed."""
        return _SshProcess(self._open(shlex.join(argv)))

    def close(self) -> None:
        """Close the connection and all that runs over it."""
        with contextlib.suppress(OSError, EOFError):
            self._client.close()


def connect(host: Host) -> Link:
    """An SSH link to the host. :raises LabError: if there is none to be had."""
    return SshLink(host)


def _unreachable(host: Host, why: str) -> LabError:
    return LabError(f"host {host.name}: {host.address} port {host.port}: {why}")


def _reason(error: BaseException) -> str:
    if isinstance(error, paramiko.BadHostKeyException):
        return "its host key is not the one in known_hosts; refused"
    if isinstance(error, paramiko.AuthenticationException):
        return "SSH key refused"
    # What paramiko makes of a key exchange that had not ended in time.
    if isinstance(error, TimeoutError) or str(error) == "No existing session":
        return f"no SSH session within {LOGIN_SECONDS:.0f} s"
    if "not found in known_hosts" in str(error):
        return "its host key is not in known_hosts; refused"
    return str(error) or type(error).__name__
