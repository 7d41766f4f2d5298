"""What a guard has kept reaches the user, whatever the host makes of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import LabError
from bench.hosts import trials
from bench.hosts.trials import Trials
from bench.inventory import Host

HOST = Host("x", ("servers",), "192.0.2.1", 22, "lab", None, None, ("198.18.0.1",))


def begin(told: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Agent:
        name = HOST.name

    agent = Agent()

    class Fake:
        def __init__(self, *_: Any, **__: Any) -> None:
            """Have one agent."""

        def start(self, _: Any) -> list[Any]:
            return [agent]

        def ask(self, *_: Any, **__: Any) -> Mapping[Any, Any]:
            return {agent: {"event": "told", "found": {}, **told}}

    monkeypatch.setattr(trials, "Session", Fake)
    Trials(lambda host: SimpleNamespace()).guard(HOST)  # type: ignore[arg-type, return-value]


def test_what_a_guard_has_kept_is_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin({"kept": ["sysctl a: kept", "\x1b[2J" + "y" * 5000, *["z"] * 100]}, monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "connlab: host x: sysctl a: kept"
    assert lines[1].startswith(r"connlab: host x: \x1b[2Jyyy") and len(lines[1]) < 600
    assert len(lines) == 20


@pytest.mark.parametrize("kept", ["text", 7, None, {"a": 1}, [7], [["a"]]])
def test_what_is_no_list_of_texts_is_a_fault_of_the_host(
    kept: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LabError, match=r"^host x: protocol: kept: expected a list of texts$"):
        begin({"kept": kept}, monkeypatch)
    assert capsys.readouterr().err == ""
