"""The memory of sockets' buffers: nothing while idle, then the unread bytes, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

from pydantic import Field

from bench.claims.ends import between
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.hosts.told import Told
from bench.hosts.trials import Trial, Trials
from bench.units import size

BUFFERS = {
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
}
"""The kernel's defaults (ip-sysctl.rst), as on a host that has not been tuned."""

SECONDS = 60.0
"""Seconds for one step."""

PAGE = 4_096
"""Bytes of a page, the unit of tcp_mem and of sockets' charges (getpagesize(2) of x86-64)."""

FIRST_FLIGHT = 14_600
"""Bytes that a sender sends before the first acknowledgement: ten segments of at most 1,460 (RFC
6928 section 2; include/net/tcp.h ``TCP_INIT_CWND``)."""


class SocketBuffersParameters(Parameters):
    """How many connections hold how many bytes."""

    connections: int = Field(ge=10, le=28_000)
    """Connections; one client address has 28,232 ports for them by default
    (ip_local_port_range)."""
    each: int = Field(ge=1_024, le=65_535)
    """Bytes sent on each; below the first window of 64 KiB."""
    flood: int = Field(ge=16 << 20, le=2 << 30)
    """The most bytes that the sender that never stops may send: more than both buffers may grow to
    (:data:`BUFFERS`), or it never blocks."""
    cap_pages: int = Field(ge=1, le=1_000_000)
    """Pages that tcp_mem is lowered to, above those in use."""


class SocketBuffersFound(Found):
    """What the kernel charged to sockets for their buffers."""

    connections: int = Field(description="connections whose reader does not read")
    minimum: int = Field(description="tcp_rmem[0] + tcp_wmem[0], bytes")
    idle_charged: float = Field(
        description="bytes that the kernel charged to an idle socket for buffers (SO_MEMINFO)"
    )
    idle_pages: int = Field(
        description="pages that TCP's buffers of the whole kernel gained while they were opened"
    )
    idle_slab: float | None = Field(
        description="slab that the server's kernel gained per idle connection, bytes; none where "
        "it is shared, and all that went on beside is in it"
    )
    sent: float = Field(description="bytes sent and acknowledged per connection, none of them read")
    unread: float = Field(description="bytes unread per connection (FIONREAD)")
    buffered: float = Field(
        description="bytes of memory that hold them, per connection (SO_MEMINFO)"
    )
    charged: float = Field(description="the same with what the kernel reserved in advance")
    unread_pages: float = Field(
        description="pages that TCP's buffers of the whole kernel gained per connection"
    )
    available_fall: float | None = Field(
        description="bytes that the server's MemAvailable fell by per connection as they came; "
        "none where its kernel is shared, and all that went on beside is in it"
    )
    rmem_max: int = Field(description="tcp_rmem[2], bytes")
    wmem_max: int = Field(description="tcp_wmem[2], bytes")
    never_read: int = Field(description="bytes unread when the sender of one connection blocked")
    never_read_rcvbuf: int = Field(description="receive buffer of it, bytes; its reader never read")
    never_read_sent: int = Field(description="bytes that its sender's kernel had taken by then")
    stopped: int = Field(
        description="bytes unread when it blocked again, after the reader had read fast and stopped"
    )
    stopped_rcvbuf: int = Field(description="receive buffer of it then, bytes")
    stopped_queued: int = Field(description="bytes queued in the sender's kernel then")
    cap_pages: int | None = Field(None, description="tcp_mem[2] of the server, lowered, pages")
    capped_pages: int | None = Field(
        None,
        description="pages charged on the server under it; each socket may take a first segment "
        "beyond it",
    )
    capped_unread: float | None = Field(None, description="bytes unread per connection under it")
    shared: str = Field("", description="why tcp_mem could not be lowered, if it was not")


