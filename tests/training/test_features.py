"""Features on the disk: made once, read by every later run, and never harmed by what goes wrong."""

import errno
import gc
import os
import tarfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DataError, UsageError
from mmt_cli.training import features, images
from mmt_cli.training.augment import Augmentation
from mmt_cli.training.data import open_dataset
from mmt_cli.training.events import Noted, Stepped
from mmt_cli.training.examples import Example
from mmt_cli.training.features import cache_folder
from mmt_cli.training.findings import BrokenDataError
from mmt_cli.training.images import FeatureImages, Images, Prepared
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.setup import build

TOTAL = 12  # squares
BATCH = 5


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FEATURE_BATCH", BATCH)


def options(squares: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(squares),),
        "out": squares.parent / "out",
        "preset": "tiny",
        "freeze": "vision",
        "cache_features": True,
        "steps": 3,
        "batch_size": 6,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


@pytest.fixture
def captioner(squares: Path) -> Captioner:
    return build(options(squares), [example.captions for example in open_dataset([str(squares)])])


def prepared(squares: Path, captioner: Captioner) -> tuple[FeatureImages, list[Prepared]]:
    made = FeatureImages(open_dataset([str(squares)]), captioner)
    return made, list(made.prepare())


def all_of(made: FeatureImages) -> Tensor:
    return torch.stack([made.load(index)[1] for index in range(len(made.examples))])


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_second_run_reads_the_same_bits_and_leaves_the_tower_alone(squares: Path, captioner: Captioner) -> None:
    first, told = prepared(squares, captioner)
    assert [(event.done, event.total, event.found) for event in told] == [(n, 12, False) for n in (5, 10, 12)]
    captioner.model.vision.register_forward_pre_hook(lambda *_: pytest.fail("the tower ran"))
    second, told = prepared(squares, captioner)
    assert [(event.done, event.total, event.found) for event in told] == [(12, 12, True)]
    assert torch.equal(all_of(first), all_of(second))


def test_features_are_those_of_the_tower_in_bfloat16_each_at_its_image(squares: Path, captioner: Captioner) -> None:
    made, _ = prepared(squares, captioner)
    captioner.model.eval()
    with torch.no_grad():
        plain = Images(made.examples, captioner)
        for index in range(TOTAL):
            key, pixels_CHW = plain.load(index)
            expected_BND = captioner.model.vision(pixels_CHW[None]).x_BND.bfloat16()
            assert made.load(index)[0] == key
            torch.testing.assert_close(made.load(index)[1], expected_BND[0], rtol=0.01, atol=1e-3)
    assert not torch.equal(made.load(0)[1], made.load(1)[1])


def test_dropout_is_off_while_features_are_made_and_back_after(squares: Path, captioner: Captioner) -> None:
    captioner.model.train()
    training: list[bool] = []
    captioner.model.vision.register_forward_pre_hook(lambda module, _: training.append(module.training))
    prepared(squares, captioner)
    assert training == [False] * 3
    assert captioner.model.vision.training


def test_the_file_is_plain_safetensors_mapped_into_memory(squares: Path, captioner: Captioner, cache: Path) -> None:
    made, told = prepared(squares, captioner)
    assert files_in(cache) == [told[-1].file.name]
    assert torch.equal(load_file(told[-1].file)["features"], all_of(made))
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert told[-1].file.name in maps.read_text(encoding="utf-8")


def test_memory_holds_a_batch_of_features_at_a_time(squares: Path, captioner: Captioner) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(_module: Any, _inputs: Any, output: Tensor) -> None:
        made.append(weakref.ref(output))
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))

    captioner.model.vision.register_forward_hook(note)
    prepared(squares, captioner)
    assert len(alive) == 3
    assert max(alive) <= 2


