"""SSH to a host by paramiko: one connection, with a pinned host key."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import re
import secrets
import socket
import string
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol

import paramiko

from bench import wire
from bench.errors import LabError
from bench.hosts.channel import CLOSE_SECONDS, Command, Deadline, SshProcess
from bench.inventory import Host
from bench.units import printable

REACH_SECONDS = 15.0
"""Seconds for looking up a host's name, and for one of its addresses to accept a TCP connection."""

LEAST_SHARE = 0.01
"""The least seconds of that time for one of many addresses: 0 would mean not to wait at all."""

LOGIN_SECONDS = 60.0
"""Seconds for the key exchange and the login after that. They take seconds on an otherwise idle
emulated guest, and several times as long when all hosts of a lab share two cores."""

COMMAND_SECONDS = 30.0
"""Default seconds for a command to end."""

CLEAN_SECONDS = 5.0
"""Seconds for removing what a failed push has left."""

LOST_SECONDS = 20.0
"""Default seconds after which a host that acknowledges nothing is given up."""

PROBES = 4
"""How many times TCP probes a silent host in that time."""

KEEPALIVE_SECONDS = 10
"""Seconds between keepalive messages of SSH on a silent connection, for NATs and firewalls in the
path."""

FOLDER = "/tmp/connlab."
"""Prefix of the path of every directory that this program creates on a host."""

MOST_TEXT = 300
"""The most characters of a host's text in one line for the user."""

_LETTERS = string.ascii_letters + string.digits
_DRAWN = re.compile(
    rf"(?P<folder>{re.escape(FOLDER)}[A-Za-z0-9]{{10}})/(?P<name>[a-z]+(\.[a-z]+)?)"
)

# mkdir fails on anything that exists, a symbolic link too, and makes the directory private from the
# start. A push that is cut off midway removes by itself what it has written.
_PUSH = """
umask 077
mkdir -- "$1" || exit 1
if cat >"$1/$2" && chmod 700 -- "$1/$2" && sum=$(sha256sum <"$1/$2"); then
    sum=${sum%% *}
    [ "$sum" = "$3" ] || rm -rf -- "$1"
    echo "$sum"
else
    rm -rf -- "$1"
    exit 1
fi
"""

# paramiko logs what it also raises; one line for the user is enough.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class AsksForMore(paramiko.AuthenticationException):
    """A host asks for something other than a key, or more than a key."""

    def __init__(self) -> None:
        super().__init__("it asks for more than the key; refused")


class KeyTransport(paramiko.Transport):
    """An SSH connection that logs in only by key.

    If a host accepts the key as one part of a login, paramiko shows the host's text, unfiltered, on
    the terminal, and sends back what is typed there (``auth_interactive_dumb``).
    """

    def auth_interactive_dumb(self, *words: Any, **options: Any) -> NoReturn:
        """Refuse to ask a person."""
        raise AsksForMore

    def auth_interactive(self, *words: Any, **options: Any) -> NoReturn:
        """Refuse to answer a host's questions."""
        raise AsksForMore

    def auth_password(self, *words: Any, **options: Any) -> NoReturn:
        """Refuse to send a password."""
        raise AsksForMore


class NotRemoved(LabError):
    """A push has failed, and its leftovers could not be removed."""

    def __init__(self, why: LabError, left: str) -> None:
        super().__init__(f"{why}; {left}")
        self.left = left
        """What may be left, and where."""


class Process(Protocol):
    """A program on a host: lines in, lines out."""

    def write(self, data: bytes) -> None:
        """Write to its standard input. :raises OSError: if it is gone or does not read."""

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its standard output. :raises OSError: if one is too long."""

    def errors(self) -> Iterator[bytes]:
        """Yield the lines of its standard error until it ends."""

    def close(self) -> None:
        """Close its standard input and both outputs."""


class Link(Protocol):
    """A connection to a host."""

    def give_up_after(self, seconds: float) -> None:
        """Set after how long without an acknowledgement the host counts as lost."""

    def put(self, data: bytes, path: str) -> str:
        """Write a file, mode 0700, to a path of :func:`drawn`; create its directory.

        :return: the path
        """

    def remove(self, path: str) -> None:
        """Remove a file that :meth:`put` wrote, and its directory; a missing file is no error."""

    def run(self, argv: Sequence[str], seconds: float = COMMAND_SECONDS) -> str:
        """Run a command to its end and return what it printed.

        :raises LabError: if it fails or does not end in time.
        """

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program."""

    def close(self) -> None:
        """Close the connection."""


