"""Commands on the machine underneath."""

import pytest
from vm_parts import base, layout


def test_a_command_that_does_not_end_is_named() -> None:
    with pytest.raises(layout.LabError, match=r"^sleep 60: not done within 0\.05 s$"):
        base.run("sleep", "60", limit=0.05)


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(layout.LabError, match=r"^connlab-no-such: not installed$"):
        base.run("connlab-no-such")


def test_a_command_that_fails_is_named_with_its_words() -> None:
    with pytest.raises(layout.LabError, match=r"^sh -c echo one >&2; exit 3: one$"):
        base.run("sh", "-c", "echo one >&2; exit 3")
    assert base.run("sh", "-c", "exit 3", check=False) == ""
