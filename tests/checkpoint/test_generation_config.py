"""Generation defaults of Hugging Face folders, held against transformers' own GenerationConfig."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from mmt_cli.checkpoint.generation_config import generation_from_hf
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError

BART = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "no_repeat_ngram_size": 3,
    "num_beams": 3,
    "pad_token_id": 1,
    "transformers_version": "4.56.0",
}


def test_nothing_given_is_our_default() -> None:
    assert generation_from_hf({}, {}) == GenerationOptions()
    assert generation_from_hf(None, {}) == GenerationOptions()
    assert generation_from_hf(dict.fromkeys([*BART, "max_length", "do_sample", "guidance_scale"]), {}) == (
        GenerationOptions()
    )


def test_a_file_as_bart_has_it() -> None:
    assert generation_from_hf(BART, {"eos_token_id": 9, "num_beams": 7}) == GenerationOptions(
        num_beams=3,
        early_stopping=True,
        no_repeat_ngram_size=3,
        end_token_ids=(2,),
        forced_bos_token_id=0,
        forced_end_token_ids=(2,),
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_length": 16, "num_beams": 4}, {"max_length": 16, "num_beams": 4}),
        ({"max_length": 16, "max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"max_length": 60, "max_new_tokens": None, "min_length": 5}, {"max_length": 60, "min_length": 5}),
        ({"min_length": 5, "min_new_tokens": 0}, {}),
        ({"min_length": 5, "min_new_tokens": 3}, {"min_new_tokens": 3}),
        ({"eos_token_id": [2, 7]}, {"end_token_ids": (2, 7)}),
        ({"forced_eos_token_id": [2, 7]}, {"forced_end_token_ids": (2, 7)}),
        ({"suppress_tokens": [3]}, {"suppress_tokens": (3,)}),
        ({"begin_suppress_tokens": [4]}, {"begin_suppress_tokens": (4,)}),
        ({"bad_words_ids": [[3], [4, 5]]}, {"bad_words_ids": ((3,), (4, 5))}),
        ({"length_penalty": 2, "early_stopping": "never"}, {"length_penalty": 2, "early_stopping": "never"}),
        ({"repetition_penalty": 1.05}, {"repetition_penalty": 1.05}),
        ({"do_sample": False, "temperature": 0.0, "top_p": 7, "top_k": None}, {}),
        ({"temperature": 0.7, "top_p": 0.6}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
        ({"do_sample": True, "top_k": 20, "top_p": 0.8}, {"temperature": 1.0, "top_k": 20, "top_p": 0.8}),
        ({"do_sample": True, "temperature": 0.2, "top_k": 0}, {"temperature": 0.2, "top_k": 0, "top_p": 1.0}),
        ({"num_return_sequences": 3, "diversity_penalty": 0.5, "use_cache": False, "cache_implementation": "x"}, {}),
        ({"min_p": 0.1, "typical_p": 0.5, "num_beam_groups": 2, "renormalize_logits": True}, {}),
        ({"penalty_alpha": 0.6, "top_k": 1}, {}),
        ({"penalty_alpha": 0.6, "num_beams": 2}, {"num_beams": 2}),
        ({"encoder_repetition_penalty": 1, "guidance_scale": 1, "token_healing": False}, {}),
    ],
)
def test_what_each_key_becomes(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert generation_from_hf(values, {}) == GenerationOptions(**expected)
    assert generation_from_hf(None, values) == GenerationOptions(**expected)


SAMPLE, BEAMS = {"do_sample": True}, {"num_beams": 4}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({**SAMPLE, **BEAMS}, ["do_sample true", "num_beams 4", "num_beams to 1"]),
        ({**BEAMS, "num_beam_groups": 2}, ["num_beam_groups 2"]),
        ({**BEAMS, "renormalize_logits": True}, ["renormalize_logits True"]),
        ({"penalty_alpha": 0.6}, ["penalty_alpha 0.6"]),
        ({"penalty_alpha": 0.6, "top_k": 4}, ["penalty_alpha 0.6"]),
        ({**SAMPLE, "min_p": 0.3}, ["min_p 0.3"]),
        ({**SAMPLE, "top_h": 0.3}, ["top_h 0.3"]),
        ({**SAMPLE, "typical_p": 0.3}, ["typical_p 0.3"]),
        ({**SAMPLE, "epsilon_cutoff": 0.3}, ["epsilon_cutoff 0.3"]),
        ({**SAMPLE, "eta_cutoff": 0.3}, ["eta_cutoff 0.3"]),
        ({"encoder_repetition_penalty": 1.2}, ["encoder_repetition_penalty 1.2"]),
        ({"encoder_no_repeat_ngram_size": 2}, ["encoder_no_repeat_ngram_size 2"]),
        ({"guidance_scale": 1.5}, ["guidance_scale 1.5"]),
        ({"guidance_scale": math.nan}, ["guidance_scale nan"]),
        ({"constraints": []}, ["constraints []"]),
        ({"force_words_ids": [[3]]}, ["force_words_ids [[3]]"]),
        ({"sequence_bias": [[[3], 1.0]]}, ["sequence_bias [[[3], 1.0]]"]),
        ({"exponential_decay_length_penalty": [5, 1.1]}, ["exponential_decay_length_penalty [5, 1.1]"]),
        ({"stop_strings": ["."]}, ["stop_strings ['.']"]),
        ({"watermarking_config": {}}, ["watermarking_config {}"]),
        ({"token_healing": True}, ["token_healing True"]),
        ({"dola_layers": "low"}, ["dola_layers 'low'"]),
        ({"max_time": 1.0}, ["max_time 1.0"]),
        ({"prefix_allowed_tokens_fn": "f"}, ["prefix_allowed_tokens_fn 'f'"]),
        ({"num_beams": "8"}, ["num_beams is '8'", "whole number"]),
        ({"num_beams": True}, ["num_beams is True"]),
        ({"num_beams": 2.0}, ["num_beams is 2.0"]),
        ({"num_beams": -1}, ["num_beams is -1"]),
        ({"num_beams": 10**5000}, ["num_beams is a huge int", "at most 1000"]),
        ({"max_new_tokens": 10**5000}, ["max_new_tokens is a huge int"]),
        ({"max_length": 0}, ["max_length is 0"]),
        ({"max_length": [16]}, ["max_length is [16]"]),
        ({"length_penalty": math.nan}, ["length_penalty is nan"]),
        ({"length_penalty": 1e400}, ["length_penalty is inf"]),
        ({"repetition_penalty": 0.0}, ["repetition_penalty is 0.0"]),
        ({"early_stopping": "yes"}, ["early_stopping is 'yes'"]),
        ({"do_sample": "yes"}, ["do_sample is 'yes'", "true or false"]),
        ({"do_sample": 1}, ["do_sample is 1"]),
        ({**SAMPLE, "temperature": 0.0}, ["temperature is 0.0"]),
        ({**SAMPLE, "top_k": "9"}, ["top_k is '9'"]),
        ({**SAMPLE, "top_p": 1.5}, ["top_p is 1.5"]),
        ({"eos_token_id": -1}, ["eos_token_id is -1", "token id"]),
        ({"eos_token_id": [2, "3"]}, ["eos_token_id is [2, '3']"]),
        ({"eos_token_id": True}, ["eos_token_id is True"]),
        ({"forced_bos_token_id": [1]}, ["forced_bos_token_id is [1]"]),
        ({"bad_words_ids": [3]}, ["bad_words_ids is 3"]),
        ({"bad_words_ids": "x"}, ["bad_words_ids is 'x'"]),
        ({"forced_eos_token_id": 2, "suppress_tokens": [2]}, ["forced tokens [2]", "suppress_tokens [2]"]),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, ["min_new_tokens 9", "max_new_tokens 3"]),
    ],
)
def test_what_is_malformed_or_not_supported_is_refused_by_name(values: dict[str, Any], named: list[str]) -> None:
    for name in ("generation_config.json", "config.json"):
        with pytest.raises(ModelError) as caught:
            generation_from_hf(values if name == "generation_config.json" else None, values)
        message = str(caught.value)
        assert "\n" not in message
        assert "; " in message
        assert all(part in message for part in [*named, f"({name}"])


LEGACY: dict[str, list[Any]] = {
    "max_length": [16, 20],
    "max_new_tokens": [9],
    "min_length": [0, 3],
    "num_beams": [1, 4],
    "length_penalty": [0.6],
    "early_stopping": [True, False],
    "no_repeat_ngram_size": [0, 3],
    "repetition_penalty": [1.2],
    "eos_token_id": [2, [2, 7]],
    "bos_token_id": [0],
    "forced_bos_token_id": [0, 5],
    "forced_eos_token_id": [2],
    "bad_words_ids": [[[3]]],
    "force_bos_token_to_be_generated": [True, False],
    "hidden_size": [8],
}


def _legacy_config(choice: random.Random) -> dict[str, Any]:
    def some() -> dict[str, Any]:
        return {key: choice.choice([*values, None]) for key, values in LEGACY.items() if choice.random() < 0.4}

    inner = {key: choice.choice([some(), some(), {}, None]) for key in ("decoder", "generator", "text_config")}
    return {**some(), **{key: value for key, value in inner.items() if choice.random() < 0.5}}


def test_a_config_without_a_file_beside_it_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    used = set()
    for seed in range(150):
        config = _legacy_config(random.Random(seed))
        (tmp_path / "config.json").write_text(json.dumps(config))
        theirs = GenerationConfig.from_pretrained(tmp_path, config_file_name="config.json", _from_model_config=True)
        ours = generation_from_hf(None, config)
        assert ours == generation_from_hf(theirs.to_dict(), {}), config
        used |= {key for key, value in ours.to_json().items() if value != GenerationOptions().to_json()[key]}
    assert len(used) >= 11


KEYS = [*LEGACY, *BART, "do_sample", "top_k", "top_p", "temperature", "suppress_tokens", "begin_suppress_tokens"]
KEYS += ["min_new_tokens", "typical_p", "penalty_alpha", "num_beam_groups", "decoder", "text_config", "guidance_scale"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 60),
    st.sampled_from([10**4000, -(10**4000), 2**63, 1e400, -1e400, math.nan, "8", "never", "", "\ud800\n", 0.5]),
    st.floats(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), base=st.sampled_from([{}, BART]))
def test_mutated_files_load_or_are_refused_in_one_line(values: dict[str, Any], base: dict[str, Any]) -> None:
    mutated = {**base, **values}
    for generation in (mutated, None):
        try:
            options = generation_from_hf(generation, mutated)
        except ModelError as error:
            assert "\n" not in str(error)
            assert "; " in str(error)
        else:
            assert GenerationOptions.from_json(options.to_json()) == options
