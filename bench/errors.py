"""The two ways in which a command can fail, each with its exit status."""

from __future__ import annotations


class ConnlabError(Exception):
    """Base: one line for the user and an exit status."""

    exit_status = 3


class InputError(ConnlabError):
    """Bad usage or bad input: names the field, the value and what was expected. Exit status 2."""

    exit_status = 2


class LabError(ConnlabError):
    """The lab failed: host unreachable, agent died, refused by the safety guard. Status 3."""

    exit_status = 3
