"""Generation options: what they refuse, and their way through JSON."""

import json
import subprocess
import sys
from typing import Any

import pytest

from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError


def test_defaults_are_greedy_with_thirty_new_tokens() -> None:
    options = GenerationOptions()
    assert (options.max_new_tokens, options.num_beams, options.num_captions) == (30, 1, 1)
    assert not options.sampling


@pytest.mark.parametrize("values", [{"temperature": 1.0}, {"top_k": 0}, {"top_p": 1.0}])
def test_any_of_the_three_turns_sampling_on(values: dict[str, Any]) -> None:
    assert GenerationOptions(**values).sampling


def test_options_survive_json() -> None:
    options = GenerationOptions(
        num_beams=3,
        early_stopping="never",
        num_captions=2,
        max_length=20,
        min_length=4,
        end_token_ids=(2, 5),
        forced_bos_token_id=1,
        forced_end_token_ids=(2,),
        suppress_tokens=(7,),
        begin_suppress_tokens=(8, 9),
        bad_words_ids=((3,), (4, 5)),
        stop_loops=True,
    )
    assert options.to_json()["stop_loops"] is True
    assert options.to_json()["end_token_ids"] == [2, 5]
    assert options.to_json()["suppress_tokens"] == [7]
    assert options.to_json()["bad_words_ids"] == [[3], [4, 5]]
    assert GenerationOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert GenerationOptions.from_json({}) == GenerationOptions()


@pytest.mark.parametrize(
    ("values", "prompt_length", "maximum", "minimum"),
    [
        ({}, 5, 30, 0),
        ({"max_new_tokens": 7, "min_new_tokens": 2}, 5, 7, 2),
        ({"max_length": 20}, 5, 15, 0),
        ({"max_length": 20, "max_new_tokens": 7}, 5, 15, 0),
        ({"max_length": 20, "min_length": 12}, 5, 15, 7),
        ({"max_length": 20, "min_length": 12}, 13, 7, 0),
        ({"max_length": 20, "min_length": 25}, 5, 15, 15),
        ({"max_new_tokens": 7, "min_length": 12}, 5, 7, 7),
        ({"max_new_tokens": 7, "min_length": 12}, 9, 7, 3),
        ({"max_length": 20, "min_length": 12, "min_new_tokens": 3}, 5, 15, 3),
        ({"max_length": 20, "min_new_tokens": 10}, 10, 10, 10),
    ],
)
def test_totals_become_new_tokens(values: dict[str, Any], prompt_length: int, maximum: int, minimum: int) -> None:
    options = GenerationOptions(**values, num_beams=2).for_prompt(prompt_length)
    assert options == GenerationOptions(max_new_tokens=maximum, min_new_tokens=minimum, num_beams=2)


