"""A temporary local lab: built, tuned, reverted and destroyed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from bench import inventory
from bench.errors import InputError, LabError
from bench.inventory import Inventory

ROOT = Path(__file__).resolve().parents[2]
OWNERS = Path("/run/connlab")
"""Directory with a file for every lab that is up, by its name."""

PLAY_SECONDS = 1_800.0
"""Seconds for one playbook: the first may have to build the hosts' image."""


class OwnLab:
    """A lab beside others, used as a context: at its end nothing of it stays."""

    def __init__(self, name: str, prefix: str, variables: Mapping[str, object]) -> None:
        """Prepare the lab's settings.

        :param prefix: a /24 for management that no other lab has
        """
        self._name = name
        settings = {"lab_name": name, "lab_mgmt_prefix": prefix, **variables}
        self._settings = [f"{key}={value}" for key, value in settings.items()]

    def __enter__(self) -> Inventory:
        """Build and tune the lab.

        :raises InputError: if a lab of that name is up.

        :raises LabError: if the lab cannot be built.
        """
        if (OWNERS / f"{self._name}.owner").exists():
            raise InputError(
                f"lab: {self._name} is up already, expected none of that name; remove it: make "
                f"down LAB={self._name}"
            )
        try:
            self._play("create")
            self._play("tune")
            return inventory.load([inventory.DEFAULT], self._settings)
        except BaseException:
            self._remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._remove():
            raise LabError(f"lab {self._name}: not removed; try again: make down LAB={self._name}")

    def _remove(self) -> bool:
        """Revert and destroy, each whatever the other's outcome; return whether both worked."""
        done = []
        for book in ("revert", "destroy"):
            try:
                self._play(book)
                done.append(book)
            except LabError as error:
                print(error, file=sys.stderr)
        return len(done) == 2

    def _play(self, book: str) -> None:
        words = ["ansible-playbook", f"playbooks/{book}.yml"]
        for setting in self._settings:
            words += ["-e", setting]
        try:
            ended = subprocess.run(words, cwd=ROOT, check=False, timeout=PLAY_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(f"{book}.yml: not done within {PLAY_SECONDS:,.0f} s") from None
        if ended.returncode:
            raise LabError(f"{book}.yml: exit status {ended.returncode}")
