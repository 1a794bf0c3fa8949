"""The configuration of fusion: how image and text meet."""

from dataclasses import dataclass
from typing import Literal

from mmt_cli.model.schema import Config, bounded

Gate = Literal["none", "tanh", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(Config):
    """Image and text tokens in one sequence, attended jointly; the text sees the image, whichever stands first.

    `prefix`: the image sees itself, the text the image and the text before it; one readout per text token.
    `causal`: the same, but each image token sees only those before it.
    `bidirectional`: everything sees everything; one readout, at the image's class token, for the next word.
    A gate multiplies each token by 1 + tanh(g): g learned for each modality, or computed from the token and from what
    it may see of either modality.
    """

    kind: Literal["concat"] = "concat"
    order: Literal["image_first", "text_first"] = "image_first"
    visibility: Literal["prefix", "causal", "bidirectional"] = "prefix"
    gate: Gate = "none"


@dataclass(frozen=True, kw_only=True)
class SpliceConfig(Config):
    """Image tokens in place of placeholder tokens in the text (LLaVA); gates and visibility as in `concat`.

    `prompt`: all that is read at once, words and image, sees all of itself; what is written behind it the tokens before
    (PaliGemma).
    """

    kind: Literal["splice"] = "splice"
    visibility: Literal["prefix", "causal", "prompt"] = "causal"
    placeholder_id: int | None = bounded(0, 4_000_000, None)  # None: the vocabulary's last entry
    gate: Gate = "none"


@dataclass(frozen=True, kw_only=True)
class CrossConfig(Config):
    """Causal text that attends to the image by cross-attention in every block, or every n-th from the first on.

    A gate multiplies what cross-attention adds by tanh(g), with g as in `concat`.
    """

    kind: Literal["cross"] = "cross"
    every: int = bounded(1, 512, 1)
    gate: Gate = "none"


@dataclass(frozen=True, kw_only=True)
class GatedCrossConfig(Config):
    """Cross-attention and an MLP before every n-th block, behind gates that start at zero (Flamingo).

    What they add is nothing at first; but a text.block.norm `post` normalises the sum with nothing, too.
    """

    kind: Literal["gated_cross"] = "gated_cross"
    every: int = bounded(1, 512, 1)
    gate: Literal["tanh", "dynamic"] = "tanh"


FusionConfig = ConcatConfig | SpliceConfig | CrossConfig | GatedCrossConfig
