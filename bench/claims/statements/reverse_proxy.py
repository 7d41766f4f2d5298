"""What reverse proxies in the path add, and what the server sees of the clients behind them."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic import Field

from bench.claims.ends import Look
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement
from bench.claims.portrange import RANGE, PortRange
from bench.hosts.told import Told
from bench.inventory import Host
from bench.results.format import KernelBytes, Run
from bench.scenario import MOST_CONNECTIONS

SOCKETS = 4
"""Sockets of a proxied connection: the client's, the proxy's two, the server's."""

CONTROL, PLAIN, HEADED, TRANSPARENT = 4999, 5000, 5001, 5002
"""Ports of the role reverse_proxy: one for the handshake, and one for each way to pass on the
client."""


class ProxyParameters(PortRange):
    """The limit of one proxy, and the connections through all of them."""

    beyond: int = Field(ge=1, le=100_000)
    """Connections that are tried beyond what one proxy's source ports allow."""
    connections: int = Field(ge=1, le=MOST_CONNECTIONS)
    """Connections through all proxies together."""


class ProxyFound(Found):
    """The connections through one proxy and through all, their cost, and what the server saw."""

    ports: int = Field(
        description="source ports of one address of the proxy, those that it listens on left out"
    )
    sources: int = Field(description="addresses that a proxy connects to the server from")
    one_proxy: int = Field(description="held at the server through one proxy")
    tried: int = Field(description="connections that were tried for that")
    held: int = Field(description="held at the server through all proxies")
    asked: int = Field(description="connections that were asked for through all proxies")
    per_proxy: dict[str, int] = Field(description="of them, by proxy")
    haproxy_bytes: float | None = Field(
        description="HAProxy's own memory (PSS) that a proxied connection added, bytes: without "
        "what its pools had kept of earlier ones"
    )
    kernel_bytes: float | None = Field(
        description="slab for a proxied connection on a kernel that all hosts share (four sockets) "
        "or on the server's own (one), bytes; none: others opened or closed sockets there as well"
    )
    plain_sees_client: bool | None = Field(
        description="whether the server sees the client's address through a plain proxy; none: the "
        "connection did not come about here"
    )
    header_names_client: bool | None = Field(
        description="whether a PROXY protocol v2 header names the client's address; none: the "
        "connection did not come about here"
    )
    transparent_sees_client: bool | None = Field(
        description="whether the server sees the client's address through a transparent proxy "
        "(TPROXY); none: the connection did not come about here"
    )


def measure(lab: Lab, parameters: ProxyParameters) -> ProxyFound:
    """Fill one proxy, then all of them; then open a few connections to see the client's address.

    :raises NotMeasurable: if an end has no IPv4 address.
    """
    proxies = lab.inventory.of("proxies")
    first = lab.require("proxies")
    server, source, front = map(_ipv4, (lab.server, lab.client, first))
    sources = [one for one in first.data_addresses if ":" not in one]
    with lab.trials() as trials:
        taken = Look(trials, first).listening()
    ports = set(parameters.ports) - taken
    wanted = len(ports) * len(sources) + parameters.beyond
    span = f"{parameters.first_port} {parameters.last_port}"
    with lab.settings([first], sysctl={RANGE: span}):
        one = _open(lab, 1, wanted)
    done, per_proxy, memory = _all(lab, proxies, parameters.connections)
    seen = _seen(lab, server, source, front)
    return ProxyFound(
        ports=len(ports),
        sources=len(sources),
        one_proxy=one.measured.established.ss,
        tried=wanted,
        held=done.measured.established.ss,
        asked=parameters.connections,
        per_proxy=per_proxy,
        haproxy_bytes=memory,
        kernel_bytes=_kernel_bytes(done.measured.kernel_bytes_per_connection),
        **seen,
    )


def _ipv4(host: Host) -> str:
    """Return the first IPv4 address of a host in the inventory."""
    found = next((one for one in host.data_addresses if ":" not in one), None)
    if found is None:
        raise NotMeasurable(f"{host.name} has no IPv4 address in the inventory")
    return found


def _kernel_bytes(found: KernelBytes) -> float | None:
    """Return the slab of a proxied connection; None if other sockets opened or closed meanwhile."""
    if found.both_ends is None:
        return found.server
    whole = found.sockets is not None and abs(found.sockets - SOCKETS) < 0.1
    return found.both_ends if whole else None


def _open(lab: Lab, proxies: int, connections: int, **during: Any) -> Run:
    return lab.run(
        path="proxied",
        proxies=proxies,
        connections=connections,
        server_addresses=1,
        server_ports=[PLAIN],
        control_port=CONTROL,
        connect_timeout_ms=5_000,
        **during,
    )


