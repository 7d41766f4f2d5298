"""Small experiments on hosts, step by step: the controller's side of ``bench.agent.trials``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from bench.agent import bundle
from bench.errors import LabError
from bench.hosts.agent import MOST_ERROR, MOST_NOT_PUT_BACK, Agent
from bench.hosts.scripts import OWNER
from bench.hosts.session import Connect, Session
from bench.hosts.told import Told
from bench.interrupts import INTERRUPTS
from bench.inventory import Host
from bench.units import printable

STEP_SECONDS = 60.0
"""Default time for one step, s."""


class Trial:
    """One side of an experiment, on one host."""

    def __init__(self, session: Session, agent: Agent, name: str) -> None:
        self.name = name
        self.agent = agent
        self.first = Told(agent.name, {})
        """Its first figures, from when it had begun."""
        self._session = session

    def go(self, seconds: float = STEP_SECONDS, **fields: Any) -> Told:
        """Take the next step and return its figures.

        :raises LabError: if the trial fails, rejects the step, dies, or takes longer.
        """
        told = self._session.ask([self.agent], "go", "told", seconds, **fields)
        return Told(self.agent.name, told[self.agent])

    def end(self) -> None:
        """End this trial before the others: it restores what it has changed."""
        self._session.dismiss([self.agent])


class Trials:
    """Experiments on several hosts, used as a context: at its end nothing of them stays."""

    def __init__(self, connect: Connect) -> None:
        self._session = Session(connect, bundle.build(trials=True).data, doing="an experiment")

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with INTERRUPTS.cleaning():
            self._session.close()
            lines = [*self._session.not_put_back, *self._session.left]
            for line in lines:
                print(f"connlab: {printable(line)}", file=sys.stderr)
            if lines and error is None:
                raise LabError("; ".join(lines))

    def begin(
        self,
        host: Host,
        name: str,
        *,
        root: bool = False,
        seconds: float = STEP_SECONDS,
        **args: Any,
    ) -> Trial:
        """Begin a trial on a host and wait for its first figures.

        :param name: of a module in ``bench.agent.trials``
        :param root: run it as root, by sudo(8)
        :raises LabError: if the host cannot be reached, or the trial fails or rejects ``args``.
        """
        agent = self._session.start([(host, "root" if root else "trial")])[0]
        trial = Trial(self._session, agent, name)
        told = self._session.ask([agent], "trial", "told", seconds, name=name, args=args)
        trial.first = Told(agent.name, told[agent])
        for line in _kept(host, trial.first):
            print(f"connlab: host {host.name}: {line}", file=sys.stderr)
        return trial

    def guard(self, host: Host, **changes: Any) -> Trial:
        """Begin the trial ``guard`` on a host, for changes that no other controller has made.

        :param changes: as in a step of the guard
        :raises LabError: as :meth:`begin`, and if another controller has made one of the changes.
        """
        return self.begin(host, "guard", root=True, owner=OWNER, **changes)

    def together(
        self, steps: Mapping[Trial, Mapping[str, Any]], seconds: float = STEP_SECONDS
    ) -> dict[Trial, Told]:
        """Take a step in several trials at once."""
        for trial, fields in steps.items():
            trial.agent.tell({"op": "go", **fields})
        return self.gather(steps, seconds)

    def gather(self, trials: Iterable[Trial], seconds: float = STEP_SECONDS) -> dict[Trial, Told]:
        """Return the answers of steps that are under way."""
        asked = list(trials)
        told = self._session.gather([trial.agent for trial in asked], "told", seconds)
        return {trial: Told(trial.agent.name, told[trial.agent]) for trial in asked}


def _kept(host: Host, told: Mapping[str, Any]) -> list[str]:
    """Return the lines about changes of earlier guards that this one has not undone.

    :raises LabError: if the host sends anything else.
    """
    lines = told.get("kept", [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise LabError(f"host {host.name}: protocol: kept: expected a list of texts")
    return [printable(line[:MOST_ERROR]) for line in lines[:MOST_NOT_PUT_BACK]]
