"""How the size of the established-hash table affects the opening and the use of connections."""

from __future__ import annotations

from pydantic import Field, field_validator

from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Parameters
from bench.errors import LabError
from bench.hosts.told import Told

SLOWER = 1.1
"""A ratio below it counts as no difference: rounds on one table differ by a few percent."""

SHORTEST = 1e-6
"""The least time in µs: no connection opens faster."""

STEP_SECONDS = 600.0
"""Seconds for filling one table."""


class HashTableParameters(Parameters):
    """How many connections, and how small the small table is."""

    connections: int = Field(ge=1_000, le=1_000_000)
    entries: int = Field(ge=256, le=1 << 24)
    """Entries of the small table, a power of two; the other table is sized for the sockets."""
    echoes: int = Field(ge=1_000, le=1_000_000)
    """Round trips on random connections, once all are held."""
    rounds: int = Field(ge=1, le=10)
    """Rounds with each table, in turns."""

    @field_validator("entries")
    @classmethod
    def _is_a_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"got {value:,}, expected a power of two")
        return value


class Step(Found):
    """One stretch of the ramp."""

    held: int = Field(description="connections at its end")
    us: float = Field(description="µs that one took to be opened and accepted")


class Table(Found):
    """One size of the table."""

    entries: int = Field(description="hash buckets of the table")
    chain: float = Field(description="sockets a bucket, all connections held: both ends are in it")
    steps: list[Step] = Field(description="opening, the fastest of the rounds")
    connect_us: list[float] = Field(description="µs of the last step by round")
    echo_us: list[float] = Field(description="µs of a one-byte round trip by round")


class HashTableFound(Found):
    """The same work with two tables."""

    connections: int = Field(description="held, both ends in one namespace")
    small: Table = Field(description="the small table")
    large: Table = Field(description="the table with an entry for each socket")


def sized(connections: int) -> int:
    """Return the entries for both ends of ``connections``: a power of two, at least one each."""
    return 1 << (2 * connections - 1).bit_length()


def measure(lab: Lab, parameters: HashTableParameters) -> HashTableFound:
    """Fill both tables in turns, each in its own namespace on the server's host."""
    connections = parameters.connections
    sizes = (parameters.entries, sized(connections))
    told: dict[int, list[Told]] = {entries: [] for entries in sizes}
    with lab.trials() as trials:
        trial = trials.begin(
            lab.server,
            "hash_table",
            root=True,
            connections=connections,
            echoes=parameters.echoes,
        )
        _possible(trial.first.text("reason"), lab)
        for number in range(parameters.rounds):
            for entries in sizes:
                lab.note(f"{entries:,} buckets, round {number + 1}")
                answer = trial.go(seconds=STEP_SECONDS, entries=entries)
                _possible(answer.text("reason"), lab)
                told[entries].append(answer)
    small, large = (_table(entries, connections, told[entries]) for entries in sizes)
    return HashTableFound(connections=connections, small=small, large=large)


def _possible(reason: str, lab: Lab) -> None:
    """Check that it can be measured. :raises NotMeasurable: with the reason, if there is one."""
    if reason:
        raise NotMeasurable(
            f"{lab.server.name} makes no network namespace with a table of its own: {reason}; "
            "Linux 6.1 does, for root"
        )


def _table(entries: int, connections: int, rounds: list[Told]) -> Table:
    ways = [one.each("connect_us", _step, 1) for one in rounds]
    if len({len(way) for way in ways}) > 1:
        raise LabError(
            f"host {rounds[0].host}: protocol: told: connect_us: expected as many steps each time"
        )
    return Table(
        entries=entries,
        chain=round(2 * connections / entries, 2),
        steps=[
            Step(held=same[0].held, us=min(step.us for step in same))
            for same in zip(*ways, strict=True)
        ],
        connect_us=[way[-1].us for way in ways],
        echo_us=[one.real("echo_us") for one in rounds],
    )


def _step(told: Told, name: str) -> Step:
    one = told.within(name)
    return Step(held=one.number("held"), us=one.real("us", SHORTEST))


def judge(found: HashTableFound) -> Judgement:
    """Judge it confirmed if the small table made opening slower.

    Opening has to be slower than with the large table at the end of the ramp, and slower than with
    the small table at its beginning.

    Other activity only makes things slower, never faster: so the fastest round counts.
    """
    small, large = found.small, found.large
    measured = (
        f"{found.connections:,} connections: with {small.entries:,} buckets opening one took "
        f"{small.steps[0].us:g} µs at first and {small.steps[-1].us:g} at last, an echo "
        f"{min(small.echo_us):g} µs; with {large.entries:,} {large.steps[0].us:g} and "
        f"{large.steps[-1].us:g}, an echo {min(large.echo_us):g}"
    )
    beside, grown = (
        small.steps[-1].us / large.steps[-1].us,
        small.steps[-1].us / small.steps[0].us,
    )
    if min(beside, grown) >= SLOWER:
        return Judgement(
            "confirmed",
            measured,
            f"there were {small.chain:g} sockets to a bucket, and a lookup that finds none, as "
            "each new connection makes several, walks the whole chain; opening was "
            f"{beside:.1f} times as slow at last",
        )
    if max(beside, grown) < SLOWER:
        return Judgement(
            "refuted",
            measured,
            f"with {small.chain:g} sockets to a bucket opening one took no longer",
        )
    return Judgement(
        "inconclusive",
        measured,
        f"with the small table opening took {grown:.2f} times as long at last as at first, and "
        f"{beside:.2f} times as long as with the large one",
    )


CLAIM = Claim(
    id="hash-table",
    said="The established-hash table is sized at boot; beyond it every lookup walks a chain.",
    cure="Boot with thash_entries= as large as the sockets are many; namespaces take "
    "tcp_child_ehash_entries of the one that they are made in.",
    read="docs/architecture.md",
    small=HashTableParameters(connections=12_000, entries=256, echoes=5_000, rounds=3),
    full=HashTableParameters(connections=200_000, entries=4_096, echoes=50_000, rounds=3),
    measure=measure,
    judge=judge,
    connections=lambda parameters: parameters.connections,
)