class _Pair(NamedTuple):
    """Both sides of the experiment."""

    trials: Trials
    server: Trial
    client: Trial

    def both(self, server: dict[str, Any], client: dict[str, Any]) -> tuple[Told, Told]:
        """Take a step on both sides at once."""
        told = self.trials.together({self.server: server, self.client: client}, SECONDS)
        return told[self.server], told[self.client]

    def connect(self, number: int) -> Told:
        """Open connections; return what they hold at the server."""
        return self.both({"accept": number}, {"connect": number})[0]


@contextmanager
def _pair(lab: Lab) -> Iterator[_Pair]:
    ends = between(lab)
    [target] = ends.endpoints
    with lab.trials() as trials:
        server = trials.begin(lab.server, "unread", side="server", target=target, **ends.server)
        client = trials.begin(lab.client, "unread", side="client", target=target, **ends.client)
        yield _Pair(trials, server, client)


def measure_socket_buffers(lab: Lab, parameters: SocketBuffersParameters) -> SocketBuffersFound:
    """Open; send bytes that are not read; then send without end, with the kernel's own sizes."""
    number = parameters.connections

    def gained(first: Told, then: Told, what: str) -> float | None:
        """Return bytes per connection, if they are the server's alone."""
        grown = then.number(what) - first.number(what)
        return None if lab.shared_kernel else round(grown * 1024 / number, 1)

    with lab.settings([lab.server, lab.client], sysctl=BUFFERS), _pair(lab) as pair:
        before = pair.server.first
        idle = pair.connect(number)
        expected = number * parameters.each
        full, sender = pair.both({"expect": expected}, {"send": parameters.each})
        pair.connect(1)
        first = pair.client.go(flood=parameters.flood)
        never = pair.server.go().within("last")
        pair.both({"read": parameters.flood}, {"flood": parameters.flood})
        after = pair.client.go(flood=parameters.flood)
        stopped = pair.server.go().within("last")
    rmem, wmem = (before.each(name, Told.number, 3) for name in ("rmem", "wmem"))
    found = SocketBuffersFound(
        connections=number,
        minimum=rmem[0] + wmem[0],
        idle_charged=idle.number("charged") / number,
        idle_pages=idle.number("pages") - before.number("pages"),
        idle_slab=gained(before, idle, "slab_kib"),
        sent=sender.number("sent") / number,
        unread=full.number("unread") / number,
        buffered=full.number("buffered") / number,
        charged=full.number("charged") / number,
        unread_pages=round((full.number("pages") - idle.number("pages")) / number, 2),
        available_fall=gained(full, idle, "available_kib"),
        rmem_max=rmem[2],
        wmem_max=wmem[2],
        never_read=never.number("unread"),
        never_read_rcvbuf=never.number("rcvbuf"),
        never_read_sent=first.number("sent"),
        stopped=stopped.number("unread"),
        stopped_rcvbuf=stopped.number("rcvbuf"),
        stopped_queued=after.number("queued"),
    )
    return found.model_copy(update=_capped(lab, parameters, before.number("pages")))


def _capped(lab: Lab, parameters: SocketBuffersParameters, pages: int) -> dict[str, Any]:
    """Measure with so little tcp_mem that not everything fits.

    See net/core/sock.c ``__sk_mem_raise_allocated``.
    """
    most = pages + parameters.cap_pages
    lowered = {"net.ipv4.tcp_mem": f"{most} {most} {most}"}
    try:
        with (
            lab.settings([lab.server], sysctl={**lowered, **BUFFERS}),
            _pair(lab) as pair,
        ):
            number = parameters.connections
            pair.connect(number)
            expected = number * parameters.each
            full, _ = pair.both(
                {"expect": expected, "seconds": 8}, {"send": parameters.each, "seconds": 8}
            )
    except NotMeasurable as error:
        return {"shared": str(error)}
    return {
        "cap_pages": most,
        "capped_pages": full.number("pages"),
        "capped_unread": round(full.number("unread") / number, 1),
    }


