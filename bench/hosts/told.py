"""A trial's answer: each figure is checked where it is read, because each trial has others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bench.errors import LabError, brief
from bench.units import MOST_WHOLE, printable

T = TypeVar("T")


class Told(dict[str, Any]):
    """The figures of a trial's answer, or of a part of it.

    Each of its methods takes a figure's name.

    :raises LabError: from any method, with host and figure: the value and what was expected.
    """

    def __init__(self, host: str, fields: Mapping[str, Any], place: str = "") -> None:
        super().__init__(fields)
        self.host = host
        self._place = place

    def number(self, name: str, least: int = 0) -> int:
        """Return a whole number."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "a whole number")
        if not least <= value <= MOST_WHOLE:
            raise self._wrong(name, f"a whole number from {least} and below 2^64")
        return value

    def real(self, name: str, least: float = 0.0) -> float:
        """Return a number."""
        value = self.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._wrong(name, "a number")
        if not least <= value <= MOST_WHOLE or not math.isfinite(value):
            raise self._wrong(name, f"a number from {least:g} and below 2^64")
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """Return a text that can be shown."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return printable(value, lines=True)

    def maybe(self, name: str, take: Callable[[Told, str], T]) -> T | None:
        """Return None if there is none, and otherwise the result of a method."""
        return None if self.get(name) is None else take(self, name)

    def within(self, name: str, least: int = 0) -> Told:
        """Return a part: an object, or a list as an object with its places as names, from ``"0"``.

        :param least: the least number of its members
        """
        value = self.get(name)
        if isinstance(value, list):
            value = {str(place): one for place, one in enumerate(value)}
        if not isinstance(value, Mapping):
            raise self._wrong(name, "a list or an object")
        if len(value) < least:
            raise self._wrong(name, f"at least {least} of them")
        return Told(self.host, value, f"{self._place}{name}.")

    def each(self, name: str, take: Callable[[Told, str], T], least: int = 0) -> list[T]:
        """Return a method's results for all members of a part, as a list."""
        part = self.within(name, least)
        return [take(part, one) for one in part]

    def named(self, name: str, take: Callable[[Told, str], T]) -> dict[str, T]:
        """Return a method's results for all members of a part, by name."""
        part = self.within(name)
        return {printable(one): take(part, one) for one in part}

    def _wrong(self, name: str, expected: str) -> LabError:
        field = f"host {self.host}: protocol: told: {self._place}{name}"
        if name not in self:
            return LabError(f"{field}: missing")
        return LabError(f"{field}: got {brief(self[name])}, expected {expected}")
