"""What the controller and the agents say to each other: one JSON object a line.

The one module that both sides share, so it uses the standard library alone and runs on
Python 3.9. The controller writes commands (key ``op``) to an agent's standard input; the agent
writes events (key ``event``) to its standard output. End of input means: stop and close
everything, and so does a controller that says nothing for ``silence_seconds``
(:class:`AgentOptions`).

========== ====================================================== ==========================
op         fields                                                 answered by event
========== ====================================================== ==========================
facts      sysctls: list of key names                             facts (:class:`Facts`)
serve      spec: :class:`ServerSpec`                              serving {workers}
open       (none); the servers' data ports take connections, and  opened {}
           no longer the handshake alone
prepare    spec: :class:`ClientSpec`                              prepared {workers}
ramp       upto: connections to have been tried by its end, all   ramped (:class:`Ramped`)
           if absent; most_lost: given up, at which it ends, 0
           or absent = no bound; goes on where the last ended
halt       (none); ends the ramp early, keeps what is held        halted {}
collect    phase, count: list of [address, port] or null,         collected (:class:`Collected`)
           state: of the sockets to count, as ss(8) names it
count      :class:`CountSpec`'s fields                            counted (:class:`Counted`)
answer     on: bool; how: tagged|byte, tagged if absent; the      answering {on, echoes, wrong}
           server answers echoes or rounds, or has stopped
echo       mode: sample|all|fresh (those that the last ramp       echoed {asked, answered,
           opened), sample: int, patience_ms: int, drop: bool;    wrong, dropped}
           with drop, who does not answer is reset
round      number: from 1; mode: pipelined|sequential; sample:    rounded (:class:`Rounded`)
           int, 0 = all; window: under way at a time in a worker
           that is pipelined; patience_ms
churn      rate: connections a second for the agent, seconds;     churned (:class:`Churned`)
           closes held ones by RST and opens the same four-tuples
           again; ``halt`` ends it early
memory     (none)                                                 memory {own_kib}: pss_kib of
                                                                  :class:`Collected` less files
verify     (none); looks at every held socket                     verified {alive, dead}
drain      how: rst|fin, rate: connections a second, 0 = no limit drained {closed, seconds}
status     (none)                                                 status {held, errors,
                                                                  cpu_seconds}
beat       (none), every few seconds: the controller is there     (none)
stop       (none)                                                 stopped {}
========== ====================================================== ==========================

``facts``, ``collect`` and ``count`` need no task; all others but ``stop`` come after ``serve`` or
``prepare``.

A process started in the mode ``trial`` is one side of a small experiment instead
(:mod:`bench.agent.stage`). It takes ``trial`` {name, args}, then ``go`` {the trial's own fields}
for each further step, answers each with ``told`` {the trial's own figures}, says ``alive`` every
second, and ends like an agent.

An agent says ``hello`` (:class:`Hello`) first, ``alive`` every second, instead of it ``tick``
(:class:`Tick`) from ``serve`` or ``prepare`` on, ``floor`` {mem_free_kib, floor_kib} once memory
falls below its floor, and ``error`` {kind: input|fault|refused, message} instead of an answer when
a command fails.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from typing import Any, Dict, List, Optional, Tuple, TypedDict, Union

VERSION = 1
"""Said in ``hello``; a controller takes no other. Each session pushes the agent of its own
checkout, so messages may change without a new number."""

PUSHED = r"(?P<folder>/tmp/connlab\.[A-Za-z0-9_]{10})/agent\.pyz"
"""All of the path of a pushed agent, as a regular expression. The controller draws the name of the
directory, and mkdir(1) makes it for this agent alone."""

UNASKED = ("tick", "floor", "alive")
"""Events that answer no command."""

SOURCES = (
    "ss_s",
    "sockstat",
    "sockstat6",
    "meminfo",
    "slabinfo",
    "slab_aliases",
    "nstat",
    "limits",
    "cgroup",
    "conntrack_stat",
    "kernel_log",
)
"""Names of the texts in :class:`Collected`, all that there can be: they name files in the run's
directory on the controller."""

LINE_BYTES = 16 << 20
"""Most that a line may have, newline included. The largest is the evidence of a host: some 300 KB
with a hundred slab caches, and a few MB on machines with thousands of them."""

TEXT_BYTES = 4 << 20
"""Most that one of :data:`SOURCES` may have, as UTF-8: an agent sends no longer one, and whatever
it sends is read and kept. ``conntrack_stat`` has a line of some 150 bytes for each processor, of
which a kernel has 8,192 at most; others have less."""

SILENCE_SECONDS = 20.0
"""Without a word, until either side takes the other for dead, where nothing else is said."""

TCP_STATES = {
    "established": 1,
    "syn-sent": 2,
    "syn-recv": 3,
    "fin-wait-1": 4,
    "fin-wait-2": 5,
    "time-wait": 6,
    "close-wait": 8,
    "last-ack": 9,
    "closing": 11,
}
"""The states of a connection as ss(8) names them, and the kernel's numbers (net/tcp_states.h).
A socket that listens is no connection, one that is closed is in no table."""

COUNT_BY = ("port", "state", "peer", "none")
"""What connections are counted by: port, state, remote address, or all of them as one."""

COUNT_SIDES = ("local", "peer")
"""Whose ports are meant: the host's own, or those at the other end."""

