"""Measures claims one after the other, with a record of each outcome."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench import scenario
from bench.claims.lab import Lab, NotMeasurable
from bench.claims.model import Claim, Found, Judgement, Profile
from bench.claims.record import Figure, Record, Records
from bench.errors import InputError, LabError
from bench.hosts import survey
from bench.hosts.session import Connect
from bench.inventory import Inventory
from bench.model import capacity
from bench.plan import planning
from bench.plan.topology import Topology, require
from bench.results.format import HostRecord

Progress = Callable[[str, str], None]
"""Called with a claim's name and its progress."""


class Asked(NamedTuple):
    """A claim with the parameters of its measurement."""

    claim: Claim[Any, Any]
    parameters: Any


class Runner:
    """The measurement of claims on the hosts of one inventory."""

    def __init__(
        self, inventory: Inventory, connect: Connect, store: Path, progress: Progress
    ) -> None:
        self._inventory = inventory
        self._connect = connect
        self._records = Records(store)
        self._progress = progress
        self._by_name = False

    def run(self, asked: Sequence[Asked], profile: Profile, by_name: bool) -> list[Record]:
        """Measure claims and keep a record of each.

        :param by_name: whether they were asked for by name. If so, something that the hosts lack is
            bad input; otherwise the claims that need it are not measurable
        :raises InputError: before anything is opened, for a missing topology, a profile that is too
            large for the hosts, or a directory that cannot keep records.
        :raises LabError: if the hosts cannot be reached.
        """
        self._by_name = by_name
        self.check(asked, by_name)
        self._records.check()
        hosts, most = self._look()
        large = {one.claim.id: _too_large(one, most) for one in asked}
        for said in large.values() if by_name else ():
            if said:
                raise InputError(said)
        return [self._one(*one, profile, hosts, large[one.claim.id]) for one in asked]

    def check(self, asked: Sequence[Asked], by_name: bool) -> None:
        """Check that the inventory has what claims that were asked for by name need.

        :raises InputError: naming the group and the command that builds it.
        """
        for claim, _ in asked if by_name else ():
            for group in claim.groups:
                _require(claim, group, self._inventory)

    def _look(self) -> tuple[Mapping[str, HostRecord], int | None]:
        """Return the hosts' records, and how many connections fit their memory."""
        usual = scenario.load("claim", self._inventory.settings)
        topology = Topology(usual, self._inventory)
        hosts, texts = survey.look(topology, self._connect)
        there, _ = planning.there(topology, hosts)
        tuples = planning.tuples(topology, there)
        found = capacity.predict(topology, hosts, texts, tuples).limits
        return hosts, found.get("memory")

    def _one(
        self,
        claim: Claim[Any, Any],
        parameters: Any,
        profile: Profile,
        hosts: Mapping[str, HostRecord],
        too_large: str,
    ) -> Record:
        started = datetime.now(UTC)
        record_id, folder = self._records.create(claim.id, started)
        lab = Lab(
            self._inventory,
            hosts,
            self._connect,
            folder,
            lambda text: self._progress(claim.id, text),
        )
        self._progress(claim.id, "begins")
        if too_large:
            found: Found | str = too_large
            judgement: Judgement | None = Judgement("not measurable here", "", too_large)
        else:
            found, judgement = self._measured(claim, parameters, lab)
        record = Record(
            schema_=1,
            id=record_id,
            claim=claim.id,
            said=claim.said,
            profile=profile,
            verdict="failed" if judgement is None else judgement.verdict,
            measured="" if judgement is None else judgement.measured,
            reason=found if isinstance(found, str) else judgement.reason if judgement else "",
            cure=claim.cure,
            read=claim.read,
            substrate=self._inventory.substrate,
            kernels={name: host.kernel for name, host in hosts.items()},
            started=started,
            finished=datetime.now(UTC),
            parameters=parameters.model_dump(mode="json"),
            figures=[] if isinstance(found, str) else figures(found),
        )
        self._records.write(record)
        self._progress(claim.id, f"{record.verdict}: {record.measured or record.reason}")
        return record

    def _measured(
        self, claim: Claim[Any, Any], parameters: Any, lab: Lab
    ) -> tuple[Found | str, Judgement | None]:
        """Measure and judge.

        :return: the figures and the judgement; or the reason of a failure, and None
        """
        try:
            for group in claim.groups:
                _require(claim, group, self._inventory)
            found = claim.measure(lab, parameters)
            return found, claim.judge(found)
        except (NotMeasurable, InputError) as error:
            if self._by_name and isinstance(error, InputError):
                raise
            return str(error), Judgement("not measurable here", "", str(error))
        except LabError as error:
            return str(error), None
        except Exception as error:
            traceback.print_exc()
            return f"internal error: {type(error).__name__}: {error}", None


def figures(found: Found) -> list[Figure]:
    """Return the measured figures as a list."""
    fields = type(found).model_fields
    return [
        Figure(name=name, value=value, description=fields[name].description or "")
        for name, value in found.model_dump(mode="json").items()
    ]


def _too_large(asked: Asked, most: int | None) -> str:
    """Return the error for a claim that is too large for the hosts' memory; empty if it fits.

    :param most: connections that fit; None: not known
    """
    wanted = asked.claim.connections(asked.parameters)
    if most is None or wanted <= most:
        return ""
    return (
        f"claim {asked.claim.id}: connections: got {wanted:,}, expected at most {most:,}: more "
        "does not fit these hosts' memory; choose the small profile, or fewer by --set"
    )


def _require(claim: Claim[Any, Any], group: str, inventory: Inventory) -> None:
    try:
        require(group, inventory)
    except InputError as error:
        raise InputError(f"claim {claim.id}: {error}") from None
