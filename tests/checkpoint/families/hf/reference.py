"""What transformers gives on a built model: one picture at a time, at float32, on the PIL image processor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf.built import Built

NEW_TOKENS = 20

_FLORENCE_TASKS = {
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
}


@dataclass(frozen=True)
class Inputs:
    """What `generate` takes, and the ids that the answer continues."""

    ids: list[int]  # of the decoder, with image placeholders where the family splices
    encoder_ids: list[int]  # of the encoder: BLIP's question, Florence-2's prompt; empty for all others
    model: dict[str, Tensor]  # arguments of `generate`


@dataclass(frozen=True)
class Reference:
    """Captions, up to and with the token that ends them, and their texts without special tokens."""

    ids: list[list[int]]
    texts: list[str]


@dataclass(frozen=True)
class Logits:
    """Logits at every place of the decoder's ids: text only for GIT, image placeholders too where they are spliced."""

    ids: list[int]
    encoder_ids: list[int]
    values_TV: Tensor


def reference(
    built: Built, images: Sequence[Image.Image], prompt: str | None = None, together: bool = False, **options: Any
) -> Reference:
    """Generate a caption for each picture: greedily, 20 tokens at most, if the options of `generate` do not say more.

    Pictures go one at a time, or `together` with those whose inputs have the same shapes, which is ten times as fast.
    """
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    each = [prepare(built, image, prompt) for image in images]
    shapes = [str([(key, value.shape) for key, value in inputs.model.items()]) for inputs in each]
    groups: dict[Any, list[int]] = {}
    for place, shape in enumerate(shapes):
        groups.setdefault(shape if together else place, []).append(place)
    ids: dict[int, list[int]] = {}
    for places in groups.values():
        ids |= zip(places, _generate(built, [each[place] for place in places], options), strict=True)
    found = [ids[place] for place in range(len(images))]
    return Reference(found, [built.tokenizer.decode(caption, skip_special_tokens=True) for caption in found])


def reference_logits(built: Built, image: Image.Image, prompt: str | None = None, more: Sequence[int] = ()) -> Logits:
    """Compute the logits of the prompt's ids and of more ids after them."""
    inputs = prepare(built, image, prompt)
    ids = torch.tensor([[*inputs.ids, *more]])
    with torch.inference_mode():
        logits_TV = _LOGITS[built.family](built.model, inputs.model, ids)
    return Logits(ids[0].tolist(), inputs.encoder_ids, logits_TV[0, -ids.shape[1] :])


def prepare(built: Built, image: Image.Image, prompt: str | None = None) -> Inputs:
    """Make the model's inputs as the family's processor and chat template make them."""
    return _PREPARE[built.family](built, image, prompt)


def _generate(built: Built, group: Sequence[Inputs], options: dict[str, Any]) -> list[list[int]]:
    model = {key: torch.cat([inputs.model[key] for inputs in group]) for key in group[0].model}
    captions = []
    for inputs, ids in zip(group, built.model.generate(**model, **options).tolist(), strict=True):
        assert ids[: len(inputs.ids)] == inputs.ids, "generate returns the ids that it was given first"
        caption = ids[len(inputs.ids) :]
        ends = [place for place, token in enumerate(caption) if token in built.end_ids]
        captions.append(caption[: ends[0] + 1] if ends else caption)
    return captions


def _pixels(built: Built, image: Image.Image, **options: Any) -> Any:
    return built.image_processor(image, return_tensors="pt", **options)


def _encoded(built: Built, text: str) -> list[int]:
    return built.tokenizer(text, add_special_tokens=False)["input_ids"]


