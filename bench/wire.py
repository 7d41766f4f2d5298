"""The messages between the controller and the agents: one JSON object per line.

This is the only module that both sides share, so it uses the standard library alone and runs on
Python 3.9. The controller writes commands (key ``op``) to an agent's standard input; the agent
writes events (key ``event``) to its standard output. At the end of its input an agent stops and
closes everything. It does the same if the controller is silent for ``silence_seconds``
(:class:`AgentOptions`).

========== ====================================================== ==========================
op         fields                                                 answered by event
========== ====================================================== ==========================
facts      sysctls: list of key names                             facts (:class:`Facts`)
serve      spec: :class:`ServerSpec`                              serving {workers}
open       (none); the servers' data ports take connections, and  opened {}
           no longer the handshake alone
prepare    spec: :class:`ClientSpec`                              prepared {workers}
ramp       upto: connections to try in all, every one if absent;  ramped (:class:`Ramped`)
           most_lost: losses that end the ramp, 0 or absent = no
           bound; continues the ramp before
halt       (none); ends the ramp early, keeps held connections    halted {}
collect    phase, count: list of [address, port] or null,         collected (:class:`Collected`)
           state: of the sockets to count, as ss(8) names it
count      :class:`CountSpec`'s fields                            counted (:class:`Counted`)
answer     on: bool; how: tagged|byte, tagged if absent; the      answering {on, echoes, wrong}
           server answers echoes or rounds, or has stopped
echo       mode: sample|all|fresh (connections of the last ramp), echoed {asked, answered,
           sample: int, patience_ms: int, drop: bool; with drop,  wrong, dropped}
           connections without an answer are reset
round      number: from 1; mode: pipelined|sequential; sample:    rounded (:class:`Rounded`)
           int, 0 = all; window: under way at a time in a worker
           of a pipelined round; patience_ms
churn      rate: connections a second for the agent, seconds;     churned (:class:`Churned`)
           closes held connections by RST and reopens the same
           four-tuples; ``halt`` ends it early
memory     (none)                                                 memory {own_kib}: pss_kib of
                                                                  :class:`Collected` less files
verify     (none); looks at every held socket                     verified {alive, dead}
drain      how: rst|fin, rate: connections a second, 0 = no limit drained {closed, seconds}
status     (none)                                                 status {held, errors,
                                                                  cpu_seconds}
beat       (none), every few seconds: the controller is alive     (none)
stop       (none)                                                 stopped {}
========== ====================================================== ==========================

``facts``, ``collect`` and ``count`` need no task. All other commands except ``stop`` come after
``serve`` or ``prepare``.

A process started in the mode ``trial`` is one side of a small experiment instead
(:mod:`bench.agent.stage`). It takes ``trial`` {name, args}, then ``go`` {the trial's own fields}
for each further step, answers each with ``told`` {the trial's own figures}, says ``alive`` every
second, and ends like an agent.

An agent first sends ``hello`` (:class:`Hello`), then ``alive`` every second. From ``serve`` or
``prepare`` on it sends ``tick`` (:class:`Tick`) instead of ``alive``. It sends ``floor``
{mem_free_kib, floor_kib} when memory falls below its floor, and ``error`` {kind:
input|fault|refused, message} instead of an answer when a command fails.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from typing import Any, Dict, List, Optional, Tuple, TypedDict, Union

VERSION = 1
"""Version in ``hello``; a controller accepts no other. Each session pushes the agent of its own
checkout, so messages may change without a new number."""

PUSHED = r"(?P<folder>/tmp/connlab\.[A-Za-z0-9_]{10})/agent\.pyz"
"""Full path of a pushed agent, as a regular expression. The controller draws the random name of the
directory, and mkdir(1) creates it for this agent alone."""

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
"""All names of texts that :class:`Collected` may have: they become files in the run's directory on
the controller."""

LINE_BYTES = 16 << 20
"""Most bytes of a line, including its newline. The longest line is the evidence of a host: some 300
KB with a hundred slab caches, and a few MB on machines with thousands of them."""

TEXT_BYTES = 4 << 20
"""Most bytes of the text of one of :data:`SOURCES`, as UTF-8. An agent sends no longer text, so the
controller can read and keep all that it sends. ``conntrack_stat`` has a line of some 150 bytes for
each processor, of which a kernel has at most 8,192; other texts are shorter."""

SILENCE_SECONDS = 20.0
"""Default time of silence after which either side treats the other as dead."""

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
A listening socket is not a connection, and a closed socket is in no table."""

COUNT_BY = ("port", "state", "peer", "none")
"""Keys that connections are counted by: port, state, remote address, or one total."""

COUNT_SIDES = ("local", "peer")
"""Ends whose ports are meant: the host itself, or its peers."""

