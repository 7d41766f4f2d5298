import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tune_loader import load

recipe = load("lab_image", "module_utils", "connlab_recipe")
image = load("lab_image", "module_utils", "connlab_image")

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
        "lz4",
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


@pytest.mark.parametrize("prefix", ["192.0.2.0/16", "192.0.2.1/24", "fd00::/64", "lab"])
def test_a_bad_management_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(recipe.RecipeError, match="lab_mgmt_prefix"):
        recipe.management_addresses(prefix, 33)


def test_a_lab_without_a_management_network_has_no_addresses_on_it() -> None:
    assert recipe.management_addresses("", 33) == []


def test_hosts_behind_forwarded_ports_are_named_as_ssh_names_them() -> None:
    names = recipe.forwarded_names([22201, 1, 65535])
    assert names == ["[127.0.0.1]:22201", "[127.0.0.1]:1", "[127.0.0.1]:65535"]
    assert recipe.forwarded_names([]) == []
    text = recipe.known_hosts("", names, KEY)
    assert f"[127.0.0.1]:22201 {KEY}" in text.splitlines()
    assert recipe.known_hosts(text, ["192.0.2.1"], KEY) == f"192.0.2.1 {KEY}\n{text}"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_forwarded_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(recipe.RecipeError) as refused:
        recipe.forwarded_names([22201, port])
    assert str(refused.value) == f"lab_image_ports: got {port}, expected 1 to 65535"


def test_known_hosts_keeps_other_labs_and_forgets_other_keys() -> None:
    current = f"198.51.100.1 {KEY}\n192.0.2.1 ssh-ed25519 AAAAold\n203.0.113.1 ssh-rsa AAAAold\n"
    wanted = recipe.known_hosts(current, ["192.0.2.1", "192.0.2.2"], f"{KEY} connlab-host\n")
    assert wanted == f"192.0.2.1 {KEY}\n192.0.2.2 {KEY}\n198.51.100.1 {KEY}\n"
    assert recipe.known_hosts(wanted, ["192.0.2.2"], KEY) == wanted


def test_installed_versions() -> None:
    listing = "adduser 3.134\nlibc6:amd64 2.36-9+deb12u14\n\n"
    assert recipe.installed(listing) == {"adduser": "3.134", "libc6:amd64": "2.36-9+deb12u14"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A build directory with a tree that has a kernel."""
    directory = tmp_path / ".lab" / "image" / ".build-0123456789abcdef"
    boot = directory / "rootfs" / "boot"
    boot.mkdir(parents=True)
    for name in ("vmlinuz-6.1.0-44-cloud-amd64", "initrd.img-6.1.0-44-cloud-amd64"):
        (boot / name).write_text(name)
    return directory


@pytest.fixture
def pack(work: Path) -> Callable[[], None]:
    made = image.Image({"lab_dir": str(work.parents[1])}, check_mode=False)
    return lambda: made._pack(work)


@pytest.fixture
def mke2fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script into PATH as mke2fs, alone."""

    def put(script: str) -> None:
        fake = tmp_path / "bin" / "mke2fs"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(fake.parent))

    return put


def test_a_disk_is_packed_from_the_tree_and_is_its_owners_alone(
    work: Path, pack: Callable[[], None], mke2fs: Callable[[str], None]
) -> None:
    mke2fs(f'echo "$*" > {work}/words; while [ $# -gt 2 ]; do shift; done; echo disk > "$1"')
    pack()
    assert (work / "vmlinuz").read_text() == "vmlinuz-6.1.0-44-cloud-amd64"
    assert (work / "initrd.img").read_text() == "initrd.img-6.1.0-44-cloud-amd64"
    assert (work / "disk.raw").read_text() == "disk\n"
    for name in ("vmlinuz", "initrd.img", "disk.raw"):
        assert (work / name).stat().st_mode & 0o777 == 0o600
    words = (work / "words").read_text()
    assert words.endswith(f"-d {work}/rootfs {work}/disk.raw {image.DISK_MIB}M\n")
    # By this label the guest's kernel finds it.
    assert " -L connlab " in words


