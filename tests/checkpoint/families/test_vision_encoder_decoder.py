"""ViT-GPT2 and TrOCR against transformers.

Changes made by hand to the loaded models, and how far they moved the logits of ViT-GPT2, TrOCR with a DeiT and TrOCR
with a ViT: tower's eps 1.7, 0.13, 0.32; GPT-2's eps 0.28 (TrOCR's decoder has a fixed one); tower's activation 6.7,
0.8, 0.79; text's activation 1, 0.94, 2.1; the tower's last norm dropped 16, 12, 13; GPT-2's last norm dropped 400;
embedding norm dropped 6.6 (DeiT); qkv biases zeroed 10, 4.2; an output bias zeroed 1.1, 0.99, 0.19; text positions
shifted 15, 5.7, 2; image positions shifted 10, 7.1, 5.2; the last block dropped 6.8, 15, 26; as they are 7e-6.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf import PROMPTS

pytest.importorskip("transformers")
import torch
import transformers
from hf.images import photos
from hf.layouts import variants
from parity import check, check_logits, check_variant, files, loaded, spelt_out

from mmt_cli.checkpoint.families.vision_encoder_decoder import config_from_hf
from mmt_cli.errors import ModelError

FAMILIES = ("vit-gpt2", "trocr", "trocr-vit")
CASES = [(family, prompt) for family in FAMILIES for prompt in PROMPTS[family]]
FILES = files(*FAMILIES)


@pytest.mark.parametrize(("family", "prompt"), CASES)
def test_it_writes_as_in_transformers(
    built: Callable[..., Any], captions: Callable[..., Any], family: str, prompt: str | None
) -> None:
    check(built(family), captions, prompt)


@pytest.mark.parametrize(("family", "name"), FILES)
def test_files_of_others_give_the_same(
    built: Callable[..., Any], captions: Callable[..., Any], tmp_path: Path, family: str, name: str
) -> None:
    check_variant(built(family), captions, name, variants(family)[name], tmp_path)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (transformers.ViTConfig, transformers.GPT2Config),
        (transformers.DeiTConfig, transformers.TrOCRConfig),
    ],
)
def test_what_a_config_leaves_out_is_what_the_classes_give(
    encoder: Callable[..., Any], decoder: Callable[..., Any]
) -> None:
    parts = {"encoder": encoder().to_dict(), "decoder": decoder().to_dict()}
    bare = {name: {"model_type": part["model_type"]} for name, part in parts.items()}
    assert spelt_out(config_from_hf(bare, ())) == spelt_out(config_from_hf(parts, ()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_dict_saved_by_hand_is_read(built: Callable[..., Any], tmp_path: Path, family: str) -> None:
    model = built(family)
    folder = shutil.copytree(model.folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.model.state_dict(), folder / "pytorch_model.bin")
    check_logits(model, loaded(folder), PROMPTS[family][0], photos(1)[0])


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("encoder", {"model_type": "swin"}, "encoder.model_type 'swin'"),
        ("decoder", {"model_type": "bert"}, "decoder.model_type 'bert'"),
        ("decoder", {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("decoder", {"model_type": "gpt2", "activation_function": "mish"}, "activation_function 'mish'"),
    ],
)
def test_parts_of_other_kinds_are_refused_by_name(part: str, values: dict[str, Any], named: str) -> None:
    config = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}} | {part: values}
    with pytest.raises(ModelError, match=re.escape(named)):
        config_from_hf(config, ())
