"""The listing that this project grew from, mended, as the reference for the family `seed`.

B batch, C channels, H height, W width in pixels, T text tokens, N patches, P values of a patch, L sequence, D width,
V vocabulary.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mmt_cli import Captioner
from mmt_cli.captioning.captioner import GenerationOptions
from mmt_cli.errors import ModelError
from mmt_cli.model import attention
from mmt_cli.model.concat import BidirectionalConcat
from mmt_cli.model.context import Context
from mmt_cli.model.mask import Visibility
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer


class Layer(nn.Module):
    """A post-norm encoder layer."""

    def __init__(self, d_model: int, num_heads: int, mlp_dim: int, dropout_rate: float) -> None:
        super().__init__()
        self.multi_head_attn = nn.MultiheadAttention(d_model, num_heads, dropout=dropout_rate, batch_first=True)
        self.norm1 = nn.LayerNorm(d_model)
        self.ff = nn.Sequential(
            nn.Linear(d_model, mlp_dim), nn.ReLU(), nn.Dropout(dropout_rate), nn.Linear(mlp_dim, d_model)
        )
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x_BLD: Tensor, padding_BL: Tensor | None) -> Tensor:
        attended_BLD, _ = self.multi_head_attn(x_BLD, x_BLD, x_BLD, key_padding_mask=padding_BL)
        x_BLD = self.norm1(x_BLD + self.dropout(attended_BLD))
        return self.norm2(x_BLD + self.dropout(self.ff(x_BLD)))


class MendedListing(nn.Module):
    """The listing with its constructor and parameter names, and its seven faults mended."""

    def __init__(
        self,
        vocab_size: int,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        d_model: int = 768,
        num_heads: int = 12,
        num_layers: int = 6,
        mlp_dim: int = 3072,
        dropout_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.text_embedding = nn.Embedding(vocab_size, d_model)
        self.image_patch_embedding = nn.Linear(in_channels * patch_size**2, d_model)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.text_pos_encoding = nn.Parameter(torch.zeros(1, 512, d_model))
        self.image_pos_encoding = nn.Parameter(torch.zeros(1, (img_size // patch_size) ** 2 + 1, d_model))
        self.transformer_layers = nn.ModuleList(
            Layer(d_model, num_heads, mlp_dim, dropout_rate) for _ in range(num_layers)
        )
        self.text_generation_head = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, vocab_size))

    def patches(self, pixels_BCHW: Tensor) -> Tensor:
        """Patches row by row, each flattened as (channel, row, column)."""
        batch, channels, height, width = pixels_BCHW.shape
        size = self.patch_size
        cut = pixels_BCHW.reshape(batch, channels, height // size, size, width // size, size)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)

    def forward(self, text_BT: Tensor, pixels_BCHW: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Return logits_BV for the token after the text."""
        batch, length = text_BT.shape
        text_BTD = self.text_embedding(text_BT) + self.text_pos_encoding[:, :length]
        image_BND = self.image_patch_embedding(self.patches(pixels_BCHW))
        image_BLD = torch.cat([self.cls_token.expand(batch, -1, -1), image_BND], dim=1) + self.image_pos_encoding
        x_BLD = torch.cat([text_BTD, image_BLD], dim=1)
        padding_BL = None
        if valid_BT is not None:
            image_BL = torch.zeros(batch, image_BLD.shape[1], dtype=torch.bool)
            padding_BL = torch.cat([~valid_BT, image_BL], dim=1)
        for layer in self.transformer_layers:
            x_BLD = layer(x_BLD, padding_BL)
        return self.text_generation_head(x_BLD[:, length])


