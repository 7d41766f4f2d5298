"""The classic experiment's host, as the statements refer to it."""

from __future__ import annotations

from bench.results.classic import ARTICLE

CONNECTIONS = ARTICLE.established
"""ESTAB connections of that host at the peak."""

SLAB_KIB = ARTICLE.meminfo_kib["Slab"]
"""All slab of that host at the peak, KiB."""

SLAB_EACH = SLAB_KIB * 1024 / CONNECTIONS
"""The same per connection, bytes."""

MEM_TOTAL_KIB = 3_922_676
"""MemTotal of a machine as in the classic experiment, 3.9 GB (docs/architecture.md)."""
