"""The model's configuration: text, fusion, the whole, and which switches exclude each other."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mmt_cli.errors import ConfigError
from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.davit_config import DaViTConfig, Florence2ConnectorConfig
from mmt_cli.model.fusion_config import ConcatConfig, CrossConfig, FusionConfig, SpliceConfig
from mmt_cli.model.image_config import ConnectorConfig, ConvTowerConfig, PatchTowerConfig, ProjectionConfig
from mmt_cli.model.schema import Config, bounded


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """Token embedding, positions, the joint or decoding blocks, and the vocabulary head."""

    vocab_size: int = bounded(1, 4_000_000)
    max_length: int = bounded(1, 1_048_576)
    positions: Literal["none", "learned", "sinusoidal"] = "learned"
    position_offset: int = bounded(0, 1_024, 0)  # of the first token (BART, TrOCR: 2)
    embedding_scale: float = bounded(1e-3, 1e4, 1.0)  # of tokens, before positions (Gemma: the root of the width)
    embedding_norm: bool = False  # after positions (BERT, BART)
    block: BlockConfig
    num_layers: int = bounded(1, 512)
    cache: Literal["full", "int8"] = "full"  # how keys and values are kept between words
    final_norm: bool = True
    head: Literal["tied", "own"] = "tied"
    head_bias: bool = False
    head_transform: bool = False  # a linear map and an activation before the final norm (BERT)

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


TowerConfig = PatchTowerConfig | ConvTowerConfig | DaViTConfig


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig(Config):
    """A second stack that reads a prompt with the image, all of it at once; the decoder attends to what it makes.

    BLIP's question encoder attends to the image (`cross`), Florence-2's reads it in one row with the prompt (`splice`).
    """

    text: TextConfig  # its head is not built
    fusion: SpliceConfig | CrossConfig
    shares_tokens: bool = False  # the decoder's token embedding


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The whole model: vision tower → connector → fusion with text → blocks → logits."""

    vision: TowerConfig
    connector: ConnectorConfig | ProjectionConfig | Florence2ConnectorConfig | None = None
    prompt_encoder: PromptEncoderConfig | None = None
    text: TextConfig
    fusion: FusionConfig
    contrastive_width: int | None = bounded(1, 65_536, None)  # of the space where images and texts are compared

    def check(self) -> None:
        """Raise ConfigError where two fields do not fit each other."""
        image, text = self.memory_width, self.text.block.width
        if image != text and (self.joint or self.fusion.gate == "dynamic"):
            raise ConfigError(
                f"image and text widths do not meet (image {image}, text {text}); make them equal or add a connector"
            )
        if self.contrastive_width is not None and self.image_width != text:
            raise ConfigError(
                f"images and texts are compared in one width (image {self.image_width}, text {text}, "
                f"contrastive_width {self.contrastive_width}); make them equal or leave contrastive_width out"
            )
        if self.prompt_encoder is not None:
            self._check_prompt_encoder(self.prompt_encoder)
        if self.vision.extra_tokens and self.connector is not None and self.connector.reduction != "none":
            raise ConfigError(
                f"a class token lies in no grid (vision.class_token true, connector.reduction "
                f"{self.connector.reduction}); leave one out"
            )
        if not self.vision.keeps_grid:
            self._check_without_grid()
        self.image_shape(self.vision.image_size, self.vision.image_size)
        self._check_fusion()
        if isinstance(self.fusion, SpliceConfig):
            self._check_splice(self.fusion)

    def _check_without_grid(self) -> None:
        """Raise ConfigError for what asks for rows and columns after tokens have been merged."""
        asking = _grid_settings("text.block", self.text.block) if self.joint else []
        connector = self.connector
        if connector is not None:
            asking += [f"connector.reduction {connector.reduction}"] if connector.reduction != "none" else []
        if isinstance(connector, ConnectorConfig):
            asking += _grid_settings("connector.block", connector.block)
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
        if fusion.visibility != "causal" and not self.text.block.kernel.masks:
            raise ConfigError(
                f"this kernel has one order for all rows (text.block.kernel {self.text.block.kernel.kind}, "
                f"fusion.visibility {fusion.visibility}, fusion.kind splice); use visibility causal"
            )

    def _check_prompt_encoder(self, encoder: PromptEncoderConfig) -> None:
        if self.joint:
            raise ConfigError(
                f"a prompt encoder makes a memory to attend to (fusion.kind {self.fusion.kind}, prompt_encoder given); "
                "use fusion cross"
            )
        sizes = encoder.text.vocab_size, self.text.vocab_size
        if encoder.shares_tokens and (sizes[0] != sizes[1] or encoder.text.block.width != self.text.block.width):
            raise ConfigError(
                f"shared token embeddings have one shape (prompt_encoder {sizes[0]} x {encoder.text.block.width}, "
                f"text {sizes[1]} x {self.text.block.width}); make them equal"
            )
        _ = self.of_prompt_encoder  # checks how its own parts meet

    @property
    def shares_tokens(self) -> bool:
        """Whether prompt encoder and decoder have one token embedding."""
        return self.prompt_encoder is not None and self.prompt_encoder.shares_tokens

    @property
    def of_prompt_encoder(self) -> "ModelConfig":
        """The prompt encoder seen as a model of its own."""
        assert self.prompt_encoder is not None
        encoder = self.prompt_encoder
        return dataclasses.replace(
            self, text=encoder.text, fusion=encoder.fusion, prompt_encoder=None, contrastive_width=None
        )

    @property
    def image_width(self) -> int:
        """Width of the image tokens."""
        return self.vision.width if self.connector is None else self.connector.width

    @property
    def memory_width(self) -> int:
        """Width of what reaches the fusion: image tokens, or what a prompt encoder makes of them."""
        return self.image_width if self.prompt_encoder is None else self.prompt_encoder.text.block.width

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
        extra = self.vision.extra_tokens
        return (grid, grid[0] * grid[1] + extra) if self.connector is None else self.connector.shape_of(grid, extra)

    def _check_other_size(self, sides: str) -> None:
        """Raise ConfigError where a part is made for the tokens of one image size."""
        parts = {"vision": self.vision, "connector": self.connector}
        blocks = {n: part.block for n, part in parts.items() if isinstance(part, PatchTowerConfig | ConnectorConfig)}
        fixed = [f"{name}.block.kernel {b.kernel.kind}" for name, b in blocks.items() if not b.kernel.any_length]
        connector = self.connector
        learned = isinstance(connector, ConnectorConfig) and connector.positions == "learned"
        if learned and not self.vision.keeps_grid:
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
        if self.prompt_encoder is not None:
            return self.of_prompt_encoder.placeholder_id
        if not isinstance(self.fusion, SpliceConfig):
            return None
        given = self.fusion.placeholder_id
        return self.text.vocab_size - 1 if given is None else given


def _grid_settings(part: str, block: BlockConfig) -> list[str]:
    """Return the settings of a block that ask for rows and columns."""
    settings = [f"{part}.rope {block.rope}"] if block.rope in ("2d", "multimodal") else []
    return settings + ([f"{part}.kernel sliding_window"] if block.kernel.kind == "sliding_window" else [])
