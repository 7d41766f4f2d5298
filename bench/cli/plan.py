"""The command ``plan``: how many hosts a number of connections needs."""

from __future__ import annotations

import json
import re
import shlex
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bench.cli import fleetview
from bench.cli.common import (
    RESULTS,
    JsonOption,
    ResultsOption,
    console,
    counted,
    exit_status,
    parsed,
)
from bench.errors import InputError
from bench.model.footprint import Machine
from bench.results.store import Store
from bench.sizing import advice, fleet, inventories, rates
from bench.sizing.fleet import Fleet, Wanted
from bench.sizing.rates import Rate
from bench.units import count, parse_percentage, parse_size, size

MOST_RAM = 1 << 52
"""Most bytes that an x86-64 processor can address: 52 bits (Intel SDM volume 3A, 4.1.4)."""

MOST_CORES = 8_192
"""NR_CPUS_RANGE_END of x86-64 (arch/x86/Kconfig)."""

MOST_NOFILE = 1 << 30
"""A power of two below the maximum of fs.nr_open (fs/file.c ``sysctl_nr_open_max``)."""

MOST_ANY = 10**15
"""More than a prefix of addresses can carry; keeps the figures readable."""

MOST_PORTS = 1_024
"""Most ports of a scenario (``server_ports``)."""

MOST_ADDRESSES = 254
"""Most addresses of one server: those of a /24."""

FLOOR = (16 << 20, 1 << 40)
"""Range of a scenario's ``memory_floor_mib``, in bytes."""

MOST_SPARE = Fraction(9, 10)


def _option(name: str, metavar: str, text: str) -> Any:
    """Return an option that comes as text and is checked here, so that an error is one line."""
    return typer.Option(name, metavar=metavar, help=text)


