"""All writing to this machine's disks: whole files or nothing, as UTF-8.

A reader finds either the old file or the new one. The data has reached the disk when a function
here returns (fsync(2)), so a full or failing disk is an error here and not later.

Every function passes on the system's OSError and then leaves no half-written file behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import names

_NO_LINK = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write(target: Path, text: str) -> None:
    """Write a file whose path the user chose. Follow a link; write straight into a device."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):
            with target.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return
    real = Path(os.path.realpath(target))
    folder = os.open(real.parent, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write(folder, {real.name: text})
    finally:
        os.close(folder)


def write_inside(root: Path, parts: tuple[str, ...], texts: Mapping[str, str]) -> None:
    """Write files, by name, into a directory below ``root``; create it if it is missing.

    :param parts: the names of the directories on the way from ``root``
    :raises ValueError: for a name that is not safe as one component of a path
    :raises OSError: also if a link is in the way (ENOTDIR)
    """
    for name in texts:
        _check(name)
    with _inside(root, parts) as folder:
        _write(folder, texts)


class Lines:
    """A file that grows by whole lines, as long as the disk has room for them.

    A context manager. A reader can use the file at any time: lines that did not fit on the disk are
    taken back.
    """

    def __init__(self, root: Path, parts: tuple[str, ...], name: str) -> None:
        """Create the file. :raises ValueError: as :func:`write_inside` does."""
        _check(name)
        with _inside(root, parts) as folder:
            self._file = os.open(name, _NEW, 0o666, dir_fd=folder)
        self._size = 0

    def write(self, text: str) -> None:
        """Add lines."""
        data = _encoded(text)
        try:
            _write_all(self._file, data)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        # All lines have been written already: a disk that fails only now does no harm.
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)


class Room:
    """Disk space that is reserved for later, in a file without a name that ends with the process.

    :param size: bytes
    :raises OSError: if there is not enough space, also by quota (EDQUOT) or RLIMIT_FSIZE (EFBIG)
    """

    def __init__(self, folder: Path, size: int) -> None:
        name = folder / _scratch()
        self._file: int | None = os.open(name, _NEW, 0o600)
        try:
            os.unlink(name)
            os.write(self._file, b"connlab\n")
            os.posix_fallocate(self._file, 0, size)
            os.fsync(self._file)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the space back. A second call does nothing.

        Closing the file is not enough: a process that another thread is starting has the file open
        too, until it executes its program (fork(2)).
        """
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def _check(name: str) -> None:
    if not names.safe(name):
        raise ValueError(f"name {name!r}: expected {names.EXPECTED}")


@contextlib.contextmanager
def _inside(root: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """Open a directory below ``root`` without following a link; yield its descriptor."""
    for part in parts:
        _check(part)
    folder = os.open(root, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            below = os.open(part, _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)


def _write(folder: int, texts: Mapping[str, str]) -> None:
    """Write files into an open directory, each under a scratch name that is then renamed."""
    for name, text in texts.items():
        scratch = _scratch()
        file = os.open(scratch, _NEW, 0o666, dir_fd=folder)
        try:
            try:
                _write_all(file, _encoded(text))
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(scratch, dir_fd=folder)
            raise
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system supports it
            raise


def _scratch() -> str:
    return f".{os.getpid()}.{secrets.token_hex(4)}.new"


def _encoded(text: str) -> bytes:
    """Return text as UTF-8; a surrogate, which UTF-8 lacks, becomes a backslash escape."""
    return text.encode("utf-8", "backslashreplace")


def _write_all(file: int, data: bytes) -> None:
    """Write all data, however little the system takes at a time (write(2))."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
