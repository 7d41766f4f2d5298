"""``python -m bench.perf``: run the engine and two plain-C pairs, in turn, in one lab."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import inventory
from bench.errors import ConnlabError
from bench.hosts import transport
from bench.hosts.session import Connect
from bench.inventory import Host
from bench.perf.engine import Measured, run_engine, settled
from bench.perf.links import NamespaceLink, host
from bench.perf.memory import reserve
from bench.perf.netns import Namespaces
from bench.perf.pairs import Figure, compile_pair, run_pair
from bench.scenario import Scenario

TARGETS = {"plain": 1.15, "best": 1.0, "flat": 0.9}
USERLAND_BYTES, WORKER_MIB = 100, 12
SMALL = 100_000
PORTS = 64_512
ALL = 4096

Lab = tuple[Connect, Host, list[Host]]


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.perf", description=__doc__)
    parser.add_argument("-i", "--inventory", type=Path, action="append", help="a lab that is up")
    parser.add_argument(
        "--namespaces", action="store_true", help="bare namespaces made for this (root)"
    )
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=2, help="with --namespaces")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--watch", choices=["epoll", "none"], default="epoll")
    parser.add_argument("--json", action="store_true")
    found = parser.parse_args(words)
    if found.connections < SMALL or found.rounds < 1 or not 1 <= found.clients <= 32:
        parser.error(f"at least {SMALL} connections, 1 round, 1 to 32 clients")
    return found


@contextlib.contextmanager
def _lab(wanted: argparse.Namespace) -> Iterator[Lab]:
    if not wanted.namespaces:
        found = inventory.load(wanted.inventory or [inventory.DEFAULT])
        yield transport.connect, found.of("servers")[0], found.of("clients")
        return
    count = math.ceil(math.ceil(wanted.connections / wanted.clients) / PORTS)
    sources = {
        f"client{number}": [f"198.18.{number}.{last}" for last in range(1, count + 1)]
        for number in range(1, wanted.clients + 1)
    }
    addresses = {"server1": ["198.18.0.1"], **sources}
    masked = {name: [f"{one}/15" for one in found] for name, found in addresses.items()}
    buckets = 1 << (2 * wanted.connections - 1).bit_length()
    with Namespaces("perf", masked, buckets) as net:
        server = host("server1", "servers", addresses["server1"])
        clients = [host(name, "clients", found) for name, found in sources.items()]
        yield (lambda one: NamespaceLink(net, one)), server, clients


def _scenario(connections: int, watch: str) -> Scenario:
    return Scenario.model_validate(
        {"name": "perf", "title": "Speed", "connections": connections, "watch": watch}
    )


def measure(lab: Lab, wanted: argparse.Namespace, say: Console) -> dict[str, list[Any]]:
    """Run all rounds; return contestant to its runs.

    An unmeasured run before them warms the kernel's caches.
    """
    connect, server, clients = lab
    programs = {name: compile_pair(name) for name in ("plain", "best")}
    watch = wanted.watch == "epoll"

    def engine(connections: int) -> Measured:
        return run_engine(connect, server, clients, _scenario(connections, wanted.watch))

    def pair(name: str, connections: int = wanted.connections) -> Figure:
        # Plain: all processes at once, as such programs are written. Best: as the engine does it.
        active = ALL if name == "plain" else 1
        watching = watch and name == "best"
        return run_pair(
            programs[name],
            connect,
            server,
            clients,
            connections,
            active=active,
            watch=watching,
        )

    contestants: dict[str, Callable[[], Measured | Figure]] = {
        "engine": lambda: engine(wanted.connections),
        "plain": lambda: pair("plain"),
        "best": lambda: pair("best"),
        "small": lambda: engine(SMALL),
        "best_small": lambda: pair("best", SMALL),
    }
    found: dict[str, list[Any]] = {name: [] for name in contestants}
    hosts = [server, *clients]
    with reserve(connect, hosts) as memory:
        memory.wait_until_filled()
        engine(wanted.connections)
        for number in range(1, wanted.rounds + 1):
            for name, run in contestants.items():
                settled(connect, hosts)
                memory.wait_until_filled()
                result = run()
                found[name].append(result)
                figure = result.figure if isinstance(result, Measured) else result
                say.print(
                    f"round {number} {name:10} {figure.connections:,} in {figure.seconds:.1f} s: "
                    f"{figure.rate:,.0f}/s, {figure.cpu_us:.1f} µs of CPU each"
                )
    return found


def summary(found: dict[str, list[Any]]) -> dict[str, Any]:
    """Return medians and ratios."""
    figures = {
        name: [run.figure if isinstance(run, Measured) else run for run in runs]
        for name, runs in found.items()
    }
    rate = {name: statistics.median(one.rate for one in runs) for name, runs in figures.items()}
    cpu = {name: statistics.median(one.cpu_us for one in runs) for name, runs in figures.items()}
    runs: list[Measured] = found["engine"]
    userland = {
        role: statistics.median(run.userland_bytes[role] for run in runs)
        for role in runs[0].userland_bytes
    }
    return {
        "rounds": len(runs),
        "connections": figures["engine"][0].connections,
        "rate": rate,
        "cpu_us": cpu,
        "ratio": {
            "plain": rate["engine"] / rate["plain"],
            "best": rate["engine"] / rate["best"],
            "flat": rate["engine"] / rate["small"],
        },
        # How much of the slowdown is the kernel's: no program opens connections without it.
        "flat_best": rate["best"] / rate["best_small"],
        "cpu_ratio": {name: cpu[name] / cpu["engine"] for name in ("plain", "best")},
        "target": TARGETS,
        "userland_bytes_per_connection": userland,
        "worker_pss_mib": {
            role: max(run.worker_mib[role] for run in runs) for role in runs[0].worker_mib
        },
        "runs": {
            name: [{"rate": one.rate, "seconds": one.seconds, "cpu_us": one.cpu_us} for one in all_]
            for name, all_ in figures.items()
        },
    }


def _table(told: dict[str, Any]) -> Table:
    table = Table(title=f"{told['connections']:,} connections, median of {told['rounds']}")
    for column in ("", "conn/s", "CPU µs", "engine is", "by CPU", "target"):
        table.add_column(column, justify="left" if not column else "right")
    rows = (
        ("engine", "engine", None),
        ("plain C pair", "plain", "plain"),
        ("best C pair", "best", "best"),
        (f"engine at {SMALL:,}", "small", "flat"),
    )
    for title, name, ratio in rows:
        cells = [title, f"{told['rate'][name]:,.0f}", f"{told['cpu_us'][name]:.1f}"]
        if ratio:
            by_cpu = told["cpu_ratio"].get(ratio)
            cells += [f"{told['ratio'][ratio]:.2f} x", f"{by_cpu:.2f} x" if by_cpu else ""]
            cells.append(f">= {TARGETS[ratio]:.2f} x")
        table.add_row(*cells)
    return table


def main(words: Sequence[str]) -> int:
    """Measure and print.

    :return: 0 if all targets are met, 1 if not, 2 for bad usage, 3 if the lab failed
    """
    wanted = _arguments(words)
    say = Console(stderr=wanted.json, highlight=False)
    try:
        with _lab(wanted) as lab:
            told = summary(measure(lab, wanted, say))
    except ConnlabError as error:
        Console(stderr=True).print(str(error))
        return error.exit_status
    small = all(size <= USERLAND_BYTES for size in told["userland_bytes_per_connection"].values())
    light = all(size <= WORKER_MIB for size in told["worker_pss_mib"].values())
    told["met"] = small and light and all(told["ratio"][key] >= TARGETS[key] for key in TARGETS)
    if wanted.json:
        print(json.dumps(told, indent=2))
    else:
        say.print(_table(told))
        for role, size in told["userland_bytes_per_connection"].items():
            fixed = told["worker_pss_mib"][role]
            say.print(f"{role}: {size:.0f} B of userland a connection, {fixed:.1f} MiB a process")
        say.print(
            f"the best C pair at {told['connections']:,} connections has {told['flat_best']:.2f} x "
            f"its own rate at {SMALL:,}"
        )
    return 0 if told["met"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
