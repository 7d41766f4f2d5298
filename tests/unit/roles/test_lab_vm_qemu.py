import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from vm_parts import (
    NOT_INSTALLED,
    FakeQemu,
    OnPath,
    arguments,
    end,
    idle_process,
    layout,
    listening,
    qemu,
    refusal,
)

Start = Callable[..., FakeQemu]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A machine's directory so deep that the path of a unix socket in it is refused."""
    deep = tmp_path / ("d" * 60) / ("e" * 60) / "server1"
    deep.mkdir(parents=True)
    assert len(str(deep / "qmp.sock")) > 108
    return deep


@pytest.fixture
def begin() -> Iterator[Start]:
    with ExitStack() as stack:

        def started(directory: Path, **other: Any) -> FakeQemu:
            directory.mkdir(parents=True, exist_ok=True)
            fake = FakeQemu(directory, **other)
            stack.callback(fake.close)
            return fake

        yield started


@pytest.fixture
def idle() -> Iterator[Callable[..., int]]:
    """Start a process with these words in its command line; the test's end is its own."""
    with ExitStack() as stack:

        def started(*words: str | bytes) -> int:
            process = idle_process(*words)
            stack.callback(end, process)
            return process.pid

        yield started


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of stop() for what the tests know not to happen, shortened."""
    wait = qemu._wait_gone
    monkeypatch.setattr(qemu, "_wait_gone", lambda those, limit: wait(those, min(limit, 0.1)))


@pytest.mark.parametrize("name", ["server1", "a,b", "a,,b", "a b", "ü"])
def test_a_machine_is_known_by_the_disk_in_its_command_line(
    tmp_path: Path, idle: Callable[..., int], name: str
) -> None:
    directory = tmp_path / name
    directory.mkdir()
    number = idle("qemu", *arguments(directory))
    (directory / "qemu.pid").write_text(f"{number}\n")
    assert qemu.pid(directory) == number


def test_the_process_of_another_machine_is_not_this_ones(
    tmp_path: Path, idle: Callable[..., int]
) -> None:
    number = idle("qemu", *arguments(tmp_path / "client10"))
    for name in ("client1", "client10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "qemu.pid").write_text(f"{number}\n")
    assert qemu.pid(tmp_path / "client1") is None
    assert qemu.pid(tmp_path / "client10") == number


def test_a_pid_that_is_used_again_is_not_taken_for_the_machines(tmp_path: Path) -> None:
    (tmp_path / "qemu.pid").write_text(f"{os.getpid()}\n")
    assert qemu.pid(tmp_path) is None


def test_a_process_that_has_ended_is_no_machine(tmp_path: Path) -> None:
    process = idle_process("qemu", *arguments(tmp_path))
    (tmp_path / "qemu.pid").write_text(f"{process.pid}\n")
    assert qemu.pid(tmp_path) == process.pid
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert qemu.pid(tmp_path) is None
    end(process)
    assert qemu.pid(tmp_path) is None


@pytest.mark.parametrize("text", ["", "\n", "-1\n", "12 34\n", "garbage\n", None])
def test_without_a_pid_there_is_no_machine(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "qemu.pid").write_text(text)
    assert qemu.pid(tmp_path) is None


def test_a_foreign_process_may_have_any_command_line(
    tmp_path: Path, idle: Callable[..., int]
) -> None:
    number = idle(b"not utf-8: \xff")
    (tmp_path / "qemu.pid").write_text(f"{number}\n")
    assert qemu.pid(tmp_path) is None


def test_a_monitor_is_reached_however_long_its_path_is(directory: Path, begin: Start) -> None:
    fake = begin(directory)
    qemu.ask(directory, "system_powerdown")
    assert fake.heard == ["qmp_capabilities", "system_powerdown"]


@pytest.mark.parametrize("command", ["qmp_capabilities", "system_powerdown"])
def test_a_monitors_refusal_is_an_error(directory: Path, begin: Start, command: str) -> None:
    begin(directory, refuses=command)
    with pytest.raises(OSError, match=r"^system_powerdown: .*not now"):
        qemu.ask(directory, "system_powerdown")


def test_a_silent_monitor_is_not_waited_for(directory: Path, begin: Start) -> None:
    fake = begin(directory, greeting=b"")
    with pytest.raises(TimeoutError, match="timed out"):
        qemu.ask(directory, "quit", 0.1)
    assert fake.heard == []


def test_without_a_monitor_there_is_nothing_to_ask(directory: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        qemu.ask(directory, "quit")


def test_asking_leaves_the_directory_closed(directory: Path, begin: Start) -> None:
    begin(directory)
    qemu.ask(directory, "query-status")
    with pytest.raises(OSError, match="No such file"):
        qemu.ask(directory.parent, "query-status")
    opened = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
    assert not opened & {str(directory), str(directory.parent)}


def test_machines_are_powered_off(tmp_path: Path, begin: Start) -> None:
    fakes = [begin(tmp_path / name, heeds=["system_powerdown"]) for name in ("server1", "client1")]
    qemu.stop([fake.directory for fake in fakes], 10)
    for fake in fakes:
        assert fake.heard == ["qmp_capabilities", "system_powerdown"]
        assert fake.process.wait() == -signal.SIGKILL
        assert list(fake.directory.iterdir()) == []


def test_one_that_does_not_power_off_is_told_to_quit(directory: Path, begin: Start) -> None:
    fake = begin(directory, heeds=["quit"])
    qemu.stop([directory], 0)
    assert fake.heard == ["qmp_capabilities", "system_powerdown", "qmp_capabilities", "quit"]
    assert fake.process.poll() is not None


@pytest.mark.parametrize("other", [{}, {"refuses": "qmp_capabilities"}, {"greeting": b"SSH-2\n"}])
def test_one_that_does_not_quit_is_killed(
    directory: Path, begin: Start, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    sent = []
    kill = os.kill
    monkeypatch.setattr(qemu.os, "kill", lambda *those: (sent.append(those), kill(*those)))
    fake = begin(directory, **other)
    # Its end is seen once it is there, however slow this machine is.
    monkeypatch.setattr(qemu, "_wait_gone", _until_killed(sent, fake.process))
    qemu.stop([directory], 0)
    assert sent == [(fake.process.pid, signal.SIGKILL)]
    assert fake.process.poll() == -signal.SIGKILL
    assert list(directory.iterdir()) == []


def _until_killed(
    sent: list[Any], process: subprocess.Popen[bytes]
) -> Callable[[list[Path], float], list[Path]]:
    def wait(those: list[Path], _: float) -> list[Path]:
        if sent:
            process.wait()
        return [one for one in those if qemu.pid(one)]

    return wait


@pytest.mark.usefixtures("hasty")
def test_one_that_does_not_die_is_named(
    directory: Path, begin: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = begin(directory)
    with monkeypatch.context() as patch:
        patch.setattr(qemu.os, "kill", lambda *_: None)
        said = refusal(qemu.stop, [directory], 0)
    assert said == f"host server1: its QEMU, pid {fake.process.pid}, does not die"
    # Still known, so that the next attempt finds it.
    assert qemu.pid(directory) == fake.process.pid


def test_a_process_of_somebody_else_is_not_stopped(
    tmp_path: Path, idle: Callable[..., int]
) -> None:
    number = idle("something else")
    (tmp_path / "qemu.pid").write_text(f"{number}\n")
    (tmp_path / "console.log").write_text("kept\n")
    qemu.stop([tmp_path, tmp_path / "none"], 0)
    os.kill(number, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["console.log"]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("error", [layout.LabError("no"), KeyboardInterrupt(), OSError("full")])
def test_what_was_started_ends_with_a_caller_that_fails(
    tmp_path: Path, begin: Start, error: BaseException
) -> None:
    started = begin(tmp_path / "client1", heeds=["quit"])
    other = begin(tmp_path / "server1", heeds=["quit"])
    with pytest.raises(type(error)) as raised, qemu.orphans_ended([started.directory]):
        raise error
    assert raised.value is error
    assert qemu.pid(started.directory) is None
    assert other.heard == []


def test_what_was_started_runs_on_when_all_went_well(tmp_path: Path, begin: Start) -> None:
    fake = begin(tmp_path)
    with qemu.orphans_ended([tmp_path]):
        pass
    assert fake.heard == []
    assert qemu.pid(tmp_path) == fake.process.pid


def test_a_listener_that_says_nothing_is_no_answer() -> None:
    with listening() as listener:
        assert not qemu.answers(listener.getsockname()[1], 0.1)


@pytest.mark.parametrize(
    ("greeting", "answer"),
    [(b"SSH-2.0-OpenSSH_9.2p1\r\n", True), (b"HTTP/1.0 400\r\n", False), (b"", False)],
)
def test_only_a_greeting_tells_that_a_server_is_there(greeting: bytes, answer: bool) -> None:
    def greet(listener: socket.socket) -> None:
        link, _ = listener.accept()
        with link:
            link.sendall(greeting)

    with listening() as listener:
        thread = threading.Thread(target=greet, args=[listener])
        thread.start()
        assert qemu.answers(listener.getsockname()[1], 10) == answer
        thread.join()


def test_nobody_listens() -> None:
    with listening() as listener:
        port = listener.getsockname()[1]
    assert not qemu.answers(port, 10)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_is_not_free(address: str) -> None:
    with listening(address) as listener:
        port = listener.getsockname()[1]
        assert not qemu.port_is_free(port)
    assert qemu.port_is_free(port)


def test_a_port_whose_last_login_is_in_time_wait_is_free() -> None:
    with listening() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            link, _ = listener.accept()
            link.close()
            assert client.recv(1) == b""
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    assert qemu.port_is_free(port)


def test_a_machine_starts_in_its_directory_with_nothing_of_the_callers_environment(
    directory: Path, qemu_on_path: OnPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = qemu_on_path('pwd > where; env > with; echo "$*" > words; echo said >&2')
    monkeypatch.setattr(qemu, "QEMU", str(fake))
    monkeypatch.setenv("https_proxy", "http://user:secret@192.0.2.1")
    qemu.start(directory, ["-m", "256"])
    assert (directory / "where").read_text().strip() == str(directory)
    assert (directory / "words").read_text() == "-m 256\n"
    assert "secret" not in (directory / "with").read_text()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("printf 'qemu: no disk\\nqemu: gone\\n' >&2; exit 1", "qemu: no disk / qemu: gone"),
        ("exit 7", "7"),
    ],
)
def test_a_machine_that_does_not_start_is_named_with_what_qemu_says(
    directory: Path,
    qemu_on_path: OnPath,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    said: str,
) -> None:
    fake = str(qemu_on_path(script))
    monkeypatch.setattr(qemu, "QEMU", fake)
    assert refusal(qemu.start, directory, []) == f"host server1: {fake}: {said}"


def test_without_qemu_no_machine_starts_and_the_packages_are_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "QEMU", str(directory / "none"))
    assert refusal(qemu.start, directory, []) == NOT_INSTALLED


# The sockets that others connect to.


@pytest.fixture
def this_process(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """This process as a machine's, with a socket that does not listen yet."""
    monkeypatch.setattr(qemu, "pid", lambda _: os.getpid())
    monkeypatch.chdir(directory)  # QEMU names its sockets as seen from there
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind("client1.sock")
        yield ear


