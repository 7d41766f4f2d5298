"""Real signals to a program that cleans up: the first in order, the second at once."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import signal, sys, time
from bench import interrupts
from bench.interrupts import INTERRUPTS

signal.signal(signal.SIGINT, signal.default_int_handler)

def up(word="up"):
    print(word, flush=True)

def nap(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.005)
"""
WORKS = """
with INTERRUPTS.handled():
    INTERRUPTS.answers("a", lambda: ["host a: an agent"])
    INTERRUPTS.answers("b", lambda: ["host b: another"])
    try:
        up()
        nap(20)
    except KeyboardInterrupt:
        up("interrupted")
        with INTERRUPTS.cleaning():
            nap(float(sys.argv[1]))
        up("clean")
"""
CLEANS = """
with INTERRUPTS.handled():
    try:
        with INTERRUPTS.cleaning():
            with INTERRUPTS.cleaning():
                up()
                nap(float(sys.argv[1]))
            up("cleaned the inner")
        up("goes on")
    except KeyboardInterrupt:
        up("interrupted when clean")
"""


class Program:
    """A program of its own that is sent signals."""

    def __init__(self, code: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # select() sees nothing of what a buffer has
        )

    def line(self, seconds: float = 10) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], seconds)[0], "nothing was printed"
        return self.process.stdout.readline().decode().strip()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 10) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, out.decode(), errors.decode()


