"""KVM or TCG: what this machine can really run a guest's kernel on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

from ansible.module_utils.connlab_base import read, write
from ansible.module_utils.connlab_layout import LabError
from ansible.module_utils.connlab_vm_arguments import accelerator
from ansible.module_utils.connlab_vm_qemu import NOT_INSTALLED, QEMU

PROBE_SECONDS = 10.0
"""A guest kernel needs 1.5 s under TCG to find that it has no root; KVM is faster or broken."""


def choose(wanted: str, image: Path, lab_dir: Path) -> tuple[str, str]:
    """The accelerator and why KVM is not it; a trial boot's outcome is kept until the next boot."""
    if wanted != "auto":
        return wanted, ""
    note = lab_dir / "kvm.json"
    boot = read(Path("/proc/sys/kernel/random/boot_id")).strip()
    key = [boot, str(image), os.geteuid()]
    with contextlib.suppress(ValueError):
        kept = json.loads(read(note) or "{}")
        if kept.get("key") == key:
            return kept["kind"], kept["why"]
    why = why_not_kvm(image)
    kind = "tcg" if why else "kvm"
    if not kvm_opens():
        return kind, why  # rights change without a boot
    with contextlib.suppress(OSError):
        write(note, json.dumps({"key": key, "kind": kind, "why": why}) + "\n")
    return kind, why


def kvm_opens() -> bool:
    """Whether this user may use /dev/kvm at all."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def why_not_kvm(image: Path, limit: float = PROBE_SECONDS) -> str:
    """Boot the guest's kernel under KVM; empty if it ran, otherwise the reason why not.

    Without a root file system the kernel panics and restarts at once, which ends QEMU: status 0
    within the limit. /dev/kvm alone proves nothing, on some machines a guest hangs on it.
    """
    if not kvm_opens():
        return "/dev/kvm cannot be opened"
    words = [QEMU, "-machine", "q35", *accelerator("kvm"), "-m", "256", "-nodefaults"]
    words += ["-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
    words += ["-kernel", str(image / "vmlinuz"), "-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(NOT_INSTALLED) from None
    except subprocess.TimeoutExpired:
        return f"the guest's kernel did not get through its boot within {limit:.0f} s"
    if done.returncode or "Linux version" not in done.stdout:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return said[0] if said else f"QEMU ended with {done.returncode}"
    return ""
