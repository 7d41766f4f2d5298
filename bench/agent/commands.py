"""The controller's commands: each becomes a round of the workers, and that round's answer."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, Optional

from bench.agent import board as cell
from bench.agent import control, probe, spec
from bench.agent.client import Client
from bench.agent.duty import Duty, Misuse
from bench.agent.server import Server
from bench.agent.workers import TooMany

PATIENCE_MS = 5_000
"""For the answers of one window of echoes, where the controller names no other, ms."""


class Commands(Duty):
    """The task, and how it is told what to do."""

    def command(self, command: Dict[str, Any]) -> None:
        """Carry out a command or begin to. :raises Misuse: if it makes no sense."""
        op = command.get("op")
        handlers: Dict[Any, Callable[[Dict[str, Any]], None]] = {
            "serve": self._serve,
            "prepare": self._prepare,
            "ramp": self._ramp,
            "halt": self._halt,
            "collect": self._collect,
            "answer": self._answer,
            "echo": self._echo,
            "verify": self._verify,
            "drain": self._drain,
            "status": self._status,
        }
        if op not in handlers:
            raise Misuse(f"unknown command {op!r}")
        if op not in ("serve", "prepare"):
            if not self._role:
                raise Misuse(f"{op} before serve or prepare")
            if self._round and op not in ("halt", "collect", "status"):
                raise Misuse(f"{op} while {self._named} is under way")
        elif self._role or self._preparing:
            raise Misuse(f"{op}: this agent has its task already")
        handlers[op](command)

    def _serve(self, command: Dict[str, Any]) -> None:
        try:
            self._begin(Server(spec.server(command.get("spec"))))
        except (spec.BadSpec, TooMany) as error:
            raise Misuse(str(error)) from error
        self._say({"event": "serving", "workers": self._must().count})

    def _prepare(self, command: Dict[str, Any]) -> None:
        try:
            wanted = spec.client(command.get("spec"))
        except spec.BadSpec as error:
            raise Misuse(str(error)) from error
        self._preparing = True

        def vouch() -> Optional[str]:
            try:
                control.vouched(wanted)
            except control.Refused as error:
                return str(error)
            return None

        def then(refusal: Optional[str]) -> None:
            thread.join()  # before the fork
            self._preparing = False
            if refusal:
                raise Misuse(refusal, "refused")
            try:
                self._begin(Client(wanted))
            except TooMany as error:
                raise Misuse(str(error)) from error
            self._say({"event": "prepared", "workers": self._must().count})

        thread = self._aside(vouch, then)

    def _ramp(self, _: Dict[str, Any]) -> None:
        client = self._client("ramp")
        board = client.board
        board.common[cell.HALT] = 0
        self._began, self._reason, self._low = time.monotonic(), None, False
        self._watch_at = 0.0

        def answer() -> Dict[str, Any]:
            held, lost = board.total(cell.HELD), board.total(cell.LOST)
            reason = self._reason or ("complete" if held >= client.asked else "lost")
            return {
                "event": "ramped",
                "reason": reason,
                "held": held,
                "lost": lost,
                "errors": board.errors(),
                "latency": board.latency(),
                "seconds": round(time.monotonic() - self._began, 6),
            }

        self._check_first(client)
        self._go("ramp", b"R", client.spec["active"], answer)

    def _check_first(self, client: Client) -> None:
        """A floor that is not kept at the start: then nothing is opened at all."""
        self._named = "ramp"
        self._check_memory()

    def _halt(self, _: Dict[str, Any]) -> None:
        client = self._client("halt")
        client.board.common[cell.HALT] = 1
        if self._named == "ramp" and self._reason is None:
            self._reason = "halted"
        self._say({"event": "halted"})

    def _collect(self, command: Dict[str, Any]) -> None:
        role = self._must()
        count = command.get("count")
        ends = [(str(address), int(port)) for address, port in count] if count else None
        side = "src" if isinstance(role, Server) else "dst"
        pids = [os.getpid(), *role.crew.pids]
        phase, state = str(command.get("phase", "")), str(command.get("state", "established"))
        held: Callable[[], int] = lambda: role.board.total(cell.HELD)  # noqa: E731
        self._aside(lambda: probe.collect(phase, ends, side, state, held, pids), self._say)

    def _answer(self, command: Dict[str, Any]) -> None:
        server = self._server("answer")
        on = bool(command.get("on"))
        board = server.board
        board.common[cell.ANSWER] = int(on)

        def answer() -> Dict[str, Any]:
            answered, wrong = board.total(cell.ANSWERED), board.total(cell.WRONG)
            return {"event": "answering", "on": on, "echoes": answered, "wrong": wrong}

        self._go("answer", b"C", server.count, answer)

    def _echo(self, command: Dict[str, Any]) -> None:
        client = self._client("echo")
        mode, board = command.get("mode"), client.board
        if mode not in ("sample", "all"):
            raise Misuse(f"mode: {mode!r} is none of sample, all")
        sample = command.get("sample", 0) if mode == "sample" else board.total(cell.HELD)
        if not isinstance(sample, int) or sample < 0:
            raise Misuse(f"sample: {sample!r} is not a whole number from 0")
        patience = command.get("patience_ms", PATIENCE_MS)
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise Misuse(f"patience_ms: {patience!r} is not a whole number from 1")
        board.common[cell.PATIENCE] = patience
        client.quotas(sample)
        before = [board.total(at) for at in (cell.ASKED, cell.ANSWERED, cell.WRONG)]

        def answer() -> Dict[str, Any]:
            after = [board.total(at) for at in (cell.ASKED, cell.ANSWERED, cell.WRONG)]
            asked, answered, wrong = (after[at] - before[at] for at in range(3))
            return {"event": "echoed", "asked": asked, "answered": answered, "wrong": wrong}

        self._go("echo", b"E", _cores(), answer)

    def _verify(self, _: Dict[str, Any]) -> None:
        board = self._must().board

        def answer() -> Dict[str, Any]:
            alive, dead = board.total(cell.ALIVE), board.total(cell.DEAD)
            return {"event": "verified", "alive": alive, "dead": dead}

        self._go("verify", b"V", _cores(), answer)

    def _drain(self, command: Dict[str, Any]) -> None:
        role = self._must()
        how, rate = command.get("how", "rst"), command.get("rate", 0)
        if how not in ("rst", "fin"):
            raise Misuse(f"how: {how!r} is none of rst, fin")
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or rate < 0:
            raise Misuse(f"rate: {rate!r} is not a number from 0")
        board = role.board
        board.common[cell.HOW] = cell.FIN if how == "fin" else cell.RST
        board.common[cell.RATE] = int(rate)
        closed, began = board.total(cell.CLOSED), time.monotonic()

        def answer() -> Dict[str, Any]:
            count = board.total(cell.CLOSED) - closed
            return {
                "event": "drained",
                "closed": count,
                "seconds": round(time.monotonic() - began, 6),
            }

        self._go("drain", b"D", _cores(), answer)

    def _status(self, _: Dict[str, Any]) -> None:
        role = self._must()

        def answer() -> Dict[str, Any]:
            return {"event": "status", "held": role.board.total(cell.HELD)}

        if isinstance(role, Server) and role.spec["watch"] == "none" and not self._round:
            self._go("status", b"C", _cores(), answer)
        else:
            self._say(answer())


def _cores() -> int:
    return os.cpu_count() or 1
