"""Whether each added server port adds another 64K connections."""

from __future__ import annotations

from bench.claims import portspace
from bench.claims.added import AddedFound, AddedParameters, claim, measure_added
from bench.claims.lab import Lab


def measure(lab: Lab, parameters: AddedParameters) -> AddedFound:
    """Measure with one server port, two, and so on."""
    families = portspace.families(lab, parameters.families)
    return measure_added(lab, parameters, "server ports", dict.fromkeys(families, parameters.most))


CLAIM = claim(
    "more-server-ports",
    said="Each added server port adds another 64K connections per client address.",
    cure="Listen on several ports where few clients, such as a proxy, bring all connections.",
    measure=measure,
    families=[4],
)
