"""Fixtures: namespaces and agents of its own for each test."""

import os
from pathlib import Path

import pytest
from agents import CLIENT, CLIENT6, SERVER, SERVER6, Lab
from beds import Bed

from bench.agent import bundle
from bench.hosts import scripts
from bench.perf.netns import Namespaces

# Hosts that are namespaces have this machine's own directories, and so one lock: another run of
# these tests at the same time is no stranger.
scripts.OWNER = "7e57" * 4


@pytest.fixture(scope="session")
def packed() -> bytes:
    return bundle.build(trials=True).data


@pytest.fixture
def net():  # anew for each test: a killed agent leaves TIME_WAITs on its ports
    assert os.geteuid() == 0, "these tests make network namespaces: run them as root"
    hosts = {
        "server": [f"{SERVER}/15", "198.18.0.2/15", f"{SERVER6}/48"],
        "client": [f"{CLIENT}/15", "198.18.1.2/15", f"{CLIENT6}/48"],
    }
    with Namespaces(f"eng-t{os.getpid()}", hosts) as made:
        yield made


@pytest.fixture
def lab(net, packed):
    made = Lab(net, packed)
    yield made
    made.close()


@pytest.fixture
def bed(net: Namespaces, tmp_path: Path) -> Bed:
    return Bed(net, tmp_path / "results")
