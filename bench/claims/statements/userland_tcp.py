"""TCP in user space: the limits that remain, and what the kernel must be kept from."""

from __future__ import annotations

import time

from pydantic import Field, ValidationInfo, field_validator

from bench.claims.ends import Ends, Look, between, gained
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters

FIRST_PORT = 20_000
"""First source port."""

TABLE = "inet connlab_userland"

SOCKET_CACHES = ("TCP", "sock_inode_cache", "dentry", "filp")
"""Slab caches in which a connected TCP socket has one object each (net/socket.c
``sock_alloc_file``, net/ipv4/tcp_ipv4.c ``tcp_prot``)."""

STEP_SECONDS = 90.0
SETTLE_SECONDS = 5.0

SHORTEST = 1e-6
"""The least time in seconds: no connection opens faster."""


class UserlandTcpParameters(Parameters):
    """How many connections are tried without a filter, and held with one."""

    tried: int = Field(ge=1, le=28_232)
    connections: int = Field(ge=1, le=28_232)
    """At most the ports that connect(2) has for the comparison: ip_local_port_range's default."""
    echoes: int = Field(ge=1, le=28_232)

    @field_validator("connections")
    @classmethod
    def _tried_are_of_them(cls, value: int, info: ValidationInfo) -> int:
        tried = info.data.get("tried", 1)
        if value < tried:
            raise ValueError(f"got {value:,}, expected at least tried ({tried:,})")
        return value


class UserlandTcpFound(Found):
    """Connections by hand-made handshakes: with the kernel in the way, and with it kept out."""

    tried: int = Field(description="SYNs sent by hand with nothing done about the kernel")
    tried_answered: int = Field(description="of those, that the server answered with SYN-ACK")
    tried_resets: int = Field(description="RSTs from the client's kernel seen on their way out")
    tried_out_rsts: int = Field(description="TcpOutRsts that the client's kernel gained meanwhile")
    tried_held: int = Field(description="of those, ESTAB on the server, by ss")
    wanted: int = Field(description="connections to hold with the kernel's RSTs dropped")
    held: int = Field(description="of those, ESTAB on the server, by ss")
    resets: int = Field(description="RSTs from the client's kernel seen on their way out meanwhile")
    out_rsts: int = Field(description="TcpOutRsts that it gained meanwhile: sent, and dropped")
    kernel_sockets: int = Field(description="of those, sockets on the client, by ss")
    open_files: int = Field(description="limit on open files that the client's process had")
    echoes_asked: int = Field(description="of the held connections, asked for an echo")
    echoes_answered: int = Field(description="of those, that answered rightly")
    left: int = Field(description="ESTAB on the server after all were closed by an RST of our own")
    rate: float = Field(description="connections a second, shaken by hand")
    kernel_rate: float = Field(description="connections a second by connect(2), same language")
    bytes_each: float = Field(description="what the client's program keeps, bytes a connection")
    kernel_bytes_each: float = Field(
        description="a connected socket's objects in the kernel (TCP, inode, dentry, file), bytes"
    )


