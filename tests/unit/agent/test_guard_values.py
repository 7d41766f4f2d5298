"""What a guard changes on a host, over files in a directory of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.agent.stage import Misuse
from bench.agent.trials import journal, locks
from bench.agent.trials.guard import Settings

KEY = "net.ipv4.ip_local_reserved_ports"


@pytest.fixture(autouse=True)
def value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel parameter; journals and locks are of the test's own."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(journal, "FOLDER", str(tmp_path / "journals"))
    monkeypatch.setattr(journal, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(locks, "FOLDER", str(tmp_path / "run"))
    monkeypatch.setattr(journal, "ROOT", os.geteuid())
    monkeypatch.setattr(journal, "sysctl_path", lambda key: f"{tmp_path}/{key}")
    return tmp_path / KEY


@pytest.mark.parametrize("found", ["1," * 40_000, "1\n2"])
def test_a_value_that_could_not_be_put_back_is_not_changed(found: str, value: Path) -> None:
    value.write_text(f"{found}\n")
    settings = Settings()
    with pytest.raises(Misuse, match=rf"^sysctl {KEY}: got \d+ characters, '1.*expected a line"):
        settings.sysctl(KEY, "7")
    assert settings.put_back() == []
    assert value.read_text() == f"{found}\n"
    assert settings.heal() == [] and not Path(journal.FOLDER).exists()


def test_a_list_of_ports_is_changed_and_goes_back(value: Path) -> None:
    found = ",".join(str(port) for port in range(1025, 21_000, 2))
    value.write_text(f"{found}\n")
    settings = Settings()
    assert settings.sysctl(KEY, "7") == found
    assert value.read_text() == "7\n"
    assert settings.put_back() == []
    assert value.read_text() == f"{found}\n"
