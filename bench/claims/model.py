"""A claim: its statement, its measurement, and the judgement of the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import InputError, refusal

if TYPE_CHECKING:
    from bench.claims.lab import Lab

PROFILES = ("small", "full")

Profile = Literal["small", "full"]

Outcome = Literal["confirmed", "refuted", "depends", "not measurable here", "inconclusive"]
"""``inconclusive``: it was measured, but the figures contradict each other."""


class Parameters(BaseModel):
    """The sizes of one profile. Strict, so that an override of the wrong type is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Found(BaseModel):
    """The measured figures: every field has a description with its unit."""

    model_config = ConfigDict(extra="forbid")


P = TypeVar("P", bound=Parameters)
F = TypeVar("F", bound=Found)


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim, from the measured figures alone."""

    verdict: Outcome
    measured: str
    """The figures, in one line."""
    reason: str
    """The reason, in one sentence."""


@dataclass(frozen=True)
class Claim(Generic[P, F]):
    """One statement and its experiment."""

    id: str
    said: str
    """The statement, as people make it."""
    cure: str
    """The remedy, in one sentence."""
    read: str
    """Where to read more: a page in ``docs/`` or a source."""
    small: P
    full: P
    measure: Callable[[Lab, P], F]
    """The measurement. :raises NotMeasurable: if these hosts cannot show it."""
    judge: Callable[[F], Judgement]
    """The judge, a pure function: the same figures give the same verdict."""
    connections: Callable[[P], int] = lambda _: 0
    """The most connections that are held at a time, which have to fit the hosts."""
    groups: tuple[str, ...] = ()
    """Groups that the inventory needs in addition to servers and clients."""

    def parameters(self, profile: str, overrides: dict[str, Any] | None = None) -> P:
        """Return the parameters of a profile, some of them overridden.

        :raises InputError: for an unknown profile or parameter, or a value of the wrong type.
        """
        if profile not in PROFILES:
            raise InputError(f"profile: got {profile!r}, expected one of {', '.join(PROFILES)}")
        usual = self.small if profile == "small" else self.full
        fields = {**usual.model_dump(), **(overrides or {})}
        for name in overrides or {}:
            if name not in type(usual).model_fields:
                known = ", ".join(type(usual).model_fields)
                raise InputError(f"claim {self.id}: {name}: unknown, expected one of {known}")
        try:
            return type(usual).model_validate(fields)
        except ValidationError as error:
            raise InputError(f"claim {self.id}: {refusal(error)}") from error
