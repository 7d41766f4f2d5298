"""The check of an agent's messages: every line from a host passes it before any other code.

A host may be broken, or lie. What :func:`read` returns is one message of a known kind with exactly
its fields. Its numbers are finite, not negative and within the plan. Its names come from closed
lists, and its text can be stored and shown. Anything else is a :class:`ProtocolError`, which ends
the run: an agent that sends nonsense is treated as dead.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from bench import wire
from bench.errors import brief, refusal
from bench.units import printable, signed

MOST_DEPTH = 16
"""The most levels of nested objects and lists. The deepest message, a role's record among facts,
has 6."""

MOST_VALUES = 1 << 21
"""The most values in one line. The largest message, a host's counts by port, has half as many."""

SHORT_BYTES = 1 << 16
"""The most bytes of a line of a kind that is not in :data:`LONG`."""

LONG = {
    "collected": wire.LINE_BYTES,
    "counted": wire.LINE_BYTES,
    "facts": 8 << 20,
    "told": 1 << 20,
}
"""The most bytes of a line of these kinds: texts of evidence, counts by address, thousands of alias
addresses and the roles' records, a trial's lists."""

HEAD = re.compile(rb'\{ ?"event": ?"([a-z]{1,20})"')
"""Start of a line: agents put the event first."""

MOST_COUNT = 1 << 53
"""No counter of a run comes near this: ten thousand million connections a second for a week."""

LAST_PORT = 65_535
"""16 bits (RFC 9293 section 3.1)."""

MOST_SECONDS = 1e7
"""About four months."""

MOST_SOURCE = wire.TEXT_BYTES
"""The most characters of one text of evidence; the largest seen, slabinfo, has 30,000."""

MOST_RECORD = 1 << 20
"""The most characters of a role's record as JSON."""


class ProtocolError(ValueError):
    """A line that no agent of this version writes; the text says what is wrong with it."""


def _planned(value: int, info: ValidationInfo) -> int:
    most = (info.context or {}).get("planned")
    if most is not None and value > most:
        raise ValueError(f"got {value}, expected at most the {most} planned")
    return value


def _latency(histogram: dict[str, int]) -> dict[str, int]:
    for bucket in histogram:
        if not re.fullmatch(r"0|[1-9][0-9]{0,3}", bucket) or int(bucket) >= wire.BUCKETS:
            raise ValueError(f"got bucket {bucket[:20]!r}, expected 0 to {wire.BUCKETS - 1}")
    return histogram


def _errors(counts: dict[str, int]) -> dict[str, int]:
    for name in counts:
        if not re.fullmatch(r"E[A-Z0-9]{1,20}", name):
            raise ValueError(f"got {name[:40]!r}, expected an errno's name")
    return counts


def _sources(texts: dict[str, str]) -> dict[str, str]:
    for name in texts:
        if name not in (*wire.SOURCES, "ss"):
            raise ValueError(f"got {name[:60]!r}, expected one of {', '.join(wire.SOURCES)}")
    return texts


def _is_number(text: str) -> bool:
    return signed(text) is not None


def _are_numbers(text: str) -> bool:
    """Return whether a text is three numbers: a least, a usual and a most."""
    words = text.split(" ")
    return len(words) == 3 and all(map(_is_number, words))


def _is_port_range(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,5} [0-9]{1,5}", text)) and _in_order(text.replace(" ", "-"))


def _are_ports(text: str) -> bool:
    """Return whether a text is a list such as ``8080,9000-9010``, or empty."""
    item = "[0-9]{1,5}(?:-[0-9]{1,5})?"
    return not text or (bool(re.fullmatch(f"{item}(?:,{item})*", text)) and _in_order(text))


def _in_order(text: str) -> bool:
    """Return whether these are ports as the kernel lists them: each once, in ascending order."""
    least = 0
    for item in text.split(","):
        first, _, last = item.partition("-")
        low, high = int(first), int(last or first)
        if not least <= low <= high <= LAST_PORT:
            return False
        least = high + 1
    return True


NUMBER = _is_number, "a number"
NUMBERS = _are_numbers, "three numbers"

