"""What a model's gates let through while it captions one photo.

T text tokens, D width, S summary (image and text, 2 D).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.run import item_seed
from mmt_cli.checkpoint.reference import HubOptions, open_reference
from mmt_cli.errors import ModelError, UsageError, shown
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.gate import GATES
from mmt_cli.model.gate import Gate as GateModule
from mmt_cli.model.presets import referenced_preset
from mmt_cli.model.transformer import MultimodalTransformer

Scope = Literal["all", "image", "text"]
_FUSION, _OF_IMAGE = "fusion.", "fusion.image"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate of a model, and what it was for one photo and its caption.

    Attributes:
        name: `fusion.image`, `fusion.text`, `blocks.N.cross_attention` or `blocks.N.cross_mlp`.
        kind: `tanh` or `dynamic`, as configs name them.
        values: what the gate multiplies by: of fusion the whole factor 1 + g, from 0 to 2, of a block g itself, from
            -1 to 1. One for all tokens (tanh), or one for each of the image's tokens or of the caption's (dynamic).
    """

    name: str
    kind: str
    values: tuple[float, ...]

    @property
    def scope(self) -> Scope:
        """Which tokens the values are of."""
        if self.kind == "tanh":
            return "all"
        return "image" if self.name == _OF_IMAGE else "text"

    @property
    def of_fusion(self) -> bool:
        """Whether it weighs tokens where they are fused, not what a block adds to them."""
        return self.name.startswith(_FUSION)


@dataclass(frozen=True, kw_only=True)
class GateReading:
    """A photo's caption, the pieces of its text that the model read back, and the gates at each of them.

    Attributes:
        caption: as `mmt caption` writes it.
        tokens: the prompt's and the new ones as text, without begin and end.
        gates: in the order of the model's modules.
        grid: rows and columns of the image's last tokens; None where they lie in none.
    """

    caption: str
    tokens: tuple[str, ...]
    gates: tuple[Gate, ...]
    grid: tuple[int, int] | None

    def cells(self, gate: Gate) -> list[tuple[float, ...]]:
        """Return the rows of an image gate's values as they lie in the picture; no class token is among them."""
        if self.grid is None:
            return []
        rows, columns = self.grid
        first = len(gate.values) - rows * columns
        return [gate.values[start : start + columns] for start in range(first, len(gate.values), columns)]

    def to_json(self) -> dict[str, Any]:
        """Return caption, tokens and gates; of a gate that has one value for all tokens that number, else a list."""
        gates = [
            {"name": gate.name, "kind": gate.kind, "values": gate.values[0] if gate.scope == "all" else gate.values}
            for gate in self.gates
        ]
        return {"caption": self.caption, "tokens": self.tokens, "gates": gates}


def read_gates(reference: str, image: str, *, prompt: str | None = None, hub: HubOptions | None = None) -> GateReading:
    """Load a checkpoint, caption a photo and read its gates.

    Args:
        reference: a bundled name, a folder or a `.safetensors` file.
        image: path of the photo.
        prompt: the caption's first words.
        hub: how hub ids are resolved.

    Raises:
        UsageError: the model has random weights or no gates, or the prompt is too long for it.
        ModelError: the checkpoint is missing, broken or without a tokenizer.
        ImageError: the photo cannot be read.
    """
    if referenced_preset(reference) is not None:
        raise UsageError(
            f"random weights write no caption (model {shown(reference)}, --image {shown(image)}); "
            "train it first, or leave --image out"
        )
    if open_reference(reference, hub).config.fusion.gate == "none":
        raise UsageError(
            f"the model has no gates to show (model {shown(reference)}, fusion.gate none); "
            "use one that was trained with some (--preset dynamic, --preset flamingo)"
        )
    return gates_of(Captioner.load(reference, hub=hub), image, prompt=prompt)


def gates_of(captioner: Captioner, image: str, *, prompt: str | None = None) -> GateReading:
    """Caption a photo by the checkpoint's own defaults, and read its gates in one pass over photo and caption.

    Raises:
        UsageError: the prompt is too long for the model.
        ModelError: there is no tokenizer.
        ImageError: the photo cannot be read.
    """
    model, words = captioner.model, captioner.tokenizer
    if words is None:
        raise ModelError(f"no tokenizer ({captioner.name} has none, a caption needs one); add its tokenizer.json")
    asked = captioner.encode_prompt(prompt)
    seen = captioner.see([captioner.read(image)])
    [[caption, *_]] = captioner.generate_from(seen, prompt=prompt, seeds=[item_seed(0, image)])
    written = caption.tokens[:-1] if caption.finish_reason == "stop" else caption.tokens
    # A token that fills the context is never read back.
    token_ids = [*asked.ids, *written][: model.config.text.max_length]
    first = len(asked.ids) - asked.shown
    return GateReading(
        caption=caption.text,
        tokens=tuple(words.backend.decode([index], skip_special_tokens=False) for index in token_ids[first:]),
        gates=tuple(gate_values(model, token_ids, seen, first=first)),
        grid=seen.grid,
    )


def gate_values(
    model: MultimodalTransformer, token_ids: Sequence[int], image: ImageTokens, *, first: int
) -> list[Gate]:
    """Read text and image at once, and return all gates.

    Args:
        model: one with gates.
        token_ids: of the text, placeholders included.
        image: one, as `model.see` has seen it.
        first: index of the first token whose gates are wanted.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, GateModule)}
    values = _watched(model, modules, torch.tensor([token_ids], device=image.x_BND.device), image)
    placeholder = model.config.placeholder_id
    found = []
    for path, module in modules.items():
        name = path.removesuffix(".gate").replace(".gates.", ".")
        kind = next(kind for kind, gate in GATES.items() if type(module) is gate)
        factors = [value + name.startswith(_FUSION) for value in values[path].float().flatten().tolist()]
        gate = Gate(name=name, kind=kind, values=tuple(factors))
        if gate.scope == "text":
            factors = factors[first:]
        elif gate.scope == "image" and placeholder is not None:  # the gate has read the whole text, the image in it
            factors = [factor for factor, index in zip(factors, token_ids, strict=True) if index == placeholder]
        found.append(dataclasses.replace(gate, values=tuple(factors)))
    return found


def _watched(
    model: MultimodalTransformer, gates: dict[str, GateModule], token_ids_1T: Tensor, image: ImageTokens
) -> dict[str, Tensor]:
    """Return what each gate lets through in one pass: values_1L1, or one number."""
    values: dict[str, Tensor] = {}

    def keep(name: str, gate: nn.Module, inputs: tuple[Tensor, Tensor, Tensor | None], _output: Tensor) -> None:
        assert isinstance(gate, GateModule)
        _update_1LD, x_1LD, summary_1LS = inputs
        values[name] = gate.value(x_1LD, summary_1LS)

    handles = [gate.register_forward_hook(partial(keep, name)) for name, gate in gates.items()]
    try:
        with inference(model):
            model.run(model.fused(token_ids_1T, image))
    finally:
        for handle in handles:
            handle.remove()
    return values
