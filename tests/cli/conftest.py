"""Runs `mmt` in this process, and captions with a stand-in for the model."""

import signal
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.cli.app import main
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError
from mmt_cli.inputs.image import read_image
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.model.presets import preset

PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(autouse=True)
def restored_signals(monkeypatch):
    """`main` belongs to a process of its own; here its signal handlers must not stay."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def mmt(capsys):
    """Return a function that runs `mmt` and gives its exit code and output."""

    def run(*arguments: str) -> SimpleNamespace:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err, lines=captured.err.splitlines())

    return run


@dataclass
class FakeCaptioner:
    """Reads images as they are and says how large they are."""

    name: str = "fake"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    numbers: str = "float32"
    model: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(config=preset("tiny")))
    preprocessing: Preprocessing = field(default_factory=lambda: PREPROCESSING)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    loads: list[tuple[str, dict]] = field(default_factory=list)
    adjustments: list[dict] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    streamed: list[str] = field(default_factory=list)
    fingerprints: int = 0
    raises: BaseException | None = None
    template: str = "{prompt}{width} by {height}"

    def fingerprint(self):
        self.fingerprints += 1
        return "fake@0123456789ab"

    def adjusted(self, **changes):
        self.adjustments.append(changes)
        return self

    def encode_prompt(self, prompt):
        if prompt and len(prompt) > 50:
            raise UsageError(f"the prompt is too long ({len(prompt)} tokens, the model's context is 50); shorten it")

    def open(self, image, *, max_pixels):
        return read_image(image, max_pixels=max_pixels)

    def prepare(self, image):
        return image

    def likeness(self, picture, prompt):
        self.encode_prompt(prompt)

    def generate(self, pictures, *, prompt, options, seeds):
        if self.raises:
            raise self.raises
        self.calls.append({"count": len(pictures), "prompt": prompt, "options": options, "seeds": list(seeds)})
        return [
            [self._caption(image, start, rank) for rank in range(options.num_captions)]
            for image, start in zip(pictures, prompt, strict=True)
        ]

    def stream(self, picture, *, prompt, options, seed):
        caption = self._caption(picture, prompt, 0)
        for word in caption.text.split(" "):
            self.streamed.append(word)
            yield word if len(self.streamed) == 1 else f" {word}"
        return caption

    def _caption(self, image, prompt, rank):
        start = f"{prompt} " if prompt else ""
        text = self.template.format(prompt=start, width=image.width, height=image.height) + "!" * rank
        return SimpleNamespace(text=text, tokens=(1, 2), logprob=-0.5 - rank, finish_reason="stop")


@pytest.fixture
def fake(monkeypatch):
    """The captioner that every model reference now gives."""
    captioner = FakeCaptioner()

    def load(_cls, reference, **options):
        captioner.loads.append((reference, options))
        return captioner

    monkeypatch.setattr(Captioner, "load", classmethod(load))
    return captioner
