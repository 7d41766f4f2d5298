"""One command's channel in an SSH connection: every wait has a deadline, all input a bound.

paramiko waits forever for the reply to an exec request, for an exit status, and for a peer that has
stopped reading. It also keeps whatever a peer sends, even beyond the window that the peer was
granted (RFC 4254 section 5.2). A :class:`Deadline` ends the waits, a :class:`BoundedPipe` bounds
the input.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import paramiko
from paramiko.buffered_pipe import BufferedPipe

from bench.wire import LINE_BYTES

ERROR_BYTES = 4096
"""The most bytes that are kept of a line of standard error."""

OUTPUT_BYTES = 1 << 20
"""The most bytes that a command may print."""

WINDOW_BYTES = 1 << 21
"""Bytes that a peer may send ahead of our reading: paramiko's default window."""

WRITE_SECONDS = 10.0
"""Seconds for a program to read what it is sent."""

CLOSE_SECONDS = 2.0
"""Seconds for sending the messages that close a channel; then the connection is cut."""

CHUNK_BYTES = 1 << 16


class LineTooLong(OSError):
    """A program printed a line of more than :data:`bench.wire.LINE_BYTES`."""

    def __init__(self, most: int) -> None:
        super().__init__(f"a line of more than {most >> 20} MiB")


class TooMuchOutput(OSError):
    """A command printed more than :data:`OUTPUT_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"more than {OUTPUT_BYTES >> 20} MiB of output, refused")


class BoundedPipe(BufferedPipe):  # type: ignore[type-arg]  # generic in its stubs alone
    """Received data that is not read yet; a peer that overruns its window ends the connection."""

    def feed(self, data: bytes) -> None:
        """Add received data. :raises SSHException: in paramiko's thread, which it ends."""
        if len(self) + len(data) > WINDOW_BYTES:
            raise paramiko.SSHException("more data than the window allows")
        super().feed(data)


class Deadline:
    """A deadline for all waits on a channel, used as a context around them.

    When the time is up, the channel is closed, which wakes every thread that waits for it. If the
    close itself takes longer than :data:`CLOSE_SECONDS`, because the peer reads nothing, the
    connection is cut.
    """

    def __init__(self, seconds: float, cut: Callable[[], None]) -> None:
        """Prepare the deadline; the time starts when the context is entered.

        :param cut: ends the connection without waiting for anything
        """
        self.channel: paramiko.Channel | None = None
        """The channel to close, once there is one."""
        self.seconds = seconds
        self._until = time.monotonic() + seconds
        self._close = _timer(seconds, self._expire)
        self._cut = _timer(CLOSE_SECONDS, cut)

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._until

    def __enter__(self) -> Deadline:
        self._until = time.monotonic() + self.seconds
        self._close.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # In this order: the close may still be under way, and then only the cut ends it.
        for timer in (self._close, self._cut):
            timer.cancel()
            if timer.is_alive():
                timer.join()

    def _expire(self) -> None:
        self._cut.start()
        if self.channel is not None:
            with contextlib.suppress(Exception):
                self.channel.close()


