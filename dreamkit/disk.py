"""Writing files that survive: whole or not at all, one writer to a folder, and plain words when the disk says no."""

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dreamkit.errors import InputError, RunError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that `path` holds either what it held before or all of `data`, even if the power fails.

    Raises RunError if the disk says no; nothing temporary is left behind.
    """
    with plainly(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed inside `write_whole` left in this folder and below."""
    for temporary in folder.rglob(".*.tmp"):
        with plainly(temporary):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def plainly(path: Path) -> Iterator[None]:
    """Turn what the operating system says against a file into a RunError in plain words."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"the disk is full: {path} could not be written. What was written before is whole; "
            "free some space and resume the run."
            if full
            else f"{path} could not be written: {error.strerror or error}."
        ) from error


def expanded(path: str | Path) -> Path:
    """The path with a leading ~ as the home folder; as it is where nobody has that name."""
    return Path(os.path.expanduser(path))


def check_folder(folder: Path) -> None:
    """Raise InputError if nothing can be written into this folder, which need not be there yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        problem = f"{there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} may not be written to"
    else:
        return
    raise InputError(f"nothing can be written into {folder}: {problem}. Choose another place with --out.")


def make_folder(folder: Path) -> None:
    """Make the folder and those above it, if they are not there. Raises RunError if the disk says no."""
    with plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_space(folder: Path, space: int) -> None:
    """Raise InputError if fewer than `space` bytes are free where the folder is, or will be."""
    there = next((place for place in (folder, *folder.absolute().parents) if os.path.isdir(place)), None)
    try:
        free = shutil.disk_usage(there or "/").free
    except OSError:
        return  # whoever makes the folder will hear what is wrong with it
    if free < space:
        raise InputError(
            f"a run needs about {space / 2**20:.0f} MiB, but only {free / 2**20:.0f} MiB are free where {folder} lies. "
            "Free some space, or choose a folder on another disk with --out."
        )


def lock(folder: Path) -> BinaryIO:
    """Take the folder's lock. It is held until the file that comes back is closed, at the latest when the process ends.

    Raises InputError that says who holds it. Where the file system knows no locks it is taken for free: a run is worth
    more than its lock.
    """
    with plainly(folder / ".lock"):
        file = (folder / ".lock").open("a+b")
    for attempt in range(5):  # `is_locked` of another process may hold it for a moment
        if attempt:
            time.sleep(0.05)
        if _try_lock(file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            return file
    file.seek(0)
    holder = file.read().decode(errors="replace") or "another process"
    file.close()
    raise InputError(f"{folder} is being written by {holder}. Wait for it, or stop it first.")


def is_locked(folder: Path) -> bool:
    """Whether some process is writing this run folder."""
    try:
        with (folder / ".lock").open("r+b") as file:
            return not _try_lock(file)
    except OSError:
        return False


def _try_lock(file: BinaryIO) -> bool:
    try:
        import fcntl
    except ImportError:
        return _try_lock_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _try_lock_windows(file: BinaryIO) -> bool:
    import msvcrt

    file.seek(1 << 20)  # a byte that is never written, so that others can read who holds the lock
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename last. Not every system can open a folder; there the rename lasts when it lasts."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
