"""``python -m bench.perf.soak``: look for faults that show only after a while, or with many hosts.

It builds a local lab with a name of its own (root), and always removes it. With ``--namespaces`` it
uses bare namespaces, without SSH. It runs three parts in turn:

1. the scenario ``soak``: no connection may be lost, and the agents' memory has to stay flat;
2. a run over 64 small client hosts, which may take 30 s longer than one over a single one: 64 SSH
   connections and agents, each with its own address, on the lab's two client machines;
3. 20 runs in a row within this process, after which there may be no more threads, descriptors,
   directories and agents than before, here or on a host.

Exit status: 0 if all is well, 1 if not, 2 for bad usage, 3 if the lab failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import scenario
from bench.errors import ConnlabError
from bench.hosts import transport
from bench.hosts.session import Connect
from bench.inventory import Host, Inventory
from bench.perf import links, residue
from bench.perf.netns import Namespaces
from bench.perf.ownlab import OwnLab
from bench.results import words
from bench.results.format import AgentsMemory, Run
from bench.results.store import Store
from bench.run import progress, runner
from bench.scenario import Scenario

HOSTS, MORE_SECONDS = 64, 30.0
RUNS = 20

FLAT_KIB = 128.0
"""The steepest slope of a side's memory that counts as flat, KiB a minute. The least that could
leak for each reopened connection is a pointer, 8 bytes: 940 KiB a minute at 2,000 a second. Growth
of less than a seventh of that ends by itself: allocators and tables of descriptors fill up for some
minutes."""

CLIENTS = 2
LINKS = HOSTS // CLIENTS
"""SSH connections to one machine at a time. The image's sshd allows 64 that have not logged in yet
(MaxStartups)."""

Say = Callable[[str], None]


def main(words: Sequence[str]) -> int:
    """Build the lab, run all three parts, remove the lab; return the exit status."""
    wanted = _arguments(words)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lines: list[str] = []

    def told(came: Sequence[str]) -> None:  # at once: a later part may fail
        lines.extend(came)
        for line in came:
            console.print(line)

    try:
        with _lab(wanted) as (hosts, connect):
            asked = scenario.load(
                "soak", {"connections": wanted.connections, "hold_seconds": wanted.seconds}
            )
            told(long_hold(hosts, connect, asked, wanted.results, console))
            told(many_hosts(hosts, connect, console.print))
            look_at = () if wanted.namespaces else tuple(hosts.hosts.values())
            told(in_a_row(hosts, connect, RUNS, console.print, look_at=look_at))
    except ConnlabError as error:
        Console(stderr=True, highlight=False, markup=False).print(f"connlab: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    console.print("\n".join(["", *lines]))  # once more, below the output of the lab's removal
    return int(any(line.startswith("FAIL") for line in lines))


@contextlib.contextmanager
def _lab(wanted: argparse.Namespace) -> Iterator[tuple[Inventory, Connect]]:
    if not wanted.namespaces:
        settings = {
            "connections": wanted.connections,
            "lab_clients": CLIENTS,
            "lab_client_addresses": LINKS,
        }
        with OwnLab(wanted.lab, wanted.prefix, settings) as hosts:
            yield hosts, transport.connect
        return
    with bare(wanted.lab, CLIENTS, LINKS, wanted.connections) as lab:
        yield lab


@contextlib.contextmanager
def bare(
    name: str, clients: int, addresses: int, connections: int
) -> Iterator[tuple[Inventory, Connect]]:
    """Build a server and clients in bare namespaces, with ``addresses`` addresses per client."""
    sources = {
        f"client{number}": [f"198.18.{number}.{last}" for last in range(1, addresses + 1)]
        for number in range(1, clients + 1)
    }
    own = {"server1": ["198.18.0.1"], **sources}
    masked = {host: [f"{address}/15" for address in of_host] for host, of_host in own.items()}
    buckets = 1 << (2 * connections - 1).bit_length()
    with Namespaces(name, masked, buckets) as net:
        hosts = {
            host: links.host(host, "servers" if host == "server1" else "clients", of_host)
            for host, of_host in own.items()
        }

        def connect(host: Host) -> links.NamespaceLink:
            machine = host.name.partition("-")[0]
            return links.NamespaceLink(net, dataclasses.replace(host, name=machine))

        yield Inventory("perf", "local", hosts, True, None, None), connect


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.perf.soak", description=__doc__)
    parser.add_argument(
        "--namespaces", action="store_true", help="bare namespaces instead of a lab's hosts"
    )
    parser.add_argument("--lab", default="soak", help="name of the lab that is built")
    parser.add_argument("--prefix", default="169.254.203.0/24", help="its /24 for management")
    parser.add_argument("--connections", type=int, default=200_000)
    parser.add_argument("--seconds", type=int, default=900, help="of the long hold")
    parser.add_argument("--results", type=Path, default=Path("results"))
    found = parser.parse_args(words)
    if not 1_000 <= found.connections <= 10_000_000 or not 1 <= found.seconds <= 86_400:
        parser.error("1,000 to 10,000,000 connections, 1 to 86,400 seconds")
    return found


def _verdict(well: bool, text: str) -> str:
    return f"{'PASS' if well else 'FAIL'}: {text}"


def long_hold(
    hosts: Inventory, connect: Connect, asked: Scenario, results: Path, console: Console
) -> list[str]:
    """Run the scenario ``soak``; return its outcome, as lines with a verdict."""
    with progress.view("plain", console) as update:
        done = runner.run(asked, hosts, Store(results), connect, update)
    return [
        *_held(done, results),
        *(flat(done.measured.agents_memory) if done.measured.agents_memory else []),
    ]


def _held(done: Run, results: Path) -> list[str]:
    summary = words.summary(done, results / done.run_id)
    slab = [point.slab_kib for point in done.curve]
    return [
        _verdict(done.verdict == "pass", f"soak: {done.reason}"),
        *(f"  {line}" for line in summary[1:]),
        f"  slab at the end of the ramp {max(slab[: len(slab) // 2], default=0):,} KiB, at most "
        f"{max(slab, default=0):,} KiB",
    ]


def flat(memory: AgentsMemory) -> list[str]:
    """Judge whether the agents' memory stays flat: a line for each side."""
    lines = []
    for side, slope, kib in (
        ("server", memory.server_kib_per_minute, [one.server_kib for one in memory.points]),
        ("client", memory.client_kib_per_minute, [one.client_kib for one in memory.points]),
    ):
        if slope is None:
            lines.append(_verdict(False, f"{side} agents' memory: hold too short for a slope"))
            continue
        lines.append(
            _verdict(
                slope <= FLAT_KIB,
                f"{side} agents' memory {kib[0]:,} KiB at the start, {kib[-1]:,} KiB at the end: "
                f"{slope:+,.1f} KiB a minute, flat up to {FLAT_KIB:+,.1f}",
            )
        )
    return lines


