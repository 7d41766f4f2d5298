from typing import Any

import pytest
from tune_loader import load

recipe = load("lab_image", "module_utils", "connlab_recipe")

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Captured from apt 2.6.1; mirrors renamed.
INDEXES = """\
Google|https://example.org/apt/|cloud-sdk-bookworm|main|cloud-sdk-bookworm
Debian|http://mirror.example/debian/|bookworm|main|bookworm
Debian|http://mirror.example/debian/|bookworm|contrib|bookworm
Debian|http://mirror.example/debian/|bookworm-updates|main|bookworm-updates
Debian|http://mirror.example/security/|bookworm-security|main|bookworm-security
Debian Backports|http://mirror.example/debian/|bookworm-backports|main|bookworm-backports
Node|https://node.example/node_20.x/|nodistro|main|nodistro
"""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0"


def test_sources_are_the_machines_own_of_debian_and_of_its_release() -> None:
    assert recipe.debian_sources(INDEXES, "bookworm", KEYRING) == [
        f"deb [signed-by={KEYRING}] http://mirror.example/debian/ bookworm main contrib",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian/ bookworm-updates main",
        f"deb [signed-by={KEYRING}] http://mirror.example/security/ bookworm-security main",
    ]


def test_a_source_may_name_its_suite_by_class() -> None:
    listing = "Debian|http://mirror.example/debian/|stable|main|bookworm\n"
    assert recipe.debian_sources(listing, "bookworm", KEYRING) == [
        f"deb [signed-by={KEYRING}] http://mirror.example/debian/ stable main"
    ]


@pytest.mark.parametrize(
    "listing",
    [
        "",
        "Debian|http://mirror.example/debian/|trixie|main|trixie\n",
        "Debian|http://mirror.example/security/|bookworm-security|main|bookworm-security\n",
        "Google|http://mirror.example/debian/|bookworm|main|bookworm\n",
        "a line of something else\n",
    ],
)
def test_without_a_source_of_the_release_there_is_no_image(listing: str) -> None:
    with pytest.raises(recipe.RecipeError, match="no enabled apt source of origin Debian"):
        recipe.debian_sources(listing, "bookworm", KEYRING)


def test_a_kernel_comes_with_what_boots_it() -> None:
    plain = recipe.packages(["sudo", "dbus"], False, "amd64")
    with_kernel = recipe.packages(["sudo", "dbus"], True, "amd64")
    assert plain == ["dbus", "sudo"]
    assert set(with_kernel) - set(plain) == {
        "initramfs-tools",
        "linux-image-cloud-amd64",
        "udev",
    }


@pytest.mark.parametrize("key", ["packages", "suite", "login_key", "hook"])
def test_the_hash_changes_with_every_part_of_the_recipe(key: str) -> None:
    base: dict[str, Any] = {"packages": ["a"], "suite": "x", "login_key": "1", "hook": "2"}
    changed = {**base, key: ["b"]}
    assert recipe.recipe_hash(changed) != recipe.recipe_hash(base)
    assert recipe.recipe_hash(dict(reversed(base.items()))) == recipe.recipe_hash(base)


def test_management_addresses_start_at_the_first() -> None:
    found = recipe.management_addresses("192.0.2.0/24", 33)
    assert (found[0], found[-1], len(found)) == ("192.0.2.1", "192.0.2.33", 33)


@pytest.mark.parametrize("prefix", ["192.0.2.0/16", "192.0.2.1/24", "fd00::/64", "lab", ""])
def test_a_bad_management_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(recipe.RecipeError, match="lab_mgmt_prefix"):
        recipe.management_addresses(prefix, 33)


def test_known_hosts_keeps_other_labs_and_forgets_other_keys() -> None:
    current = f"198.51.100.1 {KEY}\n192.0.2.1 ssh-ed25519 AAAAold\n203.0.113.1 ssh-rsa AAAAold\n"
    wanted = recipe.known_hosts(current, ["192.0.2.1", "192.0.2.2"], f"{KEY} connlab-host\n")
    assert wanted == f"192.0.2.1 {KEY}\n192.0.2.2 {KEY}\n198.51.100.1 {KEY}\n"
    assert recipe.known_hosts(wanted, ["192.0.2.2"], KEY) == wanted


def test_installed_versions() -> None:
    listing = "adduser 3.134\nlibc6:amd64 2.36-9+deb12u14\n\n"
    assert recipe.installed(listing) == {"adduser": "3.134", "libc6:amd64": "2.36-9+deb12u14"}
