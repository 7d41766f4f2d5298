"""What a claim has of the lab, over namespaces."""

from __future__ import annotations

from pathlib import Path

from beds import Bed

from bench.claims.lab import Lab


def lab(bed: Bed, tmp_path: Path) -> Lab:
    """The hosts of a bed, for one claim that says nothing meanwhile."""
    return Lab(bed.inventory(), {}, bed.connect, tmp_path, lambda text: None)