@pytest.mark.parametrize("values", [{"max_length": 20}, {"max_length": 22, "min_new_tokens": 3}])
def test_a_prompt_that_leaves_no_room_is_refused(values: dict[str, Any]) -> None:
    named = rf"20 tokens, max_length {values['max_length']}.*; give max_new_tokens"
    with pytest.raises(UsageError, match=named):
        GenerationOptions(**values).for_prompt(20)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'num_beems'.*num_beams"):
        GenerationOptions.from_json({"max_new_tokens": 3, "num_beems": 2})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_beams": 2, "num_captions": 3}, ["num_captions 3", "num_beams 2"]),
        ({"num_captions": 3}, ["num_captions 3", "num_beams 1"]),
        ({"num_beams": 4, "temperature": 0.5}, ["num_beams 4", "temperature 0.5"]),
        ({"num_beams": 4, "top_k": 7}, ["num_beams 4", "top_k 7"]),
        ({"num_beams": 4, "top_p": 0.5}, ["num_beams 4", "top_p 0.5"]),
        ({"min_new_tokens": 31}, ["min_new_tokens 31", "max_new_tokens 30"]),
        ({"temperature": 0.0}, ["temperature is 0.0", "1e-05"]),
        ({"temperature": -1.0}, ["temperature is -1.0", "1e-05"]),
        ({"temperature": float("nan")}, ["temperature is nan"]),
        ({"temperature": 10**400}, ["temperature is 1000", "100000"]),
        ({"top_p": 0.0}, ["top_p is 0.0", "more than 0"]),
        ({"top_p": 1.5}, ["top_p is 1.5", "at most 1"]),
        ({"top_k": -1}, ["top_k is -1", "at least 0"]),
        ({"top_k": 2.5}, ["top_k is 2.5", "whole number"]),
        ({"repetition_penalty": 0}, ["repetition_penalty is 0", "1e-05"]),
        ({"repetition_penalty": float("inf")}, ["repetition_penalty is inf", "100000"]),
        ({"length_penalty": 1000}, ["length_penalty is 1000", "at most 20"]),
        ({"length_penalty": -1000}, ["length_penalty is -1000", "at least -20"]),
        ({"length_penalty": "1"}, ["length_penalty is '1'", "number"]),
        ({"max_new_tokens": -1}, ["max_new_tokens is -1", "at least 0"]),
        ({"max_new_tokens": 10**9}, ["max_new_tokens is 1000000000", "at most 1000000"]),
        ({"max_new_tokens": True}, ["max_new_tokens is True"]),
        ({"min_new_tokens": -1}, ["min_new_tokens is -1"]),
        ({"num_beams": 0}, ["num_beams is 0", "at least 1"]),
        ({"num_beams": 10**9}, ["num_beams is 1000000000", "at most 1000"]),
        ({"num_captions": 0}, ["num_captions is 0", "at least 1"]),
        ({"num_captions": 10**9, "top_k": 1}, ["num_captions is 1000000000", "at most 1000"]),
        ({"no_repeat_ngram_size": -1}, ["no_repeat_ngram_size is -1"]),
        ({"early_stopping": "always"}, ["early_stopping is 'always'", "never"]),
        ({"early_stopping": 1}, ["early_stopping is 1", "never"]),
        ({"stop_loops": 1}, ["stop_loops is 1", "true or false"]),
        ({"stop_loops": None}, ["stop_loops is None", "true or false"]),
        ({"end_token_ids": 2}, ["end_token_ids is 2", "list"]),
        ({"end_token_ids": (-1,)}, ["end_token_ids is -1"]),
        ({"end_token_ids": ("2",)}, ["end_token_ids is '2'"]),
        ({"end_token_ids": (2**31,)}, ["end_token_ids is 2147483648", "at most 2147483647"]),
        ({"max_length": 0}, ["max_length is 0", "at least 1"]),
        ({"max_length": "8"}, ["max_length is '8'", "whole number"]),
        ({"min_length": -1}, ["min_length is -1", "at least 0"]),
        ({"min_length": 10**5000}, ["min_length is a huge int", "at most 1000000"]),
        ({"forced_bos_token_id": True}, ["forced_bos_token_id is True", "whole number"]),
        ({"forced_end_token_ids": 2}, ["forced_end_token_ids is 2", "list"]),
        ({"begin_suppress_tokens": (1.5,)}, ["begin_suppress_tokens is 1.5", "whole number"]),
        ({"bad_words_ids": (1, 2)}, ["bad_words_ids is 1", "list"]),
        ({"bad_words_ids": ((),)}, ["bad_words_ids is ((),)", "list of lists"]),
        ({"bad_words_ids": ((1, -2),)}, ["bad_words_ids is -2", "at least 0"]),
        ({"forced_bos_token_id": 3, "suppress_tokens": (3, 4)}, ["forced tokens [3]", "suppress_tokens [3, 4]"]),
        ({"forced_end_token_ids": (3, 4), "suppress_tokens": (3, 4)}, ["forced tokens [3, 4]"]),
    ],
)
def test_bad_values_are_refused_in_one_line_that_names_them(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        GenerationOptions(**values)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    for part in named:
        assert part in message


def test_the_module_imports_no_torch() -> None:
    code = "import sys, mmt_cli.decoding.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
