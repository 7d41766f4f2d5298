"""A fleet as an inventory directory: its hosts with their addresses, and every variable explained.

The variables that all hosts share are copied from ``inventory/example-remote``, with their
explanations and with this fleet's values.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import indent, wrap
from typing import Any

from bench import files
from bench.errors import InputError
from bench.sizing import layout
from bench.sizing.fleet import End, Fleet
from bench.sizing.layout import Block
from bench.units import count, plural, size

EXAMPLE = Path(__file__).resolve().parents[2] / "inventory" / "example-remote"

REACHED = {
    "server": ipaddress.IPv4Address("10.1.0.0"),
    "client": ipaddress.IPv4Address("10.2.0.0"),
}
"""First addresses of ansible_host, for the user to replace: private addresses (RFC 1918)."""

WIDTH = 100


def texts(
    fleet: Fleet, settings: Mapping[str, Any], sysctl: Mapping[str, int], command: Sequence[str]
) -> dict[str, str]:
    """Return the files of the inventory, by their paths in it.

    :param settings: fields of the scenario to override
    :param sysctl: kernel parameters beside those that the roles compute
    :param command: the command that planned the fleet, as words; an option and its value are one
        word
    """
    shared = (EXAMPLE / "group_vars" / "all.yml").read_text(encoding="utf-8")
    shared = _with(shared, "connections", fleet.connections)
    shared = _with(shared, "tune_limits_nofile", fleet.nofile)
    if sysctl:
        shared = _with(shared, "tune_sysctl_extra", dict(sysctl))
    if settings:
        shared = _after(shared, "scenario", _SET + _yaml("set", dict(settings)))
    return {
        "hosts.yml": "\n".join(_hosts(fleet, command)) + "\n",
        "group_vars/all.yml": shared,
        "group_vars/clients.yml": (EXAMPLE / "group_vars" / "clients.yml").read_text(
            encoding="utf-8"
        ),
    }


def write(folder: Path, content: Mapping[str, str]) -> None:
    """Write the files into a new or empty directory, all of them or none.

    :raises InputError: if that is not possible, with the directory
    """
    _check(folder)
    made: list[Path] = []
    try:
        for name, text in content.items():
            path = folder / name
            for parent in reversed(path.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            files.write(path, text)
            made.append(path)
    except BaseException as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        if not isinstance(error, OSError):
            raise
        raise InputError(f"--write: {folder}: {error.strerror}") from error


def _check(folder: Path) -> None:
    if "," in str(folder):
        raise InputError(
            f"--write: got {folder}, expected a path without a comma: Ansible takes a path with a "
            "comma for a list of hosts"
        )
    expected = "expected a directory that is new or empty"
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--write: got {folder}, which is no directory, {expected}")
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"--write: got {folder}, which is not empty, {expected}")
    except OSError as error:
        raise InputError(f"--write: {folder}: {error.strerror}") from error


def _hosts(fleet: Fleet, command: Sequence[str]) -> Iterator[str]:
    """Yield hosts.yml, line by line."""
    servers, clients = fleet.servers, fleet.clients
    yield "---"
    yield f"# {plural(fleet.connections, 'connection')}. Written by"
    yield from _command(command)
    yield "#"
    yield from _comment(
        "Fill in ansible_host of every host below (the addresses here stand for yours), and in "
        "group_vars/all.yml the login, its key, known_hosts and lab_data_interface. Every "
        f"lab_data_address has to be on that interface already, as a /{layout.PREFIX.prefixlen}, "
        "so that all hosts reach each other. The tuning adds the alias addresses.",
    )
    for name, end in (("Servers", servers), ("Clients", clients)):
        if end.ehash_entries > end.ehash_default:
            yield from _comment(
                f"{name} need thash_entries={end.ehash_entries} on the kernel command line."
            )
    yield "#"
    yield from _comment("Then, with this directory for DIR:")
    yield "#   ansible-playbook -i DIR playbooks/tune.yml"
    yield "#   ansible-playbook -i DIR playbooks/bench.yml"
    yield "#   ansible-playbook -i DIR playbooks/revert.yml"
    yield from _comment("The run without Ansible:")
    yield "#   python -m bench run million -i DIR"
    yield "#"
    yield from _comment(
        "`python -m bench` reads the inventory without templating: give values, not "
        "{{ expressions }}."
    )
    yield "all:"
    yield "  children:"
    start = layout.end(0, servers.hosts, servers.addresses)
    yield from _comment(_what("Hosts that hold the server ends", servers), 4)
    yield "    servers:"
    yield "      hosts:"
    yield from _group("server", servers, 0)
    yield ""
    yield from _comment(_what("Hosts that open the connections", clients), 4)
    yield "    clients:"
    yield "      hosts:"
    yield from _group("client", clients, start)


def _command(words: Sequence[str]) -> Iterator[str]:
    """Yield a command as comment lines, which a shell takes without the leading ``#``."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < WIDTH - 10:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    yield from (f"#   {line} \\" for line in lines[:-1])
    yield f"#   {lines[-1]}"


