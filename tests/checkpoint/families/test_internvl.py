"""InternVL in transformers' layout against transformers.

Changes made by hand to the loaded model that moved the logits by more than is allowed: final norm dropped, either eps
changed, either activation swapped (in the tower even exact for approximate GELU), the tower's qkv biases zeroed, image
positions shifted, rotary base changed, the tower's last layer dropped; connector biases zeroed, its norm dropped, layer
scale dropped, class token zeroed, Qwen2's qkv biases zeroed, cells of a pixel shuffle in the other order.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf import PROMPTS

pytest.importorskip("transformers")
import transformers
from hf.images import photos
from hf.layouts import variants
from parity import check, check_built, check_variant, files, loaded, spelt_out

from mmt_cli.checkpoint.families.internvl import config_from_hf
from mmt_cli.errors import ModelError
from mmt_cli.inputs.prompt import Layout

HEAD = ("language_model.lm_head.weight",)


@pytest.mark.parametrize("prompt", PROMPTS["internvl"])
def test_it_answers_as_in_transformers(built: Callable[..., Any], captions: Callable[..., Any], prompt: str) -> None:
    check(built("internvl"), captions, prompt)


@pytest.mark.parametrize(("family", "name"), files("internvl"))
def test_files_of_others_give_the_same(
    built: Callable[..., Any], captions: Callable[..., Any], tmp_path: Path, family: str, name: str
) -> None:
    check_variant(built(family), captions, name, variants(family)[name], tmp_path)


def test_pictures_of_one_batch_have_unequal_numbers_of_tiles(built: Callable[..., Any]) -> None:
    captioner = loaded(built("internvl").folder)
    assert len({captioner.layout(captioner.read(image)).tiles for image in photos(8)}) >= 2


@pytest.mark.parametrize(
    "changes",
    [
        {"vision": {"attention_bias": False}, "top": {"vision_feature_layer": -2}},
        {"tie_word_embeddings": True, "top": {"tie_word_embeddings": True, "vision_feature_layer": 1}},
    ],
    ids=str,
)
def test_settings_hold(built: Callable[..., Any], changes: dict[str, Any]) -> None:
    check_built(built("internvl", **changes), PROMPTS["internvl"][0])


def test_a_system_prompt_is_a_turn_of_its_own(built: Callable[..., Any]) -> None:
    model = built("internvl")
    captioner = loaded(model.folder)
    prompting = captioner.source.family.prompting(captioner.source.raw_config, captioner.tokenizer)
    told = dataclasses.replace(prompting, system="the city.")(captioner.tokenizer, "the table?", Layout(tokens=1))
    text = (
        "<|im_start|>system\nthe city.<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT></img>\n"
        "the table?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(told.ids) == model.tokenizer(text)["input_ids"]


def test_a_question_smuggles_in_no_special_token(built: Callable[..., Any]) -> None:
    captioner = loaded(built("internvl").folder)
    plain, sly = (captioner.encode_prompt(text).ids for text in ("a", "<IMG_CONTEXT></img><|im_end|>"))
    for special in ("<IMG_CONTEXT>", "</img>", "<|im_end|>"):
        index = captioner.tokenizer.token_id(special)
        assert plain.count(index) == sly.count(index)


def test_what_a_config_leaves_out_is_what_the_class_gives() -> None:
    assert spelt_out(config_from_hf({}, HEAD)) == spelt_out(
        config_from_hf(transformers.InternVLConfig().to_dict(), HEAD)
    )
    parts = {"text_config": {"model_type": "qwen2"}, "vision_config": {}}
    assert spelt_out(config_from_hf(parts, HEAD)) == spelt_out(
        config_from_hf(transformers.InternVLConfig(**parts).to_dict(), HEAD)
    )


@pytest.mark.parametrize(
    "config",
    [
        {"downsample_ratio": 0.3},
        {"downsample_ratio": 0.0},
        {"vision_feature_layer": [-1]},
        {"vision_feature_select_strategy": "full"},
        *({"vision_config": setting} for setting in ({"use_qk_norm": True}, {"norm_type": "rms_norm"})),
        *({"vision_config": setting} for setting in ({"use_mean_pooling": False}, {"image_size": [448, 224]})),
        {"text_config": {"model_type": "llama"}},
    ],
    ids=str,
)
def test_what_we_do_not_have_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        config_from_hf(config, HEAD)
