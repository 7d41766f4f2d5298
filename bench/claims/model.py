"""A claim: what is said, how it is measured, how the outcome is judged."""

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
"""``inconclusive``: it was measured, and what was measured contradicts itself."""


class Parameters(BaseModel):
    """Sizes of one profile. Strict, so that an override of the wrong kind is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Found(BaseModel):
    """What was measured: every field with a description that has its unit."""

    model_config = ConfigDict(extra="forbid")


P = TypeVar("P", bound=Parameters)
F = TypeVar("F", bound=Found)


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim, from what was measured alone."""

    verdict: Outcome
    measured: str
    """The figures, in a line."""
    reason: str
    """Why, in one sentence."""


@dataclass(frozen=True)
class Claim(Generic[P, F]):
    """One statement and its experiment."""

    id: str
    said: str
    """The statement, as people make it."""
    cure: str
    """What to do about it, in one sentence."""
    read: str
    """Where to read more: a page in ``docs/`` or a source."""
    small: P
    full: P
    measure: Callable[[Lab, P], F]
    """:raises NotMeasurable: where these hosts cannot show it."""
    judge: Callable[[F], Judgement]
    """Pure: the same figures give the same verdict."""
    connections: Callable[[P], int] = lambda _: 0
    """Connections that are held at a time at most: what has to fit the hosts."""
    groups: tuple[str, ...] = ()
    """Groups that the inventory needs beside servers and clients."""

    def parameters(self, profile: str, overrides: dict[str, Any] | None = None) -> P:
        """Those of a profile, some of them overridden.

        :raises InputError: for an unknown profile or parameter, or a value of the wrong kind.
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
