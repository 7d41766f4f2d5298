"""Import the Python inside of roles, which no package contains."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROLES = Path(__file__).parents[2] / "roles"


def load(role: str, folder: str, name: str) -> ModuleType:
    """Import roles/<role>/<folder>/<name>.py; module_utils under the name that Ansible gives it."""
    full = f"ansible.module_utils.{name}" if folder == "module_utils" else f"{folder}.{name}"
    if full in sys.modules:
        return sys.modules[full]
    spec = importlib.util.spec_from_file_location(full, ROLES / role / folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module