def _git(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    ids = [built.tokenizer.cls_token_id, *_encoded(built, prompt or "")]
    return Inputs(ids, [], {"pixel_values": _pixels(built, image).pixel_values, "input_ids": torch.tensor([ids])})


def _blip(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    model = {"pixel_values": _pixels(built, image).pixel_values}
    text_config = built.model.config.text_config
    if prompt is None:
        return Inputs([text_config.bos_token_id], [], model)
    # `generate` overwrites [CLS] by the token that begins captions and drops [SEP].
    encoded = built.tokenizer(prompt, return_tensors="pt")
    ids = [text_config.bos_token_id, *encoded.input_ids[0, 1:-1].tolist()]
    return Inputs(ids, [], model | {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask})


def _blip_answers(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    encoded = built.tokenizer(prompt, return_tensors="pt")
    question = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    model = {"pixel_values": _pixels(built, image).pixel_values} | question
    return Inputs([built.model.config.text_config.bos_token_id], encoded.input_ids[0].tolist(), model)


def _encoder_decoder(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    ids = [built.model.generation_config.decoder_start_token_id, *_encoded(built, prompt or "")]
    model = {"pixel_values": _pixels(built, image).pixel_values, "decoder_input_ids": torch.tensor([ids])}
    return Inputs(ids, [], model)


def _tiled(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    """SmolVLM and Idefics3: the picture in tiles, row by row, and once whole."""
    pixels = _pixels(built, image, return_row_col_info=True)
    (rows,), (columns,) = pixels["rows"], pixels["cols"]
    config = built.model.config
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    seen, around = "<image>" * side**2, "<fake_token_around_image>"
    lines = (
        "".join(f"{around}<row_{row}_col_{column}>{seen}" for column in range(1, columns[0] + 1)) + "\n"
        for row in range(1, rows[0] + 1)
    )
    whole = f"{around}<global-img>{seen}{around}"
    picture = "".join(lines) + ("\n" if rows[0] else "") + whole
    text = f"<|im_start|>User:{picture}{prompt}<end_of_utterance>\nAssistant:"
    model = {"pixel_values": pixels.pixel_values, "pixel_attention_mask": pixels.pixel_attention_mask}
    return _spliced(built, text, model)


def _llava(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    pixels = _pixels(built, image).pixel_values
    seen = "<image>" * (pixels.shape[-1] // built.model.config.vision_config.patch_size) ** 2
    text = f"USER: {seen}\n{prompt} ASSISTANT:"
    if built.family == "llava-siglip":
        text = f"<|im_start|>user {seen}\n{prompt}<|im_end|><|im_start|>assistant\n"
    return _spliced(built, text, {"pixel_values": pixels})


def _paligemma(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    text = f"{'<image>' * built.model.config.text_config.num_image_tokens}<bos>{prompt}\n"
    inputs = _spliced(built, text, {"pixel_values": _pixels(built, image).pixel_values}, add_special_tokens=False)
    # Zeros mark the prompt, whose places all see each other.
    inputs.model["token_type_ids"] = torch.zeros_like(inputs.model["input_ids"])
    return inputs


def _internvl(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    pixels = _pixels(built, image, crop_to_patches=True)
    seen = "<IMG_CONTEXT>" * (built.model.config.image_seq_length * int(pixels["num_patches"][0]))
    text = f"<|im_start|>user\n<img>{seen}</img>\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return _spliced(built, text, {"pixel_values": pixels.pixel_values})


def _florence2(built: Built, image: Image.Image, prompt: str | None) -> Inputs:
    count = built.image_processor.image_seq_length
    text = f"{'<image>' * count}<s>{_FLORENCE_TASKS.get(prompt, prompt)}</s>"
    inputs = _spliced(built, text, {"pixel_values": _pixels(built, image).pixel_values}, add_special_tokens=False)
    return Inputs([built.model.generation_config.decoder_start_token_id], inputs.ids, inputs.model)


def _spliced(built: Built, text: str, model: dict[str, Tensor], **options: Any) -> Inputs:
    encoded = built.tokenizer(text, return_tensors="pt", **options)
    model = model | {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    return Inputs(encoded.input_ids[0].tolist(), [], model)


def _logits_of_decoder(model: Any, inputs: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    """Of models that take the image and all ids at once."""
    kept = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    if "token_type_ids" in kept:  # what follows the prompt is causal
        prompt_BT = kept["token_type_ids"]
        more_BT = torch.ones(1, ids_BT.shape[1] - prompt_BT.shape[1], dtype=torch.long)
        kept["token_type_ids"] = torch.cat([prompt_BT, more_BT], dim=1)
    return model(**kept, input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits


def _logits_of_blip(model: Any, inputs: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    seen = model.vision_model(pixel_values=inputs["pixel_values"])[0]
    return model.text_decoder(input_ids=ids_BT, encoder_hidden_states=seen).logits


def _logits_of_blip_answers(model: Any, inputs: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    seen = model.vision_model(pixel_values=inputs["pixel_values"])[0]
    question = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    read = model.text_encoder(**question, encoder_hidden_states=seen)[0]
    return model.text_decoder(input_ids=ids_BT, encoder_hidden_states=read).logits


def _logits_of_encoder_decoder(model: Any, inputs: dict[str, Tensor], ids_BT: Tensor) -> Tensor:
    return model(**inputs | {"decoder_input_ids": ids_BT}).logits


_PREPARE = {
    "git": _git,
    "blip": _blip,
    "blip-vqa": _blip_answers,
    **dict.fromkeys(("vit-gpt2", "trocr", "trocr-vit"), _encoder_decoder),
    **dict.fromkeys(("smolvlm", "idefics3"), _tiled),
    **dict.fromkeys(("llava", "llava-siglip"), _llava),
    "paligemma": _paligemma,
    "internvl": _internvl,
    "florence2": _florence2,
}
_LOGITS = {
    "blip": _logits_of_blip,
    "blip-vqa": _logits_of_blip_answers,
    **dict.fromkeys(("vit-gpt2", "trocr", "trocr-vit", "florence2"), _logits_of_encoder_decoder),
    **dict.fromkeys(
        ("git", "smolvlm", "idefics3", "llava", "llava-siglip", "paligemma", "internvl"), _logits_of_decoder
    ),
}
