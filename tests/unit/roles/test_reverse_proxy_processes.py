import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tune_loader import load

processes = load("reverse_proxy", "module_utils", "connlab_proxy_processes")
host_module = load("reverse_proxy", "module_utils", "connlab_proxy_host")

UNIT = "connlab-proxy"
# `ss -Hltnp` of iproute2 6.1 on a proxy of the lab.
HEARD = """\
LISTEN 0      4096   198.18.211.2:5000 0.0.0.0:* users:(("haproxy",pid=2202,fd=7))
LISTEN 0      4096   198.18.211.2:5000 0.0.0.0:* users:(("haproxy",pid=2201,fd=7))
LISTEN 0      4096   198.18.211.1:5000 0.0.0.0:* users:(("haproxy",pid=2202,fd=6))
LISTEN 0      128          0.0.0.0:22        0.0.0.0:*    users:(("sshd",pid=37,fd=3))
LISTEN 0      128             [::]:22           [::]:*    users:(("sshd",pid=37,fd=4))
"""
# `journalctl -o cat` of a process whose port somebody else has, at its second start.
SAID = """\
[NOTICE]   (1946) : haproxy version is 2.6.12-1+deb12u4
[ALERT]    (1946) : an alert of the start before
[NOTICE]   (1950) : haproxy version is 2.6.12-1+deb12u4
[NOTICE]   (1950) : path to executable is /usr/sbin/haproxy
[ALERT]    (1950) : Binding [/etc/connlab/proxy.cfg:37] for frontend plain: cannot bind socket
[ALERT]    (1950) : [/usr/sbin/haproxy.main()] Some protocols failed to start their listeners!
"""


class Host:
    """systemctl(1) and ss(8) on a host with processes, whose pid is this one's."""

    def __init__(self, running: int) -> None:
        self.running = running
        self.heard = HEARD.replace("2201", str(os.getpid()))

    def run(self, words: list[str]) -> tuple[int, str, str]:
        if words[0] == "ss":
            return 0, self.heard, ""
        if words[1] == "show":
            pids = [os.getpid() if n < self.running else 0 for n, _ in enumerate(words[3:])]
            return 0, "\n\n".join(f"MainPID={pid}" for pid in pids), ""
        if words[1] == "list-units":
            lines = [f"{UNIT}@{n + 1}.service loaded active running x" for n in range(self.running)]
            return 0, "\n".join([*lines, f"{UNIT}@9.service loaded failed failed x"]), ""
        return 1, "", f"Unknown command {words[1]}."


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A process's socket, which answers each connection with a text."""
    listening: list[tuple[socket.socket, threading.Thread]] = []

    def serve(text: str) -> Path:
        path = tmp_path / "1.sock"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            while True:
                peer, _ = server.accept()
                with peer:
                    command = peer.recv(100)
                    if command == b"end\n":
                        return
                    assert command == b"show info\n"
                    peer.sendall(text.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        listening.append((server, thread))
        return path

    yield serve
    for server, thread in listening:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.getsockname())
            client.sendall(b"end\n")
        thread.join()
        server.close()


def info(**changes: Any) -> str:
    shown = {"Name": "HAProxy", "Pid": os.getpid(), "Maxconn": 5418, "Maxsock": 30, **changes}
    return "".join(f"{name}: {value}\n" for name, value in shown.items()) + "\n"


def wrong(host: Host, runtime: Path, count: int = 1) -> list[str]:
    found = processes.wrong(host.run, UNIT, count, {"198.18.211.2:5000"}, 5418, runtime)
    return list(found)


def test_the_listeners_of_each_process() -> None:
    assert processes.listeners(HEARD) == {
        2202: {"198.18.211.2:5000", "198.18.211.1:5000"},
        2201: {"198.18.211.2:5000"},
        37: {"0.0.0.0:22", "[::]:22"},
    }


def test_the_first_alert_of_the_last_start_is_the_cause() -> None:
    assert processes.cause(SAID) == (
        "Binding [/etc/connlab/proxy.cfg:37] for frontend plain: cannot bind socket"
    )
    assert processes.cause("") == ""


def test_a_process_that_listens_and_answers_is_as_wanted(
    answering: Callable[[str], Path],
) -> None:
    runtime = answering(info()).parent
    assert wrong(Host(1), runtime) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"Pid": 1}, f"{UNIT}@1.service: wanted Pid {os.getpid()}, found 1"),
        ({"Maxconn": 9}, f"{UNIT}@1.service: wanted Maxconn 5418, found 9"),
        ({"Maxsock": 2**40}, f"{UNIT}@1.service: wanted nofile {2**40}, found "),
    ],
)
def test_a_process_that_says_something_else(
    answering: Callable[[str], Path], changes: dict[str, int], line: str
) -> None:
    runtime = answering(info(**changes)).parent
    found = wrong(Host(1), runtime)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_processes_that_are_not_there_deaf_or_silent(tmp_path: Path) -> None:
    host = Host(1)
    assert wrong(host, tmp_path, 2)[1] == f"{UNIT}@2.service: wanted running, found not"
    assert "wanted an answer at 1.sock, found" in wrong(host, tmp_path)[0]
    host.heard = HEARD
    assert wrong(host, tmp_path) == [
        f"{UNIT}@1.service: wanted listening on 198.18.211.2:5000, found not"
    ]


def test_the_limit_is_the_one_that_the_kernel_has() -> None:
    assert processes.open_files(os.getpid()) == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_the_instances_that_systemd_knows_of() -> None:
    assert processes.instances(Host(2).run, UNIT) == {1: True, 2: True, 9: False}
    assert processes.names(UNIT, [2, 1]) == [f"{UNIT}@1.service", f"{UNIT}@2.service"]
    assert processes.main_pids(Host(1).run, ["a", "b"]) == [os.getpid(), 0]


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(processes.ProxyError, match="systemctl frobnicate: Unknown command frob"):
        processes.checked(Host(1).run, "systemctl", "frobnicate")


def test_proof_waits_for_what_is_still_starting_and_names_what_stays_wrong() -> None:
    answers = [["not yet"], []]
    processes.prove(lambda: answers.pop(0), 60)
    with pytest.raises(processes.ProxyError, match=r"^this \(and 1 more\)$"):
        processes.prove(lambda: ["this", "that"], 0)


def test_the_probe_of_the_limit_prints_what_a_process_of_ours_can_have() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", host_module.LIMIT],
        capture_output=True,
        text=True,
        check=True,
    )
    with open("/proc/sys/fs/nr_open", encoding="ascii") as stream:
        most = int(stream.read())
    held = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with open("/proc/self/status", encoding="utf-8") as stream:
        caps = next(line.split()[1] for line in stream if line.startswith("CapEff:"))
    # Bit 24 is CAP_SYS_RESOURCE (include/uapi/linux/capability.h).
    assert int(done.stdout) == (max(held, most) if int(caps, 16) >> 24 & 1 else held)


def test_what_haproxy_does_not_take_is_told_by_its_first_alert() -> None:
    asked: list[list[str]] = []

    def refuse(words: list[str]) -> tuple[int, str, str]:
        asked.append(words)
        assert Path(words[-1]).read_text(encoding="utf-8") == "text"
        return 1, "", SAID

    with pytest.raises(processes.ProxyError, match=r"^haproxy -c: Binding \[/etc/connlab"):
        host_module.check_config(refuse, "text")
    assert not Path(asked[0][-1]).exists()
    host_module.check_config(lambda _: (0, "Configuration file is valid", ""), "text")
