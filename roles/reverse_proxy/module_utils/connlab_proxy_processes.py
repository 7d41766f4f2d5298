"""The proxy's processes on this host, as systemd, the kernel and the processes report them.

Runs on the hosts: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# (arguments) -> (exit status, standard output, standard error), as AnsibleModule.run_command.
Run = Callable[[list[str]], "tuple[int, str, str]"]

ANSWER_SECONDS = 2.0
START_SECONDS = 20.0
"""Seconds for the start. A process of 10,000 connections listens within a second, but dozens of
them may share two cores."""
# ss(8): State Recv-Q Send-Q Local:Port Peer:Port users:(("haproxy",pid=7,fd=5))
LISTENING = re.compile(r"LISTEN\s+\d+\s+\d+\s+(\S+)\s+\S+\s+users:\((.*)\)")
PID = re.compile(r"pid=(\d+)")


class ProxyError(Exception):
    """The proxy is not in its wanted state; the text gives the reason in one line."""


def checked(run: Run, *words: str) -> str:
    """Return the output of a command. Errors: ProxyError with its error message."""
    code, out, err = run(list(words))
    if code:
        raise ProxyError(f"{' '.join(words[:3])}: {(err or out).strip()}")
    return out


def instances(run: Run, unit: str) -> dict[int, bool]:
    """Return the processes that systemd knows, by number, and whether each one runs.

    They are those that are enabled, and those that are loaded in any state.
    """
    found: dict[int, bool] = {}
    pattern = re.compile(re.escape(unit) + r"@(\d+)\.service")
    listed = checked(
        run, "systemctl", "list-units", "--all", "--plain", "--no-legend", f"{unit}@*.service"
    )
    for line in listed.splitlines():
        words = line.split()
        match = pattern.fullmatch(words[0]) if words else None
        if match:
            found[int(match[1])] = words[2] == "active"
    for path in Path("/etc/systemd/system/multi-user.target.wants").glob(f"{unit}@*.service"):
        match = pattern.fullmatch(path.name)
        if match:
            found.setdefault(int(match[1]), False)
    return found


def names(unit: str, numbers: Iterable[int]) -> list[str]:
    """Return the unit names of the processes with these numbers."""
    return [f"{unit}@{number}.service" for number in sorted(numbers)]


def main_pids(run: Run, units: Sequence[str]) -> list[int]:
    """Return the main pid of each unit, 0 if it does not run (systemctl(1), show)."""
    shown = checked(run, "systemctl", "show", "--property=MainPID", *units)
    return [int(line.split("=")[1]) for line in shown.splitlines() if line]


def listeners(text: str) -> dict[int, set[str]]:
    """Return the set of "address:port" that each process listens on, from `ss -Hltnp`."""
    found: dict[int, set[str]] = {}
    for line in text.splitlines():
        match = LISTENING.match(line.strip())
        if match:
            for pid in PID.findall(match[2]):
                found.setdefault(int(pid), set()).add(match[1])
    return found


def cause(said: str) -> str:
    """Return the first alert of haproxy's last start in its output, or "" if there is none.

    The last alert only reports that haproxy gives up.
    """
    alerts: list[str] = []
    for line in said.splitlines():
        if "haproxy version is" in line:
            alerts = []
        if "[ALERT]" in line:
            alerts.append(line.partition(" : ")[2].strip())
    return alerts[0] if alerts else ""


def show_info(path: Path) -> dict[str, str]:
    """Return the values of a process's `show info`, by name (haproxy's management guide).

    Errors: OSError if no process answers on the socket.
    """
    text = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_SECONDS)
        client.connect(str(path))
        client.sendall(b"show info\n")
        while True:
            part = client.recv(65_536)
            if not part:
                break
            text += part
    pairs = (line.partition(": ") for line in text.decode().splitlines())
    return {name: value for name, _, value in pairs if name}


def open_files(pid: int) -> int:
    """Return the hard nofile limit of a process (proc(5), limits)."""
    for line in Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines():
        if line.startswith("Max open files"):
            return int(line.split()[4])
    raise ProxyError(f"/proc/{pid}/limits: no line of open files")


def wrong(
    run: Run, unit: str, processes: int, endpoints: set[str], maxconn: int, runtime: Path
) -> list[str]:
    """Return one line for each process that is not in its wanted state, none if all are."""
    units = names(unit, range(1, processes + 1))
    pids = main_pids(run, units)
    heard = listeners(checked(run, "ss", "-Hltnp"))
    lines = []
    for number, (name, pid) in enumerate(zip(units, pids), 1):  # noqa: B905
        if not pid:
            lines.append(f"{name}: wanted running, found not")
            continue
        deaf = endpoints - heard.get(pid, set())
        if deaf:
            first, more = sorted(deaf)[0], f" and {len(deaf) - 1} more" if len(deaf) > 1 else ""
            lines.append(f"{name}: wanted listening on {first}{more}, found not")
            continue
        try:
            info = show_info(runtime / f"{number}.sock")
            hard = open_files(pid)
        except OSError as error:
            lines.append(f"{name}: wanted an answer at {number}.sock, found {error}")
            continue
        for what, want, have in (
            ("Pid", pid, info.get("Pid")),
            ("Maxconn", maxconn, info.get("Maxconn")),
        ):
            if str(want) != have:
                lines.append(f"{name}: wanted {what} {want}, found {have}")
        if hard < int(info.get("Maxsock", 0)):
            lines.append(f"{name}: wanted nofile {info['Maxsock']}, found {hard}")
    return lines


def prove(check: Callable[[], list[str]], seconds: float = START_SECONDS) -> None:
    """Wait until a check returns no errors. Errors: ProxyError with the first remaining error."""
    end = time.monotonic() + seconds
    while True:
        lines = check()
        if not lines:
            return
        if time.monotonic() > end:
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            raise ProxyError(lines[0] + more)
        time.sleep(0.2)
