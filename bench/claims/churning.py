"""Connections opened and closed one after the other, and the TIME_WAITs that they leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bench.claims.ends import Ends, Look
from bench.claims.lab import Lab
from bench.claims.portrange import RANGE
from bench.collect.slab import Cache
from bench.errors import LabError
from bench.hosts.told import Told
from bench.hosts.trials import Trial, Trials

TW_REUSE = "net.ipv4.tcp_tw_reuse"
MAX_TW_BUCKETS = "net.ipv4.tcp_max_tw_buckets"

FIRST_SOURCE = 32_768
"""First source port: the default range begins there (net/ipv4/af_inet.c ``inet_init_net``)."""

ONE: dict[str, str | int] = {RANGE: f"{FIRST_SOURCE - 2} {FIRST_SOURCE - 2}"}
"""A single port for the kernel to choose, so that it always chooses the same port."""

STEP_SECONDS = 120.0

REUSE_PATIENCE = 3.0
"""Seconds for trying a four-tuple again. With tcp_tw_reuse and timestamps, a TIME_WAIT is reused
after one second (net/ipv4/tcp_ipv4.c ``tcp_twsk_unique``). A socket that has bound its port need
not wait."""


def _listed(caches: Mapping[str, Cache], name: str) -> Cache:
    """Return a cache by name.

    :raises LabError: if slabinfo does not list a cache that every kernel has.
    """
    if name not in caches:
        raise LabError(f"the client's slabinfo does not list {name}")
    return caches[name]


class Churn(BaseModel):
    """Connections opened and closed one after the other, to one target."""

    model_config = ConfigDict(extra="forbid")

    asked: int = Field(description="connections to open and close")
    done: int = Field(description="of those, done")
    error: str | None = Field(description="errno that ended it; none: nothing did")
    seconds: float = Field(description="that it took, s")
    client_time_wait: int = Field(description="TIME_WAITs on the client thereafter, by ss")
    server_time_wait: int = Field(description="TIME_WAITs on the server thereafter, by ss")


class Churning:
    """The part of the experiment that runs while the first sockets are watched."""

    def __init__(self, lab: Lab, trials: Trials, ends: Ends, client: Trial, ports: int) -> None:
        self._lab, self._ends, self._client, self._ports = lab, ends, client, ports
        self._here, self._there = Look(trials, lab.client), Look(trials, lab.server)

    def measured(self) -> dict[str, Any]:
        """Return the figures by the names of :class:`bench.claims.closing.TimeWaitFound`."""
        lab, ports = self._lab, self._ports
        last = FIRST_SOURCE + ports - 1
        narrow: dict[str, str | int] = {
            RANGE: f"{FIRST_SOURCE} {last}",
            TW_REUSE: 0,
            MAX_TW_BUCKETS: 8 * ports,
        }
        name = "tw_sock_TCPv6" if ":" in self._ends.address else "tw_sock_TCP"
        roomy = {MAX_TW_BUCKETS: 8 * ports}
        with lab.settings([lab.client], sysctl=narrow), lab.settings([lab.server], sysctl=roomy):
            lab.note(f"{ports:,} source ports, client closes first")
            before = self._here.caches()
            client_first = self._churn(2, "client", "fin", ports + 1)
            after = self._here.caches()
            lab.note("server closes first, then RST")
            server_first = self._churn(3, "server", "fin", 2 * ports)
            reset = self._churn(4, "client", "rst", 2 * ports)
            lab.note("the same four-tuples again")
            bound_after = self._reuse(6, bound=FIRST_SOURCE - 1)
            with lab.settings([lab.client], sysctl={TW_REUSE: 1}):
                reuse_first = self._churn(5, "client", "fin", ports)
                with lab.settings([lab.client], sysctl=ONE):
                    reuse_after = self._reuse(7)  # meanwhile the others get old enough
                reuse_again = self._churn(5, "client", "fin", ports)
            with lab.settings([lab.client], sysctl={TW_REUSE: 2, **ONE}):
                loopback_only_after = self._reuse(8)
                loopback_after = self._reuse(8, loopback=FIRST_SOURCE - 1)
        return {
            "ports": ports,
            "client_first": client_first,
            "server_first": server_first,
            "reset": reset,
            "reuse_first": reuse_first,
            "reuse_again": reuse_again,
            "bound_after": bound_after,
            "reuse_after": reuse_after,
            "loopback_only_after": loopback_only_after,
            "loopback_after": loopback_after,
            "object_bytes": _listed(after, name).bytes_each,
            "socket_bytes": _listed(after, name.removeprefix("tw_sock_")).bytes_each,
            "objects_gained": _listed(after, name).active - _listed(before, name).active,
        }

    def _churn(self, place: int, first: str, how: str, count: int) -> Churn:
        target = self._ends.endpoints[place]
        told = self._client.go(
            STEP_SECONDS, do="churn", target=target, first=first, how=how, count=count
        )
        [here] = self._here.count([target], "dst", "time-wait")
        [there] = self._there.count([target], "src", "time-wait")
        return Churn(
            asked=count,
            done=told.number("done"),
            error=told.maybe("error", Told.text),
            seconds=told.real("seconds"),
            client_time_wait=here,
            server_time_wait=there,
        )

    def _reuse(self, place: int, **fields: Any) -> float | None:
        target = self._ends.endpoints[place]
        told = self._client.go(do="reuse", target=target, patience=REUSE_PATIENCE, **fields)
        return told.maybe("seconds", Told.real)
