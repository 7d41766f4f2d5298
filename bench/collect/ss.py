"""``ss -s``: how many sockets of which state a host (its network namespace) has."""

from __future__ import annotations

import re

_PAIR = re.compile(r"([a-z]+) (\d+)")
_COUNT = re.compile(r"\d+|-|\*")


def parse(text: str) -> dict[str, int]:
    """Counts of sockets by name.

    ``total`` is every socket of any family; ``tcp_total``, ``tcp_estab``, ``tcp_closed``,
    ``tcp_orphaned``, ``tcp_synrecv`` (older ss) and ``tcp_timewait`` come from the TCP line;
    ``<transport>_total``, ``_ip`` and ``_ipv6`` in lower case from the table (its TCP row is
    ``inet_tcp_*``, for it leaves TIME_WAIT out while the TCP line does not).

    :raises ValueError: if a line cannot be understood
    """
    found: dict[str, int] = {}
    in_table = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        words = line.split()
        if in_table:
            if len(words) != 4 or not all(_COUNT.fullmatch(word) for word in words[1:]):
                raise ValueError(f"ss_s line {number}: {line!r} is not a row of transports")
            name = {"tcp": "inet_tcp", "*": "kernel"}.get(words[0].lower(), words[0].lower())
            for column, word in zip(("total", "ip", "ipv6"), words[1:], strict=True):
                if word.isdigit():
                    found[f"{name}_{column}"] = int(word)
        elif words[0] == "Transport":
            in_table = True
        elif words[0] in ("Total:", "TCP:") and len(words) > 1 and words[1].isdigit():
            name = words[0][:-1].lower()
            found[f"{name}_total" if name == "tcp" else name] = int(words[1])
            if name == "tcp":
                found |= {f"tcp_{key}": int(value) for key, value in _PAIR.findall(line)}
        else:
            raise ValueError(f"ss_s line {number}: {line!r} is not of `ss -s`")
    return found
