"""The hosts of a lab as the machine underneath sees them: processes, files, sockets, links.

A host is a network namespace with a name, and a pid namespace whose first process lives in it.
That holds for hosts of systemd-nspawn and for the small ones of :mod:`sshhost` alike. What is
looked at and harmed here is nobody else's: a process counts only if it is in the host's own network
namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PUSHED = re.compile(r"/tmp/connlab\.[A-Za-z0-9_]{8,10}/agent\.pyz")
LOCKS = ("run/lock", "dev/shm", "tmp")
TABLE = "connlab_fault"
"""The nftables table by which links are cut and ports redirected."""

PLANES = {"management": "mgmt0", "data": "data0"}
# Of the host's own namespace: those of the whole kernel may be changed by other labs meanwhile.
SETTINGS = (
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
)


HEARING = ("env", "--default-signal=INT,HUP,TERM")
"""Before a command: a shell in the background has its programs ignore what is to end them."""


def run(*argv: str | Path, check: bool = True, seconds: float = 60) -> str:
    """Run a command on this machine; returns what it prints."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=seconds)
    if check and done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"{' '.join(map(str, argv))}: {said or done.returncode}")
    return done.stdout


def until(condition, seconds: float, every: float = 0.05) -> bool:
    """Whether a condition comes true in time."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return bool(condition())
        time.sleep(every)
    return True


def words(pid: int) -> list[str]:
    """The arguments of a process; none if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _status(pid: int, key: str) -> list[str]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return line.split()[1:]
    return []


FRESH_SECONDS = 0.03
"""For which one look at all processes is enough: several hosts are looked at in a row."""

_looked: tuple[float, dict[str, list[int]]] = (0.0, {})


def _namespaces() -> dict[str, list[int]]:
    """All processes by network namespace, but for those of this one."""
    global _looked  # noqa: PLW0603
    if time.monotonic() - _looked[0] > FRESH_SECONDS:
        found: dict[str, list[int]] = {}
        own = os.readlink("/proc/self/ns/net")
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    space = os.readlink(f"/proc/{entry}/ns/net")
                    if space != own:
                        found.setdefault(space, []).append(int(entry))
        _looked = time.monotonic(), found
    return _looked[1]


