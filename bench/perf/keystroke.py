"""``python -m bench.perf.keystroke``: the cost of a byte each way, by number of connections held.

It makes whole runs of the scenario ``keystroke``, smallest first, with both ends in bare network
namespaces of this machine (root). It exits 1 if a byte was not answered, or if a message with the
most connections costs more than twice the CPU time of a message with the fewest.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import scenario
from bench.errors import ConnlabError
from bench.inventory import Inventory
from bench.perf.links import NamespaceLink, host
from bench.perf.netns import Namespaces
from bench.results.format import EchoRound, Run
from bench.results.store import Store
from bench.run import runner
from bench.units import latency

MOST_TIMES = 2.0
"""How many times the cost with the fewest connections a message may cost with the most."""

PORTS = 64_512
"""Source ports of a client address: 1,024 to 65,535."""

ADDRESSES = 250
"""The most client addresses: those of 198.18.1.0/24."""


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.perf.keystroke", description=__doc__)
    parser.add_argument("connections", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5, help="pipelined ones, for each number")
    parser.add_argument("--window", type=int, help="round_window, else the scenario's")
    found = parser.parse_args(words)
    if not 1 <= min(found.connections) <= max(found.connections) <= ADDRESSES * PORTS:
        parser.error(f"1 to {ADDRESSES * PORTS} connections")
    if not 1 <= found.rounds <= 1000:
        parser.error("1 to 1000 rounds")
    return found


def run(connections: int, rounds: int, window: int | None, results: Path) -> Run:
    """Run once. :raises ConnlabError: if the lab failed."""
    count = math.ceil(connections / PORTS)
    addresses = {"server1": ["198.18.0.1"]}
    addresses["client1"] = [f"198.18.1.{last}" for last in range(1, count + 1)]
    changed = {"connections": connections, "rounds": rounds, "hold_seconds": 0}
    if window is not None:
        changed["round_window"] = window
    masked = {name: [f"{one}/15" for one in found] for name, found in addresses.items()}
    buckets = 1 << (2 * connections - 1).bit_length()
    with Namespaces("keys", masked, buckets) as net:
        hosts = {
            "server1": host("server1", "servers", addresses["server1"]),
            "client1": host("client1", "clients", addresses["client1"]),
        }
        return runner.run(
            scenario.load("keystroke", changed),
            Inventory("perf", "local", hosts, True, None, None),
            Store(results),
            lambda one: NamespaceLink(net, one),
            lambda now: None,
        )


def each_us(one: EchoRound) -> tuple[float, float]:
    """Return the CPU time of a message on the client's side and on the server's, µs."""
    asked = max(1, one.asked)
    return 1e6 * one.client_cpu_seconds / asked, 1e6 * one.server_cpu_seconds / asked


def _table() -> Table:
    table = Table(title="one byte there and back")
    for column in ("connections", "mode"):
        table.add_column(column)
    for column in ("asked", "s", "messages/s", "CPU µs: client", "server", "both", "p50", "p99"):
        table.add_column(column, justify="right")
    return table


def main(words: Sequence[str]) -> int:
    """Run and print.

    :return: 0 if all is well, 1 if not, 2 for bad usage, 3 if the lab failed
    """
    wanted = _arguments(words)
    say = Console(highlight=False, width=120)
    table, cost, well = _table(), {}, True
    try:
        with tempfile.TemporaryDirectory(prefix="connlab.") as results:
            for connections in sorted(set(wanted.connections)):
                done = run(connections, wanted.rounds, wanted.window, Path(results))
                say.print(f"{done.verdict}: {done.reason}", soft_wrap=True)
                well &= done.verdict == "pass"
                for one in done.measured.rounds:
                    client, server = each_us(one)
                    table.add_row(
                        f"{connections:,}",
                        one.mode,
                        f"{one.asked:,}",
                        f"{one.seconds:.3f}",
                        f"{one.answered / one.seconds:,.0f}",
                        *(f"{us:.1f}" for us in (client, server, client + server)),
                        latency(one.latency_us.p50),
                        latency(one.latency_us.p99),
                    )
                cost[connections] = statistics.median(
                    sum(each_us(one)) for one in done.measured.rounds if one.mode == "pipelined"
                )
    except ConnlabError as error:
        Console(stderr=True).print(str(error))
        return error.exit_status
    say.print(table)
    fewest, most = cost[min(cost)], cost[max(cost)]
    say.print(
        f"median of pipelined rounds: {most:.1f} µs of CPU a message with {max(cost):,} "
        f"connections, {most / fewest:.2f} x what it is with {min(cost):,}; at most "
        f"{MOST_TIMES:.1f} x is the aim",
        soft_wrap=True,
    )
    return 0 if well and most <= MOST_TIMES * fewest else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
