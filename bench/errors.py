"""The two ways in which a command can fail, each with its exit status, and how it is told."""

from __future__ import annotations

import re

from pydantic import ValidationError

from bench.units import printable


class ConnlabError(Exception):
    """Base: one line for the user and an exit status.

    Much of what is in such lines comes from hosts and files: here it is made fit to be shown.
    """

    exit_status = 3

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


class InputError(ConnlabError):
    """Bad usage or bad input: names the field, the value and what was expected. Exit status 2."""

    exit_status = 2


class LabError(ConnlabError):
    """The lab failed: host unreachable, agent died, refused by the safety guard. Status 3."""

    exit_status = 3


def brief(value: object) -> str:
    """A value as it was given, its end left out where it is long."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested by the thousand; an int of 4,300 digits
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def refusal(error: ValidationError) -> str:
    """The first thing that a model refuses: field, value, what was expected."""
    first = error.errors(include_url=False)[0]
    own = str(first["ctx"]["error"]) if first["type"] == "value_error" else None
    if not first["loc"]:
        return own or first["msg"]
    # A union's error goes on with the name of the alternative that was tried.
    place = first["loc"]
    field = ".".join(str(part) for part in place if part == place[0] or isinstance(part, int))
    if first["type"] == "missing":
        return f"{field}: missing"
    if own is None:
        wordy = r"^(Input should be|\w+ should have) | after validation, not \d+$"
        own = f"got {brief(first['input'])}, expected {re.sub(wordy, '', first['msg'])}"
    return f"{field}: {own}"