def many(hosts: Inventory, count: int) -> Inventory:
    """Return the inventory with ``count`` client hosts, each with one address of its machine."""
    machines = hosts.of("clients")
    each = -(-count // len(machines))
    small = [
        dataclasses.replace(machine, name=f"{machine.name}-{at}", data_addresses=(address,))
        for machine in machines
        for at, address in enumerate(machine.data_addresses[:each], start=1)
    ][:count]
    servers = hosts.of("servers")
    return dataclasses.replace(hosts, hosts={host.name: host for host in [*servers, *small]})


def many_hosts(
    hosts: Inventory, connect: Connect, say: Say, count: int = HOSTS, connections: int = 6_400
) -> list[str]:
    """Run over one small client host and over many; return the verdict on their durations."""
    spent = {}
    for number in (1, count):
        began = time.monotonic()
        done = small_run(many(hosts, number), connect, connections)
        spent[number] = time.monotonic() - began
        ramp, drain = done.measured.ramp_seconds, done.measured.drain_seconds or 0.0
        say(
            f"{number} client hosts: {spent[number]:.1f} s, of which ramp {ramp:.1f} s and drain "
            f"{drain:.1f} s; {done.verdict}: {done.reason}"
        )
        if done.verdict != "pass":
            return [_verdict(False, f"{number} client hosts: {done.reason}")]
    more = spent[count] - spent[1]
    return [
        _verdict(
            more < MORE_SECONDS,
            f"{count} client hosts: a whole run in {spent[count]:.1f} s, with one in "
            f"{spent[1]:.1f} s: {more:.1f} s more, less than {MORE_SECONDS:.0f} s wanted",
        )
    ]


def small_run(hosts: Inventory, connect: Connect, connections: int) -> Run:
    """Run once with a short hold; its results are thrown away."""
    asked = scenario.load(
        "million", {"connections": connections, "hold_seconds": 0, "memory_floor_mib": 256}
    )
    with tempfile.TemporaryDirectory(prefix="soak.") as results:
        return runner.run(asked, hosts, Store(Path(results)), connect, lambda now: None)


def in_a_row(
    hosts: Inventory,
    connect: Connect,
    runs: int,
    say: Say,
    connections: int = 1_000,
    look_at: Sequence[Host] = (),
) -> list[str]:
    """Run several times in a row; return the verdict on leftovers in this process and on hosts.

    :param look_at: hosts with their own ``/tmp`` and processes
    """
    small_run(hosts, connect, connections)  # objects that are created once and kept are no leak
    before = residue.settled(connect, look_at)
    for number in range(1, runs + 1):
        began = time.monotonic()
        done = small_run(hosts, connect, connections)
        say(f"run {number} of {runs}: {done.verdict} in {time.monotonic() - began:.1f} s")
        if done.verdict != "pass":
            return [_verdict(False, f"run {number} of {runs}: {done.reason}")]
    lines = residue.left(before, connect, look_at)
    said = "; ".join(lines) or f"{before}, and no more after them"
    return [_verdict(not lines, f"{runs} runs in a row: {said}")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
