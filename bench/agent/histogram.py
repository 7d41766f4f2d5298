"""Latency buckets by table, for loops in which a call of a function would show."""

from __future__ import annotations

from array import array

from bench import wire

QUICK = 1 << 16
"""Latencies below this, in µs, are in the table."""

BUCKET = array("H", [wire.bucket_of(us) for us in range(QUICK)])
"""µs to :func:`bench.wire.bucket_of`. Made before the fork, so that all workers share it."""
