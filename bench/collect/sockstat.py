"""``/proc/net/sockstat`` and ``sockstat6`` (net/ipv4/proc.c, net/ipv6/proc.c)."""

from __future__ import annotations

# ``mem`` is in pages (sk_memory_allocated), ``memory`` of FRAG in bytes (frag_mem_limit).
_UNITS = {"mem": "mem_pages", "memory": "memory_bytes"}


def parse(text: str, source: str = "sockstat") -> dict[str, dict[str, int]]:
    """Protocol to counter to value.

    Counters are sockets, except ``mem_pages`` (pages charged to the protocol's socket buffers,
    kernel-wide even inside a network namespace) and ``memory_bytes`` (fragments in reassembly).

    :raises ValueError: if a line cannot be understood
    """
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        protocol, colon, rest = line.partition(":")
        words = rest.split()
        values = words[1::2]
        if not colon or not words or len(words) % 2 or not all(v.isdigit() for v in values):
            raise ValueError(f"{source} line {number}: {line!r} is not `PROTOCOL: name count …`")
        found[protocol] = {
            _UNITS.get(name, name): int(value)
            for name, value in zip(words[::2], values, strict=True)
        }
    return found
