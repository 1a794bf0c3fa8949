"""The checkpoint that ships, on real photos."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmt_cli import Captioner
from mmt_cli.captioning.stepper import CachedStepper, RecomputeStepper
from mmt_cli.checkpoint.reference import BUNDLED
from mmt_cli.decoding.generate import generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.training.data import open_dataset
from mmt_cli.training.evaluate import Evaluator
from mmt_cli.training.images import Images

PHOTOS = sorted((Path(__file__).parent / "data").glob("*.jpg"))


@pytest.fixture(scope="module")
def mini() -> Captioner:
    return Captioner.load("mini", device="cpu")


def test_it_is_as_small_as_promised(mini: Captioner) -> None:
    assert sum(parameter.numel() for parameter in mini.model.parameters()) <= 20_000_000
    assert sum(file.stat().st_size for file in (BUNDLED / "mini").iterdir()) <= 40_000_000


def test_a_caption_is_one_sentence_that_begins_with_the_prompt(mini: Captioner) -> None:
    for caption in mini.caption(PHOTOS, prompt="A"):
        assert caption.text.startswith("A ")
        assert caption.text.endswith(".")
        assert 4 <= len(caption.text.split()) <= 30
        assert caption.finish_reason == "stop"


def test_a_dozen_photos_give_at_least_eight_sentences(mini: Captioner) -> None:
    assert len(PHOTOS) == 12
    assert len({caption.text for caption in mini.caption(PHOTOS)}) >= 8


def test_one_photo_at_a_time_and_all_at_once_give_the_same_tokens(mini: Captioner) -> None:
    for beams in (1, 5):
        alone = [mini.caption([photo], num_beams=beams)[0] for photo in PHOTOS]
        together = mini.caption(PHOTOS, num_beams=beams, batch_size=len(PHOTOS))
        assert [caption.tokens for caption in alone] == [caption.tokens for caption in together]


def test_the_cache_changes_no_token(mini: Captioner) -> None:
    options = GenerationOptions(max_new_tokens=20, num_beams=2, end_token_ids=mini.generation.end_token_ids)
    prompts = [mini.encode_prompt("A").ids] * 3
    with torch.inference_mode():
        image = mini.see([mini.read(photo) for photo in PHOTOS[:3]])
        written = [
            [item[0].tokens for item in generate(kind(mini.model, image, prompts, 20), prompts, options)]
            for kind in (CachedStepper, RecomputeStepper)
        ]
    assert written[0] == written[1]


@pytest.mark.slow
@pytest.mark.skipif("MMT_TEST_DATA" not in os.environ, reason="needs the shards of Flickr8k")
def test_the_dev_split_scores_what_weights_md_says_and_hardly_less_in_eight_bits(mini: Captioner) -> None:
    examples = open_dataset([Path(os.environ["MMT_TEST_DATA"]) / "flickr8k/dev-000.tar"])
    evaluator = Evaluator(examples)
    quantised = Captioner.load("mini", device="cpu", quantize="int8")
    scores, coarse = (evaluator.score(which, Images(examples, which).see_all) for which in (mini, quantised))
    assert scores.figures["cider"] == pytest.approx(57.9, abs=0.3)
    assert scores.figures["bleu4"] == pytest.approx(22.65, abs=0.3)
    assert coarse.figures["cider"] > scores.figures["cider"] - 1


@pytest.mark.slow
def test_a_cold_caption_takes_little_more_than_importing_torch() -> None:
    def seconds(*arguments: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return sorted(times)[1]

    caption = seconds("-m", "mmt_cli", "caption", str(PHOTOS[0]), "--prompt", "A")
    assert caption < 2.5 * seconds("-c", "import torch") + 1
