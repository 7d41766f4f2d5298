"""What bounds open files, and what bounds those that epoll watches."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from bench.claims.lab import Lab
from bench.claims.model import Claim, Found, Judgement, NotMeasurable, Parameters
from bench.headroom import watches_default
from bench.trials import Trial

OTHER_USER = "nobody"
"""An ordinary user of every host that nobody works as: its logins are changed for seconds."""

FILE = "/etc/security/limits.d/zz-connlab-{}.conf"
"""Read after all others: pam_limits(8) takes them in the order of the C locale."""


ROUGH = 1.1
"""How far above fs.file-max the kernel's count has to be to show that it refused nothing: the count
is exact to some dozen per processor (include/linux/percpu_counter.h)."""


class FdLevelsParameters(Parameters):
    """How far each limit is lowered."""

    soft: int = Field(ge=64, le=65_536)
    """Soft nofile of the trial's own process."""
    room: int = Field(ge=100, le=100_000)
    """Files that fs.file-max leaves beside those open."""
    spared: int = Field(ge=1, le=100_000)
    """Files that root then opens beyond it."""
    login: int = Field(ge=256, le=1_000_000)
    """Hard nofile that the file in limits.d gives."""
    inherited: int = Field(ge=256, le=1_000_000)
    """Hard nofile of who opens the sessions: what a session has that pam_limits leaves alone."""

    @field_validator("inherited")
    @classmethod
    def _tells_apart(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("login"):
            raise ValueError(f"got {value:,}, expected another number than login")
        return value


class FdLevelsFound(Found):
    """What each level refused, and which logins the files in limits.d reached."""

    soft: int = Field(description="soft nofile of a process")
    process_open: int = Field(description="files that it had open when one was refused")
    process_errno: str = Field(description="what refused it")
    soft_above_hard: str = Field(description="answer to a soft nofile above the hard one")
    hard_raised: str = Field(description="answer to a hard nofile raised by an ordinary user")
    hard: int = Field(description="hard nofile of each of two processes of one user")
    together: int = Field(description="files that both had open at one time")
    nr_open: int = Field(description="fs.nr_open")
    at_nr_open: str = Field(
        description="answer to root raising hard nofile to fs.nr_open; empty: done"
    )
    above_nr_open: str = Field(description="answer to root raising hard nofile above fs.nr_open")
    file_max: int | None = Field(None, description="fs.file-max, lowered")
    system_open: int | None = Field(
        None,
        description="open files of the kernel when one was refused to an ordinary user; its count "
        "is exact to some dozen per processor",
    )
    system_errno: str | None = Field(None, description="what refused it")
    root_opened: int | None = Field(None, description="files that root opened just then")
    root_errno: str | None = Field(None, description="what refused root another; empty: nothing")
    shared: str = Field("", description="why fs.file-max could not be lowered, if it was not")
    star: int = Field(description="hard nofile of a line for * in limits.d")
    star_ordinary: int | None = Field(description="hard nofile of an ordinary login with it")
    star_root: int | None = Field(description="hard nofile of root's login with it")
    before_root: int | None = Field(description="hard nofile of root's login without it")
    locks_ordinary: int | None = Field(
        description="limit on file locks of an ordinary login with such a line; -1: none"
    )
    locks_root: int | None = Field(description="the same of root's login")
    inherited: int = Field(description="hard nofile of who opened these sessions")
    named_root: int | None = Field(description="hard nofile of root's login with a line for root")
    too_high: int | None = Field(
        description="hard nofile of a login with a line above fs.nr_open; none: no session"
    )
    too_high_said: str = Field(description="what that login said instead of a session")


def measure_fd_levels(lab: Lab, parameters: FdLevelsParameters) -> FdLevelsFound:
    """Provoke each level on the server, and log in with each kind of line in limits.d."""
    with lab.trials() as trials:
        user = trials.begin(lab.server, "openfiles")
        if user.first["uid"] == 0:
            raise NotMeasurable("the lab logs in as root, whom fs.file-max and limits.d's * spare")
        root = trials.begin(lab.server, "openfiles", root=True)
        found = {**_process(user, root, parameters), **_logins(lab, parameters)}
    try:
        found |= _system(lab, parameters)
    except NotMeasurable as error:
        found["shared"] = str(error)
    return FdLevelsFound(**found)


def _process(user: Trial, root: Trial, parameters: FdLevelsParameters) -> dict[str, Any]:
    """The limits of a process: soft, hard, and fs.nr_open above both."""
    soft, hard, nr_open = parameters.soft, user.first["hard"], user.first["nr_open"]
    user.go(limit=[soft, hard])
    filled = user.go(fill=2 * soft)
    user.go(drop=True)
    above = user.go(limit=[hard + 1, hard])["limit"]
    raised = user.go(limit=[soft, hard + 1])["limit"]
    user.go(limit=[soft, soft])
    each = user.go(together=[2, 2 * soft])["each"]
    return {
        "soft": soft,
        "process_open": filled["own"],
        "process_errno": filled["errno"],
        "soft_above_hard": above,
        "hard_raised": raised,
        "hard": soft,
        "together": sum(number for number, _ in each),
        "nr_open": nr_open,
        "at_nr_open": root.go(limit=[root.first["soft"], nr_open])["limit"],
        "above_nr_open": root.go(limit=[root.first["soft"], nr_open + 1])["limit"],
    }


def _logins(lab: Lab, parameters: FdLevelsParameters) -> dict[str, Any]:
    """Which logins a line for ``*``, one for root and one above fs.nr_open reach."""
    high = int(lab.hosts[lab.server.name].sysctl["fs.nr_open"]) + 1
    with lab.trials() as trials:
        guard = trials.guard(lab.server)
        logins = trials.begin(
            lab.server, "logins", root=True, users=[OTHER_USER, "root"], hard=parameters.inherited
        )
        before = logins.first["users"]
        # Root may have a line of its own for nofile, which goes before one for all; for locks it
        # has none: nothing has counted them since Linux 2.4.25 (getrlimit(2)).
        both = "".join(f"* hard {item} {parameters.login}\n" for item in ("nofile", "locks"))
        guard.go(files={FILE.format("all"): both})
        star = logins.go()["users"]
        guard.go(files={FILE.format("root"): f"root hard nofile {parameters.login}\n"})
        named = logins.go()["users"]
        # A user's own line goes before one for all (limits.conf(5)).
        guard.go(files={FILE.format("user"): f"{OTHER_USER} hard nofile {high}\n"})
        high_one = logins.go()["users"][OTHER_USER]
        guard.go(back=True)
    return {
        "star": parameters.login,
        "inherited": parameters.inherited,
        "star_ordinary": star[OTHER_USER]["hard"],
        "star_root": star["root"]["hard"],
        "before_root": before["root"]["hard"],
        "locks_ordinary": star[OTHER_USER]["locks"],
        "locks_root": star["root"]["locks"],
        "named_root": named["root"]["hard"],
        "too_high": high_one["hard"],
        "too_high_said": high_one["said"],
    }


def _system(lab: Lab, parameters: FdLevelsParameters) -> dict[str, Any]:
    """The limit of the kernel: it refuses an ordinary user and lets root pass.

    fs/file_table.c ``alloc_empty_file``: beyond fs.file-max only CAP_SYS_ADMIN gets a file.
    """
    with lab.trials() as trials:
        user = trials.begin(lab.server, "openfiles")
        root = trials.begin(lab.server, "openfiles", root=True)
        for trial in (user, root):
            hard = trial.first["hard"]
            trial.go(limit=[hard, hard])
        most = int(root.first["files"]) + parameters.room
        with lab.settings([lab.server], sysctl={"fs.file-max": most}):
            try:
                filled = user.go(fill=user.first["hard"] - 64)
                spared = root.go(fill=parameters.spared)
            finally:
                user.go(drop=True)
                root.go(drop=True)
    return {
        "file_max": most,
        "system_open": filled["files"],
        "system_errno": filled["errno"],
        "root_opened": spared["opened"],
        "root_errno": spared["errno"],
    }


def judge_fd_levels(found: FdLevelsFound) -> Judgement:
    """Three limits there are; the user's one counts nothing of the user's."""
    parts = [
        f"{found.process_errno or 'nothing'} at {found.process_open:,} files of a process with a "
        f"soft nofile of {found.soft:,}",
        f"{found.together:,} held by two processes of one user under a hard nofile of "
        f"{found.hard:,}",
    ]
    if found.at_nr_open != found.above_nr_open:
        parts.append(f"{found.above_nr_open} for root above fs.nr_open")
    if found.file_max is not None:
        parts.append(
            f"{found.system_errno or 'nothing'} with {found.system_open:,} files open and "
            f"fs.file-max at {found.file_max:,}, root opened {found.root_opened:,} more"
        )
    if found.star_ordinary == found.locks_ordinary == found.star != found.locks_root:
        parts.append("a line for * in limits.d skipped root")
    parts.append(f"a login with a hard nofile above fs.nr_open {_too_high(found)}")
    measured = "; ".join(parts)
    if found.process_errno != "EMFILE" or found.hard_raised != "EPERM":
        return Judgement("refuted", measured, "the limit of a process did not refuse")
    if found.process_open != found.soft:
        return Judgement(
            "inconclusive", measured, "EMFILE came at another count than the soft limit"
        )
    if not found.at_nr_open and found.above_nr_open != "EPERM":
        return Judgement("refuted", measured, "root got a hard nofile above fs.nr_open")
    if found.file_max is None:
        return Judgement("not measurable here", measured, found.shared)
    if found.system_errno != "ENFILE":
        if (found.system_open or 0) <= ROUGH * found.file_max:
            return Judgement(
                "inconclusive",
                measured,
                "fs.file-max was never reached: the limit of the process ended it before",
            )
        return Judgement("refuted", measured, "the limit of the system did not refuse")
    spares = "does not spare" if found.root_errno == "ENFILE" else "spares"
    if found.together > found.hard:
        return Judgement(
            "depends",
            measured,
            f"fs.file-max counts the files of the system (and {spares} CAP_SYS_ADMIN) and the soft "
            "nofile those of a process, but nothing counts a user's: what limits.d gives a user is "
            "a ceiling for each process of a login, which fs.nr_open bounds",
        )
    return Judgement(
        "confirmed",
        measured,
        f"fs.file-max bounds the system (and {spares} CAP_SYS_ADMIN), the soft nofile a process, "
        "and two processes of one user got no more than its hard nofile together",
    )


def _too_high(found: FdLevelsFound) -> str:
    """What became of a login whose line in limits.d the kernel refuses."""
    if found.too_high is None:
        return "got no session"
    if found.too_high == found.inherited:
        return f"kept the {found.too_high:,} of who opened its session"
    return f"got {found.too_high:,}"


FD_LEVELS = Claim(
    id="fd-levels",
    said="Open files are limited at three levels: system, user, process.",
    cure="Raise fs.file-max for the system, then fs.nr_open, then the hard and soft nofile, in "
    "this order, name root in limits.d beside *, and give services a LimitNOFILE= of their own.",
    read="docs/limits.md",
    small=FdLevelsParameters(soft=256, room=500, spared=200, login=2_000, inherited=3_000),
    full=FdLevelsParameters(soft=1_024, room=2_000, spared=2_000, login=2_000, inherited=3_000),
    measure=measure_fd_levels,
    judge=judge_fd_levels,
)

WATCHES = "fs.epoll.max_user_watches"

SAID_WATCHES = 800_000
SAID_MEM_KIB = 3_922_676
"""MemTotal of the classic experiment's server, 3.9 GB (docs/architecture.md)."""


class EpollWatchesParameters(Parameters):
    """How far the limit is lowered, and how many connections go against it."""

    watches: int = Field(ge=1_000, le=99_000_000)
    """Enough that what else the user watches does not count."""
    connections: int = Field(ge=1_001, le=100_000_000)

    @field_validator("connections")
    @classmethod
    def _go_beyond(cls, value: int, info: ValidationInfo) -> int:
        watches = info.data.get("watches", 0)
        if value <= watches:
            raise ValueError(f"got {value:,}, expected more than watches ({watches:,})")
        return value


class EpollWatchesFound(Found):
    """Where the watches ended, and what the kernel's default is."""

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
    """Lower the limit on the server and connect until something refuses."""
    record = lab.hosts[lab.server.name]
    tuned = record.tuning.get("tune_sysctl", {}).get(WATCHES)
    default = int(tuned.found if tuned else record.sysctl[WATCHES])
    found = EpollWatchesFound(
        mem_total_kib=record.mem_total_kib,
        default=default,
        formula=watches_default(record.mem_total_kib),
        watch_bytes=round(record.mem_total_kib * 1024 / 25 / default, 1),
        at_said=default * SAID_MEM_KIB // record.mem_total_kib,
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
    """Confirmed by ENOSPC at the limit, and a default that gives what is said."""
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


EPOLL_WATCHES = Claim(
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
