"""What a connection leaves behind when it is closed."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from bench.claims.churning import FIRST_SOURCE, STEP_SECONDS, Churn, Churning
from bench.claims.ends import Ends, between
from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.claims.portrange import LAST
from bench.errors import LabError
from bench.hosts.told import Told
from bench.hosts.trials import Trial
from bench.units import whole

FIN_TIMEOUT = "net.ipv4.tcp_fin_timeout"

FIRST_PORT = 5_100
"""First server port: TIME_WAITs that stay there for a minute disturb nobody."""

MODES = ("client", "mute", "client", "server", *["client"] * 5)
"""Modes of the server's ports: two ports that are watched, then one for each part of the
experiment, as the TIME_WAITs of one part must not block the four-tuples of the next."""

SHORT = 5
"""Value to set tcp_fin_timeout to, seconds."""

WATCH_SECONDS = 150.0

SAID_SECONDS = 120.0
LATE_SECONDS = 5.0
"""Seconds by which a duration may exceed the nominal value: a timer of a minute is up to 4.1 s late
with HZ 1000, 2.0 s with HZ 250 (kernel/time/timer.c: the wheel's granularity at that distance)."""

EARLY_SECONDS = 0.5
"""Seconds by which it may fall short: the sockets are looked at every 0.2 s."""


class TimeWaitParameters(Parameters):
    """How many source ports there are for one target."""

    ports: int = Field(ge=1, le=LAST - FIRST_SOURCE + 1)


class TimeWaitFound(Found):
    """How long TIME_WAIT lasts, on which side, and its consequences."""

    fin_timeout: int = Field(description="tcp_fin_timeout as found, s")
    time_wait: float | None = Field(description="length of TIME_WAIT with it, s; none: not ended")
    armed: float | None = Field(
        description="what the kernel had set its timer to, s; none: ss shows no timer"
    )
    fin_wait_2: float | None = Field(description="length of an orphan's FIN_WAIT_2 with it, s")
    short_fin_timeout: int = Field(description="tcp_fin_timeout as set then, s")
    short_time_wait: float | None = Field(description="length of TIME_WAIT with that, s")
    short_armed: float | None = Field(description="what its timer was set to with that, s")
    short_fin_wait_2: float | None = Field(description="of an orphan's FIN_WAIT_2 with that, s")
    ports: int = Field(description="source ports of the client (ip_local_port_range)")
    client_first: Churn = Field(description="client closes first by FIN, tcp_tw_reuse 0")
    server_first: Churn = Field(description="server closes first by FIN")
    reset: Churn = Field(description="client closes by RST")
    reuse_first: Churn = Field(description="client closes first, tcp_tw_reuse 1: all ports once")
    reuse_again: Churn = Field(description="the same a second later, all ports once more")
    bound_after: float | None = Field(
        description="s from a close until its four-tuple was let again to a socket that binds the "
        "port with SO_REUSEADDR, tcp_tw_reuse 0; none: not while it was tried"
    )
    reuse_after: float | None = Field(
        description="the same for a port that the kernel chooses, tcp_tw_reuse 1, s"
    )
    loopback_only_after: float | None = Field(
        description="the same with tcp_tw_reuse 2, the default, to the server, s"
    )
    loopback_after: float | None = Field(
        description="the same with tcp_tw_reuse 2, over loopback, s"
    )
    max_tw_buckets: int = Field(
        description="tcp_max_tw_buckets as found: beyond so many TIME_WAITs none are kept"
    )
    object_bytes: float = Field(description="memory of one TIME_WAIT's object, bytes")
    socket_bytes: float = Field(description="memory of a full TCP socket's object, bytes")
    objects_gained: int = Field(
        description="such objects that the first churn added, as far as /proc/slabinfo tells"
    )


def measure_time_wait(lab: Lab, parameters: TimeWaitParameters) -> TimeWaitFound:
    """Watch closed sockets for a minute, while others churn."""
    ends = between(lab, ports=len(MODES), first=FIRST_PORT)
    with lab.trials() as trials:
        modes = list(zip(ends.ports, MODES, strict=True))
        trials.begin(
            lab.server, "closing", side="server", address=ends.address, ports=modes, **ends.server
        )
        lasting = trials.begin(lab.client, "lasting", targets=ends.endpoints[:2], **ends.client)
        client = trials.begin(
            lab.client, "closing", side="client", targets=ends.endpoints[2:], **ends.client
        )
        lab.note("closes connections and watches how long they stay")
        _close(lasting, ends)
        with lab.settings([lab.client], sysctl={FIN_TIMEOUT: SHORT}) as before:
            _close(lasting, ends)
            # Sent now, answered at the end: the minute passes while others churn.
            lasting.agent.tell({"op": "go", "watch": WATCH_SECONDS})
            rest = Churning(lab, trials, ends, client, parameters.ports).measured()
            lab.note("waits for the watched to end")
            ended = trials.gather([lasting], WATCH_SECONDS + STEP_SECONDS)[lasting]
            told, armed = (ended.each(name, _maybe, 4) for name in ("seconds", "armed"))
    return TimeWaitFound(
        fin_timeout=_whole(before[lab.client.name].get(FIN_TIMEOUT, "")),
        time_wait=told[0],
        armed=armed[0],
        short_armed=armed[2],
        fin_wait_2=told[1],
        short_fin_timeout=SHORT,
        short_time_wait=told[2],
        short_fin_wait_2=told[3],
        max_tw_buckets=client.first.number("max_tw_buckets", -(1 << 31)),
        **rest,
    )


def _maybe(told: Told, name: str) -> float | None:
    return told.maybe(name, Told.real)


def _whole(found: str) -> int:
    number = whole(found)
    if number is None:
        raise LabError(f"{FIN_TIMEOUT}: got {found!r}, expected a number")
    return number


def _close(lasting: Trial, ends: Ends) -> None:
    """Leave one connection in TIME_WAIT, and one whose server does not close in FIN_WAIT_2."""
    for target, state in zip(ends.endpoints, ("TIME-WAIT", "FIN-WAIT-2"), strict=False):
        lasting.go(target=target, state=state)


def judge_time_wait(found: TimeWaitFound) -> Judgement:
    """Judge three parts; together they confirm or refute the claim, or it depends."""
    if found.time_wait is None or found.short_time_wait is None:
        return Judgement("inconclusive", "", "a TIME_WAIT had not ended when the watch was over")
    first = found.client_first
    measured = (
        f"TIME_WAIT is set to {_seconds(found.armed)} and lasts {found.time_wait:.1f} s, "
        f"{found.short_time_wait:.1f} s with "
        f"tcp_fin_timeout {found.short_fin_timeout} (FIN_WAIT_2: {_seconds(found.fin_wait_2)} and "
        f"{_seconds(found.short_fin_wait_2)}); of {found.ports:,} ports to one target "
        f"{first.done:,} were used up where the client closes first ({first.error or 'no error'}), "
        f"{_free(found.server_first)} where the server does, {_free(found.reset)} by RST; "
        f"tcp_tw_reuse 1 lets them again after {_seconds(found.reuse_after)}; "
        f"{found.object_bytes:,.0f} B each"
    )
    if first.error is None and first.done < first.asked:
        return Judgement("inconclusive", measured, "churn took too long to come to an end")
    if first.error is not None and (first.error, first.done) != ("EADDRNOTAVAIL", found.ports):
        return Judgement("inconclusive", measured, "churn ended otherwise than by a lack of ports")
    if not _held_by_who_closes_first(found):
        return Judgement(
            "inconclusive", measured, "TIME_WAITs were not with the side that closed first alone"
        )
    parts = {
        "it lasts two minutes": -EARLY_SECONDS <= found.time_wait - SAID_SECONDS <= LATE_SECONDS,
        "tcp_fin_timeout tunes it": abs(found.short_time_wait - found.time_wait) > LATE_SECONDS,
        "it uses up ports": first.error is not None,
    }
    if all(parts.values()):
        return Judgement("confirmed", measured, "all three parts are as said")
    reason = "; ".join(_reasons(found, *parts.values()))
    if not any(parts.values()):
        return Judgement("refuted", measured, reason)
    so = ", ".join(part for part, is_so in parts.items() if is_so)
    return Judgement("depends", measured, f"only this is so: {so}; {reason}")


def _held_by_who_closes_first(found: TimeWaitFound) -> bool:
    first, second, reset = found.client_first, found.server_first, found.reset
    return (
        first.client_time_wait > 0 == first.server_time_wait
        and second.server_time_wait > 0 == second.client_time_wait
        and reset.client_time_wait == reset.server_time_wait == 0
    )


def _reasons(found: TimeWaitFound, two_minutes: bool, tuned: bool, used_up: bool) -> Iterator[str]:
    """Yield the reasons why parts differ from the statement, and where that matters."""
    if not two_minutes:
        yield "the kernel's TCP_TIMEWAIT_LEN is 60 s (its timers are up to some seconds late)"
    if not tuned:
        yield "tcp_fin_timeout is about FIN_WAIT_2, that of TIME_WAIT is a constant"
    if used_up and not found.server_first.error and not found.reset.error:
        yield "ports of one target are used up where the client closes first, and not by RST"
    if not used_up:
        yield "ports did not run out"


def _seconds(found: float | None) -> str:
    return "not ended" if found is None else f"{found:.1f} s"


def _free(churn: Churn) -> str:
    return f"none in {churn.done:,}" if churn.error is None else f"{churn.done:,}"


CLAIM = Claim(
    id="time-wait",
    said="A closed socket holds its port in TIME_WAIT for 2 minutes; this is tunable; it runs you "
    "out of sockets.",
    cure="Keep connections open and use them again, let the server close first, or set "
    "net.ipv4.tcp_tw_reuse=1 on the client; more targets or source addresses add ports; "
    "tcp_max_tw_buckets only drops the protection.",
    read="https://www.rfc-editor.org/rfc/rfc9293#section-3.6.1",
    small=TimeWaitParameters(ports=500),
    full=TimeWaitParameters(ports=28_232),
    measure=measure_time_wait,
    judge=judge_time_wait,
)