@pytest.mark.parametrize("kind", ["vmlinuz", "initrd.img"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_tree_without_the_one_kernel_is_not_packed(
    work: Path, pack: Callable[[], None], kind: str, number: int
) -> None:
    boot = work / "rootfs" / "boot"
    (boot / f"{kind}-6.1.0-44-cloud-amd64").unlink()
    for version in range(number):
        (boot / f"{kind}-6.1.0-{version}-cloud-amd64").write_text("")
    with pytest.raises(recipe.RecipeError) as failed:
        pack()
    assert str(failed.value) == f"{boot}: {number} files {kind}-*, expected one"
    assert not (work / "disk.raw").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'mke2fs 1.47' >&2; echo 'Could not allocate block' >&2; exit 1",
            "mke2fs: mke2fs 1.47 / Could not allocate block",
        ),
        ("exit 4", "mke2fs: exit 4"),
    ],
)
def test_what_mke2fs_complains_of_is_said(
    pack: Callable[[], None], mke2fs: Callable[[str], None], script: str, said: str
) -> None:
    mke2fs(script)
    with pytest.raises(recipe.RecipeError) as failed:
        pack()
    assert str(failed.value) == said


def test_without_mke2fs_it_is_named(
    pack: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(recipe.RecipeError) as failed:
        pack()
    assert str(failed.value) == "mke2fs: not installed"


@pytest.mark.parametrize(
    ("kernel", "free", "needed"), [(False, 499, 500), (True, 999, 1000), (True, 500, 1000)]
)
def test_a_disk_too_small_is_refused_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool, free: int, needed: int
) -> None:
    made = image.Image({"lab_dir": str(tmp_path), "kernel": kernel}, check_mode=False)
    left = {"MiB": free}
    monkeypatch.setattr(
        image.shutil, "disk_usage", lambda _: SimpleNamespace(free=left["MiB"] << 20)
    )
    with pytest.raises(recipe.RecipeError) as failed:
        made._check_space()
    assert str(failed.value) == (
        f"{tmp_path}/image: {free} MiB free, expected {needed} MiB to build the image: free "
        "some space, or choose another lab_dir"
    )
    left["MiB"] = needed
    made._check_space()


def test_who_is_not_root_is_told_what_builds_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image.os, "geteuid", lambda: 1000)
    made = image.Image({"lab_dir": str(tmp_path / ".lab"), "kernel": True}, check_mode=False)
    with pytest.raises(recipe.RecipeError, match="needs root: run sudo make vm-setup once"):
        made._build({}, tmp_path / ".lab" / "image" / "0123456789abcdef")
    assert not (tmp_path / ".lab").exists()


@pytest.mark.parametrize("user", [0, 1000])
def test_root_hands_what_a_lab_runs_on_to_the_owner_of_the_checkout(
    work: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    lab = work.parents[1]
    (lab / "ssh").mkdir()
    for path in (lab / "ssh" / "id_ed25519", work / "vmlinuz", work / "disk.raw"):
        path.write_text("")
    handed: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(image.os, "geteuid", lambda: user)
    # Never through a link: root would hand over what somebody else points at.
    monkeypatch.setattr(
        image.os,
        "chown",
        lambda path, *owner, follow_symlinks: follow_symlinks or handed.update({str(path): owner}),
    )
    image.Image({"lab_dir": str(lab)}, check_mode=False)._hand_over(work)
    owner = (os.stat(lab.parent).st_uid, os.stat(lab.parent).st_gid)
    wanted = [lab, lab / "ssh", lab / "ssh" / "id_ed25519", lab / "image", work]
    wanted += [work / "vmlinuz", work / "disk.raw"]
    assert handed == ({} if user else dict.fromkeys(map(str, wanted), owner))
