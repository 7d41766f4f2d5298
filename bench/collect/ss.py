"""``ss -s``: the number of sockets of a host (its network namespace), by state."""

from __future__ import annotations

import re

from bench.collect import ParseError, number, shown
from bench.units import whole

_PAIR = re.compile(r"\b([a-z]+) ([0-9]+)")
_COUNT = re.compile(r"[0-9]+|-|\*")


def parse(text: str) -> dict[str, int]:
    """Return counts of sockets by name.

    ``total`` is every socket of any family. ``tcp_total``, ``tcp_estab``, ``tcp_closed``,
    ``tcp_orphaned``, ``tcp_synrecv`` (older ss) and ``tcp_timewait`` come from the TCP line.
    ``<transport>_total``, ``_ip`` and ``_ipv6`` in lower case come from the table. Its TCP row is
    ``inet_tcp_*``, because it leaves TIME_WAIT out while the TCP line does not.

    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, int] = {}
    in_table = False
    for row, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        words, where = line.split(), f"ss_s line {row}"
        if in_table:
            if len(words) != 4 or not all(_COUNT.fullmatch(word) for word in words[1:]):
                raise ParseError(f"ss_s line {row}: {shown(line)} is not a row of transports")
            name = {"tcp": "inet_tcp", "*": "kernel"}.get(words[0].lower(), words[0].lower())
            for column, word in zip(("total", "ip", "ipv6"), words[1:], strict=True):
                if word not in ("-", "*"):
                    found[f"{name}_{column}"] = number(word, where)
        elif words[0] == "Transport":
            in_table = True
        elif words[0] in ("Total:", "TCP:") and whole("".join(words[1:2])) is not None:
            name = words[0][:-1].lower()
            found[f"{name}_total" if name == "tcp" else name] = number(words[1], where)
            if name == "tcp":
                found |= {f"tcp_{key}": number(value, where) for key, value in _PAIR.findall(line)}
        else:
            raise ParseError(f"ss_s line {row}: {shown(line)} is not of `ss -s`")
    return found