def _all(
    lab: Lab, proxies: list[Host], connections: int
) -> tuple[Run, dict[str, int], float | None]:
    """Run through all proxies; return the run, each proxy's connections, HAProxy's bytes each."""
    owner = {address: host.name for host in proxies for address in host.data_addresses}
    per_proxy = {host.name: 0 for host in proxies}
    growth: list[int] = []
    with lab.trials() as trials:
        looks = [Look(trials, host, root=True) for host in proxies]
        before = sum(look.pss_bytes("haproxy") for look in looks)

        def during() -> None:
            for peer, number in lab.count(str(PLAIN), "peer").counts.items():
                name = owner.get(peer, peer)
                per_proxy[name] = per_proxy.get(name, 0) + number
            growth.append(sum(look.pss_bytes("haproxy") for look in looks) - before)

        done = _open(lab, len(proxies), connections, during=during)
    held = done.measured.established.ss
    return done, per_proxy, round(growth[0] / held, 1) if growth and held else None


def _seen(lab: Lab, server: str, source: str, front: str) -> dict[str, bool | None]:
    """Return whether the server sees the client through each kind of front; None: no connection."""
    ports = (PLAIN, HEADED, TRANSPARENT)
    fronts = [[front, port] for port in ports]
    nonce = secrets.token_hex(16)
    with lab.trials() as trials:
        sees = trials.begin(
            lab.server,
            "peers",
            side="server",
            control=[server, CONTROL],
            endpoints=[[server, port] for port in ports],
            fronts=fronts,
            nonce=nonce,
        )
        asks = trials.begin(
            lab.client,
            "peers",
            side="client",
            control=[front, CONTROL],
            fronts=[[front, CONTROL]],
            source=source,
            nonce=nonce,
        )
        told = trials.together({sees: {"count": 3, "within": 5.0}, asks: {"targets": fronts}})
    at = {one.number("port"): one for one in told[sees].each("seen", Told.within)}

    def names(port: int, by: str) -> bool | None:
        return at[port].maybe(by, Told.text) == source if port in at else None

    return {
        "plain_sees_client": names(PLAIN, "peer"),
        "header_names_client": names(HEADED, "header"),
        "transparent_sees_client": names(TRANSPARENT, "peer"),
    }


def judge(found: ProxyFound) -> Judgement:
    """Judge the port space per proxy, and whether transparency is needed to know the client."""
    allowed = found.ports * found.sources
    each = ", ".join(f"{number:,} through {name}" for name, number in found.per_proxy.items())
    measured = (
        f"{found.one_proxy:,} of {found.tried:,} through one proxy with {found.sources} addresses "
        f"of {found.ports:,} ports; {found.held:,} at one server port through "
        f"{len(found.per_proxy)} proxies ({each})"
    )
    if found.haproxy_bytes is not None:
        measured += f"; {found.haproxy_bytes:,.0f} B more of HAProxy each"
    if found.one_proxy > allowed or found.held != found.asked:
        return Judgement("inconclusive", measured, "the proxies' ports did not bound what was held")
    if found.one_proxy < allowed:
        return Judgement(
            "inconclusive", measured, f"one proxy stopped before its {allowed:,} source ports"
        )
    unshown = _unshown(found)
    if unshown:
        return Judgement("inconclusive", measured, unshown)
    if found.header_names_client:
        return Judgement(
            "depends",
            measured,
            "each source address of a proxy does add its ports, and the proxy need not be "
            "transparent: a PROXY protocol header names the client as well",
        )
    return Judgement(
        "confirmed",
        measured,
        "each source address of a proxy adds its ports, and only a transparent proxy shows the "
        "server who the client is",
    )


def _unshown(found: ProxyFound) -> str:
    """Return why this cannot show what proxies add, or which client the server sees, if so."""
    if len(found.per_proxy) < 2:
        return "one proxy alone does not show what another adds"
    idle = [name for name, number in found.per_proxy.items() if not number]
    if idle:
        return f"nothing was held through {', '.join(idle)}"
    if found.held <= found.one_proxy:
        return "all proxies together held no more than one of them alone"
    if found.plain_sees_client is None or found.header_names_client is None:
        kind = "plain proxy" if found.plain_sees_client is None else "proxy that sends a header"
        return f"no connection came about through a {kind} to see whom the server sees"
    if found.plain_sees_client:
        return "the server saw the client's address through a proxy that was to hide it"
    if not found.header_names_client and found.transparent_sees_client is None:
        return "no header named the client, and no connection came about through a transparent one"
    if not found.header_names_client and not found.transparent_sees_client:
        return "neither a header nor a transparent proxy showed the server who the client is"
    return ""


CLAIM = Claim(
    id="reverse-proxy",
    said="Past 64K, add reverse proxies: each adds its own port space; the balancer must be "
    "transparent.",
    cure="Give each proxy several source addresses before you add another proxy, and pass the "
    "client's address on by the PROXY protocol.",
    read="docs/your-own-machines.md",
    small=ProxyParameters(first_port=20_000, last_port=20_499, beyond=40, connections=4_000),
    # Above half of a range the kernel searches long for a free port, and here all are used up. With
    # four addresses the ports are fewer than one of two proxies has room for at 200,000 (maxconn).
    full=ProxyParameters(first_port=32_768, last_port=52_767, beyond=1_000, connections=200_000),
    measure=measure,
    judge=judge,
    connections=lambda parameters: 2 * parameters.connections,
    groups=("proxies",),
)
