"""Many connections at once, and what a server's accept queue does with them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from bench.claims.ends import Ends, Look, between, gained
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.hosts.told import Told
from bench.hosts.trials import Trial

SAID_TO_FAIL = 5_000
"""Connections at once that are said to time out."""

SOMAXCONN = "net.core.somaxconn"
"""Limit of listen(2)'s backlog (net/socket.c ``__sys_listen``), per network namespace."""

SYN_BACKLOG = "net.ipv4.tcp_max_syn_backlog"


LONGEST_BACKLOG = 65_535
"""The longest backlog that the trial accepts (bench.agent.trials.slowserver)."""


class BurstParameters(Parameters):
    """Sizes of the bursts, and how slow and patient the two sides are."""

    bursts: list[Annotated[int, Field(ge=1, le=50_000)]] = Field(min_length=1, max_length=16)
    backlogs: list[Annotated[int, Field(ge=1, le=LONGEST_BACKLOG)]] = Field(
        min_length=1, max_length=16
    )
    cure: int = Field(ge=1, le=LONGEST_BACKLOG)
    """The backlog for the last try of the largest burst."""
    nap_ms: float = Field(gt=0, le=1_000)
    timeout_ms: int = Field(ge=1, le=30_000)
    """Time limit for each connect."""
    answer_ms: int = Field(ge=1, le=30_000)
    """Time limit for the server to serve the connections."""

    @field_validator("cure")
    @classmethod
    def _is_longer(cls, value: int, info: ValidationInfo) -> int:
        longest = max(info.data.get("backlogs", [0]))
        if value <= longest:
            raise ValueError(f"got {value:,}, expected more than any of backlogs ({longest:,})")
        return value


class Burst(BaseModel):
    """One burst of connects."""

    model_config = ConfigDict(extra="forbid")

    backlog: int = Field(description="of the listening socket, as the kernel granted it")
    connects: int = Field(description="begun at once")
    connected: int = Field(description="of those, that came to be in the client's eyes")
    timed_out: int = Field(description="of those, that did not within the timeout")
    failed: int = Field(description="of those, that failed otherwise")
    connect_ms: list[float] = Field(description="median, 99th percentile and longest connect, ms")
    served: int = Field(description="of the connected, that the server's program served in time")
    served_ms: list[float] = Field(description="median, 99th percentile, longest time to that, ms")
    stranded: int = Field(
        description="ESTAB on the client and not on the server when the last connect was decided"
    )
    listen_overflows: int = Field(description="TcpExtListenOverflows gained on the server")
    listen_drops: int = Field(description="TcpExtListenDrops gained on the server")
    syn_retransmits: int = Field(description="TcpExtTCPSynRetrans gained on the client")

    @property
    def lost(self) -> int:
        """Connections that were never served, whatever connect(2) returned."""
        return self.connects - self.served

    @property
    def dropped(self) -> bool:
        """Whether a full queue dropped something."""
        return self.listen_drops + self.listen_overflows > 0


class BurstFound(Found):
    """The outcome of bursts against backlogs."""

    nap_ms: float = Field(description="what the server takes for each connection, ms")
    timeout_ms: int = Field(description="what a connect may take, ms")
    answer_ms: int = Field(description="what the server may take for all that connected, ms")
    bursts: list[Burst] = Field(description="each burst: connections, and times in ms")
    cured: Burst = Field(description="the largest burst with the long backlog")


def measure_burst(lab: Lab, parameters: BurstParameters) -> BurstFound:
    """Open bursts against a slow server, then the largest burst with a long backlog."""
    ends = between(lab)
    longest = max(parameters.cure, *parameters.backlogs)
    roomy = {SOMAXCONN: longest, SYN_BACKLOG: longest}
    with lab.settings([lab.server], sysctl=roomy), lab.trials() as trials:
        server = trials.begin(
            lab.server,
            "slowserver",
            endpoint=ends.endpoints[0],
            nap_ms=parameters.nap_ms,
            **ends.server,
        )
        client = trials.begin(lab.client, "burst", target=ends.endpoints[0], **ends.client)
        bed = _Bed(ends, server, client, Look(trials, lab.server), Look(trials, lab.client))
        rows = []
        for backlog in parameters.backlogs:
            for connects in sorted(parameters.bursts):
                lab.note(f"{connects:,} connects at once, backlog {backlog:,}")
                rows.append(bed.burst(backlog, connects, parameters))
        lab.note(f"{max(parameters.bursts):,} connects at once, backlog {parameters.cure:,}")
        cured = bed.burst(parameters.cure, max(parameters.bursts), parameters)
    return BurstFound(
        nap_ms=parameters.nap_ms,
        timeout_ms=parameters.timeout_ms,
        answer_ms=parameters.answer_ms,
        bursts=rows,
        cured=cured,
    )


