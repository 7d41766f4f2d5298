"""The recipe of the lab's image as data: sources, packages, hash, known_hosts.

Pure functions: nothing here reads or changes the machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re

KERNEL_PACKAGES = ("initramfs-tools", "lz4", "udev")
"""Packages that a root file system needs, in addition to a kernel, to boot as a VM disk."""

INDEX_FORMAT = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(CODENAME)"
"""Format for ``apt-get indextargets --format``, which lists apt's enabled sources."""


class RecipeError(Exception):
    """The image cannot be described or built; the message gives the reason in one line."""


def debian_sources(listing: str, codename: str, keyring: str) -> list[str]:
    """Return the sources.list lines of the image, from the machine's own Debian sources.

    :param listing: output of ``apt-get indextargets --format INDEX_FORMAT 'Created-By: Packages'``.
    :param codename: the machine's Debian release; its updates and security suites are included.
    :param keyring: file with the keys that must have signed them.
    :raises RecipeError: if no enabled source has origin Debian and that release.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for line in listing.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 5:
            continue
        origin, uri, release, component, suite = fields
        if origin != "Debian" or suite not in _suites(codename):
            continue
        components = found.setdefault((uri, release), [])
        if component not in components:
            components.append(component)
    if not any(_same_release(release, codename, listing) for _, release in found):
        raise RecipeError(
            f"no enabled apt source of origin Debian for {codename}: enable one, or set "
            "lab_image_sources to the sources.list lines to use"
        )
    return [
        f"deb [signed-by={keyring}] {uri} {release} {' '.join(components)}"
        for (uri, release), components in found.items()
    ]


def _suites(codename: str) -> tuple[str, ...]:
    return (codename, f"{codename}-updates", f"{codename}-security")


def _same_release(release: str, codename: str, listing: str) -> bool:
    # A source may name its suite by class ("stable"). apt's Codename field has the release.
    return any(
        fields[2] == release and fields[4] == codename
        for fields in (line.strip().split("|") for line in listing.splitlines())
        if len(fields) == 5 and fields[0] == "Debian"
    )


def packages(wanted: list[str], kernel: bool, architecture: str) -> list[str]:
    """Return the sorted package list of the image, with a kernel if it is a VM disk.

    :param architecture: Debian's name of it, e.g. amd64.
    """
    chosen = set(wanted)
    if kernel:
        chosen |= {*KERNEL_PACKAGES, f"linux-image-cloud-{architecture}"}
    return sorted(chosen)


def recipe_hash(recipe: dict[str, object]) -> str:
    """Return sixteen hex digits that change whenever the recipe changes."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def management_addresses(prefix: str, hosts: int) -> list[str]:
    """Return the hosts' addresses, the first ones of a management prefix; none without a prefix.

    :raises RecipeError: if the prefix is not an IPv4 /24.
    """
    if not prefix:
        return []
    try:
        network = ipaddress.IPv4Network(prefix)
    except ValueError as bad:
        raise RecipeError(f"lab_mgmt_prefix: got {prefix!r}, expected an IPv4 /24: {bad}") from None
    if network.prefixlen != 24:
        raise RecipeError(f"lab_mgmt_prefix: got {prefix}, expected a /24")
    return [str(network[number]) for number in range(1, hosts + 1)]


def forwarded_names(ports: list[int]) -> list[str]:
    """Return the names in known_hosts of sshds that are reached through ports of 127.0.0.1.

    :raises RecipeError: if one is not a valid port.
    """
    for port in ports:
        if not 1 <= port <= 65535:
            raise RecipeError(f"lab_image_ports: got {port}, expected 1 to 65535")
    return [f"[127.0.0.1]:{port}" for port in ports]


def known_hosts(current: str, addresses: list[str], public_key: str) -> str:
    """Return the text of known_hosts: every address with the host key.

    Lines of other addresses stay if they have the same key (another lab of this checkout, with
    another prefix). A line with another key belongs to an image that no longer exists.

    :param public_key: a line of a .pub file; its comment is dropped.
    """
    key = " ".join(public_key.split()[:2])
    kept = [
        line.split()[0]
        for line in current.splitlines()
        if re.fullmatch(rf"\S+ {re.escape(key)}", line.strip())
    ]
    names = sorted({*kept, *addresses}, key=lambda name: (len(name), name))
    return "".join(f"{name} {key}\n" for name in names)


def installed(listing: str) -> dict[str, str]:
    """Return package versions from ``dpkg-query -W -f '${binary:Package} ${Version}\\n'``."""
    rows = (line.split() for line in listing.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}