COUNT_RANGES = 256
"""Most port ranges of one count: the kernel goes through them for every socket."""

Endpoint = Tuple[str, int]
"""(IP address as text, TCP port)."""


class LockOptions(TypedDict):
    """The holder of a host during a run (:mod:`bench.agent.hostlock`)."""

    owner: str
    """16 hex digits that identify one controller."""
    who: str
    """User and machine of the controller."""
    run: str
    """The work in progress, such as the run's scenario."""


class AgentOptions(TypedDict):
    """The options that an agent is started with."""

    silence_seconds: float
    """Time of silence of the controller after which the agent closes everything and ends."""
    lock: Optional[LockOptions]
    """None for an agent that only looks."""


class Hello(TypedDict):
    """The first line of an agent."""

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
    """Addresses and prefixes that are local to the host."""
    ehash_entries: int
    roles: Dict[str, Any]
    """Role name to the role's own record (``/var/lib/connlab/<role>.json``)."""


class ServerSpec(TypedDict):
    """The task of one server agent."""

    nonce: str
    """Hex; names this run and keys the handshake and the echoes."""
    endpoints: List[Endpoint]
    fronts: List[Endpoint]
    """Endpoints of proxies that lead to the server's endpoints: clients may connect to them too."""
    control: Endpoint
    connections: int
    """Connections that the agent must be able to hold."""
    backlog: int
    listener: str
    """``shared`` or ``reuseport``."""
    watch: str
    """``epoll`` or ``none``."""
    acceptors: int
    """Workers awake at a time on a shared listener."""
    nap_ms: float
    """Time that an acceptor sleeps when the queue is empty."""
    memory_floor_kib: int
    nofile: Union[str, int]
    """``hard``: raise the soft limit on open files to the hard limit; ``soft``: keep it; a number:
    set it to that number, or as near as possible."""
    workers: int
    """Number of workers; 0: as many as the limit on open files requires. With a given number, a
    worker accepts until accept(2) fails."""
    limit: bool
    """Go as far as the host allows: too few workers are not an error."""


class TupleBlock(TypedDict):
    """``count`` consecutive source ports from ``first_port`` of one source to one target."""

    source: str
    first_port: int
    count: int
    target: str
    target_port: int


class ClientSpec(TypedDict):
    """The task of one client agent."""

    nonce: str
    controls: List[Endpoint]
    """Control port of every server agent; all agents must prove that they know the nonce."""
    fronts: List[Endpoint]
    """Proxies' targets and control ports. A proxy chooses the server and the address from which it
    connects."""
    routers: List[str]
    """Addresses of routers that translate, which a server may see instead of the client's address.
    Any other address belongs to a relay outside the lab."""
    blocks: List[TupleBlock]
    max_in_flight: int
    """Connects under way at a time, for the whole agent."""
    connect_rate: float
    """Connections a second for this agent; 0: no limit."""
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
    """Number of workers; 0: as many as the limit on open files requires."""
    source_ports: str
    """``plan``: the blocks' ports; ``kernel``: connect(2) picks one, blocks only give the count."""
    limit: bool
    """As in :class:`ServerSpec`."""


class Tick(TypedDict):
    """An agent's state, once a second. Counters run from the start; ``latency`` has bucket sums."""

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
    """The kernel's MemAvailable."""
    mem_free_kib: int
    """Memory that is really free or reclaimable, see ``bench.agent.memory``."""
    slab_kib: int


class Ramped(TypedDict):
    """The end of a ramp. ``reason`` is complete, memory, halted or lost. Counters run from the
    start; ``seconds`` is the time of this ramp."""

    event: str
    reason: str
    tried: int
    """Planned connections that have been tried at least once."""
    held: int
    lost: int
    errors: Dict[str, int]
    latency: Dict[str, int]
    seconds: float


class Rounded(TypedDict):
    """The end of an echo round: one byte on each of many held connections, one byte back."""

    event: str
    asked: int
    """Connections on which a byte was written, or would have been if they had not been closed."""
    answered: int
    wrong: int
    """Answers with another byte than this run's server sends, or with more than one byte."""
    silent: int
    """Connections without an answer in time, or closed."""
    seconds: float
    latency: Dict[str, int]
    """Latency of the right answers, from before write(2) until read: buckets' counts."""
    cpu_seconds: float
    """User and system time of the agent and its workers meanwhile."""


class Churned(TypedDict):
    """The end of a stretch of churn: each closed connection is open again or lost."""

    event: str
    closed: int
    opened: int
    lost: int
    """Not reopened: given up after the last retry, or because of ``halt``."""
    errors: Dict[str, int]
    latency: Dict[str, int]
    """Latency of the new connections, from connect(2) to established: buckets' counts."""
    seconds: float