def plan(
    connections: Annotated[
        str, _option("--connections", "COUNT", "Connections to hold: 10_000_000, or 10M.")
    ],
    server_ram: Annotated[str, _option("--server-ram", "SIZE", "Memory of a server: 64GiB.")],
    server_cores: Annotated[str, _option("--server-cores", "COUNT", "Cores of a server.")],
    client_ram: Annotated[str, _option("--client-ram", "SIZE", "Memory of a client.")],
    client_cores: Annotated[str, _option("--client-cores", "COUNT", "Cores of a client.")] = "4",
    servers: Annotated[
        str | None,
        _option("--servers", "COUNT", "Number of servers. Default: as few as can hold them."),
    ] = None,
    server_ports: Annotated[
        str, _option("--server-ports", "COUNT", "Ports that servers listen on.")
    ] = "1",
    addresses_per_server: Annotated[
        str, _option("--addresses-per-server", "COUNT", "Addresses that a server listens on.")
    ] = "1",
    nofile: Annotated[
        str, _option("--nofile", "COUNT", "Descriptors that a process may have.")
    ] = "1048576",
    kernel: Annotated[
        str, _option("--kernel", "RELEASE", "Kernel of the hosts, as uname -r prints it.")
    ] = "6.1",
    watch: Annotated[
        str, _option("--watch", "epoll|none", "Whether servers hold connections in epoll.")
    ] = "epoll",
    spare: Annotated[
        str, _option("--spare", "PERCENT", "Part of each host's memory to leave free.")
    ] = "10%",
    memory_floor: Annotated[
        str, _option("--memory-floor", "SIZE", "Memory that a run must leave free on a host.")
    ] = "768MiB",
    rate: Annotated[
        str | None,
        _option(
            "--rate",
            "COUNT",
            "Connections a second that one core opens at one end. Default: the rate measured by "
            "past runs in --results, else a built-in figure.",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="DIR", help="Write an inventory for these hosts."),
    ] = None,
    store: ResultsOption = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Compute how many servers and clients that many connections need. No host is touched."""
    with exit_status():
        wanted = Wanted(
            connections=counted("--connections", connections, MOST_ANY),
            server=_machine("server", server_ram, server_cores),
            client=_machine("client", client_ram, client_cores),
            servers=None if servers is None else counted("--servers", servers, MOST_ANY),
            server_ports=counted("--server-ports", server_ports, MOST_PORTS),
            addresses_per_server=counted(
                "--addresses-per-server", addresses_per_server, MOST_ADDRESSES
            ),
            nofile=counted("--nofile", nofile, MOST_NOFILE),
            kernel=_kernel(kernel),
            watch=_watch(watch),
            spare=_spare(spare),
            floor=_size("--memory-floor", memory_floor, *FLOOR),
        )
        found = fleet.plan(wanted, _rate(rate, store))
        advised: dict[str, Any] = {
            "set": advice.settings(found),
            "sysctl": advice.sysctl(found),
            "notes": advice.notes(found),
        }
        if write is not None:
            command = _command(
                {
                    "--connections": connections,
                    "--server-ram": server_ram,
                    "--server-cores": server_cores,
                    "--client-ram": client_ram,
                    "--client-cores": client_cores,
                    "--servers": servers,
                    "--server-ports": server_ports,
                    "--addresses-per-server": addresses_per_server,
                    "--nofile": nofile,
                    "--kernel": kernel,
                    "--watch": watch,
                    "--spare": spare,
                    "--memory-floor": memory_floor,
                    "--rate": rate,
                }
            )
            _write(write, found, advised, command)
        if as_json:
            written = None if write is None else str(write)
            said = {**found.model_dump(mode="json"), **advised, "written": written}
            typer.echo(json.dumps(said, indent=1))
        else:
            fleetview.show(found, advised["notes"], write, console())


def _write(folder: Path, found: Fleet, advised: dict[str, Any], command: list[str]) -> None:
    """Write the inventory. :raises InputError: if a run cannot take that many, or writing fails."""
    most = advice.most("connections")
    if found.connections > most:
        raise InputError(
            f"--connections: got {count(found.connections)}, expected at most {count(most)} with "
            "--write: a run takes no more"
        )
    inventories.write(folder, inventories.texts(found, advised["set"], advised["sysctl"], command))


def _command(options: dict[str, str | None]) -> list[str]:
    """Return the given command as words: the program, and each option with its value."""
    given = [(name, " ".join(text.split())) for name, text in options.items() if text is not None]
    return ["python -m bench plan", *(shlex.join(option) for option in given)]


def _rate(text: str | None, store: Path) -> Rate:
    if text is not None:
        return Rate(float(counted("--rate", text, MOST_ANY)), "as given by --rate")
    return rates.of_runs(Store(store)) or rates.BUILT_IN


def _machine(end: str, ram: str, cores: str) -> Machine:
    return Machine(
        ram=_size(f"--{end}-ram", ram, 1, MOST_RAM),
        cores=counted(f"--{end}-cores", cores, MOST_CORES),
    )


def _size(option: str, text: str, least: int, most: int) -> int:
    number = parsed(option, text, parse_size)
    if not least <= number <= most:
        raise InputError(f"{option}: got {text!r}, expected {size(least)} to {size(most)}")
    return number


def _spare(text: str) -> Fraction:
    part = parsed("--spare", text, parse_percentage)
    if part > MOST_SPARE:
        raise InputError(f"--spare: got {text!r}, expected 0% to {int(MOST_SPARE * 100)}%")
    return part


def _kernel(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,2}\.\d{1,3}([.+~-][\w.+~-]{0,60})?", text, re.ASCII):
        raise InputError(
            f"--kernel: got {text!r}, expected a release such as 6.1 or 6.1.0-56-cloud-amd64"
        )
    return text


def _watch(text: str) -> Literal["epoll", "none"]:
    match text:
        case "epoll" | "none":
            return text
        case _:
            raise InputError(f"--watch: got {text!r}, expected epoll or none")
