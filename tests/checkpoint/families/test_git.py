"""GIT against transformers.

Changes made by hand to the loaded model, and how far they moved the logits: tower's eps 0.34, text's eps 0.35, tower's
activation 1.9, text's activation 2, the tower's last norm dropped 4.3, embedding norm dropped 2, qkv biases zeroed 5.7,
an output bias zeroed 2.5, text positions shifted 3.9, image positions shifted 5, the image read causally 4.6, the last
block dropped 15; as it is 3e-5.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf import PROMPTS

pytest.importorskip("transformers")
import transformers
from hf.layouts import variants
from parity import check, check_variant, files, loaded, spelt_out

from mmt_cli.checkpoint.families.git import config_from_hf

FAMILIES = ("git",)
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
    whole = transformers.GitConfig().to_dict()
    assert spelt_out(config_from_hf({}, ())) == spelt_out(config_from_hf(whole, ()))


def test_the_closing_sep_of_the_tokenizer_is_not_sent(built: Callable[..., Any]) -> None:
    model = built("git")
    ids = loaded(model.folder).encode_prompt("a photo of").ids
    assert list(ids) == model.tokenizer("a photo of")["input_ids"][:-1]
