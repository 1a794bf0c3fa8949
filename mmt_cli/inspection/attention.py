"""Where a model looked for each word of its caption: attention weights, from the words down to the image's cells.

A word was foreseen from the token before it, so it is that token's attention that counts. Text attends to the image
across (the image is a memory beside it) or in one row with it; where a prompt encoder stands between, the words attend
to what it made, and that in turn to the image.

Q queries, R rows (tokens of the caption), W words, M image tokens, N image tokens of a tile, P tokens of a prompt
encoder, T tiles, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmt_cli.captioning.inference import inference
from mmt_cli.errors import UsageError
from mmt_cli.inspection.flow import Gathering, Mean, Rollout, TileRollout
from mmt_cli.inspection.geometry import Cells, cells_of
from mmt_cli.inspection.reading import Pass, Script, Word, asked, logprobs_of, passes, words_of
from mmt_cli.inspection.recording import recorded
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.fusion_config import CrossConfig, GatedCrossConfig


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whose attention is shown.

    Attributes:
        layer: a block of the text, counted from 0; None for the mean of all.
        head: a head, counted from 0; None for the mean of all.
        rollout: what flows through all layers, the image's own among them where they keep its tokens.
    """

    layer: int | None = None
    head: int | None = None
    rollout: bool = False


@dataclass(frozen=True, kw_only=True)
class WordSight:
    """Where a model looked for one word.

    Attributes:
        word: the word.
        share: of its attention that went to the image; the rest went to the text.
        weights_TRC: the part of it that went to each cell of each tile. What class tokens got, which lie nowhere, is
            missing.
    """

    word: Word
    share: float
    weights_TRC: Tensor


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Where a model looked for each word of a caption.

    Attributes:
        script: the caption and its picture.
        words: its words with what ends them, as `reading.read_words` returns them.
        sights: of each word, the end left out.
        cells: how a tile's tokens lie in it.
        notes: what is shown, and what is not, in a sentence each.
    """

    script: Script
    words: tuple[Word, ...]
    sights: tuple[WordSight, ...]
    cells: Cells
    notes: tuple[str, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return each word's share and weights by tile, row and column."""
        return [
            {"word": sight.word.text, "share": sight.share, "weights": sight.weights_TRC.tolist()}
            for sight in self.sights
        ]


def check_choice(config: ModelConfig, choice: Choice) -> None:
    """Raise UsageError for a model whose image tokens lie nowhere, and for layers and heads that it does not have."""
    if not config.vision.keeps_grid:
        raise UsageError(
            "merged image tokens lie nowhere in the picture (vision.merged_tokens above 0, --attention given); "
            "use a model without"
        )
    if choice.rollout and choice.layer is not None:
        raise UsageError(f"rollout goes through all layers (--rollout, --layer {choice.layer}); leave one of them out")
    layers, heads = looking_layers(config), config.text.block.num_heads
    if choice.layer is not None and choice.layer not in layers:
        raise UsageError(f"no such layer looks at the image (--layer {choice.layer}, these do: {_listed(layers)})")
    if choice.head is not None and choice.head not in range(heads):
        raise UsageError(f"no such head (--head {choice.head}, the model has 0 to {heads - 1}); choose one of them")


def looking_layers(config: ModelConfig) -> list[int]:
    """Return the text's blocks that attend to the image, or to what was made of it."""
    every = config.fusion.every if isinstance(config.fusion, CrossConfig | GatedCrossConfig) else 1
    return list(range(0, config.text.num_layers, every))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def look(script: Script, choice: Choice) -> Sight:
    """Read a caption back and return where the model looked for its words.

    Raises:
        UsageError: the model has no such layer or head, or its image tokens lie nowhere.
    """
    captioner = script.captioner
    config, how = captioner.model.config, script.picture.how
    check_choice(config, choice)
    cells = cells_of(config, how)
    assert cells is not None, "tokens that lie nowhere"
    words, sights = _seen(script, choice, cells) if len(script.ids) > script.first else ([], [])
    return Sight(
        script=script, words=tuple(words), sights=tuple(sights), cells=cells, notes=tuple(notes(config, choice))
    )


