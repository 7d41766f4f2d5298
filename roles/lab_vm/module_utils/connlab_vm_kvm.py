"""KVM or TCG: the accelerator on which this machine can really run a guest's kernel."""

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
"""Seconds for the trial boot. Under TCG a guest kernel panics without a root file system after
1.5 s; KVM is faster or broken."""


def choose(wanted: str, image: Path, lab_dir: Path) -> tuple[str, str]:
    """Return the accelerator, and why it is not KVM. The result is kept until a reboot."""
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
        return kind, why  # not kept, because access rights change without a reboot
    with contextlib.suppress(OSError):
        write(note, json.dumps({"key": key, "kind": kind, "why": why}) + "\n")
    return kind, why


def kvm_opens() -> bool:
    """Return whether this user may open /dev/kvm."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def why_not_kvm(image: Path, limit: float = PROBE_SECONDS) -> str:
    """Boot the guest's kernel under KVM, and return why it failed, empty if it ran.

    Without a root file system the kernel panics and reboots immediately, which ends QEMU with
    status 0 within the limit. An existing /dev/kvm proves nothing: on some machines guests hang.
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
