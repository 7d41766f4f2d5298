"""What a claim has of the lab, over namespaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beds import Bed, LocalLink, LocalProcess

from bench.claims.lab import Lab
from bench.inventory import Host

SUDO = ["sudo", "-n"]


class RootLink(LocalLink):
    """A namespace whose user is root already: sudo(8) is left out, it need not be installed."""

    def start(self, argv: Sequence[str]) -> LocalProcess:
        words = list(argv)
        return super().start(words[len(SUDO) :] if words[: len(SUDO)] == SUDO else words)


def lab(bed: Bed, tmp_path: Path) -> Lab:
    """The hosts of a bed, for one claim that says nothing meanwhile."""

    def connect(host: Host) -> LocalLink:
        bed.links[host.name] = RootLink(bed.net.enter(host.name))
        return bed.links[host.name]

    return Lab(bed.inventory(), {}, connect, tmp_path, lambda text: None)
