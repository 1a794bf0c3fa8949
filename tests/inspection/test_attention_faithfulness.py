"""What a model looked at is what it needs; and what is hidden is hidden."""

import math
import os
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmt_cli import Captioner
from mmt_cli.inspection.attention import Choice, look
from mmt_cli.inspection.faithfulness import _without, drop_of, logprob
from mmt_cli.inspection.reading import read_words, write, write_picture

DOG = str(Path(__file__).parent.parent / "data" / "dog.jpg")


@pytest.fixture(scope="module")
def mini() -> Captioner:
    return Captioner.load("mini")


def test_a_script_is_as_likely_as_its_words(mini: Captioner) -> None:
    script = write(mini, DOG, "A dog")
    assert logprob(script) == pytest.approx(script.caption.logprob, abs=1e-3)
    new = [word.probability for word in read_words(script) if not word.given]
    assert sum(map(math.log, new)) == pytest.approx(logprob(script), abs=1e-3)


def test_hidden_cells_are_of_the_mean_colour_and_others_stay(mini: Captioner) -> None:
    sight = look(write(mini, DOG), Choice())
    before = sight.script.picture.samples_NHWC
    second = sight.cells.columns + 1  # of the second row
    after = _without(sight, torch.tensor([second])).picture.samples_NHWC
    assert set(after[0, 32:64, 32:64].flatten().tolist()) == {127}
    after[0, 32:64, 32:64] = before[0, 32:64, 32:64]
    assert torch.equal(before, after)


def test_hiding_nothing_that_matters_takes_nothing(mini: Captioner) -> None:
    script = write(mini, DOG)
    drop = drop_of(script, Choice(), torch.Generator().manual_seed(0), draws=1)
    assert drop.attended != drop.random


@pytest.mark.slow
@pytest.mark.skipif("MMT_TEST_DATA" not in os.environ, reason="needs MMT_TEST_DATA")
def test_hiding_what_was_looked_at_takes_more_than_hiding_as_much_at_random(mini: Captioner) -> None:
    generator, drops = torch.Generator().manual_seed(0), []
    with tarfile.open(Path(os.environ["MMT_TEST_DATA"], "flickr8k", "dev-000.tar")) as archive:
        photos = (archive.extractfile(member) for member in archive if member.name.endswith(".jpg"))
        for _, photo in zip(range(100), photos, strict=False):
            assert photo is not None
            picture = mini.read(Image.open(photo).convert("RGB"))
            drops.append(drop_of(write_picture(mini, picture), Choice(), generator))
    assert len(drops) == 100
    assert sum(drop.attended for drop in drops) > 1.2 * sum(drop.random for drop in drops)