def _most_pages(found: SocketBuffersFound, cap_pages: int) -> int:
    """Return the pages that may be charged under a lowered tcp_mem.

    Above tcp_mem[2] no socket is granted more, not even its minimum (net/core/sock.c
    ``__sk_mem_raise_allocated``). But a segment that arrives while nothing is unread is charged in
    any case (net/ipv4/tcp_input.c ``tcp_data_queue``, ``sk_forced_mem_schedule``), in whole pages.
    As nothing is read, that is one segment of each connection, and no more bytes than its sender
    has under way then.
    """
    first = min(found.sent, FIRST_FLIGHT) * found.buffered / found.unread
    return cap_pages + found.connections * ceil(first / PAGE)


def judge_socket_buffers(found: SocketBuffersFound) -> Judgement:
    """Judge two statements: each socket needs the minimum, and bytes under way increase it."""
    parts = [
        f"{found.idle_charged:,.0f} B of buffers in an idle socket",
        f"{size(found.buffered)} for {size(found.unread)} unread",
        f"one that was never read took {size(found.never_read)} until its sender blocked, one "
        f"whose reader had read fast {size(found.stopped)} (receive buffer "
        f"{size(found.stopped_rcvbuf)} of at most {size(found.rmem_max)})",
    ]
    if found.cap_pages is not None:
        parts.append(f"{found.capped_pages:,} pages charged under a tcp_mem of {found.cap_pages:,}")
    measured = "; ".join(parts)
    if not found.unread or found.unread < 0.9 * found.sent or found.buffered < found.unread:
        return Judgement(
            "inconclusive", measured, "what was sent and not read is not what the kernel accounts"
        )
    if max(found.never_read_rcvbuf, found.stopped_rcvbuf) > found.rmem_max:
        return Judgement("inconclusive", measured, "a receive buffer grew beyond tcp_rmem[2]")
    swells = found.buffered > found.idle_charged
    grows = found.stopped > found.never_read > found.unread
    if found.idle_charged >= found.minimum:
        said = "the minimum is taken for every socket"
        if swells and grows:
            return Judgement("confirmed", measured, said)
        return Judgement(
            "depends", measured, f"{said}; that what nobody reads swells it was not shown"
        )
    capped = "; that tcp_mem caps the sum was not shown here"
    if found.cap_pages is not None:
        most = _most_pages(found, found.cap_pages)
        if found.capped_pages is None or found.capped_pages > most:
            return Judgement(
                "inconclusive",
                measured,
                f"TCP was charged more than tcp_mem and a first segment a socket: {most:,} pages",
            )
        if found.capped_unread is not None and found.capped_unread < 0.9 * found.unread:
            capped = (
                "; tcp_mem caps the sum but for the first segment of each socket, together "
                f"{most:,} pages at most"
            )
    if swells:
        grown = (
            ", up to tcp_rmem[2] a socket"
            if grows
            else "; that a buffer grows further until its sender blocks was not shown here"
        )
        return Judgement(
            "depends",
            measured,
            "the minimum is what a socket may have under pressure, and none of it is taken before "
            f"data comes; data that nobody reads takes memory{grown}{capped}",
        )
    return Judgement(
        "refuted",
        measured,
        "an idle socket has less than the minimum, and unread data did not swell them",
    )


CLAIM = Claim(
    id="socket-buffers",
    said="Every socket needs at least the minimum of tcp_rmem/tcp_wmem (4 KB each); data in "
    "transit can swell to window x connections.",
    cure="Plan idle connections by their slab alone, and bound what slow peers can take by "
    "tcp_rmem[2] and tcp_wmem[2] each, by tcp_mem together.",
    read="docs/limits.md",
    small=SocketBuffersParameters(connections=500, each=32_768, flood=64 << 20, cap_pages=2_048),
    full=SocketBuffersParameters(connections=3_000, each=49_152, flood=512 << 20, cap_pages=8_192),
    measure=measure_socket_buffers,
    judge=judge_socket_buffers,
    connections=lambda parameters: parameters.connections,
)