class Host:
    """One host."""

    def __init__(self, name: str, namespace: str, *, own_files: bool = True) -> None:
        """Name a host, which may be off.

        :param namespace: name of its network namespace, as of ip-netns(8)
        :param own_files: whether its /etc is not that of the machine underneath
        """
        self.name = name
        self.own_files = own_files
        self.path = Path("/run/netns") / namespace
        self._init: int | None = None

    def pids(self) -> list[int]:
        """Processes in its network namespace; those of ip(8) and nft(8) pass by there too."""
        try:
            wanted = f"net:[{self.path.stat().st_ino}]"
        except OSError:
            return []
        return _namespaces().get(wanted, [])

    def init(self) -> int | None:
        """The first process of its pid namespace; None while it is off."""
        if self._init is not None and self._init in self.pids():
            return self._init
        for pid in self.pids():
            levels = _status(pid, "NSpid")
            if len(levels) == 2 and levels[1] == "1":
                self._init = pid
                return pid
        return None

    @property
    def root(self) -> Path:
        """Its root directory. :raises RuntimeError: while it is off."""
        pid = self.init()
        if pid is None:
            raise RuntimeError(f"host {self.name} is off")
        return Path(f"/proc/{pid}/root")

    def agents(self, workers: bool = False) -> list[int]:
        """Its agents, or their workers."""
        found = {
            pid
            for pid in self.pids()
            if len(said := words(pid)) > 1 and "python" in said[0] and PUSHED.fullmatch(said[1])
        }
        child = {pid for pid in found if int((_status(pid, "PPid") or ["0"])[0]) in found}
        return sorted(child if workers else found - child)

    def enter(self, *argv: str) -> list[str]:
        """The words that run a command in its network namespace."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def connections(self) -> list[str]:
        """ESTAB sockets of the data plane."""
        rows = run(*self.enter("ss", "-Htn", "state", "established")).splitlines()
        return [row for row in rows if not re.search(r"\b169\.254\.", row)]

    def left(self) -> dict[str, list[str]]:
        """What of a run is there, by kind; nothing of a host that is off."""
        found: dict[str, list[str]] = {
            "agent": [str(pid) for pid in self.agents() + self.agents(workers=True)],
            "socket": self.connections(),
        }
        with contextlib.suppress(RuntimeError):
            root = self.root
            found["directory"] = [path.name for path in root.glob("tmp/connlab.*")]
            found["file"] = [path.name for path in root.glob("tmp/.nstat.*")]
            found["lock file"] = [
                str(path.relative_to(root))
                for folder in LOCKS
                for path in root.glob(f"{folder}/connlab-run.*")
            ]
        return {kind: entries for kind, entries in found.items() if entries}

    def state(self) -> Mapping[str, str]:
        """Limits, addresses and tables that no run may change."""
        values = run(*self.enter("sysctl", *SETTINGS), check=False).splitlines()
        found = dict(line.split(" = ", 1) for line in values if " = " in line)
        for link in json.loads(run(*self.enter("ip", "-j", "addr", "show"))):
            listed = sorted(f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"])
            found[f"addresses of {link['ifname']}"] = " ".join(listed)
        found["tables"] = run(*self.enter("nft", "list", "tables"))
        with contextlib.suppress(RuntimeError):
            for path in self.root.glob("etc/security/limits.d/*") if self.own_files else ():
                found[path.name] = path.read_text()
            found["nofile"] = str(resource.prlimit(self.init() or 0, resource.RLIMIT_NOFILE))
        return found

    def nft(self, *rules: str) -> None:
        """Add a table of rules of its own, in place of an earlier one."""
        text = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
        text += f"table inet {TABLE} {{\n" + "\n".join(rules) + "\n}\n"
        subprocess.run(self.enter("nft", "-f", "-"), input=text, text=True, check=True)

    def cut(self, *planes: str) -> None:
        """Let nothing in or out by an interface, as a pulled cable does: no error, no answer."""
        names = ", ".join(f'"{PLANES[plane]}"' for plane in planes)
        self.nft(
            f"chain i {{ type filter hook input priority 0; iifname {{ {names} }} drop; }}",
            f"chain o {{ type filter hook output priority 0; oifname {{ {names} }} drop; }}",
        )

    def mend(self) -> None:
        """Take away the rules."""
        run(*self.enter("nft", "delete", "table", "inet", TABLE), check=False)

    def power_off(self) -> None:
        """Off at once: its processes die, and nobody hears of it."""
        self.cut("management", "data")
        pid = self.init()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        if not until(lambda: not self.pids(), 15):
            raise RuntimeError(f"host {self.name} does not go off: {self.pids()}")

    def resize_tmp(self, size: int) -> None:
        """Give its /tmp another size, bytes: what is there stays."""
        pid = str(self.init())
        words = ["mount", "-t", "tmpfs", "-o", f"remount,size={size}", "tmpfs", "/tmp"]
        run("nsenter", "-m", "-p", "-t", pid, *words)


@contextlib.contextmanager
def small_disk(path: Path, mib: int) -> Iterator[None]:
    """A file system of its own at a path."""
    path.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
    try:
        yield
    finally:
        run("umount", "-l", path)


def fill(path: Path) -> None:
    """Fill a file system to its last block."""
    with contextlib.suppress(OSError), (path / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


STRANGER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096)
print("listening", flush=True)
taken = []
while True:
    taken.append(listener.accept()[0])
    print(len(taken), flush=True)
"""


class Stranger:
    """A listener on a host that is no agent; counts who comes."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        self.process = subprocess.Popen(
            host.enter("python3", "-c", STRANGER, address, str(port)),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "listening\n"

    def end(self) -> int:
        """End it; returns how many connections it got."""
        self.process.kill()
        assert self.process.stdout
        lines = self.process.communicate(timeout=10)[0].split()
        return int(lines[-1]) if lines else 0