def measure_userland_tcp(lab: Lab, parameters: UserlandTcpParameters) -> UserlandTcpFound:
    """Do handshakes by a raw socket, first with the kernel's RSTs, then with these dropped."""
    ends = between(lab, family=4)
    with lab.trials() as trials:
        server = trials.begin(lab.server, "echoer", endpoint=ends.endpoints[0], **ends.server)
        wanted = min(parameters.connections, server.first.number("most", 1))
        client = trials.begin(
            lab.client,
            "rawtcp",
            root=True,
            target=ends.endpoints[0],
            first_port=FIRST_PORT,
            count=wanted,
            **ends.client,
        )
        there, here = Look(trials, lab.server), Look(trials, lab.client)
        lab.note(f"{parameters.tried:,} handshakes by hand")
        before = here.counters()
        plain = client.go(do="raw", ports=parameters.tried)
        after = here.counters()
        [plain_held] = there.count(ends.endpoints, "src", "established")
        filtered = {TABLE: _chain(ends, wanted, client.first.number("mark"))}
        with lab.settings([lab.client], tables=filtered):
            lab.note(f"{wanted:,} handshakes by hand, the kernel's RSTs dropped")
            start = here.counters()
            told = client.go(STEP_SECONDS, do="raw", ports=wanted)
            end = here.counters()
            [held] = there.count(ends.endpoints, "src", "established")
            [sockets] = here.count(ends.endpoints, "dst", "established")
            asked = min(parameters.echoes, wanted)
            echoed = client.go(do="echo", ports=asked).number("echoed")
            client.go(do="reset")
            left = _left(there, ends)
        lab.note(f"{wanted:,} connections by the kernel")
        kernel = client.go(STEP_SECONDS, do="kernel", ports=wanted)
        caches = here.caches()
    return UserlandTcpFound(
        tried=parameters.tried,
        tried_answered=plain.number("syn_acks"),
        tried_resets=plain.number("kernel_resets"),
        tried_out_rsts=gained(before, after, "TcpOutRsts"),
        tried_held=plain_held,
        wanted=wanted,
        held=held,
        resets=told.number("kernel_resets"),
        out_rsts=gained(start, end, "TcpOutRsts"),
        kernel_sockets=sockets,
        open_files=client.first.number("files"),
        echoes_asked=asked,
        echoes_answered=echoed,
        left=left,
        rate=told.number("held") / told.real("seconds", SHORTEST),
        kernel_rate=kernel.number("held") / kernel.real("seconds", SHORTEST),
        bytes_each=told.number("bytes") / max(1, told.number("held")),
        kernel_bytes_each=sum(caches[name].bytes_each for name in SOCKET_CACHES if name in caches),
    )


def _chain(ends: Ends, count: int, mark: int) -> str:
    """Return a chain that drops the kernel's RSTs from our ports, but not our own (nft(8))."""
    last = FIRST_PORT + count - 1
    return (
        "chain out {\n"
        "type filter hook output priority 0; policy accept;\n"
        f"ip daddr {ends.address} tcp dport {ends.ports[0]} tcp sport {FIRST_PORT}-{last} "
        f"tcp flags & rst == rst meta mark != {mark} drop\n"
        "}"
    )


def _left(look: Look, ends: Ends) -> int:
    """Return the connections that the server still has after RSTs have had time to arrive."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        [left] = look.count(ends.endpoints, "src", "established")
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def judge_userland_tcp(found: UserlandTcpFound) -> Judgement:
    """Judge it confirmed if the kernel spoils all connections, and none once it is kept out."""
    measured = (
        f"{found.tried:,} by hand: {found.tried_resets:,} RSTs by the client's own kernel, "
        f"{found.tried_held:,} held; with them dropped {found.held:,} of {found.wanted:,} held "
        f"with {found.kernel_sockets:,} sockets and {found.open_files} open files, "
        f"{found.bytes_each:,.0f} B each (a kernel socket: {found.kernel_bytes_each:,.0f} B), "
        f"{found.rate:,.0f} a second (connect(2): {found.kernel_rate:,.0f})"
    )
    if not found.tried_answered:
        return Judgement("inconclusive", measured, "the server answered no SYN that was hand-made")
    if found.tried_held:
        return Judgement(
            "refuted", measured, "connections lived on without anything being done about the kernel"
        )
    if not found.tried_resets:
        return Judgement(
            "inconclusive", measured, "connections died, and not by RSTs of the client's kernel"
        )
    if found.resets or found.kernel_sockets:
        return Judgement("inconclusive", measured, "the client's kernel was not kept out")
    if found.held < found.wanted or found.echoes_answered < found.echoes_asked:
        return Judgement(
            "refuted", measured, "tuples and memory were there, and connections failed all the same"
        )
    return Judgement(
        "confirmed",
        measured,
        "a kernel answers RST to a segment for which it has no socket; once that is dropped, a "
        "connection is two sequence numbers in a program: no descriptor, no socket, no ephemeral "
        "port",
    )


CLAIM = Claim(
    id="userland-tcp",
    said="With raw sockets and TCP in user space the only limits are tuples and memory; the "
    "kernel's own replies must be kept out.",
    cure="Drop the kernel's RSTs of those ports by nftables, or use source addresses that the "
    "kernel does not own (then answer ARP for them): it has nothing to say about those.",
    read="https://www.rfc-editor.org/rfc/rfc9293#section-3.5.2",
    small=UserlandTcpParameters(tried=20, connections=2_000, echoes=100),
    full=UserlandTcpParameters(tried=1_000, connections=19_900, echoes=1_000),
    measure=measure_userland_tcp,
    judge=judge_userland_tcp,
)
