"""The limit on the files that epoll watches."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from bench.claims.article import MEM_TOTAL_KIB
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.errors import LabError
from bench.model.headroom import watches_default
from bench.scenario import MOST_CONNECTIONS
from bench.units import whole

WATCHES = "fs.epoll.max_user_watches"

SAID_WATCHES = 800_000
"""Connections at which a host of 3.9 GB is said to stop."""


class EpollWatchesParameters(Parameters):
    """How far the limit is lowered, and how many connections are tried against it."""

    watches: int = Field(ge=1_000, le=99_000_000)
    """Enough that the user's other watches do not matter."""
    connections: int = Field(ge=1_001, le=MOST_CONNECTIONS)

    @field_validator("connections")
    @classmethod
    def _go_beyond(cls, value: int, info: ValidationInfo) -> int:
        watches = info.data.get("watches", 0)
        if value <= watches:
            raise ValueError(f"got {value:,}, expected more than watches ({watches:,})")
        return value


class EpollWatchesFound(Found):
    """The limit that was reached, and the kernel's default."""

    mem_total_kib: int = Field(description="MemTotal of the server, KiB")
    default: int = Field(description="fs.epoll.max_user_watches as the server's kernel made it")
    formula: int = Field(description="4 % of MemTotal over 184 B, the cost of a watch")
    watch_bytes: float = Field(description="4 % of MemTotal over that default, bytes for a watch")
    at_said: int = Field(
        description="that default in proportion for a MemTotal of 3,922,676 KiB (3.9 GB)"
    )
    limit: int | None = Field(None, description="fs.epoll.max_user_watches, lowered")
    held: int | None = Field(None, description="connections that the server then held")
    refused: int | None = Field(None, description="ENOSPC that epoll_ctl(2) answered")
    bound_by: str | None = Field(None, description="the limit that the run's diagnosis named")
    shared: str = Field("", description="why it could not be lowered, if it was not")


def measure_epoll_watches(lab: Lab, parameters: EpollWatchesParameters) -> EpollWatchesFound:
    """Lower the limit on the server and connect until something is refused."""
    record = lab.hosts[lab.server.name]
    tuned = record.tuning.get("tune_sysctl", {}).get(WATCHES)
    told = tuned.found if tuned else record.sysctl.get(WATCHES, "")
    default = whole(told)
    if not default:
        raise LabError(f"host {lab.server.name}: {WATCHES}: got {told!r}, expected a number from 1")
    found = EpollWatchesFound(
        mem_total_kib=record.mem_total_kib,
        default=default,
        formula=watches_default(record.mem_total_kib),
        watch_bytes=round(record.mem_total_kib * 1024 / 25 / default, 1),
        at_said=default * MEM_TOTAL_KIB // record.mem_total_kib,
    )
    try:
        with lab.settings([lab.server], sysctl={WATCHES: parameters.watches}):
            done = lab.run(connections=parameters.connections, expect="limit", watch="epoll")
    except NotMeasurable as error:
        return found.model_copy(update={"shared": str(error)})
    return found.model_copy(
        update={
            "limit": parameters.watches,
            "held": done.measured.established.servers,
            "refused": done.measured.errors.get("ENOSPC", 0),
            "bound_by": done.bound_by,
        }
    )


def judge_epoll_watches(found: EpollWatchesFound) -> Judgement:
    """Judge it confirmed on ENOSPC at the limit and a default that fits the statement."""
    default = (
        f"default {found.default:,} with {found.mem_total_kib:,} KiB of memory (the formula gives "
        f"{found.formula:,})"
    )
    if found.limit is None or found.held is None:
        return Judgement("not measurable here", default, found.shared)
    measured = (
        f"{found.held:,} held under a limit of {found.limit:,}, ENOSPC {found.refused:,} times; "
        f"{default}, so {found.at_said:,} on a host with 3.9 GB"
    )
    if found.bound_by == "none" and found.held > found.limit:
        return Judgement("refuted", measured, "more were watched than the limit, and none refused")
    if found.bound_by != WATCHES:
        return Judgement(
            "inconclusive", measured, f"the run was bound by {found.bound_by}, not by the limit"
        )
    if not found.refused:
        return Judgement("refuted", measured, "the limit stopped the run, and not with ENOSPC")
    if not 0.95 * found.limit <= found.held <= found.limit:
        return Judgement(
            "inconclusive", measured, "epoll_ctl refused, but at another count than the limit"
        )
    if abs(found.default - found.formula) > 0.05 * found.formula:
        return Judgement(
            "depends",
            measured,
            "the limit stops epoll_ctl; this kernel's default is not 4 % of memory over 184 B a "
            "watch",
        )
    if abs(found.at_said - SAID_WATCHES) > 0.1 * SAID_WATCHES:
        return Judgement(
            "depends",
            measured,
            "the limit stops epoll_ctl, at 4 % of memory over the size of a watch in this kernel",
        )
    return Judgement(
        "confirmed",
        measured,
        "each watched socket takes an epoll item, and one user's items may take 4 % of memory "
        f"({found.watch_bytes:.0f} B each)",
    )


CLAIM = Claim(
    id="epoll-watches",
    said="fs.epoll.max_user_watches (about 4 % of RAM by default) stops epoll_ctl with ENOSPC: "
    "near 800k connections on a 3.9 GB host.",
    cure="Raise fs.epoll.max_user_watches above the connections that one user watches.",
    read="docs/limits.md",
    small=EpollWatchesParameters(watches=3_000, connections=4_000),
    full=EpollWatchesParameters(watches=50_000, connections=60_000),
    measure=measure_epoll_watches,
    judge=judge_epoll_watches,
    connections=lambda parameters: parameters.connections,
)