def _timer(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    return timer


class Command:
    """A command on a host, run by the login shell of the user.

    A shell's profile may print before the command does (a banner in ``~/.bashrc``). So the shell
    first prints a mark, and everything before it is dropped.
    """

    def __init__(
        self, transport: paramiko.Transport, argv: Sequence[str], seconds: float | None = None
    ) -> None:
        """Take the words of a command.

        :param seconds: for a command that runs to its end. Its standard error goes where its
            standard output goes, and timeout(1) also ends it on the host, which closing its channel
            does not do
        """
        self._transport = transport
        self._mark = f"connlab-{secrets.token_hex(8)}".encode()
        words, merged = list(argv), ""
        if seconds is not None:
            words = ["timeout", "-s", "KILL", str(math.ceil(seconds) + 1), *words]
            merged = " 2>&1"
        self._line = f"echo {self._mark.decode()}; exec {shlex.join(words)}{merged}"

    def open(self, deadline: Deadline) -> paramiko.Channel:
        """Start the command. :raises Exception: whatever paramiko makes of an answer or of none."""
        channel = self._transport.open_session(timeout=deadline.seconds)
        channel.in_buffer = BoundedPipe()
        channel.in_stderr_buffer = BoundedPipe()
        deadline.channel = channel
        channel.exec_command(self._line)
        return channel

    def complete(self, deadline: Deadline, data: bytes) -> tuple[int, str]:
        """Run the command to its end, with ``data`` on standard input; return status and output.

        The status is -1 if there was none: a signal ended the command (RFC 4254 section 6.10), or
        the channel was closed without a status.

        :raises TooMuchOutput: beyond :data:`OUTPUT_BYTES`.
        """
        channel = self.open(deadline)
        try:
            # A command that fails early does not read all of it; its status and output say why.
            with contextlib.suppress(OSError):
                _send(channel, data)
                channel.shutdown_write()
            output = bytearray()
            while chunk := channel.recv(CHUNK_BYTES):
                output += chunk
                if len(output) > OUTPUT_BYTES:
                    raise TooMuchOutput
            status = channel.recv_exit_status()
        finally:
            channel.close()
        before, mark, after = bytes(output).partition(self._mark + b"\n")
        return status, (after if mark else before).decode(errors="replace")

    def lines(self, channel: paramiko.Channel) -> Iterator[bytes]:
        """Yield the lines of standard output after the mark; without a mark, only the last line."""
        lines = split(lambda: _received(channel.recv), LINE_BYTES)
        last = b""
        for line in lines:
            if line.endswith(self._mark):
                yield from lines
                return
            last = line
        if last:
            yield last


class SshProcess:
    """A program at the other end of a channel; :class:`bench.hosts.transport.Process`."""

    def __init__(
        self, command: Command, channel: paramiko.Channel, cut: Callable[[], None]
    ) -> None:
        self._command = command
        self._channel = channel
        self._cut = cut
        self._writing = threading.Lock()
        self._closed = False

    def write(self, data: bytes) -> None:
        """Write to its standard input.

        A program that does not read it within :data:`WRITE_SECONDS` loses its channel, as the rest
        of a message cannot follow.

        :raises OSError: if the program is gone or does not read.
        """
        with self._writing, Deadline(WRITE_SECONDS, self._cut) as deadline:
            deadline.channel = self._channel
            try:
                _send(self._channel, data)
            except Exception as error:
                if deadline.passed:
                    raise TimeoutError(f"reads nothing for {WRITE_SECONDS:g} s") from error
                raise OSError(str(error) or "connection lost") from error

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its standard output until it ends.

        :raises LineTooLong: if a line is longer than the bound.
        """
        return self._command.lines(self._channel)

    def errors(self) -> Iterator[bytes]:
        """Yield the lines of its standard error until it ends, each cut at :data:`ERROR_BYTES`.

        The last line says so if the connection was lost.
        """
        yield from split(lambda: _received(self._channel.recv_stderr), ERROR_BYTES, cut=True)
        if not self._closed and not self._channel.get_transport().is_active():
            yield b"connection lost"

    def close(self) -> None:
        """Close its standard input and outputs, within :data:`CLOSE_SECONDS`. Never raises."""
        self._closed = True
        timer = _timer(CLOSE_SECONDS, self._cut)
        timer.start()
        with contextlib.suppress(Exception):
            self._channel.close()
        timer.cancel()
        timer.join()


def split(receive: Callable[[], bytes], most: int, *, cut: bool = False) -> Iterator[bytes]:
    """Yield the received lines until nothing more is received, without their line ends.

    :param most: the most bytes of a line that are kept
    :param cut: whether the rest of a longer line is dropped
    :raises LineTooLong: if a line is longer and may not be cut.
    """
    line = bytearray()
    while chunk := receive():
        for number, piece in enumerate(chunk.split(b"\n")):
            if number:
                yield bytes(line)
                line.clear()
            room = most - len(line)
            if len(piece) > room and not cut:
                raise LineTooLong(most)
            line += piece[:room]
    if line:
        yield bytes(line)


def _send(channel: paramiko.Channel, data: bytes) -> None:
    # In pieces: sendall() copies all of the remaining data for each packet.
    for start in range(0, len(data), CHUNK_BYTES):
        channel.sendall(data[start : start + CHUNK_BYTES])


def _received(receive: Callable[[int], bytes]) -> bytes:
    """Return the next piece; empty if the channel or its connection has ended."""
    try:
        return receive(CHUNK_BYTES)
    except Exception:
        return b""
