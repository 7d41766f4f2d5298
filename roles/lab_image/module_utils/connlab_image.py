"""Build the lab's image, once per recipe."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.connlab_recipe import (
    INDEX_FORMAT,
    RecipeError,
    debian_sources,
    forwarded_names,
    installed,
    known_hosts,
    management_addresses,
    packages,
    recipe_hash,
)

DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
)
DISK_MIB = 3072
"""Size of a VM's disk, MiB; sparse. The tree takes about 400."""

BUILD_MIB = {False: 500, True: 1000}
"""Disk space for a build without and with a kernel, MiB; the measured peaks are 393 and 778."""

PRIVATE = 0o700
"""Mode of directories that other users may not enter. Hosts' files contain setuid programs, as old
as the image, and this machine's kernel runs anything that a host's root writes."""

BUILD_LIMIT = 1800
"""Seconds for a build, and to wait for a concurrent one. Mirrors may be slow."""


class Image:
    """The image that the parameters describe, and the keys inside it."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.lab = Path(self.params["lab_dir"])
        self.ssh = self.lab / "ssh"
        self.images = self.lab / "image"

    def ensure(self) -> dict[str, Any]:
        """Create the missing parts, and return the module's result.

        :raises RecipeError: if something cannot be created, with the reason in one line.
        """
        addresses = management_addresses(self.params["mgmt_prefix"], self.params["hosts"])
        addresses += forwarded_names(self.params["ports"])
        keys_missing = [name for name in self._key_files() if not (self.ssh / name).is_file()]
        if keys_missing and self.check_mode:
            return {"changed": True, "path": "", "hash": "", "removed": []}
        changed = self._close_off()
        if keys_missing:
            self._make_keys()
        changed |= bool(keys_missing)
        changed |= self._write_known_hosts(addresses)
        recipe = self._recipe()
        name = recipe_hash(recipe)
        path = self.images / name
        result: dict[str, Any] = {"path": str(path), "hash": name, "removed": []}
        if not (path / "manifest.json").is_file():
            changed = True
            if not self.check_mode:
                result["seconds"] = self._build(recipe, path)
        if not self.check_mode:
            os.utime(path)
            if self.params["kernel"]:
                self._hand_over(path)
            # The trees belong to root, so only root can remove them.
            result["removed"] = self._prune(path) if os.geteuid() == 0 else []
        return {**result, "changed": changed or bool(result["removed"])}

    @staticmethod
    def _key_files() -> list[str]:
        return [
            name + suffix
            for name in ("id_ed25519", "ssh_host_ed25519_key")
            for suffix in ("", ".pub")
        ]

    def _close_off(self) -> bool:
        """Restrict the lab's state to its owner, and the hosts' files to root.

        The owner of the checkout runs virtual machines from an image's directory, but cannot enter
        the tree in it. Existing files get the same modes. Returns whether a mode was changed, or
        would be in check mode.
        """
        if not self.check_mode:
            for directory in (self.lab, self.ssh, self.images):
                directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        wanted = dict.fromkeys((self.lab, self.ssh, self.images), PRIVATE)
        images = [*self.images.glob("[0-9a-f]*"), *self.images.glob(".build-*")]
        trees = [image / "rootfs" for image in images]
        wanted.update(dict.fromkeys([*trees, *self.lab.glob("*/hosts")], PRIVATE))
        keys = [self.ssh / name for name in self._key_files() if not name.endswith(".pub")]
        wanted.update(dict.fromkeys(keys, 0o600))
        return any([self._limit(path, mode) for path, mode in wanted.items()])

    def _limit(self, path: Path, mode: int) -> bool:
        """Set the mode of a path, and return whether it differed. Skips other users' files."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # it does not exist, is a link, or cannot be opened by this user
            return False
        try:
            about = os.fstat(handle)
            ours = os.geteuid() in (0, about.st_uid)
            if not ours or stat.S_IMODE(about.st_mode) == mode:
                return False
            if not self.check_mode:
                os.fchmod(handle, mode)
            return True
        finally:
            os.close(handle)

    def _make_keys(self) -> None:
        for name, comment in (("id_ed25519", "connlab"), ("ssh_host_ed25519_key", "connlab-host")):
            key, public = self.ssh / name, self.ssh / f"{name}.pub"
            if key.is_file() and public.is_file():
                continue
            key.unlink(missing_ok=True)
            public.unlink(missing_ok=True)
            self._run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key])

    def _write_known_hosts(self, addresses: list[str]) -> bool:
        path = self.ssh / "known_hosts"
        current = path.read_text() if path.is_file() else ""
        public = (self.ssh / "ssh_host_ed25519_key.pub").read_text()
        wanted = known_hosts(current, addresses, public)
        if wanted == current:
            return False
        if not self.check_mode:
            fresh = path.with_suffix(".new")
            fresh.write_text(wanted)
            fresh.replace(path)
        return True

    def _recipe(self) -> dict[str, object]:
        tree = Path(self.params["tree"])
        files = {
            str(file.relative_to(tree)): _digest(file)
            for file in sorted(tree.rglob("*"))
            if file.is_file()
        }
        release = platform.freedesktop_os_release()
        if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
            raise RecipeError(
                f"this machine runs {release.get('PRETTY_NAME')}; the image is built from the "
                "machine's own Debian sources: use Debian 12 or newer"
            )
        architecture = self._run(["dpkg", "--print-architecture"]).strip()
        return {
            "suite": release["VERSION_CODENAME"],
            "architecture": architecture,
            "packages": packages(self.params["packages"], self.params["kernel"], architecture),
            "files": files,
            "hook": _digest(Path(self.params["hook"])),
            "dpkg_options": list(DPKG_OPTIONS),
            "login_key": _digest(self.ssh / "id_ed25519.pub"),
            "host_key": _digest(self.ssh / "ssh_host_ed25519_key.pub"),
        }

    def _sources(self, codename: str) -> list[str]:
        given: list[str] = self.params["sources"]
        if given:
            return given
        list_indexes = ["apt-get", "indextargets", "--format", INDEX_FORMAT, "Created-By: Packages"]
        try:
            return debian_sources(self._run(list_indexes), codename, self.params["keyring"])
        except RecipeError:
            # apt knows the origin of a source only after fetching its Release file.
            self._run(["apt-get", "--quiet", "update"])
            return debian_sources(self._run(list_indexes), codename, self.params["keyring"])

    def _build(self, recipe: dict[str, object], path: Path) -> float:
        if os.geteuid() != 0:
            raise RecipeError(
                "building the image needs root: run sudo make vm-setup once, or as root "
                "ansible-playbook playbooks/create.yml -e lab_vm_state=prepared"
            )
        with (self.images / ".lock").open("w") as lock:
            self._wait_for(lock.fileno())
            if (path / "manifest.json").is_file():
                return 0.0
            # While the lock is held, any other build directory belongs to a dead build.
            for stale in self.images.glob(".build-*"):
                shutil.rmtree(stale)
            if path.exists():
                shutil.rmtree(path)
            self._check_space()
            started = time.monotonic()
            work = self.images / f".build-{path.name}"
            work.mkdir(mode=PRIVATE)
            try:
                self._bootstrap(recipe, work, lock.fileno())
                if self.params["kernel"]:
                    self._pack(work)
                self._write_manifest(recipe, work, started)
                (work / "sources.list").unlink()
                # Only after packing, because the root of the disk gets the mode of the tree.
                (work / "rootfs").chmod(PRIVATE)
                work.chmod(0o755)
                work.rename(path)
            finally:
                if work.exists():
                    shutil.rmtree(work)
            return round(time.monotonic() - started, 1)

    def _check_space(self) -> None:
        """Check the free disk space, because mmdebstrap does not report a full disk.

        :raises RecipeError: if there is not enough.
        """
        free, needed = shutil.disk_usage(self.images).free >> 20, BUILD_MIB[self.params["kernel"]]
        if free < needed:
            raise RecipeError(
                f"{self.images}: {free} MiB free, expected {needed} MiB to build the image: "
                "free some space, or choose another lab_dir"
            )

    def _wait_for(self, lock: int) -> None:
        deadline = time.monotonic() + BUILD_LIMIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RecipeError(
                        f"another build has held {self.images}/.lock for {BUILD_LIMIT} s"
                    ) from None
                time.sleep(0.2)

    def _bootstrap(self, recipe: dict[str, object], work: Path, lock: int) -> None:
        sources = self._sources(str(recipe["suite"]))
        (work / "sources.list").write_text("\n".join(sources) + "\n")
        wanted = recipe["packages"]
        assert isinstance(wanted, list)
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=essential",
            "--format=directory",
            "--quiet",
            f"--include={','.join(wanted)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            '--aptopt=Acquire::Retries "3"',
            *(f"--aptopt={line}" for line in self._acquire_options()),
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            '--customize-hook="$HOOK" "$1"',
            "",
            str(work / "rootfs"),
            str(work / "sources.list"),
        ]
        environment = {
            **os.environ,
            "HOOK": self.params["hook"],
            "TREE": self.params["tree"],
            "SSH": str(self.ssh),
            "LC_ALL": "C.UTF-8",
        }
        # The child inherits the lock: if this module is killed, the next build waits for the child.
        self._run(command, environment, pass_fds=(lock,), limit=BUILD_LIMIT)

    def _pack(self, work: Path) -> None:
        """Pack kernel, initrd and disk of a VM, which the checkout's owner runs without root."""
        tree = work / "rootfs"
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd.img", "initrd.img-*")):
            found = sorted((tree / "boot").glob(pattern))
            if len(found) != 1:
                raise RecipeError(f"{tree}/boot: {len(found)} files {pattern}, expected one")
            shutil.copyfile(found[0], work / name)
        disk = work / "disk.raw"
        # Initialized now: otherwise a guest's kernel does it while it is measured.
        options = "lazy_itable_init=0,lazy_journal_init=0"
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "connlab", "-E", options]
        self._run([*words, "-d", tree, disk, f"{DISK_MIB}M"])
        for name in ("vmlinuz", "initrd.img", "disk.raw"):
            (work / name).chmod(0o600)

    def _hand_over(self, path: Path) -> None:
        """Give the files that are needed to run the lab to the checkout's owner."""
        if os.geteuid() != 0:
            return
        owner = self.lab.parent.stat()
        files = [*self.ssh.glob("*"), *(path / name for name in ("vmlinuz", "initrd.img"))]
        for each in (self.lab, self.ssh, self.images, path, path / "disk.raw", *files):
            if each.exists():
                os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _acquire_options(self) -> list[str]:
        """Return apt's options for reaching the sources: proxies, and disabled checks."""
        dump = self._run(["apt-config", "dump", "--format", '%F "%v";%n'])
        wanted = r"Acquire::((http|https)::(Proxy|CaInfo)|Check-Valid-Until|Check-Date)\b.*"
        return [line for line in dump.splitlines() if re.match(wanted, line) and '""' not in line]

    def _write_manifest(self, recipe: dict[str, object], work: Path, started: float) -> None:
        query = ["dpkg-query", f"--admindir={work}/rootfs/var/lib/dpkg"]
        listing = self._run([*query, "-W", "-f", "${binary:Package} ${Version}\n"])
        sources = (work / "sources.list").read_text()
        manifest = {
            "hash": recipe_hash(recipe),
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "recipe": recipe,
            # Run results include this, so a password in a source's address must not be in it.
            "sources": re.sub(r"//[^/@\s]*@", "//", sources).splitlines(),
            "packages": installed(listing),
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    def _prune(self, current: Path) -> list[str]:
        """Remove the least recently used images, except those that a lab's hosts use."""
        in_use = {current.name}
        for lower in self.lab.glob("*/hosts/*/lower"):
            in_use.add(lower.resolve().parent.name)
        spare = [
            image
            for image in sorted(self.images.glob("[0-9a-f]*"), key=_age)
            if image.name not in in_use
        ]
        old = spare[self.params["keep"] :]
        for image in old:
            shutil.rmtree(image)
        return [image.name for image in old]

    def _run(
        self,
        command: Sequence[str | Path],
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        limit: float = 600,
    ) -> str:
        try:
            done = subprocess.run(
                command,
                env=environment or {**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                pass_fds=pass_fds,
                timeout=limit,
            )
        except FileNotFoundError as missing:
            raise RecipeError(f"{missing.filename}: not installed") from None
        except subprocess.TimeoutExpired:
            raise RecipeError(f"{command[0]}: not done within {limit:.0f} s") from None
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("E:")] or said
            text = " / ".join(errors[-3:]) or f"exit {done.returncode}"
            raise RecipeError(f"{command[0]}: {text}")
        return done.stdout


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _age(image: Path) -> float:
    return -image.stat().st_mtime
