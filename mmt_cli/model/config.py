"""The model's configuration: text, fusion, the whole, and which switches exclude each other."""

from dataclasses import dataclass
from typing import Literal

from mmt_cli.errors import ConfigError
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.image_config import ConnectorConfig, ConvTowerConfig, PatchTowerConfig
from mmt_cli.model.schema import Config, bounded


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """Token embedding, positions, the joint or decoding blocks, and the vocabulary head."""

    vocab_size: int = bounded(1, 4_000_000)
    max_length: int = bounded(1, 1_048_576)
    positions: Literal["none", "learned"] = "learned"
    block: BlockConfig
    num_layers: int = bounded(1, 512)
    cache: Literal["full", "int8"] = "full"  # how keys and values are kept between words
    final_norm: bool = True
    head: Literal["tied", "own"] = "tied"
    head_bias: bool = False

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        kernel = self.block.kernel
        if not kernel.causal:
            raise ConfigError(
                f"this kernel mixes later words into earlier ones (text.block.kernel {kernel.kind}, text is causal); "
                "use it for the image, or another one here"
            )
        if self.block.rope == "2d":
            raise ConfigError("text has no rows (text.block.rope 2d, expected 1d or multimodal); use one of these")


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
    """Image tokens in place of placeholder tokens in the text (LLaVA); gates and visibility as in `concat`."""

    kind: Literal["splice"] = "splice"
    visibility: Literal["prefix", "causal"] = "causal"
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


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The whole model: vision tower → connector → fusion with text → blocks → logits."""

    vision: PatchTowerConfig | ConvTowerConfig
    connector: ConnectorConfig | None = None
    text: TextConfig
    fusion: ConcatConfig | SpliceConfig | CrossConfig | GatedCrossConfig
    contrastive_width: int | None = bounded(1, 65_536, None)  # of the space where images and texts are compared

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        image, text = self.memory_width, self.text.block.width
        if image != text:
            raise ConfigError(
                f"image and text widths do not meet (image {image}, text {text}); make them equal or add a connector"
            )
        if self.vision.class_token and self.connector is not None and self.connector.reduction != "none":
            raise ConfigError(
                f"a class token lies in no grid (vision.class_token true, connector.reduction "
                f"{self.connector.reduction}); leave one out"
            )
        if not self.vision.keeps_grid:
            self._check_without_grid()
        elif self.connector is not None:
            self.connector.reduced(self.vision.grid)
        self._check_fusion()
        if isinstance(self.fusion, SpliceConfig):
            self._check_splice(self.fusion)

    def _check_without_grid(self) -> None:
        """Raise ConfigError for what asks for rows and columns after tokens have been merged."""
        asking = _grid_settings("text.block", self.text.block) if self.joint else []
        connector = self.connector
        if connector is not None:
            asking += _grid_settings("connector.block", connector.block)
            asking += [f"connector.reduction {connector.reduction}"] if connector.reduction != "none" else []
            asking += [f"connector.positions {connector.positions}"] if connector.positions.endswith("2d") else []
        if asking:
            raise ConfigError(
                f"merged tokens lie in no grid (vision.merged_tokens above 0, {asking[0]}); leave one out"
            )

    def _check_fusion(self) -> None:
        fusion, block = self.fusion, self.text.block
        if not self.cacheable and not self.vision.class_token:
            raise ConfigError(
                "bidirectional fusion reads at the class token (fusion.visibility bidirectional, "
                "vision.class_token false); set vision.class_token or fusion.visibility prefix"
            )
        if not self.cacheable and self.text.cache != "full":
            raise ConfigError(
                f"a single readout keeps nothing (fusion.visibility bidirectional, text.cache {self.text.cache}); "
                "use full"
            )
        if block.kernel.kind == "performer" and self.text.cache != "full":
            raise ConfigError(
                f"sums lose what int8 drops (text.block.kernel performer, text.cache {self.text.cache}); use full"
            )
        if not self.joint and fusion.gate != "none" and block.layer_scale == 0.0:
            raise ConfigError(
                f"of two factors that are zero neither learns (fusion.gate {fusion.gate}, text.block.layer_scale 0.0); "
                "start the scale above 0"
            )
        alone = {"experts": block.experts, "rope": block.rope.replace("1d", "none")}
        for name, value in alone.items():
            if value != "none" and not self.joint:
                raise ConfigError(
                    f"the text stands alone in its blocks (fusion.kind {fusion.kind}, text.block.{name} {value}); "
                    "use fusion concat or splice"
                )

    def _check_splice(self, fusion: SpliceConfig) -> None:
        if self.num_image_tokens + 2 > self.text.max_length:
            raise ConfigError(
                f"the text has no room for the image (text.max_length {self.text.max_length}, "
                f"{self.num_image_tokens} image tokens); enlarge it"
            )
        if fusion.placeholder_id is not None and fusion.placeholder_id >= self.text.vocab_size:
            raise ConfigError(
                f"the placeholder is no token (fusion.placeholder_id {fusion.placeholder_id}, "
                f"text.vocab_size {self.text.vocab_size}); use one below"
            )
        if fusion.visibility == "prefix" and not self.text.block.kernel.masks:
            raise ConfigError(
                f"this kernel has one order for all rows (text.block.kernel {self.text.block.kernel.kind}, "
                "fusion.visibility prefix, fusion.kind splice); use visibility causal"
            )

    @property
    def memory_width(self) -> int:
        """Width of the image tokens that reach the fusion."""
        return self.vision.width if self.connector is None else self.connector.block.width

    @property
    def image_grid(self) -> tuple[int, int] | None:
        """`image_shape`'s grid for an image of the tower's own size."""
        return self.image_shape(self.vision.image_size, self.vision.image_size)[0]

    @property
    def num_image_tokens(self) -> int:
        """`image_shape`'s number of tokens for an image of the tower's own size."""
        return self.image_shape(self.vision.image_size, self.vision.image_size)[1]

    def image_shape(self, height: int, width: int) -> tuple[tuple[int, int] | None, int]:
        """Return the shape in which an image of these sides, in pixels, reaches the fusion.

        Returns:
            Rows and columns of its tokens, None where tokens have been merged; and how many there are, class tokens
            included.

        Raises:
            ConfigError: this model cannot read such an image.
        """
        grid = self.vision.grid_of(height, width)
        if grid != self.vision.grid:
            self._check_other_size(f"{height} x {width} pixels")
        if not self.vision.keeps_grid:
            return None, self.vision.tokens_of(grid)
        reduced = grid if self.connector is None else self.connector.reduced(grid)
        return reduced, reduced[0] * reduced[1] + self.vision.class_token

    def _check_other_size(self, sides: str) -> None:
        """Raise ConfigError where a part is made for the tokens of one image size."""
        parts = {"vision": self.vision, "connector": self.connector}
        blocks = {name: part.block for name, part in parts.items() if part and not isinstance(part, ConvTowerConfig)}
        fixed = [f"{name}.block.kernel {b.kernel.kind}" for name, b in blocks.items() if not b.kernel.any_length]
        if self.connector is not None and self.connector.positions == "learned" and not self.vision.keeps_grid:
            fixed.append("connector.positions learned of merged tokens")
        if fixed:
            size = self.vision.image_size
            raise ConfigError(f"images of one size alone ({fixed[0]}, {size} x {size} pixels, {sides} given); resize")

    @property
    def joint(self) -> bool:
        """Whether image and text tokens stand in one sequence."""
        return isinstance(self.fusion, ConcatConfig | SpliceConfig)

    @property
    def cacheable(self) -> bool:
        """Whether earlier tokens' keys and values stay valid when a token is added."""
        bidirectional = isinstance(self.fusion, ConcatConfig) and self.fusion.visibility == "bidirectional"
        return self.text.block.kernel.cacheable and not bidirectional

    @property
    def placeholder_id(self) -> int | None:
        """The token that an image's tokens take the place of; None where they stand beside the text."""
        if not isinstance(self.fusion, SpliceConfig):
            return None
        given = self.fusion.placeholder_id
        return self.text.vocab_size - 1 if given is None else given


def _grid_settings(part: str, block: BlockConfig) -> list[str]:
    """Return the settings of a block that ask for rows and columns."""
    settings = [f"{part}.rope {block.rope}"] if block.rope in ("2d", "multimodal") else []
    return settings + ([f"{part}.kernel sliding_window"] if block.kernel.kind == "sliding_window" else [])
