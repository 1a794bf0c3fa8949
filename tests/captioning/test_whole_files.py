"""Files that are there whole or not at all."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from mmt_cli.captioning import whole_files
from mmt_cli.captioning.whole_files import open_locked, replace_file, write_at


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_made_and_replaced_and_nothing_else_stays(tmp_path):
    path = tmp_path / "a.txt"
    for content in (b"one", b"", b"three\n"):
        replace_file(str(path), content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_a_new_file_or_as_asked(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        replace_file(str(tmp_path / "new"), b"")
        replace_file(str(tmp_path / "kept"), b"", mode=0o604)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "kept")] == [0o640, 0o604]


def test_a_name_as_long_as_names_get_can_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "n" * 251 + ".txt"
    replace_file(name, b"x")
    assert names(tmp_path) == [name]


def test_what_a_killed_run_left_is_overwritten(tmp_path, monkeypatch):
    path = str(tmp_path / "a.txt")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: os._exit(9))
        child = os.fork()
        if child == 0:
            replace_file(path, b"x" * 1000)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    [left] = names(tmp_path)
    assert left.startswith(".")
    replace_file(path, b"short")
    assert names(tmp_path) == ["a.txt"]
    assert Path(path).read_bytes() == b"short"


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match="no space"):
            replace_file(str(tmp_path / "a"), b"new")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("sync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("name"), replace(*paths)))
    replace_file(str(tmp_path / "a"), b"x")
    assert events == ["sync", "name"]


def test_many_that_write_one_file_never_mix(tmp_path):
    path, contents = str(tmp_path / "a"), [bytes([65 + i]) * 5000 for i in range(6)]
    found: list[bytes] = []

    def work(content: bytes) -> None:
        for _ in range(30):
            replace_file(path, content)
            found.append(Path(path).read_bytes())

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 180
    assert set(found) <= set(contents)
    assert names(tmp_path) == ["a"]


def test_a_locked_file_is_refused_until_it_is_let_go(tmp_path):
    path = str(tmp_path / "a")
    first = open_locked(path, os.O_RDWR | os.O_CREAT, wait=False)
    with pytest.raises(BlockingIOError):
        open_locked(path, os.O_RDWR | os.O_CREAT, wait=False)
    os.close(first)
    os.close(open_locked(path, os.O_RDWR | os.O_CREAT, wait=False))


def test_a_file_that_was_removed_before_the_lock_came_is_opened_anew(tmp_path, monkeypatch):
    path, lock, calls = tmp_path / "a", whole_files._lock, []

    def late(descriptor: int, *, wait: bool) -> None:
        if not calls:
            path.unlink()
        calls.append(descriptor)
        lock(descriptor, wait=wait)

    monkeypatch.setattr(whole_files, "_lock", late)
    descriptor = open_locked(str(path), os.O_RDWR | os.O_CREAT, wait=False)
    assert len(calls) == 2
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    os.close(descriptor)


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(whole_files.fcntl, "flock", fail)
    replace_file(str(tmp_path / "a"), b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_write_in_pieces_is_whole(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, offset: pwrite(number, data[:3], offset))
    with (tmp_path / "a").open("w+b") as file:
        write_at(file.fileno(), b"0123456789", 2)
    assert (tmp_path / "a").read_bytes() == b"\0\0" + b"0123456789"