COUNT_RANGES = 256
"""Port ranges that may be asked for: the kernel goes through them for every socket."""

Endpoint = Tuple[str, int]
"""(IP address as text, TCP port)."""


class LockOptions(TypedDict):
    """Who holds a host during a run (:mod:`bench.agent.hostlock`)."""

    owner: str
    """16 hex digits: one controller."""
    who: str
    """User and machine of the controller."""
    run: str
    """What is being done."""


class AgentOptions(TypedDict):
    """What an agent is started with."""

    silence_seconds: float
    """Without a word from the controller, until the agent closes everything and ends."""
    lock: Optional[LockOptions]
    """None for what only looks."""


class Hello(TypedDict):
    """First line of an agent."""

    event: str
    version: int
    pid: int
    python: str
    cores: int
    nofile_hard: int


class Facts(TypedDict):
    """A host's limits as found. Sizes in KiB; ``sysctl`` holds only the keys that exist."""

    event: str
    hostname: str
    kernel: str
    python: str
    cpu: int
    mem_total_kib: int
    nofile_soft: int
    nofile_hard: int
    own_tasks: int
    """Tasks of the agent's user."""
    tracking: bool
    """Whether connections are tracked in the host's network namespace."""
    cap_sys_resource: bool
    sysctl: Dict[str, str]
    addresses: List[str]
    """Addresses and prefixes that the host answers for."""
    ehash_entries: int
    roles: Dict[str, Any]
    """Role name to the role's own record (``/var/lib/connlab/<role>.json``)."""


class ServerSpec(TypedDict):
    """What one server agent holds."""

    nonce: str
    """Hex; names this run and keys the handshake and the echoes."""
    endpoints: List[Endpoint]
    fronts: List[Endpoint]
    """Of proxies that lead to the endpoints: clients may connect to them as well."""
    control: Endpoint
    connections: int
    """How many it must be able to hold."""
    backlog: int
    listener: str
    """``shared`` or ``reuseport``."""
    watch: str
    """``epoll`` or ``none``."""
    acceptors: int
    """Workers awake at a time on a shared listener."""
    nap_ms: float
    """How long an acceptor sleeps once the queue is empty."""
    memory_floor_kib: int
    nofile: Union[str, int]
    """``hard``: the soft limit on open files is raised as far as it goes; ``soft``: it is kept; a
    number: it is set to that, or as near as it goes."""
    workers: int
    """How many; 0: as many as the limit on open files demands. With a number a worker goes on to
    what accept(2) lets it."""
    limit: bool
    """Go as far as this host lets one: being short of workers is no error."""


class TupleBlock(TypedDict):
    """``count`` consecutive source ports from ``first_port`` of one source to one target."""

    source: str
    first_port: int
    count: int
    target: str
    target_port: int