class _Bed:
    """Both sides of the experiment, and a look at each."""

    def __init__(self, ends: Ends, server: Trial, client: Trial, there: Look, here: Look) -> None:
        self._ends, self._server, self._client = ends, server, client
        self._there, self._here = there, here

    def burst(self, backlog: int, connects: int, patience: BurstParameters) -> Burst:
        """Have the server listen anew, and the client open a burst."""
        granted = self._server.go(backlog=backlog).number("granted")
        there, here = self._there.counters(), self._here.counters()
        told = self._client.go(connects=connects, timeout_ms=patience.timeout_ms)
        [theirs] = self._there.count(self._ends.endpoints, "src", "established")
        served = self._client.go(wait_ms=patience.answer_ms)
        now_there, now_here = self._there.counters(), self._here.counters()
        errors = told.named("errors", Told.number)
        timed_out = errors.pop("ETIMEDOUT", 0)
        return Burst(
            backlog=granted,
            connects=connects,
            connected=told.number("connected"),
            timed_out=timed_out,
            failed=sum(errors.values()),
            connect_ms=told.each("milliseconds", Told.real),
            served=served.number("served"),
            served_ms=served.each("milliseconds", Told.real),
            stranded=max(0, told.number("connected") - theirs),
            listen_overflows=gained(there, now_there, "TcpExtListenOverflows"),
            listen_drops=gained(there, now_there, "TcpExtListenDrops"),
            syn_retransmits=gained(here, now_here, "TcpExtTCPSynRetrans"),
        )


def judge_burst(found: BurstFound) -> Judgement:
    """Judge it "depends" if a longer queue alone lets the server serve all connections.

    Queues are judged by what they dropped: connections lost without a drop were served too late.
    """
    failing = [one for one in found.bursts if one.lost]
    largest = found.cured.connects
    if not failing and not found.cured.lost:
        measured = f"{largest:,} connects at once: all served with any backlog"
        if largest >= SAID_TO_FAIL:
            return Judgement("refuted", measured, "no queue that was tried was too short for them")
        return Judgement("inconclusive", measured, f"bursts of {SAID_TO_FAIL:,} were not tried")
    first = failing[0] if failing else found.cured
    fine = [
        one.connects
        for one in found.bursts
        if one.backlog == first.backlog and one.connects < first.connects
    ]
    measured = (
        f"backlog {first.backlog:,}, {found.nap_ms:g} ms an accept: "
        + (f"all of {max(fine):,} connects at once were served, " if fine else "")
        + f"{first.lost:,} of {first.connects:,} were not ({first.timed_out:,} connects timed out, "
        f"{first.stranded:,} were ESTAB on the client alone; {first.listen_drops:,} ListenDrops); "
        f"backlog {found.cured.backlog:,}: {found.cured.lost:,} of {largest:,} were not"
    )
    if not any(one.dropped for one in failing):
        return Judgement(
            "inconclusive", measured, "connections were lost, but no full queue dropped anything"
        )
    if found.cured.lost and not found.cured.dropped:
        return Judgement(
            "inconclusive",
            measured,
            "the longest queue dropped none: those lost there were not served in the time given",
        )
    if found.cured.lost:
        return Judgement(
            "confirmed", measured, "not even the longest queue that was tried kept them from it"
        )
    return Judgement(
        "depends",
        measured,
        "a full accept queue drops SYNs and final ACKs without a word, so clients wait, some of "
        "them on a connection that the server does not have; the size that fails is that of the "
        "queue and of what is accepted before the time is up, no number of its own",
    )


CLAIM = Claim(
    id="burst",
    said="A client loop is fine at 1,000-3,000 requests and times out beyond 5,000.",
    cure="Raise net.core.somaxconn and the program's own listen() backlog, and accept in a loop "
    "that does nothing else; the queue only hides a server that is too slow for longer than that.",
    read="https://man7.org/linux/man-pages/man2/listen.2.html",
    small=BurstParameters(
        bursts=[100, 1_000],
        backlogs=[128],
        cure=65_535,
        nap_ms=1.0,
        timeout_ms=3_000,
        answer_ms=3_000,
    ),
    full=BurstParameters(
        bursts=[100, 300, 1_000, 3_000, 5_000],
        backlogs=[128, 4_096],
        cure=65_535,
        nap_ms=1.0,
        timeout_ms=3_000,
        answer_ms=12_000,
    ),
    measure=measure_burst,
    judge=judge_burst,
)
