"""Compute the nofile limit that a number of connections requires, and what a host can grant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# Descriptors that a process needs in addition to its connections (log, epoll, pipes).
DESCRIPTOR_RESERVE = 4096
# capabilities(7), include/uapi/linux/capability.h
CAP_SYS_RESOURCE = 24


def may_raise(bounding_set: str) -> bool:
    """Return whether a process with this CapBnd (proc(5), hexadecimal) may raise a hard limit.

    setrlimit(2) requires CAP_SYS_RESOURCE, and no login can have a capability that is not in
    PID 1's bounding set.
    """
    return bool(int(bounding_set, 16) >> CAP_SYS_RESOURCE & 1)


def tune_limits_plan(
    probe: Mapping[str, Any], share: int, nofile: Any, state: str, nr_open: Any = None
) -> dict[str, Any]:
    """Return the nofile limit to set: {"wanted", "effective", "reported"}.

    probe: {"hard", "bounding_set", "login_hard", "nr_open"} of the login; share: connections of
    this host; nofile: the user's own limit, or "" for the computed one; nr_open: the planned
    fs.nr_open, if it is not set yet (check mode).

    Errors: AnsibleFilterError if the user's own limit is not a number, or is above fs.nr_open.
    setrlimit(2) refuses such a limit even to root, pam_limits then ends every login with
    "Permission denied", and nobody could log in to fix it.
    """
    ceiling = max(int(probe["nr_open"]), int(nr_open or 0))
    own = str(nofile).strip()
    if own and not (own.isascii() and own.isdigit() and int(own) > 0):
        raise AnsibleFilterError(f"tune_limits_nofile: {own!r}, expected a whole number above 0")
    wanted = int(own) if own else int(share) + DESCRIPTOR_RESERVE
    if own and wanted > ceiling:
        raise AnsibleFilterError(
            f"tune_limits_nofile: wanted {wanted}, found fs.nr_open {ceiling}: a hard limit above "
            "it locks out every login; raise it first (tune_sysctl_extra: fs.nr_open)"
        )
    held = int(probe["hard"])
    effective = max(wanted, held) if state == "raise" else wanted
    reported = {}
    # A session's own limit can be above nr_open only if nr_open was lowered since.
    if effective > ceiling:
        effective = ceiling
        reported["nofile"] = f"wanted {wanted}, effective {effective}: fs.nr_open"
    if not may_raise(probe["bounding_set"]) and effective > int(probe["login_hard"]):
        effective = int(probe["login_hard"])
        reported["nofile"] = (
            f"wanted {wanted}, effective {effective}: the host's PID 1 has no CAP_SYS_RESOURCE, "
            "so no login can raise its hard limit (pam_limits silently keeps the old one)"
        )
    return {"wanted": wanted, "effective": effective, "reported": reported}


def tune_limits_files(
    lab_name: str, domains: list[str], services: list[str], hard: int, soft: int
) -> dict[str, str]:
    """Return the files that grant a nofile limit, as {path: text}.

    They are a file in limits.d for logins, which pam_limits reads, and systemd drop-ins for
    services, to which PAM does not apply: one for each of `services`, or one for all services if
    the list is empty.
    """
    head = f"# Lab {lab_name}: written by the role tune_limits, reverted by playbooks/revert.yml.\n"
    logins = "".join(
        f"{domain} {kind} nofile {hard}\n" for domain in domains for kind in ("soft", "hard")
    )
    files = {f"/etc/security/limits.d/90-{lab_name}.conf": head + logins}
    value = str(hard) if soft == hard else f"{soft}:{hard}"
    for service in services or [""]:
        unit = f"{service.removesuffix('.service')}.service" if service else "service"
        files[f"/etc/systemd/system/{unit}.d/90-{lab_name}.conf"] = (
            f"{head}[Service]\nLimitNOFILE={value}\n"
        )
    return files


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"tune_limits_plan": tune_limits_plan, "tune_limits_files": tune_limits_files}
