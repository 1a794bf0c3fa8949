"""Settings of a generation config, all at once and at random, against transformers' `generate`, token by token."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, GPT2LMHeadModel

from mmt_cli.checkpoint.generation_config import generation_from_hf
from mmt_cli.decoding.generate import Generated, generate

SETTINGS = 60
VOCABULARY = 30
START = 0
HOPELESS = -1e8  # a score of transformers' own placeholders for beams that hold no text, and of -inf
Logits = Callable[[list[list[int]]], Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")


def _setting(choice: random.Random, prompt_length: int) -> dict[str, Any]:
    """Keys of a generation_config.json, many of them in force at once."""
    beams = choice.randint(1, 4)
    maximum = choice.choice([1, 2, 3, 8, 12, 12])
    minimum = choice.choice([1, 3, 20])
    lengths = [
        {"max_length": prompt_length + maximum},
        {"max_new_tokens": maximum},
        {"max_new_tokens": maximum, "max_length": 1},
        {"max_length": prompt_length + maximum, "min_length": minimum},
        {"max_length": prompt_length + maximum, "min_length": 20, "min_new_tokens": min(minimum, maximum)},
        {"max_new_tokens": maximum, "min_new_tokens": min(minimum, maximum)},
        {"max_new_tokens": maximum, "min_length": prompt_length + 2},
    ]
    values: dict[str, Any] = {
        "num_beams": beams,
        "length_penalty": choice.choice([-1.0, 0.0, 0.7, 1.0, 2.0]),
        "early_stopping": choice.choice([False, True, "never"]),
        "repetition_penalty": choice.choice([1.0, 0.8, 1.3]),
        "no_repeat_ngram_size": choice.choice([0, 0, 1, 2, 3]),
        "eos_token_id": choice.choice([None, _tokens(choice, 1)[0], _tokens(choice, 1), _tokens(choice, 4)]),
        **choice.choice(lengths),
    }
    optional = {
        "forced_bos_token_id": _tokens(choice, 1)[0],
        # Beams with two forced tokens tie exactly, and which of them `torch.topk` takes first is not specified.
        "forced_eos_token_id": _tokens(choice, 2) if beams == 1 and choice.random() < 0.5 else _tokens(choice, 1)[0],
        "suppress_tokens": _tokens(choice, 3),
        "begin_suppress_tokens": _tokens(choice, 8),
        "bad_words_ids": [_tokens(choice, choice.randint(1, 3)) for _ in range(40)],
    }
    return values | {key: value for key, value in optional.items() if choice.random() < 0.35}


def _tokens(choice: random.Random, count: int) -> list[int]:
    return [choice.randrange(VOCABULARY) for _ in range(count)]


def _contradicts(values: dict[str, Any]) -> bool:
    """Whether a token is forced and suppressed, which transformers refuses too."""
    forced = values.get("forced_eos_token_id", [])
    suppressed = set(values.get("suppress_tokens", []))
    first = {values["forced_bos_token_id"]} if "forced_bos_token_id" in values else set()
    last = {forced} if isinstance(forced, int) else set(forced)
    return bool(suppressed & (first | last))


def _compare(theirs: Any, items: list[list[Generated]], length: int, ends: Sequence[int], values: Any) -> int:
    """Compare each text; return how many there were to compare."""
    scores = getattr(theirs, "sequences_scores", None)
    compared = 0
    for number, text in enumerate(text for item in items for text in item):
        if scores is not None and scores[number].item() < HOPELESS:
            continue
        ids = theirs.sequences[number, length:].tolist()
        end = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        assert text.tokens == tuple(ids[:end]), values
        compared += 1
    return compared


def _run(
    seed: int, steppers: Callable[[list[list[int]]], Any], generate_theirs: Callable[..., Any], longest_prompt: int
) -> tuple[int, int, list[Generated]]:
    """One random setting through both; counts of texts and of those compared, and the texts."""
    choice = random.Random(seed)
    length = choice.randint(1, longest_prompt)
    values = _setting(choice, length)
    prompts = [[START, *_tokens(choice, length - 1)] for _ in range(choice.choice([1, 3]))]
    if _contradicts(values):
        return 0, 0, []
    captions = choice.randint(1, values["num_beams"])
    theirs = generate_theirs(
        prompts,
        values
        | {
            "num_return_sequences": captions,
            "pad_token_id": 0,
            "decoder_start_token_id": START,
            "return_dict_in_generate": True,
            "output_scores": True,
        },
    )
    options = replace(generation_from_hf(values, {}).for_prompt(length), num_captions=captions)
    items = generate(steppers(prompts), prompts, options)
    texts = [text for item in items for text in item]
    return len(texts), _compare(theirs, items, length, options.end_token_ids, values), texts


def _check_all(runs: list[tuple[int, int, list[Generated]]]) -> None:
    texts = [text for _, _, written in runs for text in written]
    assert len(texts) > SETTINGS, "too few settings were left to run"
    assert sum(compared for _, compared, _ in runs) > 0.93 * len(texts)
    assert len({text.tokens for text in texts}) > SETTINGS, "too few different texts to tell much"
    assert sum(text.finish_reason == "stop" for text in texts) > len(texts) / 10


def test_a_decoder_alone(gpt2: GPT2LMHeadModel, gpt2_logits: Logits, recompute_stepper: Any) -> None:
    def theirs(prompts: list[list[int]], options: dict[str, Any]) -> Any:
        ids_BT = torch.tensor(prompts)
        return gpt2.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **options)

    def stepper(prompts: list[list[int]]) -> Any:
        return recompute_stepper(gpt2_logits, prompts)

    _check_all([_run(seed, stepper, theirs, longest_prompt=4) for seed in range(SETTINGS)])


@pytest.fixture(scope="module")
def bart() -> BartForConditionalGeneration:
    config = BartConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            strength = 0.8 if "embed" in name else 0.5
            parameter.copy_(strength * torch.randn(parameter.shape, generator=generator) + ("norm.weight" in name))
    return model


def test_an_encoder_with_a_decoder(bart: BartForConditionalGeneration, recompute_stepper: Any) -> None:
    images_BT = torch.randint(VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        memory_BMD = bart.get_encoder()(images_BT).last_hidden_state

    def theirs(prompts: list[list[int]], options: dict[str, Any]) -> Any:
        return bart.generate(images_BT[: len(prompts)], decoder_input_ids=torch.tensor(prompts), **options)

    def logits(rows: list[list[int]]) -> Tensor:
        with torch.inference_mode():
            memory_RMD = memory_BMD[[row[0] for row in rows]]
            ids_RT = torch.tensor([row[1:] for row in rows])
            return bart(encoder_outputs=(memory_RMD,), decoder_input_ids=ids_RT, use_cache=False).logits[:, -1]

    def stepper(prompts: list[list[int]]) -> Any:
        return recompute_stepper(logits, [[item, *ids] for item, ids in enumerate(prompts)])

    _check_all([_run(seed, stepper, theirs, longest_prompt=2) for seed in range(1000, 1000 + SETTINGS)])
