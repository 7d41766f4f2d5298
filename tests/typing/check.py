"""Check the types of the Python that is in no package: roles, playbooks and molecule's tests.

``python tests/typing/check.py``. Ansible gives the roles' ``module_utils`` the name
``ansible.module_utils.<file>``. So that mypy finds them under it, they are copied into a tree with
``stubs/``, which has the part of ansible-core that is used. Errors are shown with the files' own
paths. Exit status 1 if there are any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path(__file__).parent / "stubs"
PLUGINS = ("library", "filter_plugins", "action_plugins")


def mypy(words: Sequence[str | Path], path: Sequence[Path], folder: Path = ROOT) -> tuple[int, str]:
    """Run mypy and return its exit status and what it printed."""
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
    command += ["--cache-dir", ROOT / ".mypy_cache", "--explicit-package-bases", *words]
    env = {**os.environ, "MYPYPATH": ":".join(map(str, path))}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def roles(tree: Path) -> int:
    """Check the roles and the playbooks' filters in a tree of copies; print what is wrong."""
    shutil.copytree(STUBS, tree, dirs_exist_ok=True)
    own: dict[str, Path] = {}
    for source in sorted((ROOT / "roles").glob("*/module_utils/*.py")):
        own[f"ansible/module_utils/{source.name}"] = source
    sources = [path for name in PLUGINS for path in (ROOT / "roles").glob(f"*/{name}/*.py")]
    sources += (ROOT / "playbooks").glob("filter_plugins/*.py")
    own |= {str(path.relative_to(ROOT)): path for path in sorted(sources)}
    for name, source in own.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, tree / name)
    status, said = mypy([*own], [tree], tree)
    for name, source in own.items():
        said = said.replace(f"{name}:", f"{source.relative_to(ROOT)}:")
    print(f"roles, playbooks: {said}", end="")
    return status


def scenario(folder: Path) -> int:
    """Check the files of one directory of molecule, whose tests import their conftest by name."""
    files = sorted(path.name for path in folder.glob("*.py"))
    status, said = mypy(files, [folder, ROOT / "tests" / "unit", ROOT], folder)
    print(f"{folder.relative_to(ROOT)}: {said}", end="")
    return status


def main() -> int:
    """Check all of it; return 0 if nothing is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        statuses = [roles(Path(folder))]
    folders = {path.parent for path in (ROOT / "molecule").rglob("*.py")}
    # A mypy that was killed has a negative status.
    return int(any([*statuses, *map(scenario, sorted(folders))]))


if __name__ == "__main__":
    sys.exit(main())
