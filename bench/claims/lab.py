"""A claim's view of the lab: whole runs, small experiments, and settings changed for seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import scenario, wire
from bench.errors import LabError
from bench.hosts import count
from bench.hosts.count import Count
from bench.hosts.session import Connect
from bench.hosts.told import Told
from bench.hosts.trials import Trial, Trials
from bench.inventory import Host, Inventory
from bench.plan.topology import require
from bench.results.format import HostRecord, Run
from bench.results.store import Store
from bench.run import runner
from bench.run.curve import Progress

KERNEL_WIDE = (
    "fs.",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_max_orphans",
    "net.core.netdev_max_backlog",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_buckets",
)
"""Parameters that belong to a kernel and not to a network namespace. If the lab's hosts share the
kernel of the machine underneath, the parameters are that machine's, and no experiment lowers
them."""


class NotMeasurable(Exception):
    """The claim cannot be measured on these hosts; the text is the reason, in one sentence."""


class Lab:
    """The hosts of an inventory, for one claim."""

    def __init__(
        self,
        inventory: Inventory,
        hosts: Mapping[str, HostRecord],
        connect: Connect,
        folder: Path,
        progress: Callable[[str], None],
    ) -> None:
        """Take over the hosts.

        :param hosts: their records, as they are now

        :param folder: where the claim's runs are kept
        """
        self.inventory = inventory
        self.hosts = hosts
        self._connect = connect
        self._store = Store(folder / "runs")
        self._progress = progress

    @property
    def server(self) -> Host:
        """The first server."""
        return self.inventory.of("servers")[0]

    @property
    def client(self) -> Host:
        """The first client."""
        return self.inventory.of("clients")[0]

    @property
    def shared_kernel(self) -> bool:
        """Whether the hosts share the kernel of the machine underneath."""
        return self.inventory.underlay

    def note(self, text: str) -> None:
        """Report the progress of the claim."""
        self._progress(text)

    def run(
        self,
        name: str = "claim",
        during: Callable[[], None] = lambda: None,
        *,
        every_server: bool = False,
        **fields: Any,
    ) -> Run:
        """Run a scenario on these hosts and keep it beside the claim.

        It uses only the first server, since claims are about one server. It uses all servers behind
        proxies, since the proxies choose among them.

        :param during: called once, when all connections are held
        :param every_server: use all servers
        :raises LabError: if the lab failed.
        """
        wanted = scenario.load(name, {**self.inventory.settings, **fields})
        shown = ""

        def update(now: Progress) -> None:
            nonlocal shown
            if now.phase != shown:
                shown = now.phase
                self.note(f"{name}: {now.phase}")
                if now.phase == "hold":
                    during()

        hosts = self.inventory if every_server or wanted.path == "proxied" else self._one_server()
        return runner.run(wanted, hosts, self._store, self._connect, update)

    def _one_server(self) -> Inventory:
        first = self.server.name
        return replace(
            self.inventory,
            hosts={
                name: host
                for name, host in self.inventory.hosts.items()
                if name == first or "servers" not in host.groups
            },
        )

    def held(
        self, name: str = "claim", during: Callable[[], None] = lambda: None, **fields: Any
    ) -> Run:
        """Run a scenario that has to pass for its figures to mean anything.

        :raises LabError: if it does not.
        """
        done = self.run(name, during, **fields)
        if done.verdict != "pass":
            raise LabError(f"run {done.run_id}: {done.reason}")
        return done

    def count(self, ports: str, by: str) -> Count:
        """Return the first server's connections on local ports, as ``python -m bench count``."""
        spec: wire.CountSpec = {
            "ranges": count.ranges(ports),
            "side": "local",
            "states": count.states(["established"]),
            "by": by,
        }
        return count.look([self.server], self._connect, spec)[0]

    def trials(self) -> Trials:
        """Return small experiments, as a context."""
        return Trials(self._connect)

    @contextmanager
    def settings(
        self,
        hosts: Sequence[Host],
        sysctl: Mapping[str, str | int] | None = None,
        tables: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Iterator[dict[str, Mapping[str, str]]]:
        """Change settings of hosts while the context lasts (``bench.agent.trials.guard``).

        :param tables: nftables tables, ``family name`` to body
        :return: by host, kernel parameter to the value found before
        :raises NotMeasurable: for a parameter of the kernel if the hosts share one kernel.
        :raises LabError: if another controller has changed one of them.
        """
        for key in sysctl or {}:
            if self.shared_kernel and key.startswith(KERNEL_WIDE):
                raise NotMeasurable(
                    f"{key} belongs to the whole kernel, which these hosts share with the machine "
                    "underneath; virtual machines have kernels of their own (-i inventory/vm)"
                )
        with self.trials() as trials:
            guards: dict[str, Trial] = {
                host.name: trials.guard(
                    host,
                    sysctl={key: str(value) for key, value in (sysctl or {}).items()},
                    tables=dict(tables or {}),
                    files=dict(files or {}),
                )
                for host in hosts
            }
            yield {name: guard.first.named("found", Told.text) for name, guard in guards.items()}
            for guard in guards.values():
                guard.go(back=True)  # here, so that a failed undo is an error

    def require(self, group: str) -> Host:
        """Return the first host of a group.

        :raises InputError: if there is none, naming the command that builds it.
        """
        require(group, self.inventory)
        return self.inventory.of(group)[0]