@contextlib.contextmanager
def program(code: str, *words: str) -> Iterator[Program]:
    made = Program(code, *words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_ends_the_work_in_order(number: int) -> None:
    with program(WORKS, "0.05") as run:
        assert run.line() == "up"
        run.send(number)
        assert run.end() == (0, "interrupted\nclean\n", "")


def test_what_comes_with_the_first_is_the_same() -> None:
    """A terminal's SIGINT, and Ansible's SIGTERM right after it."""
    with program(WORKS, "0.5") as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        assert run.line() == "interrupted"
        run.send(signal.SIGTERM)
        run.send(signal.SIGINT)
        assert run.end() == (0, "clean\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_at_once_and_says_what_is_left(number: int) -> None:
    with program(WORKS, "20") as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        assert run.line() == "interrupted"
        time.sleep(1.05)
        sent = time.monotonic()
        run.send(number)
        status, out, errors = run.end()
        assert time.monotonic() - sent < 2
    assert (status, out) == (130, "")
    assert errors == (
        "connlab: interrupted twice; not cleaned up: host a: an agent; host b: another\n"
    )


@pytest.mark.parametrize("broken", ["say", "lines"])
def test_the_second_ends_at_once_whatever_goes_wrong(broken: str) -> None:
    breaks = "def fails(*words):\n    raise RuntimeError('reentrant call')\n"
    breaks += "INTERRUPTS.say = fails\n" if broken == "say" else "INTERRUPTS.answers(0, fails)\n"
    with program(breaks + WORKS, "20") as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        assert run.line() == "interrupted"
        time.sleep(1.05)
        run.send(signal.SIGINT)
        status, _, errors = run.end()
    assert status == 130
    assert ("host a: an agent" in errors) is (broken == "say")


def test_the_first_waits_until_all_is_clean() -> None:
    with program(CLEANS, "0.3") as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        status, out, errors = run.end()
    assert (status, out) == (0, "cleaned the inner\ninterrupted when clean\n")
    assert errors == "connlab: closing what was opened; interrupt once more to end at once\n"


def test_the_second_does_not_wait_for_that() -> None:
    with program(CLEANS, "20") as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        time.sleep(1.05)
        run.send(signal.SIGTERM)
        status, out, errors = run.end()
    assert (status, out) == (130, "")
    assert errors.splitlines()[1] == (
        "connlab: interrupted twice; not cleaned up: nothing is known to be left"
    )


def test_a_clean_up_that_fails_says_so_first() -> None:
    code = """
with INTERRUPTS.handled():
    try:
        with INTERRUPTS.cleaning():
            up()
            nap(0.3)
            raise OSError("disk full")
    except OSError as error:
        up(str(error))
    try:
        with INTERRUPTS.cleaning():
            pass
    except KeyboardInterrupt:
        up("interrupted")
"""
    with program(code) as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        assert run.end()[:2] == (0, "disk full\ninterrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_was_ignored_stays_ignored(number: int) -> None:
    """nohup(1) ignores SIGHUP, a shell's background job SIGINT."""
    ignores = f"signal.signal({int(number)}, signal.SIG_IGN)\n"
    for code in (WORKS.replace("nap(20)", "nap(0.3)"), CLEANS):
        with program(ignores + code, "0.3") as run:
            assert run.line() == "up"
            run.send(number)
            status, out, errors = run.end()
        assert (status, errors) == (0, "")
        assert "interrupted" not in out


def test_sigterm_is_heeded_where_it_was_ignored() -> None:
    with program("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WORKS, "0.05") as run:
        assert run.line() == "up"
        run.send(signal.SIGTERM)
        assert run.end()[:2] == (0, "interrupted\nclean\n")


def test_handlers_are_put_back() -> None:
    code = """
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = [signal.getsignal(number) for number in numbers]
with INTERRUPTS.cleaning():
    assert signal.getsignal(signal.SIGTERM) == INTERRUPTS.handle
assert [signal.getsignal(number) for number in numbers] == before
try:
    with INTERRUPTS.handled():
        assert signal.getsignal(signal.SIGINT) == INTERRUPTS.handle
        with INTERRUPTS.cleaning():
            pass
        assert signal.getsignal(signal.SIGINT) == INTERRUPTS.handle
        raise OSError
except OSError:
    pass
assert [signal.getsignal(number) for number in numbers] == before
up("put back")
"""
    with program(code) as run:
        assert run.end() == (0, "put back\n", "")


def test_without_a_command_each_clean_up_counts_for_itself() -> None:
    code = """
for _ in range(2):
    try:
        with INTERRUPTS.cleaning():
            up()
            nap(1.2)
    except KeyboardInterrupt:
        up("interrupted")
"""
    with program(code) as run:
        for _ in range(2):
            assert run.line() == "up"
            run.send(signal.SIGINT)
            assert run.line() == "interrupted"
        assert run.end()[0] == 0


def test_other_threads_handle_no_signals() -> None:
    code = """
import threading
def work():
    with INTERRUPTS.handled(), INTERRUPTS.cleaning():
        up("worked")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    with program(code) as run:
        assert run.end() == (0, "worked\n", "")


def test_what_is_cleaned_up_is_not_named() -> None:
    code = """
key = object()
INTERRUPTS.answers(key, lambda: ["an agent"])
INTERRUPTS.answers(key, None)
INTERRUPTS.answers(key, None)
""" + WORKS.replace('INTERRUPTS.answers("b", lambda: ["host b: another"])', "pass")
    with program(code, "20") as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        assert run.line() == "interrupted"
        time.sleep(1.05)
        run.send(signal.SIGINT)
        errors = run.end()[2]
    assert errors == "connlab: interrupted twice; not cleaned up: host a: an agent\n"


def test_the_second_interrupt_ends_at_once_though_nobody_reads() -> None:
    """A terminal that was stopped, a parent that hangs: the pipe is full."""
    code = """
import os
from bench.cli.common import Show, _tell_at_once
INTERRUPTS.say = lambda line: _tell_at_once(line, Show.ndjson)
with INTERRUPTS.handled():
    try:
        up()
        nap(20)
    except KeyboardInterrupt:
        os.set_blocking(1, False)
        try:
            while True:
                os.write(1, b"x" * 65536)
        except BlockingIOError:
            os.set_blocking(1, True)
        with INTERRUPTS.cleaning():
            sys.stderr.write("full\\n")
            sys.stderr.flush()
            nap(20)
"""
    with program(code) as run:
        assert run.line() == "up"
        run.send(signal.SIGINT)
        assert run.process.stderr
        assert run.process.stderr.readline() == b"full\n"
        time.sleep(1.1)
        run.send(signal.SIGINT)
        assert run.process.wait(5) == 130
