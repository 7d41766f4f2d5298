"""Packs the agent as one zipapp, for the controller."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

ENTRY = """\
import json
import sys

if sys.version_info < (3, 9):
    found = "%d.%d" % sys.version_info[:2]
    print(json.dumps({"event": "error", "kind": "input",
                      "message": "python3 is " + found + ", 3.9 or newer is needed"}))
    sys.exit(2)

from bench.agent import options

try:
    mode, asked = options.parse(sys.argv[1:])
except ValueError as error:
    sys.exit(str(error))
if mode == "trial":
    from bench.agent.stage import main
else:
    from bench.agent.main import main

main(asked)
"""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold: same bytes every time


class Bundle(NamedTuple):
    """The packed agent."""

    data: bytes
    sha256: str


def build() -> Bundle:
    """The agent as one file for ``python3 FILE``; the same sources give the same bytes."""
    here = Path(__file__).parent
    files = {
        "__main__.py": ENTRY.encode(),
        "bench/__init__.py": b"",
        "bench/wire.py": (here.parent / "wire.py").read_bytes(),
    }
    for path in sorted(here.rglob("*.py")):
        if path != Path(__file__):
            files[f"bench/agent/{path.relative_to(here)}"] = path.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    data = packed.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())
