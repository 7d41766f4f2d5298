"""``/proc/net/sockstat`` and ``sockstat6`` (net/ipv4/proc.c, net/ipv6/proc.c)."""

from __future__ import annotations

from bench.collect import ParseError, number, shown

# ``mem`` is in pages (sk_memory_allocated), ``memory`` of FRAG in bytes (frag_mem_limit).
_UNITS = {"mem": "mem_pages", "memory": "memory_bytes"}


def parse(text: str, source: str = "sockstat") -> dict[str, dict[str, int]]:
    """Return protocol to counter to value.

    Counters count sockets, except ``mem_pages`` (pages charged to the protocol's socket buffers,
    kernel-wide even inside a network namespace) and ``memory_bytes`` (fragments in reassembly).

    :raises ParseError: if a line cannot be understood
    """
    found: dict[str, dict[str, int]] = {}
    for row, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        protocol, colon, rest = line.partition(":")
        words = rest.split()
        if not colon or not words or len(words) % 2:
            raise ParseError(f"{source} line {row}: {shown(line)} is not `PROTOCOL: name count …`")
        found[protocol] = {
            _UNITS.get(name, name): number(value, f"{source} line {row}")
            for name, value in zip(words[::2], words[1::2], strict=True)
        }
    return found
