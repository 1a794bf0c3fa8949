"""The file that a run writes its records to."""

import errno
import json
import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from mmt_cli.captioning import output as module
from mmt_cli.captioning.output import OutputFile
from mmt_cli.captioning.writers import Layout
from mmt_cli.errors import OutputError, UsageError

TSV = Layout(kind="tsv")
SETTINGS = {"model": "mini@0123456789ab", "prompt": "a dog"}


def output(path: Path | str, *, layout: Layout = TSV, resume: bool = False) -> OutputFile:
    return OutputFile(str(path), layout=layout, resume=resume)


def write(
    path: Path | str, text: str, *, layout: Layout = TSV, resume: bool = False, settings: dict = SETTINGS
) -> None:
    with output(path, layout=layout, resume=resume) as file:
        file.start(settings)
        file.write(text)


def refusal(path: Path | str, *, resume: bool = False) -> str:
    with pytest.raises(UsageError) as caught, output(path, resume=resume) as file:
        file.start(SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_records_come_at_each_commit_and_the_settings_before_them(tmp_path):
    path = tmp_path / "out"
    with output(path) as file:
        file.start(SETTINGS)
        assert path.read_bytes() == b""
        assert json.loads((tmp_path / "out.mmt").read_text()) == {
            "format_version": 1,
            "settings": SETTINGS | {"format": "tsv", "num_captions": 1, "grounding": False},
        }
        file.write("a\tx\n")
        file.write("\udcff\té\n")
        file.commit()
        assert path.read_bytes() == b"a\tx\n\xff\t\xc3\xa9\n"
        file.write("b\ty\n")
    assert path.read_bytes() == b"a\tx\n\xff\t\xc3\xa9\nb\ty\n"
    assert names(tmp_path) == ["out", "out.mmt"]


def test_csv_begins_with_its_header_once(tmp_path):
    layout = Layout(kind="csv")
    write(tmp_path / "out", "", layout=layout)
    write(tmp_path / "out", "", layout=layout, resume=True)
    assert (tmp_path / "out").read_bytes() == layout.header().encode()


def test_a_new_run_replaces_an_old_one_when_it_starts_and_not_before(tmp_path):
    path = tmp_path / "out"
    write(path, "a\tlong old text\n")
    before = (tmp_path / "out.mmt").read_bytes()
    with output(path) as file:
        assert file.fresh
        assert not file.take("a")
    assert path.read_bytes() == b"a\tlong old text\n"
    assert (tmp_path / "out.mmt").read_bytes() == before
    write(path, "b\ty\n", settings={"model": "other"})
    assert path.read_bytes() == b"b\ty\n"
    assert json.loads((tmp_path / "out.mmt").read_text())["settings"]["model"] == "other"


def test_a_run_that_never_starts_leaves_no_file_of_its_own(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for name in ("out", "link"):
        with output(tmp_path / name):
            assert (tmp_path / name).exists()
    assert names(tmp_path) == ["link"]


def test_the_old_records_are_gone_from_the_disk_before_the_old_settings(tmp_path, monkeypatch):
    path = tmp_path / "out"
    write(path, "a\tx\n")

    def killed(*_: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(module, "write_settings", killed)
    with pytest.raises(SystemExit):
        write(path, "b\ty\n", settings={"model": "other"})
    assert path.read_bytes() == b""
    monkeypatch.undo()
    write(path, "b\ty\n", settings={"model": "other"}, resume=True)
    assert path.read_bytes() == b"b\ty\n"


def test_a_run_goes_on_behind_what_is_there(tmp_path):
    path = tmp_path / "out"
    write(path, "a\tx\nb\ty\n")
    with path.open("ab") as file:
        file.write(b"c\tto")
    with output(path, resume=True) as file:
        assert not file.fresh
        file.start(SETTINGS)
        assert path.read_bytes() == b"a\tx\nb\ty\n"
        assert [file.take(item) for item in "abca"] == [True, True, False, False]
        file.write("c\tz\n")
    assert path.read_bytes() == b"a\tx\nb\ty\nc\tz\n"


@pytest.mark.parametrize("there", [False, True])
def test_there_is_nothing_to_go_on_with_in_a_file_that_is_missing_or_empty(tmp_path, there):
    path = tmp_path / "out"
    (tmp_path / "out.mmt").write_text("rubbish")
    if there:
        path.touch()
    with output(path, resume=True) as file:
        assert file.fresh
        file.start(SETTINGS)
        file.write("a\tx\n")
    write(path, "b\ty\n", resume=True)
    assert path.read_bytes() == b"a\tx\nb\ty\n"


@pytest.mark.parametrize(
    ("layout", "settings", "told"),
    [
        (TSV, {"model": "mini@0123456789ab", "prompt": "a cat"}, "another prompt ('a dog' then, 'a cat' now)"),
        (TSV, {"model": "mini@ffffffffffff", "prompt": "a cat"}, "another model ('mini@0123456789ab' then"),
        (Layout(kind="text"), SETTINGS, "another format ('tsv' then, 'text' now)"),
        (Layout(kind="text", single=True), SETTINGS, "another format ('tsv' then, 'text without paths' now)"),
        (Layout(kind="tsv", captions_per_item=2), SETTINGS, "another num_captions (1 then, 2 now)"),
        (Layout(kind="tsv", grounded=True), SETTINGS, "another grounding (False then, True now)"),
    ],
    ids=range(6),
)
def test_a_file_made_otherwise_is_not_gone_on_with_and_stays(tmp_path, layout, settings, told):
    path = tmp_path / "out"
    write(path, "a\tx\n")
    with path.open("ab") as file:
        file.write(b"torn")
    with pytest.raises(UsageError) as caught:
        write(path, "b\ty\n", layout=layout, settings=settings, resume=True)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"a\tx\ntorn"


def test_a_single_image_may_be_gone_on_with_as_one_of_many_where_paths_are_told(tmp_path):
    write(tmp_path / "out", "a\tx\n", layout=Layout(kind="tsv", single=True))
    write(tmp_path / "out", "b\ty\n", resume=True)


def test_a_caption_alone_is_not_done_twice(tmp_path):
    layout = Layout(kind="text", single=True)
    settings = {**SETTINGS, "image": "a.jpg"}
    for _ in range(2):
        with output(tmp_path / "out", layout=layout, resume=True) as file:
            file.start(settings)
            if not file.take("a.jpg"):
                file.write("a dog\n")
        assert (tmp_path / "out").read_bytes() == b"a dog\n"
    with pytest.raises(UsageError, match="another image"):
        write(tmp_path / "out", "", layout=layout, settings=settings | {"image": "b.jpg"}, resume=True)


def test_a_file_of_unknown_making_is_not_gone_on_with(tmp_path):
    path = tmp_path / "out"
    path.write_text("a\tx\n")
    assert "out.mmt: No such file" in refusal(path, resume=True)
    (tmp_path / "out.mmt").write_text("{")
    assert "it is damaged" in refusal(path, resume=True)
    assert path.read_text() == "a\tx\n"


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_on_one_file_are_one_too_many(tmp_path, resume):
    path = tmp_path / "out"
    (tmp_path / "link").symlink_to("out")
    with output(path) as file:
        file.start(SETTINGS)
        file.write("a\tx\n")
        file.commit()
        for name in ("out", "link"):
            told = refusal(tmp_path / name, resume=resume)
            assert "another run writes this output" in told
            assert str(tmp_path / name) in told
    assert path.read_bytes() == b"a\tx\n"
    write(path, "b\ty\n")


def test_a_link_is_written_through_and_the_file_is_known_under_any_name(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d/target")
    with output(tmp_path / "link") as file:
        file.start(SETTINGS)
        file.write("a\tx\n")
        status = (tmp_path / "d" / "target").stat()
        assert file.identity == (status.st_dev, status.st_ino)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "d" / "target").read_bytes() == b"a\tx\n"
    assert names(tmp_path) == ["d", "link", "link.mmt"]
    write(tmp_path / "link", "b\ty\n", resume=True)
    assert (tmp_path / "d" / "target").read_bytes() == b"a\tx\nb\ty\n"


def test_a_name_that_can_be_no_output_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.mmt").mkdir()
    for name, told in (
        ("", "--output ''"),
        ("x.mmt", "--output 'x.mmt'"),
        ("gone/x", "No such file"),
        (".", "Is a directory"),
        ("new/", "No such file"),
        ("n" * 300, "name too long"),
        ("n" * 253, "name too long"),  # FILE.mmt is
        ("a\0", "null byte"),
        ("d", "d.mmt belongs beside it, but is a folder"),
    ):
        assert told in refusal(name), name
    assert names(tmp_path) == ["d.mmt"]


def test_a_folder_that_takes_no_files_is_told_before_anything_is_lost(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    assert "out.mmt belongs beside it" in refusal(path)
    assert path.read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_file_without_permission_is_refused(tmp_path):
    (tmp_path / "out").touch(0o400)
    assert "Permission denied" in refusal(tmp_path / "out")


def test_a_disk_is_no_output(tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    assert "it is a disk" in refusal(tmp_path / "out")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_more_leaves_whole_batches_and_is_named(tmp_path, monkeypatch, call, number):
    path, pwrite = tmp_path / "out", os.pwrite
    room = [3]

    def full(descriptor: int, *rest: object) -> int:
        if call == "pwrite" and room:
            return pwrite(descriptor, rest[0][: room.pop()], rest[1])
        raise OSError(number, os.strerror(number))

    with output(path) as file:
        file.start(SETTINGS)
        file.write("a\tx\n")
        file.commit()
        monkeypatch.setattr(os, call, full)
        file.write("b\ty\n")
        with pytest.raises(OutputError) as caught:
            file.commit()
        assert caught.value.exit_code == 2
        told = str(caught.value)
        assert str(path) in told
        assert os.strerror(number) in told
        assert told.endswith("run it again with --resume")
        assert ("free some space" in told) == (number != errno.EIO)
        assert path.read_bytes() == b"a\tx\n"
        monkeypatch.undo()
        file.write("c\tz\n")  # what was lost must not be followed by more
        with pytest.raises(OutputError):
            file.commit()
    assert path.read_bytes() == b"a\tx\n"
    write(path, "b\ty\n", resume=True)
    assert path.read_bytes() == b"a\tx\nb\ty\n"


def test_a_limit_of_the_system_is_named_and_the_last_batch_is_whole(tmp_path):
    path = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with output(path) as file:
        file.start(SETTINGS)
        file.write("a\t" + "x" * 900 + "\n")
        file.commit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            file.write("b\t" + "x" * 900 + "\n")
            with pytest.raises(OutputError, match="File too large"):
                file.commit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == 903


def test_a_disk_full_at_the_start_or_the_end_is_told(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_settings", full)
        with pytest.raises(OutputError, match="no space"):
            write(tmp_path / "a", "")
    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(module, "write_settings", lambda *_: None)
    with pytest.raises(OutputError, match="no space"):
        write(tmp_path / "b", "b\ty\n")
    with pytest.raises(KeyboardInterrupt), output(tmp_path / "c") as file:
        file.start(SETTINGS)
        file.write("b\ty\n")
        raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_write_that_is_broken_off_by_ctrl_c_is_done_at_the_end_once(tmp_path, monkeypatch, call):
    path, real, times = tmp_path / "out", getattr(os, call), [None]

    def interrupted(*arguments: object) -> object:
        result = real(arguments[0], arguments[1][:2], arguments[2]) if call == "pwrite" and times else real(*arguments)
        if times:
            times.pop()
            raise KeyboardInterrupt
        return result

    with pytest.raises(KeyboardInterrupt), output(path) as file:
        file.start(SETTINGS)
        file.write("a\tx\n")
        file.commit()
        monkeypatch.setattr(os, call, interrupted)
        file.write("b\ty\n")
        file.commit()
    assert path.read_bytes() == b"a\tx\nb\ty\n"


def test_a_pipe_takes_records_alone(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    layout = Layout(kind="csv")
    write(path, "a\r\n", layout=layout)
    reader.join()
    assert found == [layout.header().encode() + b"a\r\n"]
    assert names(tmp_path) == ["pipe"]
    assert "no regular file" in refusal("/dev/null", resume=True)


def test_a_pipe_that_nobody_reads_any_more_ends_quietly(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(BrokenPipeError), output(path) as file:
        file.start(SETTINGS)
        os.close(reader)
        file.write("a\tx\n")
        file.commit()


def test_what_may_be_in_a_pipe_already_is_not_written_again(tmp_path, monkeypatch):
    path, real = tmp_path / "pipe", os.write
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def interrupted(descriptor: int, data: bytes) -> None:
        real(descriptor, data[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), output(path) as file:
        file.start(SETTINGS)
        file.write("a\tx\n")
        monkeypatch.setattr(os, "write", interrupted)
        file.commit()
    assert os.read(reader, 100) == b"a\t"
    os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_devices_are_written_as_they_are():
    write("/dev/null", "a\tx\n")
    with pytest.raises(
        OutputError, match=r"/dev/full cannot be written \(No space left on device\); send it somewhere"
    ):
        write("/dev/full", "a\tx\n")
    assert not Path("/dev/null.mmt").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files on Linux")
def test_a_file_that_is_open_already_is_added_to(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        log.write(b"first\n")
        log.flush()
        write(f"/dev/fd/{log.fileno()}", "a\tx\n")
    assert (tmp_path / "log").read_bytes() == b"first\na\tx\n"
    assert names(tmp_path) == ["log"]