def test_images_are_decoded_while_the_tower_runs(
    squares: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = open_dataset([str(squares)])
    begun = {example.key: threading.Event() for example in examples}
    read = Example.read

    def noted(example: Example) -> bytes:
        begun[example.key].set()
        return read(example)

    monkeypatch.setattr(Example, "read", noted)
    coming = iter([examples[BATCH], examples[2 * BATCH]])
    waited: list[bool] = []

    def wait(*_: Any) -> None:
        following = next(coming, None)
        waited.append(following is None or begun[following.key].wait(timeout=5))

    captioner.model.vision.register_forward_pre_hook(wait)
    list(FeatureImages(examples, captioner).prepare())
    assert waited == [True] * 3


def shard(folder: Path, names: list[str]) -> Path:
    path = folder / "squares.tar"
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.add(folder / "squares" / f"{name}.png", f"{name}.png")
            archive.add(folder / "squares" / f"{name}.txt", f"{name}.txt")
    return path


def file_of(source: Path, captioner: Captioner) -> str:
    return FeatureImages(open_dataset([str(source)]), captioner)._file()[0].name


def _weight(captioner: Captioner, _: Path) -> None:
    with torch.no_grad():
        captioner.model.vision.norm.bias[-1] += 1e-6


def _config(captioner: Captioner, _: Path) -> None:
    config = captioner.model.config
    captioner.model.config = type(config).from_json(config.to_json() | {"vision": _eps(config.to_json()["vision"])})


def _eps(vision: dict[str, Any]) -> dict[str, Any]:
    return vision | {"block": vision["block"] | {"norm_eps": 1e-3}}


def _preprocessing(captioner: Captioner, _: Path) -> None:
    changed = captioner.preprocessing.to_json() | {"resample": "bilinear"}
    captioner.preprocessing = type(captioner.preprocessing).from_json(changed)


def _stamp(_: Captioner, squares: Path) -> None:
    status = (squares / "7.png").stat()
    os.utime(squares / "7.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _length(_: Captioner, squares: Path) -> None:
    status = (squares / "7.png").stat()
    (squares / "7.png").write_bytes((squares / "7.png").read_bytes() + b"\0")
    os.utime(squares / "7.png", ns=(status.st_atime_ns, status.st_mtime_ns))


def _one_less(_: Captioner, squares: Path) -> None:
    (squares / "11.png").unlink()


def _renamed(_: Captioner, squares: Path) -> None:
    for suffix in ("png", "txt"):
        (squares / f"7.{suffix}").rename(squares / f"7b.{suffix}")


@pytest.mark.parametrize(
    "change", [_weight, _config, _preprocessing, _stamp, _length, _one_less, _renamed], ids=lambda f: f.__name__
)
def test_what_decides_the_features_names_another_file(
    squares: Path, captioner: Captioner, change: Callable[[Captioner, Path], None]
) -> None:
    before = file_of(squares, captioner)
    assert file_of(squares, captioner) == before
    change(captioner, squares)
    assert file_of(squares, captioner) != before


def test_the_format_the_place_in_a_shard_and_the_order_name_another_file(
    squares: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(squares.parent, ["1", "2", "3"])
    examples = open_dataset([str(path)])
    names = {FeatureImages(part, captioner)._file()[0].name for part in (examples, examples[::-1], examples[:2])}
    moved = [SimpleNamespace(**(vars(examples[0]) | change)) for change in ({}, {"offset": 0}, {"size": 9})]
    names |= {FeatureImages([one], captioner)._file()[0].name for one in moved}  # type: ignore[list-item]
    monkeypatch.setattr(features, "FORMAT", features.FORMAT + 1)
    names.add(FeatureImages(examples, captioner)._file()[0].name)
    assert len(names) == 7


def test_options_of_the_run_and_captions_do_not_name_another_file(squares: Path, captioner: Captioner) -> None:
    before = file_of(squares, captioner)
    (squares / "7.txt").write_text("Another caption .\n", encoding="utf-8")
    run = options(squares, dropout=0.4, batch_size=3, lr=1e-2, label_smoothing=0.0)
    assert file_of(squares, build(run, [example.captions for example in open_dataset([str(squares)])])) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: bytes(len(data)),
        lambda data: data.replace(b'"BF16"', b'"F16" ', 1),
        lambda data: data.replace(b"[12, ", b"[21, ", 1),
    ],
)
def test_a_broken_file_is_made_again(squares: Path, captioner: Captioner, damage: Callable[[bytes], bytes]) -> None:
    first, told = prepared(squares, captioner)
    wanted = all_of(first)
    whole = told[-1].file.read_bytes()
    assert damage(whole) != whole
    told[-1].file.unlink()
    told[-1].file.write_bytes(damage(whole))
    second, told = prepared(squares, captioner)
    assert not told[0].found
    assert torch.equal(all_of(second), wanted)
    assert told[-1].file.read_bytes() == whole


def test_two_runs_at_once_make_the_same_file_and_leave_nothing_else(
    squares: Path, captioner: Captioner, cache: Path
) -> None:
    pair = [FeatureImages(open_dataset([str(squares)]), captioner) for _ in range(2)]
    runs = [one.prepare() for one in pair]
    assert [next(run).found for run in runs] == [False, False]
    assert len(files_in(cache)) == 2
    list(runs[0])
    [name] = [name for name in files_in(cache) if name.endswith(".safetensors")]
    first = (cache / name).stat().st_ino
    list(runs[1])
    assert files_in(cache) == [name]
    assert (cache / name).stat().st_ino != first  # replaced: the bytes that the first run reads are never written to
    assert torch.equal(*map(all_of, pair))
    assert prepared(squares, captioner)[1][0].found


def test_no_images_need_no_file(captioner: Captioner, cache: Path) -> None:
    assert list(FeatureImages([], captioner).prepare()) == []
    assert files_in(cache) == []


def test_a_reader_keeps_its_features_when_the_file_is_made_again(squares: Path, captioner: Captioner) -> None:
    made, told = prepared(squares, captioner)
    wanted = all_of(made)
    told[-1].file.unlink()
    prepared(squares, captioner)
    assert torch.equal(all_of(made), wanted)


def test_too_little_room_is_told_before_an_image_is_read_and_leaves_nothing(
    squares: Path, captioner: Captioner, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, told = prepared(squares, captioner)
    size = told[-1].file.stat().st_size
    told[-1].file.unlink()
    read = Example.read
    monkeypatch.setattr(Example, "read", lambda _: pytest.fail("an image is read"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(UsageError, match=rf"no room .*cache/mmt/features, {size:,} bytes needed, {size - 1:,} free"):
        prepared(squares, captioner)
    assert files_in(cache) == []
    monkeypatch.setattr(Example, "read", read)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size))
    prepared(squares, captioner)


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    squares: Path, captioner: Captioner, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot be kept .*cache/mmt/features, 1\d,\d{3} bytes, No space left"):
        prepared(squares, captioner)
    assert files_in(cache) == []


def test_a_folder_that_cannot_be_made_is_one_line(squares: Path, captioner: Captioner, cache: Path) -> None:
    cache.parent.parent.write_text("a file, no folder", encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot be kept .*set XDG_CACHE_HOME"):
        prepared(squares, captioner)


def test_an_image_that_cannot_be_read_leaves_nothing(squares: Path, captioner: Captioner, cache: Path) -> None:
    (squares / "8.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"8\.png"):
        prepared(squares, captioner)
    assert files_in(cache) == []


@pytest.mark.parametrize("augment", [(), ("flip",)])
def test_an_image_that_cannot_be_read_is_passed_over_as_far_as_allowed(
    squares: Path, cache: Path, augment: tuple[str, ...]
) -> None:
    whole = (squares / "8.png").read_bytes()
    (squares / "8.png").write_bytes(whole[: len(whole) // 2])
    for out, max_errors in (("one", "1"), ("again", "1"), ("none", "0")):
        given = options(squares, out=squares.parent / out, max_errors=max_errors, augment=augment, val=())
        if max_errors == "0":
            with pytest.raises(BrokenDataError, match=r"8\.png"):
                list(Trainer(given).run())
            continue
        events = list(Trainer(given).run())
        [told] = [event.text for event in events if isinstance(event, Noted)]
        assert "8.png" in told and told.endswith("; the next one takes its place")
        assert all(event.loss == event.loss for event in events if isinstance(event, Stepped)), "no NaN gets in"


def test_features_of_an_image_that_can_be_read_again_are_to_be_made_again(
    squares: Path, captioner: Captioner, cache: Path
) -> None:
    whole, examples = (squares / "8.png").read_bytes(), open_dataset([str(squares)])
    [place] = [index for index, example in enumerate(examples) if example.key.endswith("8.png")]
    made = FeatureImages(examples, captioner)
    # As a tower of clamped convolutions may.
    captioner.model.vision.register_forward_hook(lambda *given: replace(given[-1], x_BND=given[-1].x_BND.nan_to_num()))
    (squares / "8.png").write_bytes(whole[: len(whole) // 2])
    list(made.prepare(keep_gaps=True))
    with pytest.raises(DataError, match=r"8\.png.*; mend it, or allow for it with --max-errors"):
        made.load(place, 0)
    (squares / "8.png").write_bytes(whole)
    [file] = files_in(cache)
    with pytest.raises(DataError, match=rf"features are missing .*8\.png.*; remove .*{file}"):
        made.load(place, 0)


def test_a_run_that_stops_while_features_are_made_leaves_nothing(
    squares: Path, captioner: Captioner, cache: Path
) -> None:
    run = FeatureImages(open_dataset([str(squares)]), captioner).prepare()
    next(run)
    assert len(files_in(cache)) == 1
    run.close()  # type: ignore[attr-defined]
    assert files_in(cache) == []


def test_what_killed_runs_left_is_removed_after_a_day(squares: Path, captioner: Captioner, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, age_h in (("old.part", 25), ("new.part", 23), ("other.safetensors", 25)):
        (cache / name).write_bytes(b"")
        os.utime(cache / name, (time.time() - age_h * 3600,) * 2)
    _, told = prepared(squares, captioner)
    assert files_in(cache) == sorted(["new.part", "other.safetensors", told[-1].file.name])


def test_a_file_of_the_data_set_that_is_gone_is_named(squares: Path, captioner: Captioner) -> None:
    made = FeatureImages(open_dataset([str(squares)]), captioner)
    (squares / "4.png").unlink()
    with pytest.raises(DataError, match=r"4\.png"):
        list(made.prepare())


@pytest.mark.parametrize("named", ["", "relative/cache"])
def test_the_cache_is_in_the_home_folder_unless_an_absolute_path_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert cache_folder() == tmp_path / ".cache/mmt/features"


def test_runs_share_the_file_and_train_to_the_same_losses(squares: Path, cache: Path) -> None:
    runs = []
    for name in ("first", "second"):
        trainer = Trainer(options(squares, out=squares.parent / name, val=(str(squares),)))
        runs.append(list(trainer.run()))
    losses = [[event.loss for event in run if isinstance(event, Stepped)] for run in runs]
    found = [[event.found for event in run if isinstance(event, Prepared)] for run in runs]
    assert losses[0] == losses[1]
    assert found == [[False, False, False, True], [True, True]]  # the validation images are the same here
    assert len(files_in(cache)) == 1


def test_mirror_images_go_through_the_tower_once_and_have_a_file_of_their_own(
    squares: Path, captioner: Captioner, cache: Path
) -> None:
    examples = open_dataset([str(squares)])
    made = FeatureImages(examples, captioner, Augmentation(kinds=("flip",), seed=0))
    list(made.prepare())
    assert len(files_in(cache)) == 2
    plain = Images(examples, captioner)
    seen = set()
    for epoch in range(4):
        for index in range(TOTAL):
            mirrored = made.mirrored(index, epoch)
            pixels_CHW = plain.load(index)[1]
            features_BND = captioner.model.vision(pixels_CHW.flip(-1)[None] if mirrored else pixels_CHW[None]).x_BND
            torch.testing.assert_close(made.load(index, epoch)[1].float(), features_BND[0], atol=0.02, rtol=0.02)
            seen.add(mirrored)
    assert seen == {False, True}
    assert torch.equal(made.load(0)[1], made.features_END[0]), "an image that is scored is never mirrored"