SYSCTLS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "fs.epoll.max_user_watches": NUMBER,
    "fs.file-max": NUMBER,
    "fs.nr_open": NUMBER,
    "net.core.netdev_max_backlog": NUMBER,
    "net.core.somaxconn": NUMBER,
    "net.ipv4.ip_local_port_range": (_is_port_range, "a first and a last port"),
    "net.ipv4.ip_local_reserved_ports": (_are_ports, "ports and ranges of them, in order"),
    "net.ipv4.tcp_ehash_entries": NUMBER,
    "net.ipv4.tcp_max_orphans": NUMBER,
    "net.ipv4.tcp_max_syn_backlog": NUMBER,
    "net.ipv4.tcp_max_tw_buckets": NUMBER,
    "net.ipv4.tcp_mem": NUMBERS,
    "net.ipv4.tcp_rmem": NUMBERS,
    "net.ipv4.tcp_wmem": NUMBERS,
    "net.netfilter.nf_conntrack_buckets": NUMBER,
    "net.netfilter.nf_conntrack_count": NUMBER,
    "net.netfilter.nf_conntrack_max": NUMBER,
}
"""The parameters that every host is asked for (ip-sysctl.rst and its neighbours), each with the
check of its value. Other parameters that a host sends are recorded but never read."""


def _sysctls(values: dict[str, str]) -> dict[str, str]:
    for key, value in values.items():
        fits, expected = SYSCTLS.get(key, (None, ""))
        if fits and not fits(value):
            raise ValueError(f"{key}: got {brief(value)}, expected {expected}")
    return values


def _release(kernel: str) -> str:
    if not re.match(r"[0-9]{1,5}\.[0-9]{1,5}", kernel):
        raise ValueError(f"got {brief(kernel)}, expected a release such as 6.1.0")
    return kernel


def _network(address: str) -> str:
    try:
        ipaddress.ip_network(address, strict=False)
    except ValueError:
        raise ValueError(f"got {brief(address)}, expected an address or a prefix") from None
    return address


def _storable(text: Any) -> Any:
    """Return text that UTF-8 can encode: JSON can contain one half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Planned = Annotated[Count, AfterValidator(_planned)]
"""A number of connections: at most those of the agent's part of the plan."""
Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]


def _cut(most: int) -> Callable[[Any], Any]:
    """Return a function that cuts text to a length: a host may send more than is shown."""

    def cut(text: Any) -> Any:
        return _storable(text[:most]) if isinstance(text, str) else text

    return cut


Text = Annotated[str, BeforeValidator(_cut(4096)), AfterValidator(printable)]
Word = Annotated[str, BeforeValidator(_cut(256)), AfterValidator(printable)]
Value = Annotated[str, BeforeValidator(_cut(1 << 18)), AfterValidator(printable)]
"""Value of a sysctl: net.ipv4.ip_local_reserved_ports has 196,607 characters with every other
port."""
Address = Annotated[Word, AfterValidator(_network)]
Evidence = Annotated[str, Field(max_length=MOST_SOURCE), BeforeValidator(_storable)]
Errors = Annotated[dict[str, Count], Field(max_length=256), AfterValidator(_errors)]
Latency = Annotated[dict[str, Count], AfterValidator(_latency)]


class Event(BaseModel):
    """The base of all events."""

    model_config = ConfigDict(extra="forbid", strict=True)

    event: str


class Hello(Event):
    """:class:`bench.wire.Hello`."""

    version: int
    pid: Annotated[int, Field(ge=1, le=1 << 22)]
    """PID_MAX_LIMIT of include/linux/threads.h."""
    python: Word
    cores: Annotated[int, Field(ge=1, le=1 << 16)]
    nofile_hard: Annotated[int, Field(ge=-1, le=MOST_COUNT)]
    """-1 is RLIM_INFINITY."""


class Alive(Event):
    """A sign of life."""


class Error(Event):
    """A failure of a command, or of the agent itself."""

    kind: Literal["input", "fault", "refused"]
    message: Text


class Setting(BaseModel):
    """One value in a role's record, as far as a run's evidence keeps it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    found: str | int | None = None
    set: str | int | None = None
    where: Literal["host", "underlay"] = "host"


class Record(BaseModel):
    """A role's own record, as far as a run's evidence keeps it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    settings: dict[Word, Setting] = {}
    reported: dict[Word, Word] = {}


def _records(roles: dict[str, Any]) -> dict[str, Any]:
    """Return the roles' records; a damaged one is no fault of the agent, and is marked."""
    kept: dict[str, Any] = {}
    for name, record in roles.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
            raise ValueError(f"got {name[:60]!r}, expected the name of a role")
        if isinstance(record, Mapping) and set(record) == {"unreadable"}:
            kept[name] = {"unreadable": printable(str(record["unreadable"])[:256])}
            continue
        try:
            kept[name] = Record.model_validate(record).model_dump()
        except ValidationError as error:
            kept[name] = {"unreadable": printable(refusal(error)[:256])}
    return kept


