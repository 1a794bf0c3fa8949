"""PaliGemma against transformers.

Changes made by hand to the loaded model that moved the logits by more than is allowed: final norm dropped, either eps
changed, either activation swapped (in the tower even exact for approximate GELU), the tower's qkv biases zeroed, image
positions shifted, rotary base changed, the tower's last layer dropped; connector bias zeroed, the tower's norm dropped,
the prompt masked causally, embeddings not scaled, norm weights without the one.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf import PROMPTS

pytest.importorskip("transformers")
import transformers
from hf.layouts import variants
from parity import check, check_built, check_variant, files, loaded, spelt_out

from mmt_cli.checkpoint.families.paligemma import config_from_hf
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inputs.prompt import QUESTION


@pytest.mark.parametrize("prompt", PROMPTS["paligemma"])
def test_it_answers_as_in_transformers(built: Callable[..., Any], captions: Callable[..., Any], prompt: str) -> None:
    check(built("paligemma"), captions, prompt)


@pytest.mark.parametrize(("family", "name"), files("paligemma"))
def test_files_of_others_give_the_same(
    built: Callable[..., Any], captions: Callable[..., Any], tmp_path: Path, family: str, name: str
) -> None:
    check_variant(built(family), captions, name, variants(family)[name], tmp_path)


def test_settings_hold_and_siglips_pooling_is_left_out(built: Callable[..., Any]) -> None:
    changes = {"text": {"attention_bias": True}, "vision": {"vision_use_head": True}}
    check_built(built("paligemma", **changes), PROMPTS["paligemma"][0])


def test_the_default_question_stands_between_bos_and_a_line_break(built: Callable[..., Any]) -> None:
    model = built("paligemma")
    text = f"{'<image>' * 16}<bos>{QUESTION}\n"
    wanted = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(loaded(model.folder).encode_prompt(None).ids) == wanted


def test_there_is_no_place_for_a_system_prompt(built: Callable[..., Any]) -> None:
    captioner = loaded(built("paligemma").folder)
    prompting = captioner.source.family.prompting(captioner.source.raw_config, captioner.tokenizer)
    with pytest.raises(UsageError, match="system prompt"):
        dataclasses.replace(prompting, system="the city.")(captioner.tokenizer, "a", captioner.layout())


def test_a_question_smuggles_in_no_special_token(built: Callable[..., Any]) -> None:
    captioner = loaded(built("paligemma").folder)
    plain, sly = (captioner.encode_prompt(text).ids for text in ("a", "<image><bos><eos>"))
    for special in ("<image>", "<bos>", "<eos>"):
        index = captioner.tokenizer.token_id(special)
        assert plain.count(index) == sly.count(index)


def test_what_a_config_leaves_out_is_what_the_class_gives() -> None:
    assert spelt_out(config_from_hf({}, ())) == spelt_out(config_from_hf(transformers.PaliGemmaConfig().to_dict(), ()))
    parts = {"text_config": {"model_type": "gemma"}, "vision_config": {"model_type": "siglip_vision_model"}}
    parts["projection_dim"] = 3_072
    assert spelt_out(config_from_hf(parts, ())) == spelt_out(
        config_from_hf(transformers.PaliGemmaConfig(**parts).to_dict(), ())
    )


@pytest.mark.parametrize("text", [{"model_type": "gemma2"}, {"use_bidirectional_attention": False}], ids=str)
def test_other_texts_are_refused(text: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(text))):
        config_from_hf({"text_config": text}, ())
