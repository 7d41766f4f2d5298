"""The SSH transport against servers that misbehave: what it refuses, and that it always ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest
import sshd
from cryptography.hazmat.primitives import serialization
from sshd import METHODS, NOBODY, Fault, Sshd, new_key, nothing_left

from bench.errors import LabError
from bench.hosts import channel, transport
from bench.hosts.session import Session
from bench.hosts.transport import SshLink, drawn
from bench.inventory import Host

SECONDS = 0.25
"""For a command that will not end."""

SLACK = 4.0
"""What a busy machine may need beside that."""

DATA = bytes(range(256)) * 800
"""More than the server's window holds."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(channel, "WRITE_SECONDS", SECONDS)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


@contextlib.contextmanager
def linked(server: Sshd, host: Host | None = None) -> Iterator[SshLink]:
    link = SshLink(host or server.host())
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def failing(line: str, kind: type[Exception] = LabError) -> Iterator[None]:
    """Check that what is done fails in time, with one printable line."""
    begun = time.monotonic()
    with pytest.raises(kind, match=line) as failure:
        yield
    assert str(failure.value).isprintable()
    assert time.monotonic() - begun < SECONDS + channel.CLOSE_SECONDS + SLACK


# Keys


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The known_hosts of a user of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path / ".ssh" / "known_hosts"


def test_an_unknown_key_is_refused(tmp_path: Path, home: Path) -> None:
    with Sshd(tmp_path) as server:
        host = server.host()
        Path(str(host.known_hosts)).write_text("")
        with failing(r"^host server1: 127.0.0.1 port \d+: its host key is not in known_hosts; ref"):
            SshLink(host)
        assert server.offered == []


def test_a_changed_key_is_refused(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server:
        with failing(r"^host server1: .*: its host key is not the one in known_hosts; refused$"):
            SshLink(server.host(key=new_key()))
        assert server.offered == []


@pytest.mark.parametrize("named", ["empty", "other"])
def test_only_the_named_known_hosts_counts(tmp_path: Path, home: Path, named: str) -> None:
    with Sshd(tmp_path) as server:
        home.write_text(server.known_line(server.key))
        host = server.host()
        Path(str(host.known_hosts)).write_text(
            server.known_line(new_key()) if named == "other" else ""
        )
        with failing(r"known_hosts; refused$"):
            SshLink(host)
        assert server.offered == []


def test_the_users_own_counts_where_none_is_named(tmp_path: Path, home: Path) -> None:
    with Sshd(tmp_path) as server:
        host = replace(server.host(), known_hosts=None)
        with failing("its host key is not in known_hosts; refused$"):
            SshLink(host)
        home.write_text(server.known_line(server.key))
        with linked(server, host) as link:
            assert link.run(["echo", "in"]) == "in\n"


def test_hashed_names_count(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server:
        host = server.host()
        known = Path(str(host.known_hosts))
        known.write_text(server.known_line(server.key, hashed=True))
        with linked(server, host) as link:
            assert link.run(["echo", "in"]) == "in\n"
        known.write_text(server.known_line(new_key(), hashed=True))
        with failing("its host key is not the one in known_hosts; refused$"):
            SshLink(host)


@pytest.mark.parametrize("text", [b"%s ssh-ed25519 !!!!\n", b"\xff\xfe\x00", b"|1|x|y ssh-rsa A\n"])
def test_a_damaged_known_hosts_lets_nobody_in(tmp_path: Path, text: bytes) -> None:
    with Sshd(tmp_path) as server:
        host = server.host()
        where = f"[127.0.0.1]:{server.port}".encode()
        Path(str(host.known_hosts)).write_bytes(text.replace(b"%s", where))
        with failing(r"^host server1: 127.0.0.1 port \d+: "):
            SshLink(host)
        assert server.offered == []


def test_a_known_hosts_that_is_not_there(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server:
        host = replace(server.host(), known_hosts=str(tmp_path / "none"))
        with failing("^host server1: .*No such file or directory.*/none"):
            SshLink(host)


def test_an_encrypted_user_key(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server:
        private = serialization.load_ssh_private_key(server.user_key.read_bytes(), None)
        server.user_key.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with failing("^host server1: .*: the key file is encrypted, expected one without"):
            SshLink(server.host())


# Login


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault.GARBAGE, ""),
        (Fault.CONTROLS, ""),
        (Fault.MUTE, r"no SSH session within 0\.25 s$"),
        (Fault.NO_KEYS, r"no SSH session within 0\.25 s$"),
        (Fault.HANGS_UP_LOGIN, "it closed the connection$"),
        (Fault.REFUSES_LOGIN, "SSH key refused$"),
    ],
)
def test_a_login_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, line: str
) -> None:
    monkeypatch.setattr(transport, "LOGIN_SECONDS", SECONDS)
    with Sshd(tmp_path, fault) as server:
        with failing(rf"^host server1: 127.0.0.1 port \d+: {line}"):
            SshLink(server.host())
        assert server.commands == []


