"""What a benchmark measures, and how."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmt_cli.checkpoint.reference import HubOptions
from mmt_cli.errors import UsageError

SYNTHETIC_SIZE = (640, 480)  # width and height in pixels


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        model: any model reference.
        batch_size: images at a time.
        prompt_tokens: length of the random prompts.
        gen_tokens: new tokens of each caption.
    """

    model: str
    batch_size: int
    prompt_tokens: int
    gen_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return what tells records of a report apart."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure, and how.

    Attributes:
        models: any model references, or `preset:NAME` for random weights.
        settings: what to change in the presets, as `preset` takes it; for `preset:NAME` only.
        hub: how hub ids are resolved.
        phase: `caption`, from file to text, or `train`, one step of training on random pixels and tokens.
        image: the file to caption; None makes a JPEG of 640 x 480 pixels.
        batch_sizes: images at a time; each with each length is one measurement.
        prompt_tokens: lengths of the random prompts.
        gen_tokens: new tokens of each caption, none of which ends it; in training they lengthen the random text.
        repetitions: captions or training steps that are measured.
        warmup: those before them that are not.
        cold_starts: processes that caption one image from their start on.
        layers: whether to measure and count inside the phases, too, and what the machine can do at most.
        against: what to compare with; None compares with nothing.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`; training keeps float32 weights, bfloat16 is autocast.
        quantize: `int8` for linear maps in 8 bits; what is compared with computes in `dtype` alone.
        seed: start of every random draw.

    Raises:
        UsageError: options that training has no use for.
    """

    models: tuple[str, ...] = ("mini",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    hub: HubOptions = field(default_factory=HubOptions)
    phase: Literal["caption", "train"] = "caption"
    image: Path | None = None
    batch_sizes: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (2,)
    gen_tokens: tuple[int, ...] = (20,)
    repetitions: int = 5
    warmup: int = 2
    cold_starts: int = 0
    layers: bool = True
    against: Literal["transformers"] | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.phase != "train":
            return
        if self.image is not None:
            raise UsageError(f"training takes random pixels (--phase train, --image {self.image}); leave one out")
        if self.dtype == "float16":
            raise UsageError("no training in float16 (--phase train, --dtype float16); use float32 or bfloat16")
        if self.quantize is not None:
            what = f"weights in 8 bits cannot be trained (--phase train, --quantize {self.quantize})"
            raise UsageError(f"{what}; leave one out")
        if self.against is not None:
            raise UsageError(f"only captions are compared (--phase train, --against {self.against}); leave one out")

    def cases(self, model: str) -> Iterator[Case]:
        """Yield the measurements of one model."""
        for batch_size in self.batch_sizes:
            for prompt_tokens in self.prompt_tokens:
                for gen_tokens in self.gen_tokens:
                    lengths = {"prompt_tokens": prompt_tokens, "gen_tokens": gen_tokens}
                    yield Case(model=model, batch_size=batch_size, **lengths)

    def text_length(self, case: Case) -> int:
        """Tokens of each row that the model reads; the last new one of a caption is never read back."""
        return case.prompt_tokens + case.gen_tokens - (self.phase == "caption")

    def to_json(self) -> dict[str, Any]:
        """Return the settings of a report; device and dtype stand with the machine, as what was taken."""
        made_up = "random pixels" if self.phase == "train" else "synthetic {} x {}".format(*SYNTHETIC_SIZE)
        return {
            "model": self.models[0],
            "models": list(self.models),
            "set": dict(self.settings),
            "phase": self.phase,
            "image": str(self.image) if self.image else made_up,
            "batch_sizes": list(self.batch_sizes),
            "prompt_tokens": list(self.prompt_tokens),
            "gen_tokens": list(self.gen_tokens),
            "repetitions": self.repetitions,
            "warmup": self.warmup,
            "cold_starts": self.cold_starts,
            "layers": self.layers,
            "against": self.against,
            "quantize": self.quantize,
            "seed": self.seed,
        }
