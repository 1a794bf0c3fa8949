"""`mmt train`: what its options about data do, and how it says what is wrong with them."""

import json

import PIL.Image
import pytest

TINY = ("--preset", "tiny", "--steps", "2")


@pytest.fixture
def listed(tmp_path):
    """A list beside a folder of the images that it names, two entries of its ten broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(8):
        PIL.Image.new("RGB", (40, 32), (30 * index, 200, 30)).save(folder / f"{index}.png")
    records = [{"image": f"{index}.png", "caption": "A green square on the left ."} for index in range(8)]
    records += [{"image": "gone\x1b[31m.png", "caption": "A square ."}, {"image": "0.png", "caption": ""}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "good.jsonl").write_text("\n".join(map(json.dumps, records[:8])), encoding="utf-8")
    return tmp_path


def train(mmt, folder, name, *arguments):
    out = folder / f"out-{len(list(folder.iterdir()))}"
    return mmt("train", str(folder / name), "-o", str(out), *TINY, *arguments)


def test_images_lie_where_the_option_says(mmt, listed):
    done = train(mmt, listed, "good.jsonl", "--images", str(listed / "photos"))
    assert (done.code, "8 training images" in done.err) == (0, True)
    assert train(mmt, listed, "good.jsonl").code == 5


def test_every_problem_is_a_line_and_nothing_is_written(mmt, listed):
    done = train(mmt, listed, "list.jsonl", "--images", str(listed / "photos"))
    assert (done.code, done.out) == (5, "")
    first, second, error = done.err.splitlines()
    assert "list.jsonl line 9 names gone\\x1b[31m.png, which is not a file there; " in first
    assert "list.jsonl line 10 has an empty caption; " in second
    assert error.startswith("mmt: error: 2 problems in the data (--max-errors 0), the first: ")
    assert not list(listed.glob("out-*"))


def test_one_problem_is_one_line(mmt, listed):
    (listed / "one.jsonl").write_text('{"image": "x.png", "caption": "A"}', encoding="utf-8")
    done = train(mmt, listed, "one.jsonl")
    assert done.code == 5
    assert len(done.err.splitlines()) == 1


def test_broken_entries_are_left_out_as_far_as_allowed(mmt, listed):
    images = ("--images", str(listed / "photos"))
    done = train(mmt, listed, "list.jsonl", *images, "--max-errors", "20%")
    assert done.code == 0
    assert "8 training images" in done.err
    assert "list.jsonl line 10 has an empty caption" in done.err
    assert "entries left out: 2 broken" in done.err
    assert train(mmt, listed, "list.jsonl", *images, "--max-errors", "1").code == 4
    assert train(mmt, listed, "list.jsonl", *images, "--max-errors", "few").code == 2


def test_the_same_holds_for_the_data_to_score_on(mmt, listed):
    arguments = ("--images", str(listed / "photos"), "--val", str(listed / "list.jsonl"))
    assert train(mmt, listed, "good.jsonl", *arguments).code == 5
    done = train(mmt, listed, "good.jsonl", *arguments, "--max-errors", "2")
    assert (done.code, "8 validation images" in done.err) == (0, True)


def metrics(mmt, folder, *arguments):
    out = folder / ("out-" + "".join(arguments))
    arguments = ("--images", str(folder / "photos"), "-b", "2", "--steps", "4", "--eval-every", "4", *arguments)
    done = mmt("train", str(folder / "good.jsonl"), "-o", str(out), "--preset", "tiny", *arguments)
    assert done.code == 0, done.err
    return json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])["loss"]


def test_augmentation_and_buffer_change_what_is_learned(mmt, listed):
    given = [(), ("--augment", "flip"), ("--augment", "crop,colour"), ("--shuffle-buffer", "1")]
    losses = [metrics(mmt, listed, *arguments) for arguments in given]
    assert len(set(losses)) == 4
    done = train(mmt, listed, "good.jsonl", "--augment", "spin")
    assert (done.code, "known: crop, flip, colour" in done.err) == (2, True)
    assert train(mmt, listed, "good.jsonl", "--shuffle-buffer", "0").code == 2