def _seen(script: Script, choice: Choice, cells: Cells) -> tuple[list[Word], list[WordSight]]:
    """Return the words of a caption that has any tokens, and where the model looked for each."""
    with inference(script.captioner.model):
        logprob_RV, weights_RM = _read(script, choice)
        weights_RTN = torch.unflatten(weights_RM, 1, (len(script.picture), -1))
        if choice.rollout:
            weights_RTN = _through_tiles(script, weights_RTN)
    weights_RTN = weights_RTN.float().cpu()
    words = words_of(script, logprob_RV)
    return words, [_sight_of(word, weights_RTN, cells) for word in words if word.text]


def _sight_of(word: Word, weights_RTN: Tensor, cells: Cells) -> WordSight:
    """Return the mean of a word's tokens."""
    weights_TN = weights_RTN[list(word.tokens)].mean(dim=0)
    weights_TRC = torch.unflatten(weights_TN[:, cells.extra :], 1, (cells.rows, cells.columns))
    return WordSight(word=word, share=float(weights_TN.sum()), weights_TRC=weights_TRC)


def _read(script: Script, choice: Choice) -> tuple[Tensor, Tensor]:
    """Return logprob_RV, and the attention weights_RM of each of the caption's tokens to the image's."""
    model = script.captioner.model
    memory, encoded_PM = _asked(script, choice)
    logprobs, weights = [], []
    for one in passes(script, memory):
        gathering = _gathering(choice)
        with recorded(model.blocks, gathering.take):
            logprobs.append(logprobs_of(model, one))
        found_RM = _of_rows(model.config, gathering, one)
        weights.append(found_RM if encoded_PM is None else found_RM @ encoded_PM)
    return torch.cat(logprobs), torch.cat(weights)


def _gathering(choice: Choice) -> Gathering:
    return Rollout(choice.head) if choice.rollout else Mean(choice.layer, choice.head)


def _of_rows(config: ModelConfig, gathering: Gathering, one: Pass) -> Tensor:
    """Return how much the rows that are asked for looked at each image token, or at what was made of them."""
    rows = list(one.rows)
    if not config.joint:
        return gathering.memory()[rows]
    image_1L = one.fused.tokens.image_BL
    return gathering.own()[rows][:, image_1L[0]]


def _asked(script: Script, choice: Choice) -> tuple[ImageTokens, Tensor | None]:
    """Return what the text looks at, and how much each of its tokens looked at the image's, PM; None where it is it."""
    model = script.captioner.model
    if model.prompt_encoder is None:
        return asked(script), None
    gathering: Gathering = Rollout(None) if choice.rollout else Mean(None, None)
    with recorded(model.prompt_encoder.blocks, gathering.take):
        memory = asked(script)
    placeholder = model.config.placeholder_id
    if placeholder is None:
        return memory, gathering.memory()
    ids_P = torch.tensor(script.prompt.encoder_ids, device=memory.x_BND.device)
    # Without rollout a token of the memory that stands where an image token stood is taken for it.
    own_PP = gathering.own() if choice.rollout else torch.eye(len(ids_P), device=memory.x_BND.device)
    return memory, own_PP[:, ids_P == placeholder]


def _through_tiles(script: Script, weights_RTN: Tensor) -> Tensor:
    """Follow attention on through the blocks that read the image alone."""
    rollout = TileRollout(weights_RTN.shape[-1])
    with recorded(script.captioner.model, rollout.take):
        script.captioner.see([script.picture])
    return rollout.through(weights_RTN)


def notes(config: ModelConfig, choice: Choice) -> list[str]:
    """Return what is shown of a model, and what is not."""
    found = [_shown(config, choice)]
    kernel = config.text.block.kernel.kind
    if config.prompt_encoder is not None:
        found.append("Words look at the question's encoder; its own look at the image is followed on.")
    if kernel == "performer" and config.joint:
        found.append("Performer has no attention weights; these are the ones that its estimate amounts to.")
    if kernel == "sliding_window":
        found.append("Words see the whole picture, whatever the window; of the text, what is near.")
    if config.text.block.experts != "none":
        found.append("Modality experts share one attention: weights show where words look, not which expert works.")
    if config.fusion.gate != "none":
        found.append("Gates weigh what attention brings; --image without --attention shows them.")
    return found


def _shown(config: ModelConfig, choice: Choice) -> str:
    kind = "self-attention to the image's tokens" if config.joint else "cross-attention"
    heads = "mean of heads" if choice.head is None else f"head {choice.head}"
    if choice.rollout:
        return f"Attention rollout through all layers, {heads}."
    layers = "mean of layers" if choice.layer is None else f"layer {choice.layer}"
    return f"{kind[0].upper()}{kind[1:]}, {layers}, {heads}."