class Facts(Event):
    """:class:`bench.wire.Facts`."""

    hostname: Word
    kernel: Annotated[Word, AfterValidator(_release)]
    python: Word
    cpu: Annotated[int, Field(ge=1, le=1 << 16)]
    mem_total_kib: Annotated[int, Field(ge=1, le=MOST_COUNT)]
    nofile_soft: Annotated[int, Field(ge=-1, le=MOST_COUNT)]
    nofile_hard: Annotated[int, Field(ge=-1, le=MOST_COUNT)]
    own_tasks: Count
    tracking: bool
    cap_sys_resource: bool
    sysctl: Annotated[dict[Word, Value], Field(max_length=1024), AfterValidator(_sysctls)]
    addresses: Annotated[list[Address], Field(max_length=200_000)]
    ehash_entries: Count
    roles: Annotated[dict[str, Any], Field(max_length=64), AfterValidator(_records)]


class Serving(Event):
    """A server that listens for handshakes."""

    workers: Annotated[int, Field(ge=1, le=1 << 16)]


class Prepared(Serving):
    """A client whose targets have proven themselves."""


class Opened(Event):
    """A server that lets connections in."""


class Halted(Event):
    """A ramp that is being ended."""


class Stopped(Event):
    """The last message of an agent."""


class Tick(Event):
    """:class:`bench.wire.Tick`."""

    t: Seconds
    held: Planned
    opened: Count
    closed: Count
    lost: Planned
    retried: Count
    in_flight: Planned
    errors: Errors
    latency: Latency
    mem_available_kib: Count
    mem_free_kib: Count
    slab_kib: Count


class Floor(Event):
    """Memory below its floor."""

    mem_free_kib: Count
    floor_kib: Count

    @model_validator(mode="after")
    def _below(self) -> Floor:
        if self.mem_free_kib >= self.floor_kib:
            raise ValueError(
                f"mem_free_kib: got {self.mem_free_kib}, expected less than the floor of "
                f"{self.floor_kib}"
            )
        return self


class Ramped(Event):
    """:class:`bench.wire.Ramped`."""

    reason: Literal["complete", "memory", "halted", "lost"]
    tried: Planned
    held: Planned
    lost: Planned
    errors: Errors
    latency: Latency
    seconds: Seconds


class Answering(Event):
    """A server that answers, or has stopped answering."""

    on: bool
    echoes: Count
    wrong: Count


class Echoed(Event):
    """Echoes: each of the ``asked`` connections can answer only once."""

    asked: Planned
    answered: Planned
    wrong: Planned
    dropped: Planned

    @model_validator(mode="after")
    def _within(self) -> Echoed:
        if self.answered + self.wrong > self.asked or self.dropped > self.asked:
            raise ValueError(
                f"answered, wrong, dropped: got {self.answered}, {self.wrong}, {self.dropped}, "
                f"expected at most the {self.asked} asked"
            )
        return self


class Rounded(Event):
    """:class:`bench.wire.Rounded`."""

    asked: Planned
    answered: Planned
    wrong: Planned
    silent: Planned
    seconds: Seconds
    latency: Latency
    cpu_seconds: Seconds

    @model_validator(mode="after")
    def _within(self) -> Rounded:
        if self.answered + self.wrong + self.silent > self.asked:
            raise ValueError(
                f"answered, wrong, silent: got {self.answered}, {self.wrong}, {self.silent}, "
                f"expected at most the {self.asked} asked"
            )
        if sum(self.latency.values()) > self.answered:
            raise ValueError(f"latency: expected at most the {self.answered} answered")
        return self


class Churned(Event):
    """:class:`bench.wire.Churned`."""

    closed: Count
    opened: Count
    lost: Planned
    errors: Errors
    latency: Latency
    seconds: Seconds

    @model_validator(mode="after")
    def _within(self) -> Churned:
        if self.opened + self.lost > self.closed:
            raise ValueError(
                f"opened, lost: got {self.opened}, {self.lost}, expected at most the "
                f"{self.closed} closed"
            )
        if sum(self.latency.values()) > self.opened:
            raise ValueError(f"latency: expected at most the {self.opened} opened")
        return self


