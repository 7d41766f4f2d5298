"""Runs with a host that lies, talks nonsense, falls silent, or is another run's already."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from agents import running, until
from beds import LOCKS, Bed, LocalLink, repacked

from bench.errors import LabError
from bench.inventory import Host

BOUND = 20.0
"""Seconds from the start of a run to its end: the run itself takes three."""

LIE = """

_encode = encode


def encode(message):
    event = message.get("event")
{lie}
    return _encode(message)
"""
ECHO = """

_echo_reply = echo_reply


def echo_reply(nonce, request):
    reply = _echo_reply(nonce, request)
    return reply and reply[:-1] + bytes([reply[-1] ^ 1])
"""


class LyingBed:
    """A bed in which the agent of one host is another than the one that was pushed."""

    def __init__(self, bed: Bed, name: str, addition: str) -> None:
        self.bed, self.name, self.addition = bed, name, addition
        connect = bed.connect

        def lying(host: Host) -> LocalLink:
            link = connect(host)
            if host.name == name:
                put = link.put
                link.put = lambda data, path: put(repacked(data, self.change), path)  # type: ignore[method-assign]
            return link

        bed.connect = lying  # type: ignore[method-assign]

    def change(self, name: str, text: str) -> str:
        """Add to what both sides share."""
        return text + self.addition if name == "bench/wire.py" else text


def lying(bed: Bed, name: str, lie: str) -> LyingBed:
    body = "\n".join("    " + line for line in lie.strip().splitlines())
    return LyingBed(bed, name, LIE.format(lie=body))


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


LIES = {
    "an address that is none": (
        'if event == "facts": message["addresses"].append("junk")',
        r"facts: addresses.[0-9]+: got 'junk', expected an address or a prefix",
    ),
    "ports beyond the last": (
        'if event == "facts":\n'
        '    message["sysctl"]["net.ipv4.ip_local_reserved_ports"] = "0-99999999999"',
        r"facts: sysctl: net.ipv4.ip_local_reserved_ports: got '0-99999999999', expected ports",
    ),
    "evidence that climbs": (
        'if event == "collected": message["texts"]["../../../x"] = "owned"',
        r"collected: texts: got '../../../x', expected one of ss_s, ",
    ),
    "evidence at the root": (
        'if event == "collected": message["texts"]["/tmp/connlab-owned"] = "owned"',
        r"collected: texts: got '/tmp/connlab-owned', expected one of ",
    ),
    "fewer than none": (
        'if event == "tick": message["held"] = -1',
        r"tick: held: got -1, expected greater than or equal to 0",
    ),
    "more than planned": (
        'if event == "ramped": message["held"] = 301',
        r"ramped: held: got 301, expected at most the 300 planned",
    ),
    "more answers than questions": (
        'if event == "echoed": message.update(asked=10, answered=999)',
        r"echoed: answered: got 999, expected at most the 300 planned",
    ),
    "no number": (
        'if event == "tick": message["t"] = float("nan")',
        r"not a message: ",
    ),
    "a bucket that is far away": (
        'if event == "ramped": message["latency"] = {"1000000000000": 1}',
        r"ramped: latency: got bucket '1000000000000', expected 0 to 431",
    ),
    "a field that is missing": (
        'if event == "drained": del message["closed"]',
        r"drained: closed: missing",
    ),
    "a line without end": (
        'if event == "prepared": return b"x" * (17 << 20)',
        r"a line of more than 16 MiB",
    ),
    "lists in lists": (
        'if event == "prepared": return b"[" * 50000 + b"\\n"',
        r"not a message: ",
    ),
    "millions of values": (
        'if event == "prepared": return b\'{"event":"collected","texts":[\''
        ' + b"[]," * 5000000 + b"1]}\\n"',
        r"a line of more than 2097152 values",
    ),
    "a flood of ticks": (
        'if event == "tick": return _encode(message) * 20000',
        r"[0-9]+ unsolicited events",
    ),
    "a flood of answers": (
        'if event == "prepared": return _encode(message) * 20000',
        r"prepared: unsolicited answer",
    ),
    "random bytes": (
        'if event == "ramped":\n    import os\n    return os.urandom(5000) + b"\\n"',
        r"not a message: ",
    ),
    "what moves a terminal": (
        'if event == "ramped": return b"\\x1b[2J\\x9b31m\\n"',
        r"not a message: '[^\x1b\x9b]+'$",
    ),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_client_that_lies_ends_the_run(bed: Bed, tmp_path: Path, kind: str) -> None:
    lie, line = LIES[kind]
    lying(bed, "client", lie)
    began = time.monotonic()
    with pytest.raises(LabError, match=rf"^host client: protocol: {line}"):
        bed.run(connections=300, silence_seconds=6)
    assert time.monotonic() - began < BOUND
    kept = next(bed.store.runs())
    assert kept.verdict == "aborted"
    assert kept.reason.startswith("host client: protocol: ")
    assert kept.reason.isprintable()
    inside = bed.store.root / kept.run_id
    latest = {bed.store.root / "latest"}
    assert files(tmp_path) - files(inside) - latest == set()
    assert not Path("/tmp/connlab-owned").exists()
    raw = inside / "raw"
    assert all(path.parent.parent.parent == raw for path in files(raw))
    assert bed.clean()


@pytest.mark.parametrize(
    ("lie", "line"),
    [
        ('if event == "serving": message["workers"] = 0', "serving: workers: got 0, expected "),
        ('if event == "status": message["held"] = -5', "status: held: got -5, expected "),
        ('if event == "collected": message["held_each"] = [7]', "collected: held_each: adds up"),
        ('if event == "tick": message["opened"] = 10 ** 30', "tick: opened: got 1"),
        ('if event == "answering": message["wrong"] = -1', "answering: wrong: got -1, expected"),
        (
            'if event == "facts": message["sysctl"]["net.core.somaxconn"] = "\\u00b2"',
            "facts: sysctl: net.core.somaxconn: got '²', expected a number",
        ),
        (
            'if event == "facts": message["sysctl"]["net.core.somaxconn"] = "9" * 5000',
            "facts: sysctl: net.core.somaxconn: got '999",
        ),
    ],
)
def test_a_server_that_lies_ends_the_run(bed: Bed, lie: str, line: str) -> None:
    lying(bed, "server", lie)
    with pytest.raises(LabError, match=rf"^host server: protocol: {line}"):
        bed.run(connections=300, silence_seconds=6)
    assert next(bed.store.runs()).verdict == "aborted"
    assert bed.clean()


ODD = {
    "limits": (
        'message["texts"]["limits"] = message["texts"]["limits"].replace('
        '"file-nr <==\\n", "file-nr <==\\nx")'
    ),
    "slabinfo": 'message["texts"]["slabinfo"] = "slabinfo - version:"',
    "slabinfo twice": 'message["texts"]["slabinfo"] = "TCP 1 1 8 1 0\\nTCP 1 1 8 1 0\\n"',
    "meminfo": 'message["texts"]["meminfo"] = "Slab: " + "9" * 400 + " kB"',
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_evidence_is_named_and_the_run_goes_on(bed: Bed, kind: str) -> None:
    lying(bed, "server", f'if event == "collected":\n    {ODD[kind]}')
    done = bed.run(connections=300)
    assert done.verdict == "pass", done.reason
    peak = done.hosts["server"].phases["peak"]
    assert peak.missing[kind.split(maxsplit=1)[0]].startswith("not understood: ")
    assert bed.clean()


def test_slab_that_is_told_of_in_other_ways_before_and_at_the_peak_is_no_figure(bed: Bed) -> None:
    lying(
        bed,
        "server",
        'if event == "collected":\n'
        '    odd = "meminfo" if message["phase"] == "before" else "slabinfo"\n'
        '    message["texts"][odd] = ""',
    )
    done = bed.run(connections=300)
    assert done.verdict == "pass", done.reason
    assert next(bed.store.runs()).run_id == done.run_id


def test_a_floor_that_was_not_reached_ends_the_run(bed: Bed) -> None:
    lying(
        bed,
        "client",
        'if event == "tick" and message["held"] > 10:\n'
        '    floor = {"event": "floor", "mem_free_kib": 1 << 40, "floor_kib": 1}\n'
        "    return _encode(floor) + _encode(message)",
    )
    with pytest.raises(LabError, match=r"^host client: protocol: floor: mem_free_kib: got 10995"):
        bed.run(connections=3_000, expect="floor", connect_rate=300)
    assert next(bed.store.runs()).verdict == "aborted"
    assert bed.clean()


def test_a_hello_that_lies_leaves_no_run(bed: Bed) -> None:
    lying(bed, "client", 'if event == "hello": message["pid"] = "1; rm -rf /"')
    with pytest.raises(LabError, match=r"^host client: protocol: hello: pid: got '1; rm -rf /'"):
        bed.run(connections=300)
    assert not list(bed.store.runs())
    assert bed.clean()


@pytest.mark.parametrize("how", ["answers wrongly", "says that echoes were wrong", "skips some"])
def test_wrong_echoes_fail_the_run(bed: Bed, how: str) -> None:
    if how == "answers wrongly":
        LyingBed(bed, "server", ECHO)
    elif how == "skips some":
        lying(bed, "client", 'if event == "echoed": message["answered"] -= 1')
    else:
        lying(bed, "server", 'if event == "answering" and not message["on"]: message["wrong"] = 1')
    done = bed.run(connections=300, liveness="all", echo_timeout_ms=1000)
    assert done.verdict == "fail"
    assert "echoes answered" in done.reason
    assert bed.clean()


@pytest.mark.parametrize(("name", "phase"), [("client", "ramp"), ("server", "hold")])
def test_a_stopped_agent_is_given_up_and_killed(bed: Bed, name: str, phase: str) -> None:
    stopped: list[float] = []

    def stop_later() -> None:
        if until(lambda: any(now.phase == phase and now.held > 100 for now in list(bed.seen)), 20):
            stopped.append(time.monotonic())
            os.kill(bed.agent_pid(name), signal.SIGSTOP)

    thread = threading.Thread(target=stop_later)
    thread.start()
    rate = {"connect_rate": 300} if phase == "ramp" else {}
    line = rf"^host {name}: no word from the {name} agent for 6 s$"
    with pytest.raises(LabError, match=line):
        bed.run(silence_seconds=6, hold_seconds=60, **rate)
    ended = time.monotonic()
    thread.join()
    assert ended - stopped[0] < 6 + 8
    assert not running(bed.agent_pid(name))
    assert any(now.note.startswith(f"no word from {name} for 5 s") for now in bed.seen)
    assert next(bed.store.runs()).reason == line[1:-1]
    # Who is killed closes by FIN: the client's ports are in TIME_WAIT for a minute.
    assert until(lambda: bed.clean(states=("established", "close-wait", "listening")))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("tool", ["exec sleep 55", "sleep 55 & echo $! >{0}.child; wait"])
def test_a_tool_that_hangs_does_not_outlive_its_agent(
    bed: Bed, tmp_path: Path, number: int, tool: str
) -> None:
    """Neither does what it has started itself."""
    place, seen = tmp_path / "bin", tmp_path / "pid"
    place.mkdir()
    script = f"#!/bin/sh\n{tool.format(seen)}\n".replace("\n", f"\necho $$ >{seen}.own\n", 1)
    (place / "nstat").write_text(script)
    (place / "nstat").chmod(0o755)
    bed.words["server"] = ["env", f"PATH={place}:{os.environ['PATH']}"]
    wanted = [Path(f"{seen}.own")] + [Path(f"{seen}.child")] * ("child" in tool)

    def numbers() -> list[int]:
        return [int(path.read_text() or 0) for path in wanted if path.exists()]

    def harm() -> None:
        assert until(lambda: len(found := numbers()) == len(wanted) and all(found), 20)
        os.kill(bed.agent_pid("server"), number)

    thread = threading.Thread(target=harm)
    thread.start()
    try:
        with pytest.raises(LabError, match=r"^host server: (?!.*left)"):
            bed.run(connections=300, silence_seconds=6)
        thread.join()
        assert until(lambda: not any(map(running, numbers())), 5)
    finally:
        thread.join()
        for pid in numbers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not running(bed.agent_pid("server"))


def test_an_agent_that_takes_long_for_its_first_word_is_mentioned(bed: Bed) -> None:
    lying(bed, "client", 'if event == "hello": import time; time.sleep(8)')
    assert bed.run(connections=300, silence_seconds=6).verdict == "pass"
    line = "no word from client for 5 s since its agent was started; given up after 60 s"
    assert [now.note for now in bed.seen if "no word" in now.note] == [line]


def test_a_host_of_another_run_is_left_alone(bed: Bed) -> None:
    path = LOCKS / f"connlab-run.{'a' * 16}.lock"
    fields = {"who": "ann@desk", "run": "run \x1b[31mmillion", "since": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps({**fields, "boot_ns": 1}) + "\n")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        line = r"^host (server|client): a run holds it: ann@desk, run \?\[31mmillion, since 2026"
        with pytest.raises(LabError, match=line):
            bed.run()
    assert not any(link.paths or link.started for link in bed.links.values())
    assert not list(bed.store.root.iterdir())
    done = bed.run(connections=300)  # and free again, although its file is still there
    assert done.verdict == "pass", done.reason
    assert os.listdir(LOCKS) == []
