from pathlib import Path

import pytest

from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.errors import UsageError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": Path("dog.jpg")}, r"--phase train, --image dog\.jpg"),
        ({"dtype": "float16"}, r"--phase train, --dtype float16"),
    ],
)
def test_what_training_has_no_use_for_is_refused(options, words):
    assert BenchOptions(**options)
    with pytest.raises(UsageError, match=words):
        BenchOptions(**options, phase="train")


def test_last_word_of_a_caption_is_not_read_but_a_training_text_is_read_whole():
    lengths = {"prompt_tokens": 3, "gen_tokens": 4}
    assert BenchOptions(**lengths).text_length == 6
    assert BenchOptions(**lengths, phase="train").text_length == 7


def test_settings_of_a_report_say_what_stood_for_the_image():
    assert BenchOptions().to_json()["image"] == "synthetic 640 x 480"
    assert BenchOptions(image=Path("dog.jpg")).to_json()["image"] == "dog.jpg"
    assert BenchOptions(phase="train").to_json()["image"] == "random pixels"