class ClientSpec(TypedDict):
    """What one client agent opens."""

    nonce: str
    controls: List[Endpoint]
    """Control port of every server agent: all must prove that they know the nonce."""
    fronts: List[Endpoint]
    """Targets and control ports that are proxies': which server they choose, and from where they
    connect to it, is theirs."""
    routers: List[str]
    """Addresses of routers that translate, which a server may see in place of the client's. Any
    other address is that of a relay outside the lab."""
    blocks: List[TupleBlock]
    max_in_flight: int
    """Connects under way at a time, for the whole agent."""
    connect_rate: float
    """Connections a second for this agent; 0 is no limit."""
    connect_timeout_ms: int
    retries: int
    """Tries after the first, per connection."""
    backoff_ms: int
    """Wait before the first retry; doubles with each."""
    active: int
    """Workers that connect at a time."""
    memory_floor_kib: int
    nofile: Union[str, int]
    """As in :class:`ServerSpec`."""
    workers: int
    """How many; 0: as many as the limit on open files demands."""
    source_ports: str
    """``plan``: those of the blocks; ``kernel``: connect(2) picks one, blocks only say how many."""
    limit: bool
    """As in :class:`ServerSpec`."""


class Tick(TypedDict):
    """Once a second. Counters run from the start; ``latency`` holds the buckets' totals."""

    event: str
    t: float
    """Seconds since the agent started, by its monotonic clock."""
    held: int
    opened: int
    closed: int
    lost: int
    """Clients: given up after the last retry. Servers: always 0."""
    retried: int
    in_flight: int
    errors: Dict[str, int]
    latency: Dict[str, int]
    mem_available_kib: int
    """MemAvailable as the kernel gives it."""
    mem_free_kib: int
    """What is really free or reclaimable, see ``bench.agent.memory``."""
    slab_kib: int


class Ramped(TypedDict):
    """End of a ramp. ``reason`` is complete, memory, halted or lost; counters run from the start,
    ``seconds`` is this ramp's."""

    event: str
    reason: str
    tried: int
    """Connections of the plan that have been tried at least once."""
    held: int
    lost: int
    errors: Dict[str, int]
    latency: Dict[str, int]
    seconds: float


class Rounded(TypedDict):
    """End of an echo round: one byte on each of many held connections, one byte back."""

    event: str
    asked: int
    """Connections that a byte was written on, or should have been and had been closed."""
    answered: int
    wrong: int
    """With another byte than the server's of this run, or with more than one."""
    silent: int
    """No answer in time, or closed."""
    seconds: float
    latency: Dict[str, int]
    """Of the right answers, from before write(2) until read: buckets' counts."""
    cpu_seconds: float
    """That the agent and its workers spent meanwhile, user and system."""


class Churned(TypedDict):
    """End of a time of churn: what was closed is open again or lost."""

    event: str
    closed: int
    opened: int
    lost: int
    """Not open again: given up after the last retry, or because of ``halt``."""
    errors: Dict[str, int]
    latency: Dict[str, int]
    """Of the new connections, from connect(2) to established: buckets' counts."""
    seconds: float


class Collected(TypedDict):
    """Evidence of one host in one phase."""

    event: str
    phase: str
    texts: Dict[str, str]
    """Source name (``ss_s``, ``sockstat``, ``sockstat6``, ``meminfo``, ``slabinfo``,
    ``slab_aliases``, ``nstat``, ``limits``) to the text as printed. A source that could not be
    read is absent and named in ``missing``."""
    missing: Dict[str, str]
    held: int
    held_each: List[int]
    """The same by worker."""
    established: Optional[int]
    """Lines of ``ss`` in the state and on the endpoints asked for, null if none were."""
    workers: int
    pss_kib: int
    """Sum over the agent's parent and workers, ``/proc/<pid>/smaps_rollup``."""


class CountSpec(TypedDict):
    """Which connections to count, and by what."""

    ranges: List[Tuple[int, int]]
    """Of ports, first and last, at most :data:`COUNT_RANGES`."""
    side: str
    """Of :data:`COUNT_SIDES`."""
    states: List[str]
    """Of :data:`TCP_STATES`."""
    by: str
    """Of :data:`COUNT_BY`."""


