"""Limits on open files: of the system, of the user, of the process."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.hosts.told import Told
from bench.hosts.trials import Trial
from bench.model.headroom import number

OTHER_USER = "nobody"
"""An ordinary user that exists on every host and that nobody logs in as: its logins are changed for
seconds."""

FILE = "/etc/security/limits.d/zz-connlab-{}.conf"
"""A file that is read after all others: pam_limits(8) reads files in the order of the C locale."""

ROUGH = 1.1
"""How far above fs.file-max the kernel's count has to be to show that the kernel refused nothing.
The count is exact to some dozen per processor (include/linux/percpu_counter.h)."""


class FdLevelsParameters(Parameters):
    """How far each limit is lowered."""

    soft: int = Field(ge=64, le=65_536)
    """Soft nofile of the trial's own process."""
    room: int = Field(ge=100, le=100_000)
    """Files that fs.file-max leaves besides those already open."""
    spared: int = Field(ge=1, le=100_000)
    """Files that root then opens above it."""
    login: int = Field(ge=256, le=1_000_000)
    """Hard nofile that the file in limits.d gives."""
    inherited: int = Field(ge=256, le=1_000_000)
    """Hard nofile of the process that opens the sessions: a session that pam_limits leaves alone
    has it."""

    @field_validator("inherited")
    @classmethod
    def _tells_apart(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("login"):
            raise ValueError(f"got {value:,}, expected another number than login")
        return value


class FdLevelsFound(Found):
    """What each level refused, and which logins the files in limits.d affected."""

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
        if user.first.number("uid") == 0:
            raise NotMeasurable("the lab logs in as root, whom fs.file-max and limits.d's * spare")
        root = trials.begin(lab.server, "openfiles", root=True)
        found = {**_process(user, root, parameters), **_logins(lab, parameters)}
    try:
        found |= _system(lab, parameters)
    except NotMeasurable as error:
        found["shared"] = str(error)
    return FdLevelsFound(**found)


def _process(user: Trial, root: Trial, parameters: FdLevelsParameters) -> dict[str, Any]:
    """Provoke the limits of a process: soft, hard, and fs.nr_open above both."""
    soft, hard, nr_open = parameters.soft, _hard(user), user.first.number("nr_open")
    user.go(limit=[soft, hard])
    filled = user.go(fill=2 * soft)
    user.go(drop=True)
    above = user.go(limit=[hard + 1, hard]).text("limit")
    raised = user.go(limit=[soft, hard + 1]).text("limit")
    user.go(limit=[soft, soft])
    each = user.go(together=[2, 2 * soft]).each("each", Told.within)
    usual = root.first.number("soft")
    return {
        "soft": soft,
        "process_open": filled.number("own"),
        "process_errno": filled.text("errno"),
        "soft_above_hard": above,
        "hard_raised": raised,
        "hard": soft,
        "together": sum(one.number("0") for one in each),
        "nr_open": nr_open,
        "at_nr_open": root.go(limit=[usual, nr_open]).text("limit"),
        "above_nr_open": root.go(limit=[usual, nr_open + 1]).text("limit"),
    }


def _logins(lab: Lab, parameters: FdLevelsParameters) -> dict[str, Any]:
    """Test which logins are affected by a line for ``*``, for root, and above fs.nr_open."""
    most = number(lab.hosts[lab.server.name], "fs.nr_open")
    if most is None:
        raise NotMeasurable(f"{lab.server.name} does not tell its fs.nr_open")
    high = most + 1
    with lab.trials() as trials:
        guard = trials.guard(lab.server)
        logins = trials.begin(
            lab.server, "logins", root=True, users=[OTHER_USER, "root"], hard=parameters.inherited
        )
        before = logins.first.within("users")
        # Root may have its own line for nofile, which overrides a line for all users. It has none
        # for locks: the kernel has not counted them since Linux 2.4.25 (getrlimit(2)).
        both = "".join(f"* hard {item} {parameters.login}\n" for item in ("nofile", "locks"))
        guard.go(files={FILE.format("all"): both})
        star = logins.go().within("users")
        guard.go(files={FILE.format("root"): f"root hard nofile {parameters.login}\n"})
        named = logins.go().within("users")
        # A user's own line overrides a line for all (limits.conf(5)).
        guard.go(files={FILE.format("user"): f"{OTHER_USER} hard nofile {high}\n"})
        high_one = logins.go().within("users").within(OTHER_USER)
        guard.go(back=True)
    return {
        "star": parameters.login,
        "inherited": parameters.inherited,
        "star_ordinary": _limit(star, OTHER_USER),
        "star_root": _limit(star, "root"),
        "before_root": _limit(before, "root"),
        "locks_ordinary": _limit(star, OTHER_USER, "locks"),
        "locks_root": _limit(star, "root", "locks"),
        "named_root": _limit(named, "root"),
        "too_high": high_one.maybe("hard", _or_none),
        "too_high_said": high_one.text("said"),
    }


def _hard(trial: Trial) -> int:
    """Return the hard nofile of a trial's process."""
    return trial.first.number("hard", 64)


def _limit(users: Told, user: str, name: str = "hard") -> int | None:
    """Return a hard limit of a user's login; -1: no limit, None: no session."""
    return users.within(user).maybe(name, _or_none)


def _or_none(told: Told, name: str) -> int:
    return told.number(name, -1)


def _system(lab: Lab, parameters: FdLevelsParameters) -> dict[str, Any]:
    """Provoke the limit of the kernel: it refuses an ordinary user and lets root pass.

    Above fs.file-max only CAP_SYS_ADMIN gets a file (fs/file_table.c ``alloc_empty_file``).
    """
    with lab.trials() as trials:
        user = trials.begin(lab.server, "openfiles")
        root = trials.begin(lab.server, "openfiles", root=True)
        for trial in (user, root):
            hard = _hard(trial)
            trial.go(limit=[hard, hard])
        most = root.first.number("files") + parameters.room
        with lab.settings([lab.server], sysctl={"fs.file-max": most}):
            try:
                filled = user.go(fill=_hard(user) - 64)
                spared = root.go(fill=parameters.spared)
            finally:
                user.go(drop=True)
                root.go(drop=True)
    return {
        "file_max": most,
        "system_open": filled.number("files"),
        "system_errno": filled.text("errno"),
        "root_opened": spared.number("opened"),
        "root_errno": spared.text("errno"),
    }


def judge_fd_levels(found: FdLevelsFound) -> Judgement:
    """Judge the three limits: they exist, but the user's limit does not count a user's files."""
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
    """Return what happened to a login whose line in limits.d the kernel refuses."""
    if found.too_high is None:
        return "got no session"
    if found.too_high == found.inherited:
        return f"kept the {found.too_high:,} of who opened its session"
    return f"got {found.too_high:,}"


CLAIM = Claim(
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
