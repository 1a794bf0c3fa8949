"""Generation defaults of a Hugging Face folder: its `generation_config.json`, or what `config.json` holds instead.

What a folder asks for is done as transformers 5 does it, or refused: a key that would change the text and is not
supported here raises an error. Other keys (caches, outputs, speculation that gives the same text) are passed over, as
is `num_return_sequences`: how many captions an image gets is not the checkpoint's affair.
"""

from collections.abc import Mapping
from typing import Any

from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError, UsageError, shown

_SUB_CONFIGS = ("decoder", "generator", "text_config")  # in the order in which transformers looks for them
_LENGTHS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length")
_PLAIN = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "forced_bos_token_id",
)
_TOKEN_LISTS = {
    "eos_token_id": "end_token_ids",
    "forced_eos_token_id": "forced_end_token_ids",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "begin_suppress_tokens",
}
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # and transformers' defaults

# Keys that change the text and are not supported, with the value (besides null) that changes nothing.
_UNSUPPORTED = {
    "constraints": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "logits_processor": None,
    "max_time": None,
    "prefix_allowed_tokens_fn": None,
    "sequence_bias": None,
    "stop_strings": None,
    "stopping_criteria": None,
    "token_healing": False,
    "watermarking_config": None,
}
_UNSUPPORTED_IN_SAMPLING = {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_p": 0.0, "top_h": None, "typical_p": 1.0}
_UNSUPPORTED_WITH_BEAMS = {"num_beam_groups": 1, "renormalize_logits": False}
_UNSUPPORTED_IN_GREEDY_SEARCH = {"penalty_alpha": 0.0}


def generation_from_hf(generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> GenerationOptions:
    """Return a Hugging Face folder's generation defaults.

    Args:
        generation: what `generation_config.json` holds; None where the folder has no such file.
        config: what `config.json` holds; read only where `generation` is None.

    Returns:
        The options; `max_length` and `min_length` still count the prompt (see `GenerationOptions.for_prompt`).

    Raises:
        ModelError: a malformed value, or one that would change the text and is not supported.
    """
    name, values = ("config.json", _legacy(config)) if generation is None else ("generation_config.json", generation)
    values = {key: value for key, value in values.items() if value is not None}
    try:
        return _options(values, name)
    except UsageError as error:
        raise ModelError(f"the generation defaults are not usable ({name}): {error}") from error


def _legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation keys of a model's config: its own, and those of the text part that it leaves unset."""
    own = dict(config)
    if own.get("force_bos_token_to_be_generated"):  # a spelling of old BART files
        own["forced_bos_token_id"] = own.get("bos_token_id")
    inner: object = next((config[key] for key in _SUB_CONFIGS if config.get(key)), config)
    if not isinstance(inner, Mapping):
        raise ModelError(f"the config of the text part is no object (config.json, {shown(inner)}); mend it")
    return {**inner, **{key: value for key, value in own.items() if value is not None}}


def _options(values: Mapping[str, Any], name: str) -> GenerationOptions:
    """Build the options from keys that are not null.

    Raises:
        ModelError: as `generation_from_hf`.
        UsageError: a value out of its bounds or of the wrong type.
    """
    found = {key: values[key] for key in (*_LENGTHS, *_PLAIN) if key in values}
    # Where a file gives both, transformers lets the number of new tokens take precedence.
    for new, total in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if new in found:
            found.pop(total, None)
    found |= {ours: _token_ids(values, theirs, name) for theirs, ours in _TOKEN_LISTS.items() if theirs in values}
    if "bad_words_ids" in values:
        found["bad_words_ids"] = GenerationOptions.from_json({"bad_words_ids": values["bad_words_ids"]}).bad_words_ids
    options = GenerationOptions(**found)
    sampling = values.get("do_sample", False)
    if not isinstance(sampling, bool):
        raise ModelError(f"do_sample is {shown(sampling)} ({name}); use true or false")
    _refuse_unsupported(values, name, sampling=sampling, num_beams=options.num_beams)
    if not sampling:
        return options
    return GenerationOptions(**found, **{key: values.get(key, default) for key, default in _SAMPLING.items()})


def _token_ids(values: Mapping[str, Any], key: str, name: str) -> tuple[int, ...]:
    """Return the token ids of a key that holds one or a list of them."""
    value = values[key]
    tokens = value if isinstance(value, list) else [value]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ModelError(f"{key} is {shown(value)} ({name}); use a token id or a list of them")
    return tuple(tokens)


def _refuse_unsupported(values: Mapping[str, Any], name: str, *, sampling: bool, num_beams: int) -> None:
    """Raise ModelError for what would change the text in the folder's way of decoding and is not supported."""
    if sampling and num_beams > 1:
        raise ModelError(
            f"beams with sampling are not supported ({name}, do_sample true, num_beams {num_beams}); "
            "set do_sample to false or num_beams to 1 there"
        )
    unsupported = dict(_UNSUPPORTED)
    if sampling:
        unsupported |= _UNSUPPORTED_IN_SAMPLING
    elif num_beams > 1:
        unsupported |= _UNSUPPORTED_WITH_BEAMS
    elif values.get("top_k", _SAMPLING["top_k"]) not in (0, 1):  # with these, transformers is greedy as well
        unsupported |= _UNSUPPORTED_IN_GREEDY_SEARCH
    for key, neutral in unsupported.items():
        if key in values and values[key] != neutral:
            raise ModelError(f"{key} {shown(values[key])} is not supported ({name}); remove it there to go without")
