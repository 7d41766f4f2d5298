"""Limits of a session, as the kernel writes them."""

from __future__ import annotations

from bench.agent.trials import logins

ROWS = (
    ("Limit", "Soft Limit", "Hard Limit", "Units"),
    ("Max cpu time", "unlimited", "unlimited", "seconds"),
    ("Max open files", "1024", "524288", "files"),
    ("Max file locks", "10", "unlimited", "locks"),
    ("Max nice priority", "1", "40", ""),
)
LIMITS = "".join("{:<25} {:<20} {:<20} {:<10}\n".format(*row) for row in ROWS)
"""fs/proc/base.c proc_pid_limits."""


def test_a_limit_is_the_hard_one() -> None:
    assert logins.hard_limits(LIMITS) == {
        "Max cpu time": -1,
        "Max open files": 524_288,
        "Max file locks": -1,
        "Max nice priority": 40,
    }


def test_what_is_no_list_of_limits_has_none() -> None:
    assert logins.hard_limits("") == {}
    assert logins.hard_limits("Limit\nsu: no\n") == {}
