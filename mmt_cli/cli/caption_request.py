"""What one call of `mmt caption` asks for, as parsed; refuses what does not go together before anything is loaded."""

from dataclasses import dataclass
from typing import Any, Literal

from mmt_cli.captioning.sources import STDIN, names_one_file
from mmt_cli.cli.caption_options import Existing, Format
from mmt_cli.cli.caption_options import Stopping as EarlyStopping
from mmt_cli.errors import UsageError

_GENERATION = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_captions",
    "stop_loops",
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The values of all options, under their names there; None where one was left out.

    Raises:
        UsageError: two of them exclude each other.
    """

    paths: list[str] | None
    files_from: str | None
    null: bool
    recursive: bool
    shard: str | None
    prompt: str | None
    max_pixels: int | None
    max_errors: str | None
    dry_run: bool
    output_format: Format
    output: str | None
    resume: bool
    sidecar: bool
    sidecar_ext: str
    if_exists: Existing
    prefix: str
    suffix: str
    stream: bool | None
    report: str | None
    grounding: bool
    model: str
    revision: str | None
    offline: bool
    tokenizer: str | None
    no_split: bool
    system: str | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: EarlyStopping | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    num_captions: int | None
    stop_loops: bool | None
    batch_size: str
    workers: int | None
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    quantize: str | None
    threads: int | None
    seed: int
    quiet: bool
    debug: bool

    def __post_init__(self) -> None:
        if self.null and self.files_from is None:
            raise UsageError("no list whose names could end in NUL (--null, --files-from missing); name one")
        if self.resume and self.output is None:
            raise UsageError("no file to go on with (--resume, --output missing); add --output FILE")
        if self.files_from == STDIN and STDIN in (self.paths or ()):
            raise UsageError("stdin is one thing alone (PATHS and --files-from name '-'); name the list or the image")
        self._check_sidecar()
        if self.stream:
            self._check_stream()

    def _check_sidecar(self) -> None:
        without = [path for path in self.paths or () if path == STDIN or path.endswith(".tar")]
        if self.sidecar and without:
            raise UsageError(f"nothing can stand beside it (--sidecar, {without[0]!r}); leave one of them out")

    def _check_stream(self) -> None:
        if self.output_format != "text":
            raise UsageError(f"only text comes in pieces (--stream, --format {self.output_format}); leave one out")
        if self.output is not None:
            raise UsageError(f"a file gets whole records (--stream, --output {self.output}); leave one out")
        if (self.num_captions or 1) > 1:
            raise UsageError(f"only one caption can be streamed (--stream, --num-captions {self.num_captions})")

    @property
    def single(self) -> bool:
        """Whether one image is named, whose caption needs no path beside it."""
        return self.files_from is None and names_one_file(self.paths or ())

    @property
    def generation(self) -> dict[str, Any]:
        """The options of generation that were given."""
        values = {name: getattr(self, name) for name in _GENERATION}
        values["early_stopping"] = {"true": True, "false": False}.get(self.early_stopping or "", self.early_stopping)
        return {name: value for name, value in values.items() if value is not None}

    @property
    def given(self) -> dict[str, str]:
        """What was asked for, in words, for a report: options that were given and the model."""
        shown = {"model": self.model, "prompt": self.prompt, "system": self.system, "dtype": self.dtype}
        shown["quantize"] = self.quantize
        shown |= {"prefix": self.prefix, "suffix": self.suffix, "seed": str(self.seed), "shard": self.shard}
        shown |= {name.replace("_", " "): str(value) for name, value in self.generation.items()}
        return {name: value for name, value in shown.items() if value}
