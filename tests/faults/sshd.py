"""An SSH server on loopback, in this process, that behaves, or misbehaves in one way.

It runs the commands that it is asked for with ``sh``, with its own directory in place of ``/tmp``
wherever a path begins with ``/tmp/connlab.``. It has no SFTP.

The tests run as root, and what they test is a guard before ``rm -rf``: if it is broken, the command
comes here. So nothing is run as root, and no command that removes something is run at all unless
each path that it names is one in the server's own directory.
"""

from __future__ import annotations

import contextlib
import enum
import io
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paramiko.common import (
    MSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_EXTENDED_DATA,
    cMSG_CHANNEL_SUCCESS,
)

from bench.inventory import Host

LIMIT_SECONDS = 8.0
"""After which it hangs up on everybody, so that a client without a deadline fails a test and does
not hang it."""

NOBODY = 65534
"""The user of whom nothing on this machine is."""

WINDOW_BYTES = 1 << 15
"""The smallest that paramiko grants: it is soon full where nobody reads."""


class Fault(enum.Enum):
    """One way to misbehave, with a connection or with the commands that are chosen for it."""

    NONE = "behaves"
    GARBAGE = "sends random bytes in place of its identification"
    CONTROLS = "puts control characters into its identification"
    MUTE = "accepts a connection and says nothing"
    NO_KEYS = "identifies itself and exchanges no keys"
    HANGS_UP_LOGIN = "hangs up while logging in"
    REFUSES_LOGIN = "accepts nobody's key"
    ASKS_INTERACTIVE = "takes the key for a part of a login, and then asks whoever sits there"
    ASKS_PASSWORD = "takes the key for a part of a login, and then wants a password"
    ASKS_ANOTHER = "takes the key for a part of a login, and then wants another"

    REFUSES_CHANNEL = "grants no channel"
    NO_CHANNEL_REPLY = "does not answer the request for a channel"
    REFUSES_EXEC = "refuses to run a command"
    NO_EXEC_REPLY = "does not answer the request to run a command"
    NEVER_ENDS = "says that it runs a command, and nothing more"
    NO_STATUS = "runs a command and closes the channel without its exit status"
    NO_STATUS_OPEN = "runs a command and neither tells its exit status nor closes the channel"
    HANGS_UP = "hangs up when a command has printed something"
    BREAKS_PROTOCOL = "answers with a packet that makes no sense"
    FROZEN = "reads nothing from the connection any more"
    READS_NOTHING = "never reads a command's standard input"
    FLOOD = "prints without end"
    FLOOD_BEYOND_WINDOW = "sends more output than it was granted a window for"
    ERROR_FLOOD = "prints to standard error without end"
    ERROR_FLOOD_BEYOND_WINDOW = "sends more errors than it was granted a window for"
    NO_NEWLINE = "prints the mark and then a line without end"
    HANGS_UP_INPUT = "hangs up when it has a part of a command's standard input"
    CORRUPTS = "changes a byte of standard input"
    PROFILE = "has a profile that prints, to both outputs"
    NO_SHELL = "has no shell for this user"


METHODS = {
    Fault.ASKS_INTERACTIVE: "publickey,keyboard-interactive",
    Fault.ASKS_PASSWORD: "publickey,password",
    Fault.ASKS_ANOTHER: "publickey",
}
"""What else such a login wants."""

CONNECTION = {
    Fault.GARBAGE: os.urandom(4096).replace(b"SSH-", b"...."),
    Fault.CONTROLS: b"\x1b]0;owned\x07\x1b[2J\r\n" * 200,
    Fault.MUTE: b"",
    Fault.NO_KEYS: b"SSH-2.0-server1\r\n",
}
"""What is sent in place of the SSH protocol."""


