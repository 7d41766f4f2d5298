"""How a process waits for many connections: select, poll, epoll."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.hosts.told import Told

FD_SETSIZE = 1_024
"""Descriptors of an ``fd_set`` (POSIX ``sys/select.h``; glibc's ``__FD_SETSIZE``)."""

AT = 100
"""Watched connections at which growth starts to count: below, the call itself takes most of the
time."""

GROWS = 0.25
"""Growth of the cost, relative to the growth of the watched connections, from which on it counts as
a cost per watched connection."""

FLAT = 3.0
"""Growth of the cost up to which it counts as a cost per call, however many are watched."""

STEP_SECONDS = 120.0


class MultiplexersParameters(Parameters):
    """How many connections are watched, and for how long each is timed."""

    watched: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=2, max_length=32)
    milliseconds: int = Field(ge=1, le=1_000)

    @field_validator("watched")
    @classmethod
    def _shows_growth(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value) or sum(one >= AT for one in value) < 2:
            raise ValueError(f"got {value}, expected no number twice and two from {AT} on")
        return value


class Wait(BaseModel):
    """The cost of a call that finds one of the watched connections readable."""

    model_config = ConfigDict(extra="forbid")

    watched: int
    select: float | None = Field(description="select(): µs a call; none above its limit")
    poll: float = Field(description="poll(): µs a call")
    epoll: float = Field(description="epoll_wait(): µs a call")
    select_cpu: float | None = Field(description="select(): µs of processor a call")
    poll_cpu: float = Field(description="poll(): µs of processor a call")
    epoll_cpu: float = Field(description="epoll_wait(): µs of processor a call")


class MultiplexersFound(Found):
    """The limit of select(), and the cost of a wake-up."""

    select_refused: int | None = Field(
        description="lowest descriptor that select() refused; none: it refused none that was tried"
    )
    select_words: str = Field(description="what it said")
    select_kernel_goes_on: bool | None = Field(
        description="whether select(2) itself reports that descriptor, given a larger bitmap"
    )
    nofile: int = Field(description="open files that the process could have")
    waits: list[Wait] = Field(description="wall and processor time of a call, µs, by watched")


def measure_multiplexers(lab: Lab, parameters: MultiplexersParameters) -> MultiplexersFound:
    """Have one host watch more and more of its own connections.

    :raises NotMeasurable: if a process cannot open files beyond select()'s limit.
    """
    waits: list[Wait] = []
    with lab.trials() as trials:
        trial = trials.begin(lab.server, "waiting", milliseconds=parameters.milliseconds)
        first = trial.first
        nofile, most = first.number("nofile"), first.number("most", 1)
        if nofile <= 2 * FD_SETSIZE:
            raise NotMeasurable(
                f"{lab.server.name} lets a process open {nofile:,} files, expected more "
                f"than {2 * FD_SETSIZE:,}: raise the hard nofile limit (role tune_limits)"
            )
        for wanted in sorted(parameters.watched):
            if waits and waits[-1].watched >= most:
                break
            lab.note(f"watches {wanted:,} connections")
            told = trial.go(STEP_SECONDS, watched=min(wanted, most))
            select = told.maybe("select", _cost)
            poll, epoll = _cost(told, "poll"), _cost(told, "epoll")
            waits.append(
                Wait(
                    watched=told.number("watched", 1),
                    select=select and select[0],
                    poll=poll[0],
                    epoll=epoll[0],
                    select_cpu=select and select[1],
                    poll_cpu=poll[1],
                    epoll_cpu=epoll[1],
                )
            )
        trial.end()
    return MultiplexersFound(
        select_refused=first.maybe("refused", Told.number),
        select_words=first.text("words"),
        select_kernel_goes_on=first.maybe("kernel_goes_on", Told.flag),
        nofile=nofile,
        waits=waits,
    )


def _cost(told: Told, name: str) -> tuple[float, float]:
    """Return wall and processor time of a call, µs."""
    cost = told.within(name)
    return cost.real("wall_us"), cost.real("cpu_us")


def judge_multiplexers(found: MultiplexersFound) -> Judgement:
    """Judge it confirmed if all three parts of the statement hold.

    Growth is judged within the run.
    """
    usual = [one for one in found.waits if one.watched >= AT]
    if len(usual) < 2:
        return Judgement(
            "inconclusive", "", f"growth needs two numbers of watched connections from {AT} on"
        )
    least, most = usual[0], usual[-1]
    if not least.poll_cpu or not least.epoll_cpu:
        return Judgement("inconclusive", "", "no processor time of a call was measured")
    more = most.watched / least.watched
    # Of processor time: other activity of the machine lengthens the wall time.
    poll, epoll = most.poll_cpu / least.poll_cpu, most.epoll_cpu / least.epoll_cpu
    stops = found.select_refused == FD_SETSIZE
    refused = "no descriptor" if found.select_refused is None else f"{found.select_refused:,}"
    measured = (
        f"select() refused descriptor {refused}; processor time of a call with {least.watched:,} "
        f"and {most.watched:,} watched: poll {least.poll_cpu:,.1f} and {most.poll_cpu:,.1f} µs, "
        f"epoll {least.epoll_cpu:,.1f} and {most.epoll_cpu:,.1f} µs"
    )
    if stops and poll >= GROWS * more > FLAT and epoll <= FLAT:
        return Judgement(
            "confirmed",
            measured,
            "an fd_set is a bitmap of FD_SETSIZE (1,024) descriptors; poll hands over and looks "
            "through the whole list at each call; epoll keeps the list in the kernel and hands out "
            "what is ready",
        )
    failing = [
        text
        for text, is_so in (
            ("select() did not stop at descriptor 1,024", not stops),
            ("poll did not slow down with what it watches", poll <= FLAT < GROWS * more),
            ("epoll slowed down with what it watches", epoll >= GROWS * more > FLAT),
        )
        if is_so
    ]
    if failing:
        return Judgement("refuted", measured, "; ".join(failing))
    return Judgement(
        "inconclusive", measured, "costs grew neither with what is watched nor not at all"
    )


CLAIM = Claim(
    id="multiplexers",
    said="select() stops at its descriptor limit; poll() gets slow; epoll scales.",
    cure="Use epoll (or a library that does); it is the number of events that costs, not that of "
    "connections.",
    read="https://man7.org/linux/man-pages/man7/epoll.7.html",
    small=MultiplexersParameters(watched=[10, 100, 1_000, 5_000], milliseconds=20),
    full=MultiplexersParameters(
        watched=[10, 100, 900, 5_000, 10_000, 15_000, 19_900], milliseconds=200
    ),
    measure=measure_multiplexers,
    judge=judge_multiplexers,
)
