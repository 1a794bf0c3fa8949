from pathlib import Path

import pytest

from mmt_cli.benchmark.options import BenchOptions, Case
from mmt_cli.errors import UsageError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": Path("dog.jpg")}, r"--phase train, --image dog\.jpg"),
        ({"dtype": "float16"}, r"--phase train, --dtype float16"),
        ({"against": "transformers"}, r"--phase train, --against transformers"),
        ({"quantize": "int8"}, r"--phase train, --quantize int8"),
    ],
)
def test_what_training_has_no_use_for_is_refused(options, words):
    assert BenchOptions(**options)
    with pytest.raises(UsageError, match=words):
        BenchOptions(**options, phase="train")


def test_last_word_of_a_caption_is_not_read_but_a_training_text_is_read_whole():
    case = Case(model="mini", batch_size=1, prompt_tokens=3, gen_tokens=4)
    assert BenchOptions().text_length(case) == 6
    assert BenchOptions(phase="train").text_length(case) == 7


def test_cases_are_all_batch_sizes_with_all_lengths():
    options = BenchOptions(batch_sizes=(1, 8), prompt_tokens=(2, 3), gen_tokens=(16,))
    found = [(case.batch_size, case.prompt_tokens, case.gen_tokens) for case in options.cases("mini")]
    assert found == [(1, 2, 16), (1, 3, 16), (8, 2, 16), (8, 3, 16)]
    assert {case.model for case in options.cases("mini")} == {"mini"}


def test_settings_of_a_report_say_what_stood_for_the_image():
    assert BenchOptions().to_json()["image"] == "synthetic 640 x 480"
    assert BenchOptions(image=Path("dog.jpg")).to_json()["image"] == "dog.jpg"
    assert BenchOptions(phase="train").to_json()["image"] == "random pixels"