class Counted(TypedDict):
    """Connections of one host's network namespace."""

    event: str
    counts: Dict[str, int]
    """By port, state or address; empty if by none of them."""
    total: int
    seconds: float
    """What the kernel's answer and reading it took."""


class WireError(ValueError):
    """A line that is not a message."""


def encode(message: Any) -> bytes:
    """One line for one message, newline included."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Dict[str, Any]:
    """The message in a line. :raises WireError: if it is not a JSON object."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WireError(f"not a message: {line[:200]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"not a message: {line[:200]!r}")
    return message


# Latency histogram: 16 buckets per power of two, so a bucket is at most 1/16 wide.
SUB_BITS = 4
BUCKETS = 27 << SUB_BITS
"""Up to 2**30 µs (18 minutes); longer ones fall into the last bucket."""


def bucket_of(microseconds: int) -> int:
    """Histogram bucket of a latency in µs."""
    if microseconds < 1 << SUB_BITS:
        return max(microseconds, 0)
    shift = microseconds.bit_length() - 1 - SUB_BITS
    index = (shift << SUB_BITS) + (microseconds >> shift)
    return index if index < BUCKETS else BUCKETS - 1


def bucket_top(index: int) -> int:
    """The largest latency in µs that falls into a bucket."""
    if index < 1 << SUB_BITS:
        return index
    shift = (index >> SUB_BITS) - 1
    return (((1 << SUB_BITS) + (index & ((1 << SUB_BITS) - 1)) + 1) << shift) - 1


def percentile(histogram: Dict[int, int], share: float) -> int:
    """Latency in µs that ``share`` (0..1) of the samples do not exceed; 0 if there are none."""
    total = sum(histogram.values())
    if not total:
        return 0
    wanted = max(1, -(-int(total * share * 1_000_000) // 1_000_000))
    seen = 0
    for index in sorted(histogram):
        seen += histogram[index]
        if seen >= wanted:
            return bucket_top(index)
    return bucket_top(max(histogram))


# The handshake and the echoes. Each side proves that it knows the run's nonce; neither sends it.
CHALLENGE_BYTES = 16
PROOF_BYTES = 32
ECHO_BYTES = 12


def proof(nonce: str, role: str, challenge: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) of the side's role and the peer's challenge."""
    return hmac.new(bytes.fromhex(nonce), role.encode() + challenge, hashlib.sha256).digest()


def echo_request(nonce: str, number: int) -> bytes:
    """What a client writes on its connection ``number``: the number and its tag."""
    head = number.to_bytes(4, "big")
    return head + proof(nonce, "echo", head)[: ECHO_BYTES - 4]


def echo_reply(nonce: str, request: bytes) -> Optional[bytes]:
    """What the server answers, or None if the request is not of this run."""
    head = request[:4]
    if len(request) != ECHO_BYTES or not hmac.compare_digest(
        request, head + proof(nonce, "echo", head)[: ECHO_BYTES - 4]
    ):
        return None
    return head + proof(nonce, "reply", head)[: ECHO_BYTES - 4]


ROUND_STEP = 37
"""From one round to the next a connection's byte moves by this. Odd, so that it takes 256 rounds
until one comes again."""


def round_byte(number: int, round_number: int) -> int:
    """What a client writes on its connection ``number`` in a round: neighbours write others."""
    return (number + ROUND_STEP * round_number) & 0xFF


@functools.lru_cache(maxsize=1)
def round_answers(nonce: str) -> bytes:
    """What a server answers each of the 256 bytes of a round with, for ``bytes.translate()``.

    A cyclic permutation (S. Sattolo, Information Processing Letters 22, 1986) drawn by HMAC from
    the nonce: no byte is its own answer, so what only comes back as it went is wrong.
    """
    table = bytearray(range(256))
    for last in range(255, 0, -1):
        drawn = int.from_bytes(proof(nonce, "round", bytes([last]))[:8], "big") % last
        table[last], table[drawn] = table[drawn], table[last]
    return bytes(table)
