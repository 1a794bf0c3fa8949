"""Captions scored: the figures of a set and of each image, how far they may be off, and the files they lie in."""

import dataclasses
import json
import math
import random
import time
from pathlib import Path

import pytest
import torch

from mmt_cli.training.bootstrap import interval, resampled
from mmt_cli.training.evaluate import Evaluator, Scores
from mmt_cli.training.examples import Example
from mmt_cli.training.metrics.bleu import BleuScorer
from mmt_cli.training.score_files import write_scores

NAMES = ["cider", "cider_plain", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"]


def corpus(images: int, seed: int = 0) -> tuple[list[Example], list[str]]:
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choices(["a", "dog", "runs", "on", "grass", "two", "cats"], k=draw.randint(2, 9)))

    examples = [
        Example(key=f"{index}.png", captions=(sentence(), sentence()), file=Path("/nowhere")) for index in range(images)
    ]
    return examples, [draw.choice([sentence(), *example.captions]) for example in examples]


def scored(images: int, seed: int = 0) -> Scores:
    examples, captions = corpus(images, seed)
    return Evaluator(examples).score_captions(captions)


def test_each_figure_has_an_interval_and_a_value_an_image_and_cider_ranks() -> None:
    scores = scored(30)
    assert list(scores.figures) == list(scores.intervals) == list(scores.per_image) == NAMES
    assert scores.rank == scores.figures["cider"]
    for name, (low, high) in scores.intervals.items():
        assert low < scores.figures[name] < high
        assert len(scores.per_image[name]) == 30
    for name in ("cider", "cider_plain", "rouge_l"):
        assert sum(scores.per_image[name]) / 30 == pytest.approx(scores.figures[name])


def test_figures_are_hundredfold() -> None:
    examples, _ = corpus(20)
    scores = Evaluator(examples).score_captions([example.captions[0] for example in examples])
    assert scores.figures["rouge_l"] == pytest.approx(100)
    assert scores.figures["bleu1"] == pytest.approx(100)


def test_the_interval_of_a_mean_is_about_two_standard_errors_on_each_side() -> None:
    scores = scored(400)
    values = torch.tensor(scores.per_image["rouge_l"], dtype=torch.float64)
    error = float(values.std() / math.sqrt(len(values)))
    low, high = scores.intervals["rouge_l"]
    mean = scores.figures["rouge_l"]
    assert (mean - low) / error == pytest.approx(1.96, abs=0.25)
    assert (high - mean) / error == pytest.approx(1.96, abs=0.25)


def test_the_interval_of_bleu_is_that_of_corpora_drawn_anew() -> None:
    examples, captions = corpus(30)
    low, high = Evaluator(examples).score_captions(captions).intervals["bleu4"]
    draw, found = random.Random(1), []
    for _ in range(200):
        places = draw.choices(range(30), k=30)
        bleu = BleuScorer([examples[place].captions for place in places])
        rows = bleu.rows([captions[place] for place in places])
        found.append(100 * bleu.figures([math.fsum(column) for column in zip(*rows, strict=True)])[3])
    found.sort()
    assert low == pytest.approx(found[5], abs=0.2 * (high - low))
    assert high == pytest.approx(found[-6], abs=0.2 * (high - low))


def test_the_same_captions_get_the_same_scores_whatever_torch_drew_before() -> None:
    first = scored(25)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert scored(25) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_one_image_has_an_interval_of_no_width() -> None:
    scores = scored(1)
    assert all(low == high == scores.figures[name] for name, (low, high) in scores.intervals.items())


def test_each_resample_draws_as_many_images_as_there_are_and_no_two_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.stack([torch.ones(50), 2.0 ** torch.arange(50)], dim=1).double()
    sums = resampled(rows, 20)
    assert sums[:, 0].tolist() == [50.0] * 20
    assert len(set(sums[:, 1].tolist())) == 20
    monkeypatch.setattr("mmt_cli.training.bootstrap._DRAWS_AT_ONCE", 120)  # two resamples at a time
    torch.testing.assert_close(resampled(rows, 20), sums)


def test_the_interval_leaves_out_a_fortieth_at_each_end() -> None:
    assert interval([*range(40, 0, -1), 0]) == pytest.approx((1.0, 39.0))


def test_a_thousand_images_are_scored_in_less_than_three_seconds() -> None:
    examples, captions = corpus(1000)
    start = time.process_time()
    Evaluator(examples).score_captions(captions)
    assert time.process_time() - start < 3


def test_the_files_hold_the_whole_and_a_line_an_image(tmp_path: Path) -> None:
    examples, captions = corpus(3)
    keys = ["a.png", "b\n\u202e.png", "c\udcff.png"]
    examples = [dataclasses.replace(example, key=key) for example, key in zip(examples, keys, strict=True)]
    scores = Evaluator(examples).score_captions(captions)
    write_scores(tmp_path / "new/folder", scores, model="m@0123", data=["val.jsonl"])
    whole = json.loads((tmp_path / "new/folder/scores.json").read_bytes())
    assert list(whole) == ["model", "data", "images", "figures", "intervals"]
    assert (whole["model"], whole["data"], whole["images"]) == ("m@0123", ["val.jsonl"], 3)
    assert whole["figures"] == scores.figures
    assert whole["intervals"]["bleu4"] == list(scores.intervals["bleu4"])
    text = (tmp_path / "new/folder/scores.jsonl").read_bytes()
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.isascii()
    assert [(line["image"], line["caption"]) for line in lines] == list(zip(keys, captions, strict=True))
    assert [line["cider"] for line in lines] == list(scores.per_image["cider"])
    assert list(lines[0]) == ["image", "caption", *NAMES]
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == ["scores.json", "scores.jsonl"]


@pytest.mark.parametrize(("images", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (11, [0, 3, 6])])
def test_captions_of_the_same_few_images_are_samples(images: int, shown: list[int]) -> None:
    scores = scored(images)
    assert scores.samples == {f"{place}.png": scores.captions[place] for place in shown}
