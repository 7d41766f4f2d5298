"""Both ends of a small experiment: client and server, and the looks at the hosts meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench import scenario
from bench.claims.lab import Lab, NotMeasurable
from bench.collect import ParseError, nstat, slab
from bench.errors import LabError
from bench.hosts.told import Told
from bench.hosts.trials import Trial, Trials
from bench.inventory import Host
from bench.plan.topology import Topology

FIRST_PORT = 6_000

T = TypeVar("T")


@dataclass(frozen=True)
class Ends:
    """The first server's address and ports, the first client's address, and their secret."""

    nonce: str
    source: str
    address: str
    control: tuple[str, int]
    ports: tuple[int, ...]
    routers: tuple[str, ...] = ()
    """Addresses that the server may see in place of the client's."""

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """Endpoints that the server listens on."""
        return [(self.address, port) for port in self.ports]

    @property
    def server(self) -> dict[str, Any]:
        """Return the server's arguments for the handshake."""
        return {"nonce": self.nonce, "control": self.control}

    @property
    def client(self) -> dict[str, Any]:
        """Return the client's arguments for the handshake."""
        return {**self.server, "source": self.source, "routers": self.routers}


def between(lab: Lab, ports: int = 1, family: int | None = None, first: int = FIRST_PORT) -> Ends:
    """Return the ends of an experiment between the first client and the first server.

    :param ports: number of server ports
    :param family: IP version; None: that of the server's first address
    :param first: the first server port
    :raises NotMeasurable: if one end has no address of that version.
    """
    fields = {} if family is None else {"family": family}
    wanted = scenario.load("claim", {**lab.inventory.settings, **fields})
    topology = Topology(wanted, lab.inventory)
    there, here = topology.listening(lab.server), topology.sources(lab.client)
    for host, found in ((lab.server, there), (lab.client, here)):
        if not found:
            raise NotMeasurable(f"{host.name} has no IPv{topology.family} address in the inventory")
    return Ends(
        secrets.token_hex(16),
        here[0],
        there[0],
        (there[0], wanted.control_port),
        tuple(range(first, first + ports)),
        tuple(topology.translated),
    )


class Look:
    """Looks at one host between an experiment's steps."""

    def __init__(self, trials: Trials, host: Host, *, root: bool = False) -> None:
        self._trial: Trial = trials.begin(host, "look", root=root)

    def counters(self) -> dict[str, int]:
        """Return the kernel's counters of the host (nstat(8)), by name."""
        return self._parsed("nstat", nstat.parse)

    def caches(self) -> dict[str, slab.Cache]:
        """Return the kernel's slab caches, by name."""
        return self._parsed("slabinfo", slab.parse)

    def text(self, name: str) -> str:
        """Return the text of a source of evidence (``bench.wire.SOURCES``)."""
        return self._trial.go(texts=[name]).within("texts").text(name)

    def _parsed(self, name: str, parser: Callable[[str], T]) -> T:
        """Return a parsed source. :raises LabError: if the text is not of that source."""
        try:
            return parser(self.text(name))
        except ParseError as error:
            raise LabError(f"host {self._trial.agent.name}: {error}") from None

    def listening(self) -> set[int]:
        """Return the ports that the host's sockets listen on."""
        return set(self._trial.go(listening=True).each("ports", Told.number))

    def pss_bytes(self, named: str) -> int:
        """Return the memory of all processes of that name (PSS), bytes.

        Only root can read that of another user's processes.
        """
        return 1024 * self._trial.go(named=named).number("pss_kib")

    def count(self, ends: Sequence[tuple[str, int]], side: str, *states: str) -> list[int]:
        """Return the number of sockets with these ends in each of the states, by ss(8).

        :param side: src or dst
        """
        asked = [{"ends": list(ends), "side": side, "state": state} for state in states]
        return self._trial.go(count=asked).each("counts", Told.number, len(asked))[: len(asked)]


def gained(before: Mapping[str, int], after: Mapping[str, int], name: str) -> int:
    """Return the increase of a counter; a counter that is not listed is 0."""
    return after.get(name, 0) - before.get(name, 0)
