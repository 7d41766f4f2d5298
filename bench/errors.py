"""The two ways in which a command can fail, their exit statuses and their one-line messages."""

from __future__ import annotations

import re

from pydantic import ValidationError

from bench.units import printable


class ConnlabError(Exception):
    """Base of all errors: one line for the user and an exit status.

    Parts of such a line come from hosts and files, so it is made printable here.
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
    """Return a value as it was given, cut off if it is long."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested a thousand deep; an int of 4,300 digits
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def refusal(error: ValidationError) -> str:
    """Return the first error of a model: field, value, what was expected."""
    first = error.errors(include_url=False)[0]
    own = str(first["ctx"]["error"]) if first["type"] == "value_error" else None
    if not first["loc"]:
        return own or first["msg"]
    # The location of a union's error ends with the name of the alternative that was tried.
    place = first["loc"]
    field = ".".join(str(part) for part in place if part == place[0] or isinstance(part, int))
    if first["type"] == "missing":
        return f"{field}: missing"
    if own is None:
        wordy = r"^(Input should be|\w+ should have) | after validation, not \d+$"
        own = f"got {brief(first['input'])}, expected {re.sub(wordy, '', first['msg'])}"
    return f"{field}: {own}"