class SshLink:
    """An SSH connection to one host, with its key checked against the inventory's known_hosts."""

    def __init__(self, host: Host, lost_seconds: float = LOST_SECONDS) -> None:
        """Connect.

        :param lost_seconds: after which a host that acknowledges nothing is given up
        :raises LabError: if the host cannot be reached, or its key is not the pinned one.
        """
        self.host = host
        self._socket = _reached(host)
        self._client = paramiko.SSHClient()
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            self.give_up_after(lost_seconds)
            with Deadline(LOGIN_SECONDS, self._cut) as deadline:
                try:
                    self._transport = self._log_in()
                except Exception as error:
                    late = f"no SSH session within {LOGIN_SECONDS:g} s"
                    raise _unreachable(host, late if deadline.passed else _reason(error)) from error
        except BaseException:
            self.close()
            raise

    def _log_in(self) -> paramiko.Transport:
        host = self.host
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
            sock=self._socket,
            transport_factory=KeyTransport,  # type: ignore[arg-type]  # its stubs are older
        )
        transport = self._client.get_transport()
        assert transport is not None
        if not transport.is_authenticated():  # the host asks for another key too
            raise AsksForMore
        transport.set_keepalive(KEEPALIVE_SECONDS)
        return transport

    def give_up_after(self, seconds: float) -> None:
        """Set after how many seconds without an acknowledgement the host counts as lost.

        This sets TCP_USER_TIMEOUT of RFC 5482 and tcp(7), which also limits a peer that
        acknowledges but reads nothing. Probes make sure that there is something to acknowledge.
        """
        every = max(1, round(seconds / PROBES))  # the kernel takes whole seconds
        options = {
            socket.TCP_USER_TIMEOUT: round(seconds * 1000),
            socket.TCP_KEEPIDLE: every,
            socket.TCP_KEEPINTVL: every,
        }
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in options.items():
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def run(self, argv: Sequence[str], seconds: float = COMMAND_SECONDS) -> str:
        """Run a command to its end and return what it printed, standard error included.

        :param seconds: for all of it, from the request for a channel to the exit status
        :raises LabError: if it fails, has no exit status, prints too much or does not end in time.
        """
        return self._complete(argv[0], argv, seconds)

    def _complete(self, name: str, argv: Sequence[str], seconds: float, data: bytes = b"") -> str:
        command = Command(self._transport, argv, seconds)
        with Deadline(seconds, self._cut) as deadline:
            try:
                status, output = command.complete(deadline, data)
            except Exception as error:
                raise self._failure(name, deadline, error) from error
            if status < 0:
                raise self._failure(name, deadline, None)
        if status:
            last = output.strip().splitlines()[-1:] or [f"exit status {status}"]
            raise LabError(
                f"host {self.host.name}: {name}: {printable(last[0].strip()[:MOST_TEXT])}"
            )
        return output

    def _failure(self, name: str, deadline: Deadline, error: Exception | None) -> LabError:
        """Return the error for a command that has no exit status."""
        if deadline.passed:
            why = f"no end within {deadline.seconds:g} s"
        elif self._lost():
            cause = self._transport.get_exception() or error
            why = "connection lost"
            if cause is not None and not isinstance(cause, EOFError):
                why += f": {_reason(cause)}"
        else:
            why = _reason(error) if error else "it ended without an exit status"
        return LabError(f"host {self.host.name}: {name}: {why}")

    def _lost(self) -> bool:
        # paramiko's thread ends the channels shortly before it says that it is no longer active.
        self._transport.join(0.1)
        return not self._transport.is_active()

    def put(self, data: bytes, path: str) -> str:
        """Write a file into a new private directory, check its sha256, return its path.

        :param path: one of :func:`drawn`
        :raises NotRemoved: if that fails and the directory may be left.
        :raises LabError: if that fails otherwise, or the path is not one of :func:`drawn`.
        """
        drawn_one = re.fullmatch(_DRAWN, path)
        if drawn_one is None:
            raise LabError(
                f"host {self.host.name}: {printable(path[:MOST_TEXT])}: not a path of a push"
            )
        folder, name = drawn_one["folder"], drawn_one["name"]
        wanted = hashlib.sha256(data).hexdigest()
        try:
            output = self._complete(
                path, ["sh", "-c", _PUSH, "sh", folder, name, wanted], COMMAND_SECONDS, data
            )
            if output.split() != [wanted]:
                raise LabError(
                    f"host {self.host.name}: {path}: sha256 is not that of what was sent"
                )
        except BaseException as error:
            try:
                self._remove(folder, CLEAN_SECONDS)
            except LabError:
                if isinstance(error, LabError):
                    raise NotRemoved(
                        error, f"host {self.host.name}: {folder} may be left"
                    ) from error
            raise
        return path

    def remove(self, path: str) -> None:
        """Remove a file that :meth:`put` wrote, and its directory; a missing file is no error.

        :raises LabError: if that fails, or no push makes such a path.
        """
        pushed = re.fullmatch(wire.PUSHED, path)
        if pushed is None:
            raise LabError(
                f"host {self.host.name}: {printable(path[:MOST_TEXT])}: not a path that a push "
                "makes; not removed"
            )
        self._remove(pushed["folder"], COMMAND_SECONDS)

    def _remove(self, folder: str, seconds: float) -> None:
        # For a symbolic link rm(1) removes only the link.
        self.run(["rm", "-rf", "--", folder], seconds)

    def start(self, argv: Sequence[str]) -> Process:
        """Start a program; it ends when its standard input is closed."""
        command = Command(self._transport, argv)
        with Deadline(COMMAND_SECONDS, self._cut) as deadline:
            try:
                channel = command.open(deadline)
            except Exception as error:
                raise self._failure(argv[0], deadline, error) from error
        return SshProcess(command, channel, self._cut)

    def _cut(self) -> None:
        """End the connection at once; reads and writes under way fail."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and everything that runs over it, in bounded time. Never raises."""
        transport = self._client.get_transport()
        self._cut()
        with contextlib.suppress(Exception):
            self._client.close()
        if transport is not None:
            with contextlib.suppress(RuntimeError):  # it never ran
                transport.join(CLOSE_SECONDS)
            # paramiko's timer of the key exchange would outlive a failed one.
            transport.packetizer.complete_handshake()
        self._socket.close()


