"""A lab of bare network namespaces: the local substrate's network without its machines.

A switch namespace holds a veth pair. Every host is a separate namespace with a macvlan child
(bridge mode) of one end. It needs root and iproute2. No traffic leaves: there is no route out.
"""

from __future__ import annotations

import subprocess
from types import TracebackType

SYSCTLS = {
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.core.somaxconn": "65535",
    "net.ipv4.tcp_max_syn_backlog": "65535",
}


class Namespaces:
    """Hosts ``<prefix>-<name>`` on one switch, as a context manager.

    ``hosts`` maps a name to its addresses with prefix length. ``buckets`` sizes each host's
    established-hash table (net.ipv4.tcp_child_ehash_entries, Linux 6.1); with 0 it shares the
    machine's table.
    """

    def __init__(self, prefix: str, hosts: dict[str, list[str]], buckets: int = 0) -> None:
        self._prefix, self._hosts, self._buckets = prefix, hosts, buckets

    def name(self, host: str) -> str:
        """Return the namespace of a host."""
        return f"{self._prefix}-{host}"

    def enter(self, host: str) -> list[str]:
        """Return the words before a command that make it run on a host."""
        # Not `ip netns exec`: its private mount namespace would hide what is mounted later.
        return ["nsenter", f"--net=/run/netns/{self.name(host)}", "--"]

    def run(self, host: str, *argv: str) -> str:
        """Run a command on a host; return what it prints."""
        return _run(*self.enter(host), *argv)

    def __enter__(self) -> Namespaces:
        self.remove()
        try:
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _build(self) -> None:
        _run("ip", "netns", "add", self.name("sw"))
        switch = ["ip", "-n", self.name("sw")]
        if self._buckets:
            self.run("sw", "sysctl", "-qw", f"net.ipv4.tcp_child_ehash_entries={self._buckets}")
        _run(*switch, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for end in ("up0", "up1"):
            _run(*switch, "link", "set", end, "up")
        for number, (host, addresses) in enumerate(self._hosts.items()):
            # A namespace takes its table's size from the namespace that it is created in.
            self.run("sw", "ip", "netns", "add", self.name(host))
            link = f"mv{number}"
            child = ["type", "macvlan", "mode", "bridge"]
            _run(*switch, "link", "add", "link", "up0", "name", link, *child)
            _run(*switch, "link", "set", link, "netns", self.name(host), "name", "data0")
            self._set_up(host, addresses)

    def _set_up(self, host: str, addresses: list[str]) -> None:
        for key, value in SYSCTLS.items():
            self.run(host, "sysctl", "-qw", f"{key}={value}")
        inside = ["ip", "-n", self.name(host)]
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "link", "set", "data0", "up")
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            _run(*inside, "addr", "add", address, "dev", "data0", *nodad)

    def remove(self) -> None:
        """Remove what exists of this lab, or of an earlier lab of the same name."""
        found = {line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line}
        for host in [*self._hosts, "sw"]:
            if self.name(host) in found:
                _run("ip", "netns", "delete", self.name(host))


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
