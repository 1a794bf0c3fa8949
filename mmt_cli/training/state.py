"""What a run leaves on the disk: the best checkpoint, the last one under `checkpoints/`, and `metrics.jsonl`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.save_hf import HuggingFaceFolder
from mmt_cli.device import DTYPES
from mmt_cli.errors import UsageError
from mmt_cli.training.options import TrainOptions


class RunFolder:
    """The output folder of one run."""

    def __init__(self, options: TrainOptions, captioner: Captioner) -> None:
        self.folder = options.out
        self.options = options
        source = captioner.source
        # What training leaves as it is, is read before the run: the source may be gone when it ends.
        self.hugging_face = None if source is None or source.family.native else HuggingFaceFolder(source)
        if (self.folder / "config.json").exists() and not (self.folder / "metrics.jsonl").exists():
            raise UsageError(
                f"the folder holds another checkpoint (--out {self.folder}, config.json); choose a new one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = self.folder / "metrics.jsonl"
        self.metrics.write_text("", encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_best(self, captioner: Captioner, figures: Mapping[str, float], step: int) -> None:
        """Write the folder's own checkpoint, in the dtype the user asked for."""
        self._save(self.folder, captioner, figures, step, self.options.save_dtype)

    def save_last(self, captioner: Captioner, figures: Mapping[str, float], step: int) -> None:
        """Write `checkpoints/step-NNNNNN` in float32, then remove the one before it."""
        newest = self.folder / "checkpoints" / f"step-{step:06d}"
        self._save(newest, captioner, figures, step, "float32")
        for older in newest.parent.glob("step-*"):
            if older != newest:
                shutil.rmtree(older)

    def _save(self, folder: Path, captioner: Captioner, figures: Mapping[str, float], step: int, dtype: str) -> None:
        card = model_card(self.options, figures, step)
        if self.hugging_face is not None:
            self.hugging_face.save(
                folder, captioner.model, preprocessing=captioner.preprocessing, card=card, dtype=DTYPES[dtype]
            )
            for name in self.hugging_face.absent:  # an earlier run's, which would be taken for this model's
                (folder / name).unlink(missing_ok=True)
            return
        save_checkpoint(
            folder,
            captioner.model,
            tokenizer=captioner.tokenizer,
            preprocessing=captioner.preprocessing,
            generation=captioner.generation,
            card=card,
            dtype=DTYPES[dtype],
        )


def model_card(options: TrainOptions, figures: Mapping[str, float], step: int) -> str:
    """Return the checkpoint's README: data, recipe and figures of the run."""
    origin = options.init or (str(options.config) if options.config else f"preset {options.preset or 'mini'}")
    recipe = {
        "start": origin,
        "objective": options.objective,
        "vision weights": options.vision_init and options.vision_init.name,
        "frozen": options.freeze,
        "steps": step,
        "batch size": options.batch_size,
        "peak learning rate": options.lr,
        "warm-up steps": options.warmup,
        "weight decay": options.weight_decay,
        "label smoothing": options.label_smoothing,
        "precision": options.precision,
        "seed": options.seed,
    }
    settings = [f"- {key}: {value}" for key, value in recipe.items() if value is not None]
    settings += [f"- {key}: {value}" for key, value in options.settings.items()]
    data = [f"- {Path(name).name}" for name in options.data]
    scores = [f"- {key}: {value:.2f}" for key, value in figures.items()] or ["- not evaluated"]
    sections = {"Training data": data, "Recipe": settings, "Figures on the validation data": scores}
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return f"# {options.out.resolve().name}\n\nA captioning model trained with `mmt train`.\n\n{body}\n"
