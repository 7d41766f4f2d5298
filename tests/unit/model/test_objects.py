"""Kernel objects of a connection's ends, and what each costs."""

from __future__ import annotations

import pytest
from captured import KERNELS, collected, texts

from bench.collect import slab
from bench.model import objects
from bench.results import cost, facts
from bench.results.format import HostRecord


@pytest.mark.parametrize("name", KERNELS)
def test_objects_predict_what_was_measured(name: str) -> None:
    """Both ends, server in epoll, from ``before`` alone against the growth to ``peak``."""
    before = texts(name, "before")
    caches = slab.parse(before["slabinfo"])
    aliases = slab.parse_aliases(before["slab_aliases"])
    expected = sum(
        objects.endpoint_bytes(part, name, caches, aliases)
        for part in (objects.parts(server=True, watched=True), objects.parts(server=False))
    )
    phases = {p: facts.phase(collected(name, p)) for p in ("before", "peak")}
    host = HostRecord(
        groups=["servers"], kernel=name, python="", cpu=1, mem_total_kib=1, phases=phases
    )
    measured = cost.kernel_bytes({"server1": host}, shared_kernel=True).both_ends
    assert measured is not None
    assert expected == pytest.approx(measured, rel=0.03)
    # Without the host's own slabinfo the table says nearly the same.
    table = sum(
        objects.endpoint_bytes(part, name, {}, {})
        for part in (objects.parts(server=True, watched=True), objects.parts(server=False))
    )
    assert table == pytest.approx(expected, rel=0.01)


def test_a_bind_bucket_serves_a_port_on_all_addresses() -> None:
    assert objects.parts(server=False, sources=8)["tcp_bind_bucket"] == 1 / 8
    assert "tcp_bind_bucket" not in objects.parts(server=True)
    assert "TCPv6" in objects.parts(server=True, v6=True)
    assert objects.parts(server=True, tracked=True)["nf_conntrack"] == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [("4.19.0", (5, 10)), ("5.15.1", (5, 10)), ("6.12.9-amd64", (6, 1)), ("7.0", (6, 18))],
)
def test_table_row(name: str, row: tuple[int, int]) -> None:
    assert objects.row(name) is objects.TABLE[row]


def test_release_is_checked() -> None:
    with pytest.raises(ValueError, match="does not start with a release"):
        objects.release("next")