def test_a_socket_that_does_not_listen_in_time_is_named(
    directory: Path, this_process: socket.socket
) -> None:
    said = refusal(qemu.await_listening, directory, ["client1.sock"], 0.05)
    assert said == "host server1: qemu-system-x86_64 does not listen on client1.sock after 0.05 s"


def test_all_sockets_have_to_listen(directory: Path, this_process: socket.socket) -> None:
    this_process.listen()
    qemu.await_listening(directory, ["client1.sock"])
    said = refusal(qemu.await_listening, directory, ["client1.sock", "client2.sock"], 0.05)
    assert "does not listen on client2.sock" in said


def test_a_socket_that_listens_later_is_waited_for(
    directory: Path, this_process: socket.socket
) -> None:
    later = threading.Timer(0.1, this_process.listen)
    later.start()
    qemu.await_listening(directory, ["client1.sock"])
    assert this_process.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    later.join()


def test_a_socket_of_that_name_of_another_process_does_not_count(
    directory: Path,
    this_process: socket.socket,
    idle: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    this_process.listen()
    other = idle("qemu")
    monkeypatch.setattr(qemu, "pid", lambda _: other)
    said = refusal(qemu.await_listening, directory, ["client1.sock"], 0.05)
    assert "does not listen on client1.sock" in said


def test_a_machine_that_serves_nobody_is_not_waited_for(directory: Path) -> None:
    qemu.await_listening(directory, [], 0)
    assert "does not listen on x.sock" in refusal(qemu.await_listening, directory, ["x.sock"], 0)