def _what(role: str, end: End) -> str:
    addresses = "an address" if end.addresses == 1 else f"{count(end.addresses)} addresses"
    return (
        f"{role}: each host holds up to {plural(end.largest, 'connection')} in "
        f"{plural(end.workers, 'worker')}, and needs {size(end.ram.needed)} of memory and "
        f"{addresses}."
    )


def _group(name: str, end: End, start: int) -> Iterator[str]:
    """Yield the hosts of one end, with the variables explained at the first host."""
    reached = layout.offsets(0, end.hosts)
    blocks = layout.blocks(start, end.hosts, end.addresses)
    for number, (offset, block) in enumerate(zip(reached, blocks, strict=True), 1):
        lines = dict(_variables(REACHED[name] + offset, block))
        yield f"        {name}{number}:"
        for key, value in lines.items():
            if number == 1:
                yield from _comment(_EXPLAINED[key], 10)
            yield f"          {key}: {value}"


def _variables(reached: ipaddress.IPv4Address, block: Block) -> Iterator[tuple[str, object]]:
    yield "ansible_host", reached
    yield "lab_data_address", block.first
    if block.prefix is not None:
        yield "alias_ips_prefix", block.prefix
        yield "alias_ips_method", "anyip"
    elif block.count > 1:
        yield "alias_ips_first", block.first
        yield "alias_ips_count", block.count


_EXPLAINED = {
    "ansible_host": "Name or address that SSH connects to. Replace it with yours.",
    "lab_data_address": "The host's own address on the data plane, already on lab_data_interface.",
    "alias_ips_first": "The host's data addresses are consecutive. This is the first of them, its "
    "own address.",
    "alias_ips_count": "The number of these addresses, including the host's own.",
    "alias_ips_prefix": "The host's data addresses are those of this prefix. The first of them is "
    "its own address.",
    "alias_ips_method": "One local route for the whole prefix instead of one address each.",
}


def _comment(text: str, indent: int = 0) -> Iterator[str]:
    lead = " " * indent + "# "
    yield from wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=lead,
        break_long_words=False,
        break_on_hyphens=False,
    )


_SET = """
# Fields of the scenario that this fleet needs different. -e '{"set": {...}}' replaces all of them,
# --set of `python -m bench` replaces one.
"""


def _with(text: str, key: str, value: object) -> str:
    """Return the text of a YAML file with one of its top-level, one-line values replaced."""
    return _line(text, key, lambda _: _yaml(key, value))


def _after(text: str, key: str, added: str) -> str:
    """Return the text of a YAML file with lines added after one of its top-level values."""
    return _line(text, key, lambda line: f"{line}\n{added}")


def _line(text: str, key: str, change: Callable[[str], str]) -> str:
    changed, times = re.subn(rf"^{key}: .*$", lambda found: change(found[0]), text, flags=re.M)
    if times != 1:
        raise ValueError(f"{EXAMPLE}: {key} is there {times} times, expected once")
    return changed


def _yaml(key: str, value: object) -> str:
    """Return a variable as YAML: a list on as few lines as possible, other values on one line."""
    if isinstance(value, Mapping):
        return "\n".join([f"{key}:", *(indent(_yaml(*item), "  ") for item in value.items())])
    if isinstance(value, list):
        lead = f"{key}: ["
        under = " " * len(lead)
        return "\n".join(wrap(f"{lead}{', '.join(map(str, value))}]", 80, subsequent_indent=under))
    return f"{key}: {json.dumps(value)}"