class Memory(Event):
    """Memory of an agent and its workers."""

    own_kib: Count


class Collected(Event):
    """:class:`bench.wire.Collected`."""

    phase: Literal["before", "peak", "hold_end", "after"]
    texts: Annotated[dict[str, Evidence], AfterValidator(_sources)]
    missing: Annotated[dict[str, Word], AfterValidator(_sources)]
    held: Planned
    held_each: Annotated[list[Count], Field(max_length=1 << 16)]
    established: Count | None
    workers: Annotated[int, Field(ge=0, le=1 << 16)]
    pss_kib: Count

    @model_validator(mode="after")
    def _adds_up(self) -> Collected:
        if sum(self.held_each) != self.held:
            raise ValueError(f"held_each: adds up to {sum(self.held_each)}, expected {self.held}")
        return self


class Counted(Event):
    """:class:`bench.wire.Counted`."""

    counts: Annotated[dict[Word, Count], Field(max_length=1 << 20)]
    total: Count
    seconds: Seconds


class Verified(Event):
    """The result of a look at every held socket."""

    alive: Planned
    dead: Planned

    @model_validator(mode="after")
    def _within(self, info: ValidationInfo) -> Verified:
        _planned(self.alive + self.dead, info)
        return self


class Drained(Event):
    """Connections that were closed."""

    closed: Count
    seconds: Seconds


class Status(Event):
    """The state of an agent."""

    held: Planned
    errors: Errors
    cpu_seconds: Seconds


class Told(Event):
    """A trial's own figures. Each trial has others, so only their shape is checked."""

    model_config = ConfigDict(extra="allow", strict=True)


EVENTS: Mapping[str, type[Event]] = {
    kind.__name__.lower(): kind
    for kind in (
        Hello,
        Alive,
        Error,
        Facts,
        Serving,
        Prepared,
        Opened,
        Halted,
        Stopped,
        Tick,
        Floor,
        Ramped,
        Answering,
        Echoed,
        Rounded,
        Churned,
        Memory,
        Collected,
        Counted,
        Verified,
        Drained,
        Status,
        Told,
    )
}


def read(line: bytes, planned: int | None = None) -> dict[str, Any]:
    """Return the message in one line of an agent.

    :param planned: connections of the agent's part of the plan, once there is one
    :raises ProtocolError: for anything that an agent does not write
    """
    if len(line) > wire.LINE_BYTES:
        raise ProtocolError(f"a line of {len(line)} bytes, expected at most {wire.LINE_BYTES}")
    head = HEAD.match(line)
    most = LONG.get(head[1].decode(), SHORT_BYTES) if head else SHORT_BYTES
    if len(line) > most:
        raise ProtocolError(f"a line of {len(line)} bytes, expected at most {most} for its kind")
    # Counted before it is parsed: each value takes many times its bytes in memory.
    if line.count(b",") >= MOST_VALUES:
        raise ProtocolError(f"a line of more than {MOST_VALUES} values")
    found = parse(line)
    if not isinstance(found, dict):
        raise ProtocolError(f"not a message: {_shown(line)}")
    kind = EVENTS.get(found["event"]) if isinstance(found.get("event"), str) else None
    if kind is None:
        raise ProtocolError(f"event: got {_shown(found.get('event'))}, expected a known event")
    try:
        return kind.model_validate(found, context={"planned": planned}).model_dump()
    except ValidationError as error:
        raise ProtocolError(f"{found['event']}: {printable(refusal(error))[:300]}") from None


def parse(text: str | bytes) -> Any:
    """Return what a host has printed as JSON, if its shape can be worked with.

    :raises ProtocolError: if it is not JSON, is nested too deeply, or has a number such as NaN
    """
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ProtocolError(f"not a message: {_shown(text)}") from None
    _check_shape(found)
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _check_shape(value: Any) -> None:
    """Check that nothing is nested too deeply and every number is finite; not recursive itself."""
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ProtocolError("a number that is not finite")
        if not isinstance(item, (dict, list)):
            continue
        if depth > MOST_DEPTH:
            raise ProtocolError(f"nested more than {MOST_DEPTH} deep")
        inner = item.values() if isinstance(item, dict) else item
        waiting += [(one, depth + 1) for one in inner]


def _shown(value: Any) -> str:
    """Return something from a host as text for one line."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return repr(printable(text[:120]))
