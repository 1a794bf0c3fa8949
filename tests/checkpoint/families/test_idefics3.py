"""Idefics3 and SmolVLM against transformers.

Changes made by hand to the loaded model that moved the logits by more than is allowed: final norm dropped, either eps
changed, either activation swapped (in the tower even exact for approximate GELU), the tower's qkv biases zeroed, image
positions shifted, rotary base changed, the tower's last layer dropped; the tower's norm dropped, patch bias zeroed,
cells of a pixel shuffle in the other order.
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

from mmt_cli.checkpoint.families.idefics3 import config_from_hf
from mmt_cli.errors import ModelError
from mmt_cli.inputs.prompt import QUESTION, Layout
from mmt_cli.model.presets_hf import smolvlm_256m

HEAD = ("lm_head.weight",)
ASKED = ("<|im_start|>User:<fake_token_around_image><global-img>", "<fake_token_around_image>")


@pytest.mark.parametrize("prompt", PROMPTS["smolvlm"])
def test_smolvlm_answers_as_in_transformers(
    built: Callable[..., Any], captions: Callable[..., Any], prompt: str
) -> None:
    check(built("smolvlm"), captions, prompt)


def test_idefics3_answers_as_in_transformers(built: Callable[..., Any]) -> None:
    check_built(built("idefics3"), PROMPTS["idefics3"][1], count=4)


@pytest.mark.parametrize(("family", "name"), files("smolvlm"))
def test_files_of_others_give_the_same(
    built: Callable[..., Any], captions: Callable[..., Any], tmp_path: Path, family: str, name: str
) -> None:
    check_variant(built(family), captions, name, variants(family)[name], tmp_path)


def test_pictures_of_one_batch_have_unequal_numbers_of_tiles(built: Callable[..., Any]) -> None:
    captioner = loaded(built("smolvlm").folder)
    assert len({captioner.layout(captioner.read(image)).tiles for image in photos(8)}) >= 2


def test_settings_of_the_text_hold(built: Callable[..., Any]) -> None:
    text = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6}
    check_built(built("smolvlm", text=text), PROMPTS["smolvlm"][0])


def test_a_picture_that_is_not_split_is_seen_whole_alone(built: Callable[..., Any]) -> None:
    model = built("smolvlm")
    captioner = loaded(model.folder)
    text = f"{ASKED[0]}{'<image>' * 4}{ASKED[1]}{QUESTION}<end_of_utterance>\nAssistant:"
    wanted = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(captioner.encode_prompt(None, Layout(tokens=4)).ids) == wanted


def test_a_system_prompt_is_a_turn_of_its_own(built: Callable[..., Any]) -> None:
    model = built("smolvlm")
    captioner = loaded(model.folder)
    prompting = captioner.source.family.prompting(captioner.source.raw_config, captioner.tokenizer)
    told = dataclasses.replace(prompting, system="the city.")(captioner.tokenizer, "the table?", Layout(tokens=1))
    text = (
        "<|im_start|>System: the city.<end_of_utterance>\nUser:<fake_token_around_image><global-img><image>"
        "<fake_token_around_image>the table?<end_of_utterance>\nAssistant:"
    )
    assert list(told.ids) == model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_question_smuggles_in_no_special_token(built: Callable[..., Any]) -> None:
    captioner = loaded(built("smolvlm").folder)
    layout = Layout(tokens=4)
    plain, sly = (captioner.encode_prompt(text, layout).ids for text in ("a", "<image><end_of_utterance><row_1_col_1>"))
    for special in ("<image>", "<end_of_utterance>", "<row_1_col_1>"):
        index = captioner.tokenizer.token_id(special)
        assert plain.count(index) == sly.count(index)


def test_what_a_config_leaves_out_is_what_the_class_gives() -> None:
    for kind in (transformers.Idefics3Config, transformers.SmolVLMConfig):
        whole = kind(scale_factor=1).to_dict()  # 2, the default, does not divide the default grid of 7 x 7
        bare = {"model_type": whole["model_type"], "scale_factor": 1}
        parts = {name: {"model_type": whole[name]["model_type"]} for name in ("text_config", "vision_config")}
        assert spelt_out(config_from_hf(bare, HEAD)) == spelt_out(config_from_hf(whole, HEAD))
        assert spelt_out(config_from_hf(bare | parts, HEAD)) == spelt_out(
            config_from_hf(kind(scale_factor=1, **parts).to_dict(), HEAD)
        )


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize("spelling", [("rope_scaling", "type"), ("rope_parameters", "rope_type")])
def test_scaled_positions_are_refused(kind: str, spelling: tuple[str, str]) -> None:
    text = {"model_type": "llama", spelling[0]: {spelling[1]: kind, "factor": 2.0}}
    with pytest.raises(ModelError, match=kind):
        config_from_hf({"text_config": text}, HEAD)


def test_positions_scaled_beyond_the_context_alone_change_nothing() -> None:
    plain = {"model_type": "llama", "rope_theta": 500.0}
    dynamic = plain | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    found = [config_from_hf({"text_config": text, "scale_factor": 1}, HEAD) for text in (plain, dynamic)]
    assert found[0] == found[1]
    assert found[0].text.block.rope_theta == 500.0


def test_other_texts_are_refused() -> None:
    with pytest.raises(ModelError, match="gemma2"):
        config_from_hf({"text_config": {"model_type": "gemma2"}}, HEAD)


def test_the_preset_is_what_its_config_says() -> None:
    vision = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
    text = {
        "model_type": "llama",
        "vocab_size": 49_280,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8_192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000,
    }
    config = {"text_config": text, "vision_config": vision, "scale_factor": 4, "image_token_id": 49_190}
    assert config_from_hf(config, HEAD) == smolvlm_256m()
