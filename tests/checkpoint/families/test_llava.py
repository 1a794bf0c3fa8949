"""LLaVA 1.5 against transformers, with either tower and either text.

Changes made by hand to the loaded model that moved the logits by more than is allowed: final norm dropped, either eps
changed, either activation swapped (in the tower even exact for approximate GELU), the tower's qkv biases zeroed, image
positions shifted, rotary base changed, the tower's last layer dropped; connector biases zeroed, its activation swapped,
CLIP's first norm dropped, its class token zeroed, Qwen2's qkv biases zeroed.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf import PROMPTS

pytest.importorskip("transformers")
import transformers
from hf.build import opened
from hf.images import photos
from hf.layouts import variants
from parity import MOST, check, check_built, check_logits, check_variant, files, loaded, spelt_out
from safetensors.torch import load_file, save_file

from mmt_cli.checkpoint.families.llava import config_from_hf
from mmt_cli.errors import ModelError
from mmt_cli.inputs.prompt import Layout

HEAD = ("language_model.lm_head.weight",)
FAMILIES = ("llava", "llava-siglip")
DESCRIBE = PROMPTS["llava"][0]


@pytest.mark.parametrize("prompt", PROMPTS["llava"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_answers_as_in_transformers(
    built: Callable[..., Any], captions: Callable[..., Any], family: str, prompt: str
) -> None:
    check(built(family), captions, prompt)


@pytest.mark.parametrize(("family", "name"), files("llava"))
def test_files_of_others_give_the_same(
    built: Callable[..., Any], captions: Callable[..., Any], tmp_path: Path, family: str, name: str
) -> None:
    check_variant(built(family), captions, name, variants(family)[name], tmp_path)


def test_a_sparse_config_of_the_other_tower_gives_the_same(
    built: Callable[..., Any], captions: Callable[..., Any], tmp_path: Path
) -> None:
    check_variant(built("llava-siglip"), captions, "sparse-config", variants("llava")["sparse-config"], tmp_path)


def test_the_last_layer_and_another_connector_hold(built: Callable[..., Any]) -> None:
    top = {"vision_feature_layer": -1, "multimodal_projector_bias": False, "projector_hidden_act": "silu"}
    check_built(built("llava", top=top), DESCRIBE)


def test_layers_are_counted_from_the_first_too(built: Callable[..., Any]) -> None:
    check_built(built("llava", top={"vision_feature_layer": 1}), DESCRIBE)


def test_the_class_token_is_seen_where_all_are(built: Callable[..., Any], tmp_path: Path) -> None:
    model = built("llava")
    shutil.copytree(model.folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(': "default"\n}', ': "full"\n}'))
    captioner, image = loaded(tmp_path), photos(1)[0]
    ids = captioner.encode_prompt(DESCRIBE).ids
    assert list(ids) == model.tokenizer(f"USER: {'<image>' * 17}\n{DESCRIBE} ASSISTANT:")["input_ids"]
    pixels = model.image_processor(image, return_tensors="pt").pixel_values
    theirs = opened("llava", tmp_path).model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
    ours = captioner.model(torch.tensor([ids]), captioner.read(image).pixels_NCHW)
    assert (ours - theirs).abs().max() <= MOST


def test_a_tied_text_an_inner_layer_and_siglips_pooling_hold(built: Callable[..., Any], tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": True, "vision": {"vision_use_head": True}}
    top = {"tie_word_embeddings": True, "vision_feature_layer": -2}
    model = built("llava-siglip", **changes, top=top)
    tensors = load_file(model.folder / "model.safetensors")
    assert HEAD[0] not in tensors
    assert any(name.startswith("vision_tower.head.") for name in tensors)
    check_built(model, DESCRIBE)
    shutil.copytree(model.folder, tmp_path, dirs_exist_ok=True)
    head = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors | {HEAD[0]: head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_logits(model, loaded(tmp_path), DESCRIBE, photos(1)[0])


def test_old_buffers_are_left_out(built: Callable[..., Any], tmp_path: Path) -> None:
    model = built("llava")
    tensors = load_file(model.folder / "model.safetensors")
    some = tensors["vision_tower.embeddings.class_embedding"]
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = some.clone()
    tensors["vision_tower.vision_model.embeddings.position_ids"] = some.clone()
    shutil.copytree(model.folder, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_logits(model, loaded(tmp_path), DESCRIBE, photos(1)[0])


def test_a_layer_with_an_unknown_name_is_an_error(built: Callable[..., Any], tmp_path: Path) -> None:
    model = built("llava")
    tensors = load_file(model.folder / "model.safetensors")
    tensors["vision_tower.encoder.layers.2.gate"] = tensors["vision_tower.embeddings.class_embedding"].clone()
    shutil.copytree(model.folder, tmp_path, dirs_exist_ok=True)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gate"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("llava", "<s>the city. USER: <image>\nthe table? ASSISTANT:"),
        ("llava-siglip", "<|im_start|>system \nthe city.<|im_end|><|im_start|>user <image>\nthe table?<|im_end|>"
         "<|im_start|>assistant\n"),
    ],
    ids=FAMILIES,
)  # fmt: skip
def test_a_system_prompt_comes_first(built: Callable[..., Any], family: str, text: str) -> None:
    model = built(family)
    captioner = loaded(model.folder)
    prompting = captioner.source.family.prompting(captioner.source.raw_config, captioner.tokenizer)
    told = dataclasses.replace(prompting, system="the city.")(captioner.tokenizer, "the table?", Layout(tokens=1))
    wanted = model.tokenizer(text.removeprefix("<s>"))["input_ids"]
    assert list(told.ids) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_smuggles_in_no_special_token(built: Callable[..., Any], family: str) -> None:
    captioner = loaded(built(family).folder)
    plain, sly = (captioner.encode_prompt(text).ids for text in ("a", "<image></s><|im_end|><s>"))
    for special in ("<image>", "</s>", "<|im_end|>", "<s>"):
        index = captioner.tokenizer.token_id(special)
        assert plain.count(index) == sly.count(index)


def test_what_a_config_leaves_out_is_what_the_class_gives() -> None:
    whole = transformers.LlavaConfig().to_dict()
    assert spelt_out(config_from_hf({}, HEAD)) == spelt_out(config_from_hf(whole, HEAD))
    for text in ("llama", "qwen2"):
        for tower in ("clip_vision_model", "siglip_vision_model"):
            parts = {"text_config": {"model_type": text}, "vision_config": {"model_type": tower}}
            parts["vision_feature_select_strategy"] = "full"
            assert spelt_out(config_from_hf(parts, HEAD)) == spelt_out(
                config_from_hf(transformers.LlavaConfig(**parts).to_dict(), HEAD)
            )


@pytest.mark.parametrize("layer", [[-2], [-2, -5], 4, -5, True, None])
def test_layers_that_are_not_there_are_refused(layer: Any) -> None:
    config = {"vision_config": {"num_hidden_layers": 3}, "vision_feature_layer": layer}
    if layer is None:  # as if it were left out
        assert config_from_hf(config, HEAD).vision.num_layers == 2
        return
    with pytest.raises(ModelError, match="vision_feature_layer"):
        config_from_hf(config, HEAD)


def test_a_first_patch_that_would_be_dropped_is_refused() -> None:
    with pytest.raises(ModelError, match="vision_feature_select_strategy"):
        config_from_hf({"vision_config": {"model_type": "siglip_vision_model"}}, HEAD)


@pytest.mark.parametrize(
    ("window", "refused"),
    [
        ({"sliding_window": 16}, False),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 28}, True),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 32}, False),
        ({"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 32}, False),
        ({"use_sliding_window": True, "sliding_window": 16, "layer_types": ["sliding_attention"] * 32}, True),
        ({"use_sliding_window": True, "sliding_window": 32_768}, False),
    ],
)
def test_windows_shorter_than_the_context_are_refused(window: dict[str, Any], refused: bool) -> None:
    config = {"text_config": {"model_type": "qwen2", "num_hidden_layers": 32} | window}
    if not refused:
        assert config_from_hf(config, HEAD).text.block.kernel.kind == "full"
        return
    with pytest.raises(ModelError, match="sliding_window 16"):
        config_from_hf(config, HEAD)


def test_a_tokenizer_with_another_image_token_is_refused(built: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(built("llava").folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"image_token_index": 469', '"image_token_index": 3'))
    with pytest.raises(ModelError, match="469 and 3"):
        loaded(tmp_path).encode_prompt("a")