ASKS = "it asks for more than the key; refused$"


@pytest.mark.parametrize("fault", METHODS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("by_agent", [False, True], ids=["file", "agent"])
def test_nobody_is_asked_for_what_a_host_wants_to_know(
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: Fault,
    by_agent: bool,
) -> None:
    """Its words are not shown, and nothing that is typed is read or sent to it."""

    class Nobody:
        def readline(self, *_: object) -> str:
            asked.append("read")
            return "secret\n"

    asked: list[str] = []
    monkeypatch.setattr("sys.stdin", Nobody())
    monkeypatch.setattr("builtins.input", lambda *words: asked.append("input") or "secret")
    with Sshd(tmp_path, fault) as server:
        host = server.host()
        if by_agent:
            monkeypatch.setattr(paramiko.Agent, "get_keys", lambda self: (server.accepted,))
            host = replace(host, key_file=None)
        with failing(rf"^host server1: 127.0.0.1 port \d+: {ASKS}"):
            SshLink(host)
        assert (asked, server.typed, server.commands) == ([], [], [])
        assert len(server.offered) == 1
    assert capfd.readouterr() == ("", "")


def test_no_login_but_by_a_key_is_tried_whoever_asks_for_it(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        made = link._transport
        for attempt in (
            lambda: made.auth_interactive_dumb("lab"),
            lambda: made.auth_interactive("lab", lambda *_: []),
            lambda: made.auth_password("lab", "secret"),
        ):
            with pytest.raises(paramiko.AuthenticationException, match=ASKS):
                attempt()
        assert server.typed == []


def test_a_hosts_banner_is_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        assert link._transport.get_banner()
    assert capfd.readouterr() == ("", "")


# Commands


def test_commands_run_and_say_how_they_ended(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        assert link.run(["sh", "-c", "echo out; echo err >&2"]) == "out\nerr\n"
        assert link.run(["printf", "%s|", "two words", "", "$HOME"]) == "two words||$HOME|"
        with failing("^host server1: sh: the reason$"):
            link.run(["sh", "-c", "echo before; echo the reason; exit 7"])
        with failing("^host server1: sh: exit status 7$"):
            link.run(["sh", "-c", "exit 7"])
        with failing(
            "^host server1: none-such: timeout: .*none-such.*: No such file or directory$"
        ):
            link.run(["none-such"])
        with failing("^host server1: sh: it ended without an exit status$"):
            link.run(["sh", "-c", "kill -9 $$"])
        with failing(r"^host server1: sh: \\x1b\[2J\\x07no$"):
            link.run(["sh", "-c", r"printf '\033[2J\007no'; exit 1"])
        with failing("^host server1: sleep: no end within 0.25 s$"):
            link.run(["sleep", "60"], SECONDS)
        assert link.run(["echo", "still there"]) == "still there\n"


def test_a_command_that_is_given_up_ends_on_the_host_too(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        with failing("^host server1: sleep: no end within 0.25 s$"):
            link.run(["sleep", "60"], SECONDS)
        assert server.children[0].wait(2 + SLACK) == -signal.SIGKILL


LATE = r"no end within 0\.25 s"
COMMAND_FAULTS = [
    (Fault.REFUSES_CHANNEL, "no channel granted: Administratively prohibited"),
    (Fault.NO_CHANNEL_REPLY, LATE),
    (Fault.REFUSES_EXEC, "refused by its SSH server"),
    (Fault.NO_EXEC_REPLY, LATE),
    (Fault.NEVER_ENDS, LATE),
    (Fault.NO_STATUS, "it ended without an exit status"),
    (Fault.NO_STATUS_OPEN, LATE),
    (Fault.HANGS_UP, "connection lost"),
    (Fault.BREAKS_PROTOCOL, "connection lost: .+"),
    (Fault.FROZEN, LATE),
    (Fault.FLOOD, "more than 1 MiB of output, refused"),
    (Fault.FLOOD_BEYOND_WINDOW, ".*(of output, refused|than the window allows)"),
    (Fault.ERROR_FLOOD, LATE),
    (Fault.ERROR_FLOOD_BEYOND_WINDOW, "connection lost: more data than the window allows"),
    (Fault.NO_NEWLINE, "more than 1 MiB of output, refused"),
    (Fault.NO_SHELL, r"This account is \\x07currently not available\."),
]
by_name = pytest.mark.parametrize(
    ("fault", "line"), COMMAND_FAULTS, ids=[fault.name for fault, _ in COMMAND_FAULTS]
)


def seconds(line: str) -> float:
    """A deadline that is reached if it is to be, and not if the machine is busy."""
    return SECONDS if line == LATE else SLACK


@by_name
def test_a_command_that_goes_wrong(tmp_path: Path, fault: Fault, line: str) -> None:
    with (
        Sshd(tmp_path, fault) as server,
        linked(server) as link,
        failing(f"^host server1: echo: {line}$"),
    ):
        link.run(["echo", "hello"], seconds(line))


@by_name
def test_a_push_that_goes_wrong_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, line: str
) -> None:
    if fault in {Fault.FLOOD, Fault.NO_NEWLINE}:
        line = LATE  # nobody takes in what is sent before anything is read
    monkeypatch.setattr(transport, "COMMAND_SECONDS", seconds(line))
    with (
        Sshd(tmp_path, fault, lambda command: "mkdir" in command) as server,
        linked(server) as link,
    ):
        path = r"/tmp/connlab\.\w{10}"
        # Where the connection is gone there is no way to clean up, and the error names the place.
        lost = fault in LOST
        monkeypatch.setattr(transport, "CLEAN_SECONDS", SECONDS / 4 if lost else 5.0)
        left = rf"; host server1: {path} may be left" if lost else ""
        with failing(f"^host server1: {path}/agent.pyz: {line}{left}$"):
            link.put(DATA, drawn("agent.pyz"))
        assert server.left() == []


LOST = {
    Fault.REFUSES_CHANNEL,
    Fault.NO_CHANNEL_REPLY,
    Fault.FROZEN,
    Fault.HANGS_UP,
    Fault.BREAKS_PROTOCOL,
    Fault.FLOOD_BEYOND_WINDOW,
    Fault.ERROR_FLOOD_BEYOND_WINDOW,
}
"""After these no other command can be run on the same connection."""


def test_a_push_whose_sum_is_wrong_is_refused(tmp_path: Path) -> None:
    with Sshd(tmp_path, Fault.CORRUPTS) as server, linked(server) as link:
        with failing("^host server1: /tmp/connlab.*/agent.pyz: sha256 is not that of what was sen"):
            link.put(DATA, drawn("agent.pyz"))
        assert server.left() == []


def test_a_push_that_a_host_does_not_take_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "COMMAND_SECONDS", SECONDS)
    with (
        Sshd(tmp_path, Fault.READS_NOTHING, lambda command: "mkdir" in command) as server,
        linked(server) as link,
    ):
        with failing(f"^host server1: .*: {LATE}$"):
            link.put(DATA, drawn("agent.pyz"))
        assert server.left() == []


def test_a_push_that_is_cut_off_cleans_up_by_itself(tmp_path: Path) -> None:
    with Sshd(tmp_path, Fault.HANGS_UP_INPUT) as server, linked(server) as link:
        with failing(r"^host server1: .*: connection lost.*; host server1: /tmp/\S+ may be left$"):
            link.put(DATA, drawn("agent.pyz"))
        until = time.monotonic() + 5
        while server.children[0].poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert server.left() == []


def test_a_push_that_is_interrupted_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C when all of it is there, and the host's answer still on its way."""
    execute = sshd._execute

    def slow(
        server: Sshd, made: socket.socket, channel: paramiko.Channel, text: str, fault: Fault
    ) -> int:
        status = execute(server, made, channel, text, fault)
        if "sha256sum" in text:
            there.append(server.left())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return status

    there: list[list[str]] = []
    monkeypatch.setattr(sshd, "_execute", slow)
    with Sshd(tmp_path) as server:
        with pytest.raises(KeyboardInterrupt) as said, Session(SshLink, DATA) as agents:
            agents.start([(server.host(), "server")])
        assert str(said.value) == ""
        assert len(there[0]) == 1
        assert server.left() == []
        assert not any("agent.pyz run" in command for command in server.commands)


def test_a_push_to_a_place_where_it_cannot_be_says_so(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        server.root.chmod(0o500)
        with failing(r"^host server1: /tmp/connlab.*/agent.pyz: mkdir: .*Permission denied$"):
            link.put(DATA, drawn("agent.pyz"))


def test_a_push_is_private_and_whole(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        path = link.put(DATA, drawn("agent.pyz"))
        assert re.fullmatch(r"/tmp/connlab\.[A-Za-z0-9]{10}/agent\.pyz", path)
        there = server.root / path.removeprefix("/tmp/")
        assert there.read_bytes() == DATA
        assert (there.stat().st_mode & 0o777, there.parent.stat().st_mode & 0o777) == (0o700, 0o700)
        assert link.put(b"", drawn("agent.pyz")) != path
        link.remove(path)
        link.remove(path)
        assert len(server.left()) == 1


def test_a_push_does_not_follow_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.secrets, "choice", lambda letters: "a")
    with Sshd(tmp_path) as server, linked(server) as link:
        mine = linked_directory(server)
        with failing("File exists$"):
            link.put(DATA, drawn("agent.pyz"))
        assert (mine / "agent.pyz").read_text() == "keep"


@pytest.mark.parametrize(
    "path",
    [
        "agent.pyz",
        "/tmp/agent.pyz",
        "/tmp/connlab.aaaaaaaaaa/../agent.pyz",
        "/tmp/connlab.aaaaaaaaaa/agent.pyz\n",
        "/tmp/connlab.aaaaaaaaaa/../../etc/x",
        "/tmp/connlab.aaa/agent.pyz",
    ],
)
def test_nothing_is_pushed_to_a_path_that_was_not_drawn(tmp_path: Path, path: str) -> None:
    """Where a push fails its directory is removed."""
    with Sshd(tmp_path) as server, linked(server) as link:
        with failing("^host server1: .*: not a path of a push$"):
            link.put(DATA, path)
        assert server.commands == []


def linked_directory(server: Sshd) -> Path:
    """A directory of the server's user to which a link leads from the path of a push."""
    mine = server.root / "mine"
    mine.mkdir()
    (mine / "agent.pyz").write_text("keep")
    for path in (mine, mine / "agent.pyz"):
        os.chown(path, NOBODY, NOBODY)
    (server.root / "connlab.aaaaaaaaaa").symlink_to(mine)
    return mine


FOREIGN = [
    "/nonexistent-connlab/passwd",
    "/tmp/other/agent.pyz",
    "/tmp/connlab./agent.pyz",
    "/tmp/connlab.abc/agent.pyz",
    "/tmp/connlab.aaaaaaaaaa/../other/x",
    "/tmp/connlab.aaaaaaaaaa/agent.pyz\n",
    "/tmp/connlab.aaaaaaaaa*/agent.pyz",
    "/tmp/connlab.aaaaaaaaaä/agent.pyz",
    "/tmp/connlab.aaaaaaaaaa/agentä.pyz",
    "/tmp/../tmp/connlab.aaaaaaaaaa/agent.pyz",
    "//tmp/connlab.aaaaaaaaaa/agent.pyz",
    "tmp/connlab.aaaaaaaaaa/agent.pyz",
]


def test_a_foreign_path_is_not_removed(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        for path in FOREIGN:
            with failing("^host server1: .*: not a path that a push makes; not removed$"):
                link.remove(path)
        assert server.commands == []
        assert server.refused == []


def test_of_a_directory_that_became_a_link_the_link_goes_alone(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        mine = linked_directory(server)
        link.remove("/tmp/connlab.aaaaaaaaaa/agent.pyz")
        assert server.left() == []
        assert (mine / "agent.pyz").read_text() == "keep"


def test_the_server_of_these_tests_harms_nothing(tmp_path: Path) -> None:
    """They run as root: a guard that is broken must not reach the machine."""
    with Sshd(tmp_path) as server, linked(server) as link:
        assert link.run(["id", "-u"]) == f"{NOBODY}\n"
        mine = tmp_path / "mine"
        mine.write_text("keep")
        for path in (str(mine), str(tmp_path), f"{server.root}/connlab.a/../mine", "nothing", "."):
            with pytest.raises(LabError):
                link.run(["rm", "-rf", "--", path])
        with pytest.raises(LabError):
            link.run(["sh", "-c", f"cat /dev/null >{mine}"])
        assert len(server.refused) == 5
        assert mine.read_text() == "keep"


def test_a_profile_that_prints_does_no_harm(tmp_path: Path) -> None:
    with Sshd(tmp_path, Fault.PROFILE) as server, linked(server) as link:
        assert link.run(["echo", "hello"]) == "hello\n"
        link.remove(link.put(DATA, drawn("agent.pyz")))
        process = link.start(["cat"])
        process.write(b"first\n")
        assert next(process.lines()) == b"first"


# Programs


@by_name
def test_a_program_that_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, line: str
) -> None:
    """Either it is said at once, or its lines end or do not begin, and closing it takes no time."""
    monkeypatch.setattr(transport, "COMMAND_SECONDS", SECONDS)
    monkeypatch.setattr(channel, "LINE_BYTES", 1 << 20)
    with Sshd(tmp_path, fault) as server, linked(server) as link:
        if fault in SAID_AT_ONCE:
            with failing(f"^host server1: cat: {line}$"):
                link.start(["cat"])
            return
        process = link.start(["cat"])
        ends = [run(lambda: list(process.lines())), run(lambda: list(process.errors()))]
        time.sleep(SECONDS / 2)
        begun = time.monotonic()
        process.close()
        for thread in ends:
            thread.join(5)
        assert time.monotonic() - begun < channel.CLOSE_SECONDS + SLACK


SAID_AT_ONCE = {
    Fault.REFUSES_CHANNEL,
    Fault.NO_CHANNEL_REPLY,
    Fault.REFUSES_EXEC,
    Fault.NO_EXEC_REPLY,
    Fault.FROZEN,
}


def run(work: Callable[[], object]) -> threading.Thread:
    """Do something on a thread, whatever becomes of it."""

    def guarded() -> None:
        with contextlib.suppress(channel.LineTooLong):
            work()

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LINE_BYTES", 1 << 20)
    with Sshd(tmp_path, Fault.NO_NEWLINE) as server, linked(server) as link:
        process = link.start(["cat"])
        with failing("^a line of more than 1 MiB$", channel.LineTooLong):
            list(process.lines())


def test_of_an_error_without_end_a_beginning_is_kept(tmp_path: Path) -> None:
    with Sshd(tmp_path, Fault.ERROR_FLOOD) as server, linked(server) as link:
        process = link.start(["cat"])
        errors: list[bytes] = []
        thread = run(lambda: errors.extend(process.errors()))
        time.sleep(SECONDS)
        process.close()
        thread.join(5)
        assert errors == [b"y" * channel.ERROR_BYTES]


def test_a_shell_that_is_none_is_quoted(tmp_path: Path) -> None:
    with Sshd(tmp_path, Fault.NO_SHELL) as server, linked(server) as link:
        assert list(link.start(["cat"]).lines()) == [
            b"This account is \x07currently not available."
        ]


def test_a_lost_connection_is_said_on_standard_error(tmp_path: Path) -> None:
    with Sshd(tmp_path, Fault.HANGS_UP) as server, linked(server) as link:
        process = link.start(["cat"])
        assert list(process.lines()) == [b"so far"]
        assert list(process.errors()) == [b"connection lost"]


def test_an_end_that_was_wanted_is_none(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        process = link.start(["cat"])
        process.close()
        link.close()
        assert list(process.errors()) == []
        with failing(".", OSError):
            process.write(b"more\n")


def test_writing_to_a_program_that_does_not_read(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        process = link.start(["sleep", "60"])
        with failing("^reads nothing for 0.25 s$", TimeoutError):
            process.write(bytes(1 << 20))
        with failing(".", OSError):
            process.write(b"more\n")
        assert link.run(["echo", "still there"]) == "still there\n"


@contextlib.contextmanager
def frozen(tmp_path: Path, window: int) -> Iterator[tuple[SshLink, transport.Process]]:
    """A program on a host that has stopped to read its connection."""
    with (
        Sshd(tmp_path, Fault.FROZEN, lambda command: "freeze" in command, window=window) as server,
        linked(server) as link,
    ):
        process = link.start(["cat"])
        with failing(f"^host server1: freeze: {LATE}$"):
            link.run(["freeze"], SECONDS)
        # With this little room the connection is full at once.
        link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        yield link, process


def test_writing_to_a_host_that_takes_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the buffers of both sockets hold: the connection is cut to wake the writer."""
    monkeypatch.setattr(channel, "WRITE_SECONDS", 2.0)  # they must be full by then
    with frozen(tmp_path, 1 << 26) as (link, process):
        with failing("^reads nothing for 2 s$", TimeoutError):
            process.write(bytes(1 << 23))
        with failing("^host server1: echo: connection lost"):
            link.run(["echo", "hello"], SECONDS)


@pytest.mark.parametrize("what", ["process", "link"])
def test_closing_while_a_write_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(channel, "WRITE_SECONDS", 60.0)
    with frozen(tmp_path, 1 << 26) as (link, process):
        ended = threading.Event()

        def write() -> None:
            with contextlib.suppress(OSError):
                process.write(bytes(1 << 23))
            ended.set()

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.3)
        assert not ended.is_set()
        begun = time.monotonic()
        (process if what == "process" else link).close()
        thread.join(5)
        assert time.monotonic() - begun < channel.CLOSE_SECONDS + SLACK
        assert ended.is_set()


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, linked(server) as link:
        process = link.start(["cat"])
        for end in (process, process, link):
            end.close()
        assert not link._transport.is_alive()
        for end in (link, process):
            end.close()
