"""Packs the agent as one zipapp, for the controller.

The zipapp has byte code beside each source, compiled by this Python. A Python with the same magic
number starts the agent in a third of the time. Any other Python compiles the source
(:mod:`zipimport` looks for the byte code first).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import marshal
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
UNCHECKED = 1
"""Flag of byte code that is loaded without a check of its source (PEP 552): a zipapp is one file,
so both always fit each other."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold; fixed for the same bytes


class Bundle(NamedTuple):
    """The packed agent."""

    data: bytes
    sha256: str


def build(*, trials: bool = False) -> Bundle:
    """Return the agent as one file for ``python3 FILE``; the same sources give the same bytes.

    :param trials: whether to include the small experiments, which are two fifths of it
    """
    here = Path(__file__).parent
    files = {
        "__main__.py": ENTRY.encode(),
        "bench/__init__.py": b"",
        "bench/wire.py": (here.parent / "wire.py").read_bytes(),
    }
    for path in sorted(here.rglob("*.py")):
        if path != Path(__file__) and (trials or path.parent == here):
            files[f"bench/agent/{path.relative_to(here)}"] = path.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
            # A Python that is too old must be able to read the entry.
            code = None if name == "__main__.py" else _compiled(name, text)
            if code:
                archive.writestr(zipfile.ZipInfo(f"{name}c", _EPOCH), code, zipfile.ZIP_DEFLATED)
    data = packed.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())


@functools.cache
def _compiled(name: str, source: bytes) -> bytes | None:
    """Return a module's byte code in the format of a ``.pyc`` file (PEP 552).

    It uses version 2 of marshal's format, which has no references. With references, the same code
    may be written in several ways. None if the format lacks something in the code, such as the
    constant slices of Python 3.14 (Python/marshal.c ``w_complex_object``).
    """
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    try:
        body = marshal.dumps(code, 2)
    except ValueError:
        return None
    head = importlib.util.MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little")
    return head + importlib.util.source_hash(source) + body