ARGUMENTS = {
    "vocab_size": 83,
    "img_size": 30,
    "patch_size": 5,
    "in_channels": 3,
    "d_model": 42,
    "num_heads": 3,
    "num_layers": 3,
    "mlp_dim": 55,
    "dropout_rate": 0.1,
}
OTHER = {
    "vocab_size": 301,
    "img_size": 32,
    "patch_size": 16,
    "in_channels": 2,
    "d_model": 64,
    "num_heads": 8,
    "num_layers": 1,
    "mlp_dim": 48,
    "dropout_rate": 0.0,
}
Squeeze = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _as_it_is(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def _positions_as_matrices(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a listing does that declares them without the batch axis."""
    return {name: tensor[0].clone() if name.endswith("pos_encoding") else tensor for name, tensor in state.items()}


def _save(folder: Path, reference: nn.Module, arguments: dict[str, Any], shape: Squeeze = _as_it_is) -> Path:
    folder.mkdir()
    save_file(shape(dict(reference.state_dict())), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "seed", "num_classes": 10, **arguments}))
    return folder


def _reference(tools: ModuleType, arguments: dict[str, Any]) -> MendedListing:
    reference = MendedListing(**arguments)
    tools.strengthen(reference)
    return reference.eval().requires_grad_(False)


def _inputs(tools: ModuleType, arguments: dict[str, Any], length: int = 7) -> tuple[Tensor, Tensor]:
    config = preset("seed", arguments)
    return tools.random_ids(3, length).remainder(arguments["vocab_size"]), tools.random_pixels(config, 3)


def check_parity(tools: ModuleType, folder: Path, arguments: dict[str, Any], length: int = 7) -> None:
    model, reference = Captioner.load(folder).model, _reference(tools, arguments)
    token_ids_BT, pixels = _inputs(tools, arguments, length)
    valid_BT = torch.arange(length)[None] < torch.tensor([1, length, max(1, length - 2)])[:, None]
    for valid in (None, valid_BT):
        expected_BV = reference(token_ids_BT, pixels, valid)
        logits_B1V = model(token_ids_BT, pixels, valid_BT=valid)
        assert logits_B1V.shape == (3, 1, arguments["vocab_size"])
        assert logits_B1V.dtype == torch.float32
        assert (logits_B1V[:, 0] - expected_BV).abs().max() < 1e-4
        assert expected_BV.std(dim=0).mean() > 0.1, "rows that are all alike would hide a mistake"


@pytest.mark.parametrize("shape", [_as_it_is, _positions_as_matrices])
@pytest.mark.parametrize("arguments", [ARGUMENTS, OTHER], ids=["odd", "two-channels"])
def test_a_folder_gives_the_mended_listings_logits(
    tools: ModuleType, tmp_path: Path, arguments: dict[str, Any], shape: Squeeze
) -> None:
    folder = _save(tmp_path / "listing", _reference(tools, arguments), arguments, shape)
    check_parity(tools, folder, arguments)
    check_parity(tools, folder, arguments, length=1)
    assert Captioner.load(folder).tokenizer is None


def test_the_whole_context_can_be_read(tools: ModuleType, tmp_path: Path) -> None:
    check_parity(tools, _save(tmp_path / "listing", _reference(tools, OTHER), OTHER), OTHER, length=512)


def test_a_weights_file_loads_with_the_config_beside_it(tools: ModuleType, tmp_path: Path) -> None:
    folder = _save(tmp_path / "listing", _reference(tools, ARGUMENTS), ARGUMENTS)
    check_parity(tools, (folder / "model.safetensors").rename(folder / "listing.safetensors"), ARGUMENTS)


def test_arguments_left_out_have_the_listings_defaults(tools: ModuleType, tmp_path: Path) -> None:
    """A full-size listing of one layer, for which only the sizes are given that differ."""
    arguments = {"vocab_size": 97, "num_layers": 1, "mlp_dim": 64}
    check_parity(tools, _save(tmp_path / "listing", _reference(tools, arguments), arguments), arguments)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_preset_has_the_listings_size_and_parameters() -> None:
    with torch.device("meta"):
        assert _count(MultimodalTransformer(preset("seed"))) == 90_576_954
    assert _count(MultimodalTransformer(preset("seed", ARGUMENTS))) == _count(MendedListing(**ARGUMENTS))
    assert preset("seed").text.block.norm_eps == nn.LayerNorm(1).eps


def test_a_model_without_a_tokenizer_says_so_when_text_is_asked_for(tools: ModuleType, tmp_path: Path) -> None:
    captioner = Captioner.load(_save(tmp_path / "listing", _reference(tools, ARGUMENTS), ARGUMENTS))
    pictures = [captioner.read(Image.new("RGB", (30, 30)))]
    with pytest.raises(ModelError, match="--tokenizer"):
        captioner.generate(pictures, options=GenerationOptions())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"d_model": "42"}, ["width", "'42'"]),
        ({"num_heads": 4}, ["num_heads 4", "width 42"]),
        ({"patch_size": 7}, ["patch_size 7", "image_size 30"]),
        ({"heads": 4}, ["'heads'", "num_heads"]),
        ({"num_layers": 2}, ["transformer_layers.2", "unexpected"]),
        ({"num_layers": 4}, ["blocks.3", "missing"]),
        ({"mlp_dim": 56}, ["transformer_layers.0.ff.0.weight", "[55, 42]", "[56, 42]"]),
        ({"vocab_size": 84}, ["text_embedding.weight", "[83, 42]", "[84, 42]"]),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    tools: ModuleType, tmp_path: Path, change: dict[str, Any], named: list[str]
) -> None:
    folder = _save(tmp_path / "listing", _reference(tools, ARGUMENTS), ARGUMENTS | change)
    with pytest.raises(ModelError) as caught:
        Captioner.load(folder)
    assert [name for name in named if name not in str(caught.value)] == []


def _across_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = attention.SelfAttention.forward

    def across(self: attention.SelfAttention, x_BLD: Tensor, context: Context) -> Tensor:
        everything = Context(visibility=Visibility.of_image(x_BLD.shape[0], None, x_BLD.device))
        return forward(self, x_BLD.transpose(0, 1), everything).transpose(0, 1)

    monkeypatch.setattr(attention.SelfAttention, "forward", across)


def _readout_at_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BidirectionalConcat, "_readout", lambda *_: slice(0, 1))


def _padding_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Visibility, "mask", lambda *_: None)


@pytest.mark.parametrize("spoil", [_across_the_batch, _readout_at_the_first_token, _padding_seen])
def test_the_listings_own_faults_are_noticed(
    tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    folder = _save(tmp_path / "listing", _reference(tools, ARGUMENTS), ARGUMENTS)
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        check_parity(tools, folder, ARGUMENTS)
