"""All claims, in the order in which they are told."""

from __future__ import annotations

import difflib
from typing import Any

from bench.claims import addresses
from bench.claims.model import Claim
from bench.errors import InputError

CLAIMS: dict[str, Claim[Any, Any]] = {claim.id: claim for claim in (addresses.PORT_MYTH,)}


def claim(name: str) -> Claim[Any, Any]:
    """The claim of that name. :raises InputError: for none, with the nearest names."""
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4) or list(CLAIMS)
        raise InputError(f"claim: got {name!r}, expected one of {', '.join(near)}")
    return CLAIMS[name]
