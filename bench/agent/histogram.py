"""Latency buckets by table, for loops in which a function call would be too slow."""

from __future__ import annotations

from array import array

from bench import wire

QUICK = 1 << 16
"""The table has all latencies below this, in µs."""

BUCKET = array("H", [wire.bucket_of(us) for us in range(QUICK)])
"""µs to :func:`bench.wire.bucket_of`. Built before the fork, so that all workers share it."""