def drawn(name: str) -> str:
    """Return a new path for a push, in a directory that does not exist yet.

    It is drawn at random here and not on the host, so that no output of the host becomes a path. It
    is drawn before anything is written, so that the leftovers of a failed or interrupted push are
    known.
    """
    return f"{FOLDER}{''.join(secrets.choice(_LETTERS) for _ in range(10))}/{name}"


def connect(host: Host, lost_seconds: float = LOST_SECONDS) -> Link:
    """Return an SSH link to the host. :raises LabError: if that is impossible."""
    return SshLink(host, lost_seconds)


def _reached(host: Host) -> socket.socket:
    """Return a connection to a host.

    :raises LabError: if there is none within :data:`REACH_SECONDS`.
    """
    until = time.monotonic() + REACH_SECONDS
    late = f"no address within {REACH_SECONDS:g} s"
    problem: Exception | None = None
    try:
        addresses = _addresses(host, REACH_SECONDS)
        late = f"no answer within {REACH_SECONDS:g} s"
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            made = socket.socket(family, kind, protocol)
            try:
                # Each gets a share of the time left: the next may answer if one is silent.
                share = (until - time.monotonic()) / (len(addresses) - number)
                made.settimeout(max(share, LEAST_SHARE))
                made.connect(address)
                return made
            except OSError as error:
                made.close()
                problem = error
            except BaseException:
                made.close()
                raise
    except (OSError, ValueError) as error:
        problem = error
    if isinstance(problem, TimeoutError):
        raise _unreachable(host, late) from None
    raise _unreachable(host, "cannot be reached by SSH") from problem


def _addresses(host: Host, seconds: float) -> list[tuple[Any, ...]]:
    """Return the addresses of a host's name (getaddrinfo(3), which itself has no deadline).

    :raises TimeoutError: if that takes longer than ``seconds``. :raises OSError, ValueError: if it
        is not a name.
    """
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def look() -> None:
        try:
            answers.put(socket.getaddrinfo(host.address, host.port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        found = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found


def _unreachable(host: Host, why: str) -> LabError:
    return LabError(f"host {host.name}: {host.address} port {host.port}: {why}")


def _reason(error: BaseException) -> str:
    if isinstance(error, paramiko.BadHostKeyException):
        return "its host key is not the one in known_hosts; refused"
    if isinstance(error, EOFError) or "saw EOF" in str(error):
        return "it closed the connection"
    if isinstance(error, paramiko.PasswordRequiredException):
        return "the key file is encrypted, expected one without a passphrase"
    if isinstance(error, AsksForMore):
        return str(error)
    if isinstance(error, paramiko.AuthenticationException):
        return "SSH key refused"
    if isinstance(error, paramiko.ChannelException):
        return f"no channel granted: {printable(error.text.strip()[:MOST_TEXT])}"
    if "not found in known_hosts" in str(error):
        return "its host key is not in known_hosts; refused"
    if str(error) == "Channel closed.":
        return "refused by its SSH server"
    return printable(str(error).strip()[:MOST_TEXT]) or type(error).__name__