class Collected(TypedDict):
    """The evidence of one host in one phase."""

    event: str
    phase: str
    texts: Dict[str, str]
    """Source name (``ss_s``, ``sockstat``, ``sockstat6``, ``meminfo``, ``slabinfo``,
    ``slab_aliases``, ``nstat``, ``limits``) to the text as printed. A source that could not be
    read is absent and named in ``missing``."""
    missing: Dict[str, str]
    held: int
    held_each: List[int]
    """Held connections by worker."""
    established: Optional[int]
    """Lines of ``ss`` in the requested state and on the requested endpoints, null without
    endpoints."""
    workers: int
    pss_kib: int
    """Sum over the agent's parent and workers, ``/proc/<pid>/smaps_rollup``."""


class CountSpec(TypedDict):
    """The connections to count, and the key to count by."""

    ranges: List[Tuple[int, int]]
    """Port ranges, first and last port, at most :data:`COUNT_RANGES`."""
    side: str
    """One of :data:`COUNT_SIDES`."""
    states: List[str]
    """Some of :data:`TCP_STATES`."""
    by: str
    """One of :data:`COUNT_BY`."""


class Counted(TypedDict):
    """The counted connections of one host's network namespace."""

    event: str
    counts: Dict[str, int]
    """Connections by port, state or address; empty for one total."""
    total: int
    seconds: float
    """Time of the kernel's answer and of reading it."""


class WireError(ValueError):
    """A line that is not a message."""


def encode(message: Any) -> bytes:
    """Return one message as one line, including the newline."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Dict[str, Any]:
    """Return the message in a line. :raises WireError: if it is not a JSON object."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WireError(f"not a message: {line[:200]!r}") from error
    if not isinstance(message, dict):
        raise WireError(f"not a message: {line[:200]!r}")
    return message


# Latency histogram: 16 buckets per power of two, so a bucket's width is at most 1/16 of its value.
SUB_BITS = 4
BUCKETS = 27 << SUB_BITS
"""Buckets up to 2**30 µs (18 minutes); longer latencies fall into the last bucket."""


def bucket_of(microseconds: int) -> int:
    """Return the histogram bucket of a latency in µs."""
    if microseconds < 1 << SUB_BITS:
        return max(microseconds, 0)
    shift = microseconds.bit_length() - 1 - SUB_BITS
    index = (shift << SUB_BITS) + (microseconds >> shift)
    return index if index < BUCKETS else BUCKETS - 1


def bucket_top(index: int) -> int:
    """Return the largest latency in µs that falls into a bucket."""
    if index < 1 << SUB_BITS:
        return index
    shift = (index >> SUB_BITS) - 1
    return (((1 << SUB_BITS) + (index & ((1 << SUB_BITS) - 1)) + 1) << shift) - 1


def percentile(histogram: Dict[int, int], share: float) -> int:
    """Return the latency in µs that ``share`` (0..1) of the samples do not exceed; 0 without
    samples."""
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
    """Return the HMAC-SHA256 (RFC 2104) of the side's role and the peer's challenge."""
    return hmac.new(bytes.fromhex(nonce), role.encode() + challenge, hashlib.sha256).digest()


def echo_request(nonce: str, number: int) -> bytes:
    """Return what a client writes on its connection ``number``: the number and its tag."""
    head = number.to_bytes(4, "big")
    return head + proof(nonce, "echo", head)[: ECHO_BYTES - 4]


def echo_reply(nonce: str, request: bytes) -> Optional[bytes]:
    """Return the server's answer, or None if the request is not from this run."""
    head = request[:4]
    if len(request) != ECHO_BYTES or not hmac.compare_digest(
        request, head + proof(nonce, "echo", head)[: ECHO_BYTES - 4]
    ):
        return None
    return head + proof(nonce, "reply", head)[: ECHO_BYTES - 4]


ROUND_STEP = 37
"""Step of a connection's byte from one round to the next. It is odd, so a byte repeats only after
256 rounds."""


def round_byte(number: int, round_number: int) -> int:
    """Return the byte that a client writes on its connection ``number`` in a round; neighbouring
    connections have other bytes."""
    return (number + ROUND_STEP * round_number) & 0xFF


@functools.lru_cache(maxsize=1)
def round_answers(nonce: str) -> bytes:
    """Return a server's answers to the 256 bytes of a round, as a table for ``bytes.translate()``.

    It is a cyclic permutation (S. Sattolo, Information Processing Letters 22, 1986) drawn by HMAC
    from the nonce. No byte is its own answer, so a byte that merely comes back is wrong.
    """
    table = bytearray(range(256))
    for last in range(255, 0, -1):
        drawn = int.from_bytes(proof(nonce, "round", bytes([last]))[:8], "big") % last
        table[last], table[drawn] = table[drawn], table[last]
    return bytes(table)
