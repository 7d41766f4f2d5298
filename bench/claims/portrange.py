"""Ranges of ports that the kernel chooses from."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from bench.claims.model import Parameters
from bench.units import whole

LAST = 65_535
"""The last port: 16 bits (RFC 9293, 3.1)."""

RANGE = "net.ipv4.ip_local_port_range"
"""The ports that connect(2) chooses from, per network namespace, for IPv6 too (ip-sysctl.rst)."""

DEFAULT = "32768 60999"
"""Its default: net/ipv4/af_inet.c ``inet_init_net``. 28,232 ports."""

UNPRIVILEGED = "1024 65535"
"""All ports that a user may bind: ``ip_unprivileged_port_start`` is 1024 (ip-sysctl.rst)."""


class PortRange(Parameters):
    """Parameters that include a range of ports."""

    first_port: int = Field(ge=1, le=LAST)
    last_port: int = Field(ge=1, le=LAST)

    @field_validator("last_port")
    @classmethod
    def _in_order(cls, value: int, info: ValidationInfo) -> int:
        first = info.data.get("first_port", 1)
        if value < first:
            raise ValueError(f"got {value}, expected at least first_port ({first})")
        return value

    @property
    def ports(self) -> range:
        """All ports of the range."""
        return range(self.first_port, self.last_port + 1)


def span(ports: str) -> range:
    """Return the ports of a range in the sysctl's form.

    :raises ValueError: if it is not a range.
    """
    first, last = map(whole, words) if len(words := ports.split()) == 2 else (None, None)
    if first is None or last is None:
        raise ValueError(f"got {ports!r}, expected a first and a last port, as in '20000 24999'")
    if not 1 <= first <= last <= LAST:
        raise ValueError(f"got {ports!r}, expected ports from 1 to 65535 in order")
    return range(first, last + 1)
