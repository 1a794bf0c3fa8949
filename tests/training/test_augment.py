"""Images changed for learning, and captions that stay true of them."""

import random
from pathlib import Path

import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageChops

from mmt_cli.errors import UsageError
from mmt_cli.training.augment import Augmentation, Change, mirror
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions


def picture(width=60, height=40):
    """Return an image whose red says how far right, whose green how far down a pixel is."""
    image = PIL.Image.new("RGB", (width, height))
    image.putdata([(4 * x, 4 * y, 7) for y in range(height) for x in range(width)])
    return image


def drawn(*kinds, seed=0, count=200):
    augmentation = Augmentation(kinds=kinds, seed=seed)
    return [augmentation.draw(epoch, index) for epoch in range(2) for index in range(count // 2)]


def test_a_draw_depends_on_seed_epoch_and_example_alone():
    changes = drawn("crop", "flip", "colour")
    random.seed(5)
    torch.manual_seed(5)
    assert drawn("crop", "flip", "colour") == changes
    assert len(set(changes)) == len(changes)
    assert drawn("crop", "flip", "colour", seed=1) != changes


def test_one_kind_more_leaves_the_others_as_they_were():
    both, crop = drawn("crop", "flip"), drawn("crop")
    assert [(c.left, c.top, c.width, c.height) for c in both] == [(c.left, c.top, c.width, c.height) for c in crop]
    assert not any(change.mirrored for change in crop)


def test_without_kinds_nothing_changes():
    assert drawn() == [Change()] * 200
    image = picture()
    assert Change().apply(image) is image


def test_crops_keep_most_of_the_image_and_its_shape():
    changes = drawn("crop", count=2000)
    areas = [change.width * change.height for change in changes]
    assert 0.55 < min(areas) < 0.62
    assert 0.98 < max(areas) <= 1
    assert all(0.66 < side <= 1 for change in changes for side in (change.width, change.height))
    assert all(0 <= place <= 1 for change in changes for place in (change.left, change.top))
    ratios = [change.width / change.height for change in changes]
    assert 0.74 < min(ratios) < 0.85
    assert 1.18 < max(ratios) < 1.34


def test_a_crop_is_that_part_of_the_image():
    cut = Change(width=0.5, height=0.5, left=1.0, top=0.0).apply(picture())
    assert cut.size == (30, 20)
    assert cut.getpixel((0, 0)) == (120, 0, 7)
    assert cut.getpixel((29, 19)) == (236, 76, 7)
    assert Change(width=0.01, height=0.01).apply(picture(1, 1)).size == (1, 1)


def test_a_mirrored_image_is_turned_left_to_right():
    turned = Change(mirrored=True).apply(picture())
    assert turned.getpixel((0, 3)) == (236, 12, 7)
    assert 60 < sum(change.mirrored for change in drawn("flip")) < 140


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_colour_change_changes_the_image(name):
    values = [getattr(change, name) for change in drawn("colour")]
    assert all(0.8 <= value <= 1.2 for value in values)
    assert max(values) - min(values) > 0.3
    changed = Change(**{name: 1.2}).apply(picture())
    assert changed.size == (60, 40)
    assert ImageChops.difference(changed, picture()).getbbox() is not None


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("A dog on the left , a cat on the right .", "A dog on the right , a cat on the left ."),
        ("Left hand , RIGHT hand .", "Right hand , LEFT hand ."),
        ("left-handed player to the right's", "right-handed player to the left's"),
        ("leftover bright copyright upright leftmost", "leftover bright copyright upright leftmost"),
        ("", ""),
    ],
)
def test_left_and_right_change_over_as_whole_words_in_their_case(caption, mirrored):
    assert mirror(caption) == mirrored


@given(st.text() | st.lists(st.sampled_from(["left", "Right", "LEFT", " ", "bright"])).map("".join))
def test_mirroring_twice_gives_the_caption_back(caption):
    assert mirror(mirror(caption)) == caption


@pytest.fixture
def sides(tmp_path: Path) -> Path:
    """Return images that are white on the left and black on the right, with captions that say so."""
    folder = tmp_path / "sides"
    folder.mkdir()
    for index in range(8):
        image = PIL.Image.new("RGB", (64, 64))
        image.paste((255, 255, 255), (0, 0, 32, 64))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("White left and black right .\nBlack right .\n", encoding="utf-8")
    return folder


def task(folder: Path, **changes):
    options = {"data": (str(folder),), "out": folder.parent / "out", "preset": "tiny", "device": "cpu", **changes}
    made = Trainer(TrainOptions(**options)).task
    list(made.prepare())
    return made


def test_the_captions_of_a_mirrored_image_are_mirrored_and_only_they(sides: Path):
    flips = task(sides, augment=("flip",))
    plain = task(sides)
    words = flips.captioner.tokenizer
    seen = set()
    for epoch in range(4):
        for index in range(8):
            batch = flips.batch([index], epoch)
            white_on_the_left = bool(batch.images[0, 0, 16, 4] > batch.images[0, 0, 16, 28])
            first, second = (words.decode(row).strip() for row in batch.rows)
            assert first.startswith("White left and black right" if white_on_the_left else "White right and black left")
            assert second.startswith("Black right" if white_on_the_left else "Black left")
            seen.add(white_on_the_left)
            assert torch.equal(plain.batch([index], epoch).images, plain.batch([index]).images)
    assert seen == {True, False}


def test_batches_are_the_same_whoever_makes_them_and_when(sides: Path):
    one, other = (task(sides, augment=("crop", "flip", "colour")) for _ in range(2))
    batch = one.batch([3, 5], 2)
    other.batch([1, 2], 0)
    again = other.batch([5, 3], 2)
    assert torch.equal(batch.images, again.images.flip(0))
    assert batch.rows == again.rows[2:] + again.rows[:2]
    assert not torch.equal(batch.images, one.batch([3, 5], 1).images)


def test_images_to_score_on_are_never_changed(sides: Path):
    made = task(sides, augment=("crop", "flip", "colour"), val=(str(sides),))
    plain = task(sides, val=(str(sides),))
    for index in range(8):
        assert torch.equal(made.val_images.load(index)[1], plain.val_images.load(index)[1])
        assert torch.equal(made.images.load(index)[1], plain.images.load(index)[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment": ("flip", "turn\x1b")}, r"known: crop, flip, colour"),
        ({"augment": ("crop",), "cache_features": True, "freeze": "vision"}, "--cache-features, --augment crop"),
        ({"augment": ("flip",), "objective": "language"}, "--objective language, --augment flip"),
        ({"shuffle_buffer": 5, "objective": "language"}, "--objective language, --shuffle-buffer 5"),
        ({"shuffle_buffer": 0}, "--shuffle-buffer is out of bounds"),
    ],
)
def test_options_that_exclude_each_other_are_one_line(tmp_path: Path, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        TrainOptions(data=("x",), out=tmp_path, **changes)
    assert str(caught.value).isprintable()


def test_a_shuffle_buffer_keeps_files_together(sides: Path):
    made = task(sides, shuffle_buffer=1)
    assert list(made.order(0)) == list(range(8))
    assert list(task(sides).order(0)) != list(range(8))
