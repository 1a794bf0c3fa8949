"""The core against a reading of its config in the plainest words: one row, one token, one head at a time.

Q, K one query's or key's place, D width, E head width, L sequence, N image tokens, T text tokens, V vocabulary.
"""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mmt_cli.model.block_config import BlockConfig
from mmt_cli.model.config import ModelConfig
from mmt_cli.model.fusion_config import ConcatConfig
from mmt_cli.model.presets import preset

Weights = dict[str, Tensor]


class Reference:
    """Plain arithmetic on a model's weights; `visible(q, k)` says which key a query may look at."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self.weights, self.config = weights, config

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights[f"{name}.bias"]
        return (x[..., None, :] * self.weights[f"{name}.weight"]).sum(dim=-1) + bias

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        mean, spread = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / (spread + eps).sqrt() * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, q_QD: Tensor, k_KD: Tensor, v_KD: Tensor, heads: int, visible: Tensor) -> Tensor:
        out_QD, size = torch.zeros_like(q_QD), q_QD.shape[1] // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for place, query_E in enumerate(q_QD[:, part]):
                seen = [k for k in range(len(k_KD)) if visible[place, k]]
                scores = torch.stack([torch.dot(query_E, k_KD[k, part]) / math.sqrt(size) for k in seen]).exp()
                parts = [score * v_KD[k, part] for score, k in zip(scores / scores.sum(), seen, strict=True)]
                out_QD[place, part] = torch.stack(parts).sum(dim=0)
        return out_QD

    def sublayer(
        self, kind: str, name: str, x_LD: Tensor, block: BlockConfig, visible: Tensor, memory: Tensor
    ) -> Tensor:
        inner, width = f"{name}.inner", block.width
        if kind == "mlp":
            up = self.linear(f"{inner}.up", x_LD)
            bent = up.clamp_min(0) if block.activation == "relu" else up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
            return self.linear(f"{inner}.down", bent)
        if kind == "attention":
            q, k, v = self.linear(f"{inner}.qkv", x_LD).split(width, dim=-1)
        else:
            q, (k, v) = self.linear(f"{inner}.q", x_LD), self.linear(f"{inner}.kv", memory).split(width, dim=-1)
            visible = torch.ones(len(q), len(k), dtype=torch.bool)
        return self.linear(f"{inner}.out", self.attend(q, k, v, block.num_heads, visible))

    def block(self, name: str, x_LD: Tensor, block: BlockConfig, visible: Tensor, memory: Tensor) -> Tensor:
        for kind in ("attention", "cross_attention", "mlp"):
            if f"{name}.{kind}.norm.weight" not in self.weights:
                continue
            sub = f"{name}.{kind}"
            if block.norm == "pre":
                normed = self.norm(f"{sub}.norm", x_LD, block.norm_eps)
                x_LD = x_LD + self.sublayer(kind, sub, normed, block, visible, memory)
            else:
                x_LD = x_LD + self.sublayer(kind, sub, x_LD, block, visible, memory)
                x_LD = self.norm(f"{sub}.norm", x_LD, block.norm_eps)
        return x_LD

    def image(self, pixels_CHW: Tensor) -> Tensor:
        """Patches row by row, each flattened channel by channel, row by row."""
        tower = self.config.vision
        assert tower.kind == "patches"
        size, side = tower.patch_size, tower.image_size // tower.patch_size
        cut = [
            pixels_CHW[:, r * size : (r + 1) * size, c * size : (c + 1) * size]
            for r in range(side)
            for c in range(side)
        ]
        rows = [self.linear("vision.embedding", patch.reshape(-1)) for patch in cut]
        if tower.class_token:
            rows.insert(0, self.weights["vision.class_token"].reshape(-1))
        x_ND = torch.stack(rows) + self.weights["vision.positions"]
        everything = torch.ones(len(x_ND), len(x_ND), dtype=torch.bool)
        for index in range(tower.num_layers):
            x_ND = self.block(f"vision.blocks.{index}", x_ND, tower.block, everything, x_ND)
        if tower.final_norm:
            x_ND = self.norm("vision.norm", x_ND, tower.block.norm_eps)
        connector = self.config.connector
        if connector is None:
            return x_ND
        x_ND = self.linear("connector.projection", x_ND)
        if connector.positions == "learned":
            x_ND = x_ND + self.weights["connector.positions"]
        for index in range(connector.num_layers):
            x_ND = self.block(f"connector.blocks.{index}", x_ND, connector.block, everything, x_ND)
        return self.norm("connector.norm", x_ND, connector.block.norm_eps)

    def logits(self, ids_T: Tensor, pixels_CHW: Tensor) -> Tensor:
        """Logits after each text token, TV."""
        text, fusion = self.config.text, self.config.fusion
        image_ND = self.image(pixels_CHW)
        x_LD = self.weights["text.tokens.weight"][ids_T] + self.weights["text.positions"][: len(ids_T)]
        places: list[int] = list(range(1, len(ids_T) + 1))  # 0 is the image
        if isinstance(fusion, ConcatConfig):
            first = fusion.order == "image_first"
            zeros = [0] * len(image_ND)
            x_LD = torch.cat([image_ND, x_LD] if first else [x_LD, image_ND])
            places = zeros + places if first else places + zeros
        visible = torch.tensor([[k <= q for k in places] for q in places])
        for index in range(text.num_layers):
            x_LD = self.block(f"blocks.{index}", x_LD, text.block, visible, image_ND)
        x_TD = x_LD[[row for row, place in enumerate(places) if place]]
        if text.final_norm:
            x_TD = self.norm("head.norm", x_TD, text.block.norm_eps)
        out = x_TD @ self.weights["head.projection.weight"].T
        return out + self.weights["head.projection.bias"] if text.head_bias else out


BLOCK = {"width": 24, "num_heads": 3, "mlp_width": 20, "norm_eps": 0.05}
TOWER = {"kind": "patches", "image_size": 12, "patch_size": 4, "channels": 2, "num_layers": 1}
TOWER |= {"block": {"width": 16, "num_heads": 2, "mlp_width": 12, "norm_eps": 0.02}}
CONNECTOR = {"block": {**BLOCK, "activation": "relu"}, "num_layers": 1}
CONFIGS = {
    "image-first": {"text.block": BLOCK, "vision": TOWER, "connector": CONNECTOR},
    "text-first-post-norm": {
        "text.block": {**BLOCK, "norm": "post", "activation": "relu"},
        "text.head": "own",
        "text.head_bias": True,
        "fusion.order": "text_first",
        "vision": {**TOWER, "class_token": True, "final_norm": True},
        "connector": {**CONNECTOR, "num_layers": 0, "positions": "learned"},
    },
    "cross": {
        "text.block": BLOCK,
        "text.final_norm": False,
        "fusion": {"kind": "cross"},
        "vision": {**TOWER, "final_norm": True},
        "connector": {**CONNECTOR, "positions": "learned"},
    },
    "cross-post-norm": {
        "text.block": {**BLOCK, "norm": "post"},
        "fusion": {"kind": "cross"},
        "vision": TOWER,
        "connector": CONNECTOR,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_core_computes_what_its_config_says(name: str, tools: ModuleType) -> None:
    config = preset("tiny", {"text.vocab_size": tools.VOCABULARY, "text.num_layers": 2, **CONFIGS[name]})
    model = tools.build_model(config).double()
    ids, pixels = tools.random_ids(2, 4), tools.random_pixels(config, 2).double()
    logits = model(ids, pixels)
    reference = Reference(model.state_dict(), config)
    for row in range(2):
        assert (logits[row] - reference.logits(ids[row], pixels[row])).abs().max() <= 1e-4
