"""Whole files, locks, and a disk that says no."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamkit import disk
from dreamkit.errors import InputError, RunError

HOLD = """
import sys, time
from pathlib import Path
from dreamkit import disk
held = disk.lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def failing(code: int):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_replaced_whole(tmp_path: Path):
    file = tmp_path / "a.json"
    for data in (b"long before", b"new"):
        disk.write_whole(file, data)
        assert file.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full: .*a.json could not be written"),
        (errno.EIO, "a.json could not be written: Input"),
    ],
)
def test_where_the_disk_says_no_the_old_file_stays(tmp_path: Path, monkeypatch, call: str, code: int, says: str):
    file = tmp_path / "a.json"
    disk.write_whole(file, b"old")
    monkeypatch.setattr(disk.os, call, failing(code))
    with pytest.raises(RunError, match=says):
        disk.write_whole(file, b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]


def test_a_folder_that_takes_nothing_is_said_before(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "new" / "deeper", Path("new")):
        disk.check_folder(folder)
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match=r"file is a file\. Choose another place"):
            disk.check_folder(folder)
        with pytest.raises(RunError, match="could not be written"):
            disk.make_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_home_that_nobody_has_is_a_name_like_others(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert disk.expanded("~/x") == Path("/home/somebody/x")
    assert disk.expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_a_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path):
    (tmp_path / "plain").write_text("x")
    disk.write_whole(tmp_path / "whole", b"x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_writer_left_is_swept(tmp_path: Path):
    (tmp_path / "in").mkdir()
    left = [tmp_path / ".run.json.7.tmp", tmp_path / "in" / ".step_000001.json.7.tmp"]
    kept = [tmp_path / "run.json", tmp_path / "mine.tmp"]
    for file in left + kept:
        file.write_text("x")
    disk.sweep(tmp_path)
    assert [file.exists() for file in left + kept] == [False, False, True, True]


def test_too_little_space_is_said_before_anything_is_made(tmp_path: Path):
    free = disk.shutil.disk_usage(tmp_path).free
    disk.check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(InputError, match=r"a run needs about \d+ MiB, but only \d+ MiB are free .*--out"):
        disk.check_space(tmp_path / "not" / "yet", 2 * free)
    assert not list(tmp_path.iterdir())


def test_a_lock_keeps_another_process_out_and_ends_with_its_own(tmp_path: Path):
    assert not disk.is_locked(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert disk.is_locked(tmp_path)
        with pytest.raises(InputError, match=f"is being written by process {holder.pid} on "):
            disk.lock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert not disk.is_locked(tmp_path)
    disk.lock(tmp_path).close()


def test_a_lock_keeps_the_same_process_out_too(tmp_path: Path):
    held = disk.lock(tmp_path)
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        disk.lock(tmp_path)
    held.close()
    disk.lock(tmp_path).close()


def test_without_locks_in_the_file_system_a_run_goes_on(tmp_path: Path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    disk.lock(tmp_path).close()