class Sshd:
    """The server, used as a context; on the way out everything that it started is gone."""

    def __init__(
        self,
        root: Path,
        fault: Fault = Fault.NONE,
        applies: Callable[[str], bool] = lambda command: True,
        address: str = "127.0.0.1",
        window: int = WINDOW_BYTES,
    ) -> None:
        """Make keys and files in ``root``. Needs root, to run commands as nobody.

        :param applies: whether a command is one of those that the fault concerns.
        :param window: bytes of standard input that a command takes ahead of what it reads.
        """
        self.root = Path(tempfile.mkdtemp(prefix="sshd."))
        """Where commands find what they call ``/tmp/connlab.*``; theirs, and gone at the end."""
        os.chown(self.root, NOBODY, NOBODY)
        self.files = root
        self.refused: list[str] = []
        """Commands that were not run, since they could harm this machine."""
        self.fault = fault
        self.applies = applies
        self.address = address
        self.window = window
        self.key = new_key()
        self.user_key = root / "user_key"
        self.accepted = new_key(self.user_key)
        self.commands: list[str] = []
        """All that it was asked to run, as asked for."""
        self.offered: list[paramiko.PKey] = []
        """Keys by which a client has tried to log in."""
        self.typed: list[object] = []
        """What a person was asked for, and what came of it."""
        self.ended = threading.Event()
        self.children: list[subprocess.Popen[bytes]] = []
        self._transports: list[paramiko.Transport] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Sshd:
        self._listener = socket.create_server((self.address, 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        self._limit = threading.Timer(LIMIT_SECONDS, self._hang_up)
        self._limit.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        self._limit.cancel()
        self._limit.join()
        self._hang_up()
        for made in self._sockets:
            made.close()
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(10)
        for transport in self._transports:
            transport.close()
            if transport.is_alive():
                transport.join(10)
            transport.packetizer.complete_handshake()
        for thread in self._threads:
            thread.join(10)
        for child in self.children:
            assert child.stdin
            with contextlib.suppress(OSError):
                child.stdin.close()
        shutil.rmtree(self.root)

    def host(self, key: paramiko.PKey | None = None, name: str = "server1") -> Host:
        """The server as the inventory gives it, with a known_hosts that has its key or another."""
        known = self.files / f"known_hosts.{name}"
        known.write_text(self.known_line(key or self.key))
        return Host(
            name=name,
            groups=("servers",),
            address=self.address,
            port=self.port,
            user="lab",
            key_file=str(self.user_key),
            known_hosts=str(known),
            data_addresses=(),
        )

    def known_line(self, key: paramiko.PKey, hashed: bool = False) -> str:
        """A line of known_hosts for this server."""
        where = f"[{self.address}]:{self.port}"
        if hashed:
            where = paramiko.HostKeys.hash_host(where)
        return f"{where} {key.get_name()} {key.get_base64()}\n"

    def left(self) -> list[str]:
        """What pushes have left in its directory."""
        return sorted(path.name for path in self.root.glob("connlab.*"))

    def _hang_up(self) -> None:
        for made in self._sockets:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)

    def spawn(self, work: Callable[..., None], *args: object) -> None:
        """Run something on a thread that ends with the server."""
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(made)
            if self.fault in CONNECTION:
                with contextlib.suppress(OSError):
                    made.sendall(CONNECTION[self.fault])
                continue
            transport = paramiko.Transport(made, default_window_size=self.window)
            transport.add_server_key(self.key)
            self._transports.append(transport)
            if self.fault is Fault.NO_CHANNEL_REPLY:
                _deaf(transport, paramiko.common.MSG_CHANNEL_OPEN)
            try:
                transport.start_server(event=threading.Event(), server=_Interface(self, made))
            except paramiko.SSHException:
                continue


def _deaf(transport: paramiko.Transport, kind: int) -> None:
    """Ignore one kind of message."""
    transport._handler_table = {**transport._handler_table, kind: lambda *_: None}


class _Interface(paramiko.ServerInterface):
    def __init__(self, server: Sshd, made: socket.socket) -> None:
        self.server = server
        self.made = made

    def get_allowed_auths(self, username: str) -> str:
        return METHODS.get(self.server.fault, "publickey")

    def get_banner(self) -> tuple[str, str]:
        return "\x1b[2JWelcome, or not\x9b31m\n", "en"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.server.offered.append(key)
        if self.server.fault is Fault.HANGS_UP_LOGIN:
            self.made.shutdown(socket.SHUT_RDWR)
        if self.server.fault is Fault.REFUSES_LOGIN or key != self.server.accepted:
            return paramiko.AUTH_FAILED
        if self.server.fault in METHODS:
            return paramiko.AUTH_PARTIALLY_SUCCESSFUL
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        self.server.typed.append(submethods)
        query = ("password\x1b[5m:", False)
        return paramiko.InteractiveQuery("\x1b[2Jtitle", "\x9b31mAgain", query)

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        self.server.typed.append(responses)
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        self.server.typed.append(password)
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self.server.fault is Fault.REFUSES_CHANNEL:
            return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        text = command.decode()
        self.server.commands.append(text)
        fault = self.server.fault if self.server.applies(text) else Fault.NONE
        if fault is Fault.REFUSES_EXEC:
            return False
        if fault is Fault.FROZEN:
            # This is the thread that reads the connection.
            self.server.ended.wait()
            return False
        transport = channel.get_transport()
        send = transport._send_user_message

        def reply(message: paramiko.Message) -> None:
            """Send the reply, or not, and only then begin with what the command does."""
            if message.asbytes()[:1] != cMSG_CHANNEL_SUCCESS:
                send(message)  # from another channel
                return
            transport._send_user_message = send
            if fault is not Fault.NO_EXEC_REPLY:
                send(message)
                self.server.spawn(_serve, self.server, self.made, channel, text, fault)

        transport._send_user_message = reply
        return True


def _serve(
    server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str, fault: Fault
) -> None:
    """Run a command, or do what the fault asks for."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        if fault in _INSTEAD:
            _INSTEAD[fault](server, made, channel, text)
            return
        if fault is Fault.PROFILE:
            channel.sendall(b"Welcome to \x1b[1mserver1\x1b[0m!\nYou have mail. ")
            channel.sendall_stderr(b"setlocale: cannot change locale\n")
        status = _execute(server, made, channel, text, fault)
        if fault is Fault.NO_STATUS_OPEN:
            channel.shutdown_write()
            server.ended.wait()
        # As OpenSSH does: killed by a signal means no exit status (RFC 4254 section 6.10).
        if status >= 0 and fault is not Fault.NO_STATUS:
            channel.send_exit_status(status)
        channel.close()


def _execute(
    server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str, fault: Fault
) -> int:
    line = text.replace("/tmp/connlab.", f"{server.root}/connlab.")
    if not harmless(line, server.root):
        server.refused.append(text)
        channel.sendall_stderr(b"not run\n")
        return 126
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        ["sh", "-c", line],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd=server.root,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
    server.children.append(child)
    assert child.stdin and child.stdout and child.stderr
    if fault is not Fault.READS_NOTHING:
        server.spawn(_feed, made, channel, child.stdin, fault)
    server.spawn(_copy, child.stderr, channel.sendall_stderr)
    _copy(child.stdout, channel.sendall)
    return child.wait()


def harmless(line: str, root: Path) -> bool:
    """Whether a command removes nothing but directories that are the server's own."""
    words = shlex.split(line)
    if "rm" not in words:
        return True
    paths = [word for word in words[words.index("rm") + 1 :] if not word.startswith(("-", "2>"))]
    return bool(paths) and all(
        re.fullmatch(rf"{re.escape(str(root))}/connlab\.[A-Za-z0-9]+/?", path) for path in paths
    )


def _feed(
    made: socket.socket, channel: paramiko.Channel, stdin: io.BufferedWriter, fault: Fault
) -> None:
    """Standard input until the client closes it, or the channel."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException), stdin:
        while data := channel.recv(1 << 16):
            if fault is Fault.CORRUPTS:
                data = bytes([data[0] ^ 1]) + data[1:]
            stdin.write(data)
            stdin.flush()
            if fault is Fault.HANGS_UP_INPUT:
                made.shutdown(socket.SHUT_RDWR)


def _copy(source: io.BufferedReader, send: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException), source:
        while data := source.read1(1 << 16):
            send(data)


def _endless(server: Sshd, send: Callable[[bytes], None], data: bytes) -> None:
    while not server.ended.is_set():
        send(data)


def _raw(channel: paramiko.Channel, errors: bool) -> Callable[[bytes], None]:
    """Send output whatever the window is."""
    transport = channel.get_transport()

    def send(data: bytes) -> None:
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_EXTENDED_DATA if errors else cMSG_CHANNEL_DATA)
        message.add_int(channel.remote_chanid)
        if errors:
            message.add_int(1)
        message.add_string(data)
        if not transport.is_active():
            raise EOFError
        transport._send_user_message(message)

    return send


def _mark(text: str) -> bytes:
    """What the command line prints first."""
    return text.removeprefix("echo ").partition(";")[0].encode() + b"\n"


def _never_ends(server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str) -> None:
    server.ended.wait()


def _hangs_up(server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str) -> None:
    channel.sendall(_mark(text) + b"so far")
    made.shutdown(socket.SHUT_RDWR)


def _breaks(server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str) -> None:
    message = paramiko.Message()
    message.add_byte(bytes([MSG_CHANNEL_REQUEST]))
    message.add_int(channel.remote_chanid)
    message.add_string(b"\xff\xfe exit")  # no UTF-8
    channel.get_transport()._send_user_message(message)
    server.ended.wait()


def _no_shell(server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str) -> None:
    channel.sendall(b"This account is \x07currently not available.\n")
    channel.send_exit_status(1)
    channel.close()


_Behaviour = Callable[[Sshd, socket.socket, paramiko.Channel, str], None]
_LINES = (b"y" * 99 + b"\n") * 160
_LETTERS = b"y" * 16000
_INSTEAD: dict[Fault, _Behaviour] = {
    Fault.NEVER_ENDS: _never_ends,
    Fault.HANGS_UP: _hangs_up,
    Fault.BREAKS_PROTOCOL: _breaks,
    Fault.NO_SHELL: _no_shell,
    Fault.FLOOD: lambda server, made, channel, text: _endless(
        server, channel.sendall, _mark(text) + _LINES
    ),
    Fault.ERROR_FLOOD: lambda server, made, channel, text: _endless(
        server, channel.sendall_stderr, _LETTERS
    ),
    Fault.FLOOD_BEYOND_WINDOW: lambda server, made, channel, text: _endless(
        server, _raw(channel, errors=False), _LETTERS
    ),
    Fault.ERROR_FLOOD_BEYOND_WINDOW: lambda server, made, channel, text: _endless(
        server, _raw(channel, errors=True), _LETTERS
    ),
    Fault.NO_NEWLINE: lambda server, made, channel, text: (
        channel.sendall(_mark(text)),
        _endless(server, channel.sendall, _LETTERS),
    )[-1],
}


def new_key(path: Path | None = None) -> paramiko.Ed25519Key:
    """A new key pair; the private key goes to ``path``."""
    text = (
        Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        .decode()
    )
    if path:
        path.write_text(text)
        path.chmod(0o600)
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text))


def threads() -> set[str]:
    """Threads that are alive, by what they are."""
    return {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}


def sockets() -> set[str]:
    """Sockets that this process has open, as the kernel numbers them."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(entry.path)
            if target.startswith("socket:"):
                found.add(target)
    return found


@contextlib.contextmanager
def nothing_left(seconds: float = 2.0) -> Iterator[None]:
    """Check that threads and sockets are those of before, once ended ones have had their time."""
    before = threads(), sockets()
    yield
    until = time.monotonic() + seconds
    while (left := (threads() - before[0], sockets() - before[1])) != (set(), set()):
        assert time.monotonic() < until, f"left: {left}"
        time.sleep(0.01)


logging.getLogger("paramiko").setLevel(logging.CRITICAL)
