"""BLIP, captioning and answering, against transformers.

Changes made by hand to the loaded models, and how far they moved the logits of captions (and of answers): tower's eps
0.96 (0.067), text's eps 0.39 (0.2), tower's activation 1.3 (0.55), text's activation 3.6 (1.4), the tower's last norm
dropped 29 (8.1), head's norm dropped 12 (14), embedding norm dropped 5.9 (3.8), qkv biases zeroed 9 (1.3), an output
bias zeroed 3.9 (0.58), text positions shifted 20 (5), image positions shifted 9.6 (2.6), the last block dropped 16
(19); as they are 2e-5.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf import PROMPTS

pytest.importorskip("transformers")
import transformers
from hf.layouts import variants
from parity import check, check_variant, files, loaded, spelt_out

from mmt_cli.checkpoint.families.blip import answer_config, caption_config
from mmt_cli.checkpoint.reference import open_reference
from mmt_cli.errors import ModelError
from mmt_cli.inputs.prompt import QUESTION

FAMILIES = ("blip", "blip-vqa")
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


def test_what_a_config_leaves_out_is_what_the_class_gives() -> None:
    whole = transformers.BlipConfig().to_dict()
    assert spelt_out(caption_config({}, ())) == spelt_out(caption_config(whole, ()))
    assert spelt_out(answer_config({}, ())) == spelt_out(answer_config(whole, ()))


def test_architectures_tell_captioning_from_answering(built: Callable[..., Any]) -> None:
    assert open_reference(built("blip").folder).family.name == "blip"
    assert open_reference(built("blip-vqa").folder).family.name == "blip-vqa"


def test_an_architecture_that_writes_no_text_is_refused_by_name(built: Callable[..., Any], tmp_path: Path) -> None:
    config = json.loads((built("blip").folder / "config.json").read_text())
    config["architectures"] = ["BlipForImageTextRetrieval"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"BlipForImageTextRetrieval.*BlipForConditionalGeneration"):
        open_reference(tmp_path)


def test_defaults_of_the_folder_are_passed_over_as_in_transformers(built: Callable[..., Any], tmp_path: Path) -> None:
    folder = shutil.copytree(built("blip").folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 3, "max_length": 9}))
    assert loaded(folder).generation.num_beams == 1
    assert loaded(folder).generation.end_token_ids == (built("blip").model.config.text_config.sep_token_id,)


def test_nothing_asked_is_the_default_question(built: Callable[..., Any]) -> None:
    captioner = loaded(built("blip-vqa").folder)
    assert captioner.encode_prompt(None) == captioner.encode_prompt(QUESTION)
