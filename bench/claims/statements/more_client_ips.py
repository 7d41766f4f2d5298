"""Whether each added client address adds another 64K connections."""

from __future__ import annotations

from bench.claims.added import AddedFound, AddedParameters, claim, measure_added, several
from bench.claims.lab import Lab


def measure(lab: Lab, parameters: AddedParameters) -> AddedFound:
    """Measure with one client address, two, and so on."""
    cure = (
        "for more of them tune for more connections: ansible-playbook lab.yml -e connections=200000"
    )
    there = several(lab, parameters, lab.client, cure)
    return measure_added(lab, parameters, "client addresses", there)


CLAIM = claim(
    "more-client-ips",
    said="Each added client address adds another 64K connections.",
    cure="Give clients alias addresses (role alias_ips) and bind each connection to one of them.",
    measure=measure,
    families=[4, 6],
)
