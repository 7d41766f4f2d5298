"""Whether each added server address adds another 64K connections."""

from __future__ import annotations

from bench.claims.added import AddedFound, AddedParameters, claim, measure_added, several
from bench.claims.lab import Lab


def measure(lab: Lab, parameters: AddedParameters) -> AddedFound:
    """Measure with one server address, two, and so on."""
    cure = "what gives it two: ansible-playbook lab.yml -e lab_server_addresses=2"
    there = several(lab, parameters, lab.server, cure)
    return measure_added(lab, parameters, "server addresses", there)


CLAIM = claim(
    "more-server-ips",
    said="Each added server address adds another 64K connections per client address.",
    cure="Give the server further addresses and spread clients over them, for instance by DNS.",
    measure=measure,
    families=[4],
)
