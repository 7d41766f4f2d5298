"""The controller's commands. Most become a round of the workers, and then one answer."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Optional

from bench.agent import about, control, probe, spec, tally, workers
from bench.agent import board as cell
from bench.agent.churnorder import ChurnOrder
from bench.agent.client import Client
from bench.agent.echoround import EchoRound
from bench.agent.server import Server
from bench.agent.spares import Spares
from bench.agent.task import PATIENCE_MS, Aside, Misuse, Say, Task, whole
from bench.agent.workers import TooMany


class Commands:
    """The controller's commands to one agent, a method for each."""

    def __init__(self, task: Task, say: Say, aside: Aside) -> None:
        """Start with a task that has no role yet.

        :param say: sends an event
        :param aside: runs work in a thread, and a second function with its result in the main loop
        """
        self.task = task
        self._say, self._aside = say, aside
        self._preparing = False
        self._nofile = workers.nofile_found()
        self._reading = 0  # threads that gather evidence
        self._spares = Spares()

    def command(self, command: Dict[str, Any]) -> None:
        """Carry out a command, or begin to. :raises Misuse: if it is invalid in this state."""
        op = command.get("op")
        handlers: Dict[Any, Callable[[Dict[str, Any]], None]] = {
            "facts": self._facts,
            "serve": self._serve,
            "open": self._open_doors,
            "prepare": self._prepare,
            "ramp": self._ramp,
            "halt": self._halt,
            "collect": self._collect,
            "count": self._count,
            "answer": self._answer,
            "echo": self._echo,
            "round": self._round_of_bytes,
            "churn": self._churn,
            "memory": self._memory,
            "verify": self._verify,
            "drain": self._drain,
            "status": self._status,
        }
        if op not in handlers:
            raise Misuse(f"unknown command {op!r}")
        if op in ("serve", "prepare"):
            if self.task.role or self._preparing:
                raise Misuse(f"{op}: this agent has its task already")
            if self._reading:  # a fork would inherit the pipes of that thread's tools
                raise Misuse(f"{op} while facts, collect or count is under way")
        elif op in ("facts", "collect", "count"):
            if self._preparing:
                raise Misuse(f"{op} while prepare is under way")
        elif not self.task.role:
            raise Misuse(f"{op} before serve or prepare")
        elif self.task.round and op not in ("halt", "status"):
            raise Misuse(f"{op} while {self.task.under_way} is under way")
        handlers[op](command)

    def _read(self, work: Callable[[], Any]) -> None:
        """Gather evidence in a separate thread and send the event.

        Nothing is accepted meanwhile: new connections would take the files that are kept back for
        the tools.
        """

        def read() -> Any:
            try:
                return work()
            except Exception as error:
                return error

        def then(found: Any) -> None:
            self._reading -= 1
            self._keep_back()
            if isinstance(found, Exception):
                raise found
            self._say(found)

        self._aside(read, then)
        self._reading += 1
        self._keep_back()

    def _keep_back(self) -> None:
        """Keep spare files open while no evidence is gathered, and free them while it is."""
        if not self.task.role:
            return
        if self._reading:
            self.task.role.board.common[cell.PAUSE] = 1
            self._spares.give()
        else:
            self._spares.take()
            self.task.role.board.common[cell.PAUSE] = 0

    def _facts(self, command: Dict[str, Any]) -> None:
        keys = [str(key) for key in command.get("sysctls") or []]
        self._read(lambda: about.facts(keys, self._nofile))

    def _serve(self, command: Dict[str, Any]) -> None:
        try:
            self.task.begin(Server(spec.server(command.get("spec"))))
            self._keep_back()
        except (spec.BadSpec, TooMany) as error:
            raise Misuse(str(error)) from error
        self._say({"event": "serving", "workers": self.task.must().count})

    def _open_doors(self, _: Dict[str, Any]) -> None:
        self.task.server("open").open()
        self._say({"event": "opened"})

    def _prepare(self, command: Dict[str, Any]) -> None:
        try:
            wanted = spec.client(command.get("spec"))
        except spec.BadSpec as error:
            raise Misuse(str(error)) from error

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
                self.task.begin(Client(wanted))
                self._keep_back()
            except TooMany as error:
                raise Misuse(str(error)) from error
            self._say({"event": "prepared", "workers": self.task.must().count})

        thread = self._aside(vouch, then)
        self._preparing = True

    def _ramp(self, command: Dict[str, Any]) -> None:
        client = self.task.client("ramp")
        board = client.board
        upto = whole(command, "upto", client.asked)
        most_lost = whole(command, "most_lost", 0)
        tried, held, lost = client.tried, board.total(cell.HELD), board.total(cell.LOST)
        worth_trying = client.aim(upto)
        board.common[cell.HALT] = 0
        board.common[cell.MOST_LOST] = lost + most_lost if most_lost else 0
        began = time.monotonic()

        def answer() -> Dict[str, Any]:
            tried_now, held_now = client.tried, board.total(cell.HELD)
            all_tried = tried_now >= min(upto, client.asked)
            complete = all_tried and held_now - held >= tried_now - tried
            return {
                "event": "ramped",
                "reason": self.task.reason or ("complete" if complete else "lost"),
                "tried": tried_now,
                "held": held_now,
                "lost": board.total(cell.LOST),
                "errors": board.errors(),
                "latency": board.latency(),
                "seconds": round(time.monotonic() - began, 6),
            }

        self.task.ramp_begins()
        self.task.go("ramp", b"R", client.spec["active"], answer, worth_trying)

    def _halt(self, _: Dict[str, Any]) -> None:
        client = self.task.client("halt")
        client.board.common[cell.HALT] = 1
        if self.task.under_way == "ramp" and self.task.reason is None:
            self.task.reason = "halted"
        self._say({"event": "halted"})

    def _collect(self, command: Dict[str, Any]) -> None:
        role = self.task.role
        count = command.get("count")
        ends = [(str(address), int(port)) for address, port in count] if count else None
        side = "dst" if isinstance(role, Client) else "src"
        pids = [os.getpid(), *(role.crew.pids if role else ())]
        phase, state = str(command.get("phase", "")), str(command.get("state", "established"))

        def held() -> List[int]:
            return role.board.column(cell.HELD).tolist() if role else []

        self._read(lambda: probe.collect(phase, ends, side, state, held, pids))

    def _count(self, command: Dict[str, Any]) -> None:
        try:
            wanted = spec.count(command)
        except spec.BadSpec as error:
            raise Misuse(str(error)) from error
        self._read(lambda: tally.count(wanted))

    def _answer(self, command: Dict[str, Any]) -> None:
        server = self.task.server("answer")
        on = bool(command.get("on"))
        how = command.get("how", "tagged")
        if how not in ("tagged", "byte"):
            raise Misuse(f"how: {how!r} is none of tagged, byte")
        if how == "byte" and server.spec["watch"] == "none":
            raise Misuse("how: byte needs a server that watches (watch: epoll)")
        board = server.board
        board.common[cell.ANSWER] = (cell.BYTE if how == "byte" else cell.TAGGED) if on else 0

        def answer() -> Dict[str, Any]:
            answered, wrong = board.total(cell.ANSWERED), board.total(cell.WRONG)
            return {"event": "answering", "on": on, "echoes": answered, "wrong": wrong}

        self.task.go("answer", b"C", server.count, answer)

    def _echo(self, command: Dict[str, Any]) -> None:
        client = self.task.client("echo")
        mode, drop, board = command.get("mode"), command.get("drop", False), client.board
        if mode not in ("sample", "all", "fresh"):
            raise Misuse(f"mode: {mode!r} is none of sample, all, fresh")
        if not isinstance(drop, bool):
            raise Misuse(f"drop: {drop!r} is none of true, false")
        held = board.total(cell.HELD)
        sample = whole(command, "sample", 0) if mode == "sample" else held
        board.common[cell.PATIENCE] = whole(command, "patience_ms", PATIENCE_MS, least=1)
        board.common[cell.FRESH], board.common[cell.DROP] = int(mode == "fresh"), int(drop)
        client.quotas(sample)
        counters = (cell.ASKED, cell.ANSWERED, cell.WRONG, cell.DROPPED)
        before = [board.total(at) for at in counters]

        def answer() -> Dict[str, Any]:
            asked, answered, wrong, dropped = (
                board.total(at) - was for at, was in zip(counters, before)
            )
            return {
                "event": "echoed",
                "asked": asked,
                "answered": answered,
                "wrong": wrong,
                "dropped": dropped,
            }

        self.task.go("echo", b"E", _cores(), answer)

    def _round_of_bytes(self, command: Dict[str, Any]) -> None:
        ordered = EchoRound(self.task.client("round"), command)
        self.task.go("round", b"K", 1 if ordered.sequential else _cores(), ordered.answer)

    def _churn(self, command: Dict[str, Any]) -> None:
        client = self.task.client("churn")
        ordered = ChurnOrder(client, command)
        self.task.go("churn", b"C", client.count, ordered.answer)

    def _memory(self, _: Dict[str, Any]) -> None:
        pids = [os.getpid(), *self.task.must().crew.pids]
        self._read(lambda: {"event": "memory", "own_kib": probe.own_kib(pids)})

    def _verify(self, _: Dict[str, Any]) -> None:
        board = self.task.must().board

        def answer() -> Dict[str, Any]:
            alive, dead = board.total(cell.ALIVE), board.total(cell.DEAD)
            return {"event": "verified", "alive": alive, "dead": dead}

        self.task.go("verify", b"V", _cores(), answer)

    def _drain(self, command: Dict[str, Any]) -> None:
        role = self.task.must()
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

        self.task.go("drain", b"D", _cores(), answer)

    def _status(self, _: Dict[str, Any]) -> None:
        role = self.task.must()

        def answer() -> Dict[str, Any]:
            board = role.board
            return {
                "event": "status",
                "held": board.total(cell.HELD),
                "errors": board.errors(),
                "cpu_seconds": round(role.crew.cpu_seconds(), 6),
            }

        if isinstance(role, Server) and role.spec["watch"] == "none" and not self.task.round:
            self.task.go("status", b"C", _cores(), answer)
        else:
            self._say(answer())


def _cores() -> int:
    return os.cpu_count() or 1
