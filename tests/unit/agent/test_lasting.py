"""The source ports of sockets that are watched after their close."""

from __future__ import annotations

import errno
import os

import pytest

from bench.agent.stage import Misuse
from bench.agent.trials import lasting
from bench.claims import churning

HOME = "127.0.0.1"


def test_watched_sockets_stay_out_of_the_churns_ports() -> None:
    assert 1_024 <= lasting.SOURCES.start < lasting.SOURCES.stop <= churning.FIRST_SOURCE - 2
    with lasting._bound(HOME) as made:
        assert made.getsockname()[1] in lasting.SOURCES


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with lasting._bound(HOME) as first:
        port = first.getsockname()[1]
        monkeypatch.setattr(lasting, "SOURCES", range(port, lasting.SOURCES.stop))
        with lasting._bound(HOME) as second:
            assert second.getsockname()[1] in range(port + 1, lasting.SOURCES.stop)
        monkeypatch.setattr(lasting, "SOURCES", range(port, port + 1))
        with pytest.raises(OSError, match=f"no port of {HOME} from {port} to {port} is free"):
            lasting._bound(HOME)


def test_an_address_of_another_host_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        lasting._bound("198.18.255.254")


@pytest.mark.parametrize("seconds", [0, -1, lasting.LONGEST + 0.1, "5", None])
def test_a_watch_has_an_end(seconds: object) -> None:
    with pytest.raises(Misuse, match=r"^watch: got .*, expected above 0 and at most 200$"):
        lasting._watch([], seconds, [])
    lasting._watch([], lasting.LONGEST, [])  # nothing to be watched ends at once
