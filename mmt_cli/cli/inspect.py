"""`mmt inspect`: parses, calls, prints."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmt_cli.cli import console, inspect_views, options, views
from mmt_cli.cli.inspect_gates import show_gates
from mmt_cli.cli.views import Format
from mmt_cli.errors import UsageError, shown

if TYPE_CHECKING:
    from mmt_cli.checkpoint.reference import HubOptions
    from mmt_cli.inspection.contents import Contents

SHOW, LOOK, SAVE = "Show", "Look closer, one of these", "Save"
_UNICODE = (r"[^\ud800-\udfff]*", "text in the encoding of the terminal")
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(I?)B?", re.IGNORECASE)
_SIZES = ("", "K", "M", "G", "T")
_WITHOUT = {"--prompt": "no image to caption", "--tokenizer": "no text to read"}
_WITH = {"--image": "--image FILE", "--save": "--save DIR"}

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, folder, weights file, hub id or preset:NAME.", show_default=True)
]
OutputFormat = Annotated[
    Format, options.choice("--format", "-f", choices=views.FORMATS, section=SHOW, help="For people or for programs.")
]
Depth = Annotated[int, options.whole("--depth", minimum=1, section=SHOW, help="Names deep that modules are shown.")]
Tensors = Annotated[bool, options.flag("--tensors", section=SHOW, help="A line for each tensor instead.")]
Config = Annotated[bool, options.flag("--config", section=SHOW, help="Show the model's settings, too.")]
Sha256 = Annotated[bool, options.flag("--sha256", section=SHOW, help="Show the weights' hashes; may read them all.")]
Check = Annotated[bool, options.flag("--check", section=LOOK, help="Find all that is wrong; exit 5 if any.")]
Stats = Annotated[bool, options.flag("--stats", section=LOOK, help="Mean, spread and zeros of the weights.")]
Diff = Annotated[str | None, options.text("--diff", metavar="OTHER", section=LOOK, help="Compare with another model.")]
Tokens = Annotated[
    str | None, options.text("--tokens", section=LOOK, matching=_UNICODE, help="Show how the model reads a text.")
]
Image = Annotated[
    str | None,
    options.text("--image", metavar="FILE", section=LOOK, help="Caption this photo and show the model's gates."),
]
Prompt = Annotated[
    str | None,
    options.text("--prompt", "-p", section=LOOK, matching=_UNICODE, help="With --image: first words of its caption."),
]
Save = Annotated[
    str | None, options.text("--save", metavar="DIR", section=SAVE, help="Write the model into a new folder.")
]
SaveFormat = Annotated[
    Literal["auto", "mmt", "hf"],
    options.choice("--save-format", choices=("auto", "mmt", "hf"), section=SAVE, help="Whose folder; as it is."),
]
SaveDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    options.choice(
        "--dtype",
        metavar="TYPE",
        choices=("auto", "float32", "bfloat16", "float16"),
        section=SAVE,
        help="float32, bfloat16 or float16.",
    ),
]
ShardSize = Annotated[
    str | None,
    options.text("--shard-size", metavar="SIZE", section=SAVE, help="Cut the weights, like 2GB or 500MB."),
]
OnlySafetensors = Annotated[
    bool, options.flag("--only-safetensors", section=SAVE, help="Write the weights and nothing else.")
]


def inspect(
    model: Reference = "mini",
    set_: options.Settings = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    tokenizer: options.Tokenizer = None,
    output_format: OutputFormat = "table",
    depth: Depth = 2,
    tensors: Tensors = False,
    config: Config = False,
    sha256: Sha256 = False,
    check: Check = False,
    stats: Stats = False,
    diff: Diff = None,
    tokens: Tokens = None,
    image: Image = None,
    prompt: Prompt = None,
    save: Save = None,
    save_format: SaveFormat = "auto",
    dtype: SaveDtype = "auto",
    shard_size: ShardSize = None,
    only_safetensors: OnlySafetensors = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of, check it, compare it, convert it."""
    given = {"--check": check, "--stats": stats, "--diff": diff, "--tokens": tokens, "--save": save}
    looks = [name for name, value in given.items() if value is not None and value is not False]
    looks += ["--image"] if image is not None and tokens is None else []
    _refuse_pairs(looks)
    _refuse_alone("--image", looks, {"--prompt": prompt})
    saving = {"--save-format": save_format, "--dtype": dtype, "--shard-size": shard_size}
    _refuse_alone("--save", looks, saving | {"--only-safetensors": only_safetensors or None})
    _refuse_alone("--tokens or --check", looks, {"--tokenizer": tokenizer})
    settings = options.parse_settings(set_ or [])
    opened = _Opened(settings=settings, revision=revision, offline=offline, quiet=quiet)
    if "--image" in looks:
        _show_gates(opened, model, image or "", prompt, output_format, depth)
    elif check:
        _check(opened, model, tokenizer, output_format)
    elif tokens is not None:
        from mmt_cli.inspection.tokens import read_tokens

        reading = read_tokens(model, tokens, settings=settings, tokenizer=tokenizer, image=image, hub=opened.hub())
        views.show(inspect_views.tokens_view(reading), output_format)
    elif save is not None:
        from mmt_cli.inspection.convert import SaveOptions
        from mmt_cli.inspection.convert import save as write

        how = SaveOptions(
            folder=Path(save),
            format=save_format,
            dtype=dtype,
            shard_size=None if shard_size is None else _bytes(shard_size),
            only_safetensors=only_safetensors,
        )
        views.show(inspect_views.saved_view(save, write(opened.look(model, headers_alone=False), how)), output_format)
    elif diff is not None:
        from mmt_cli.inspection.diff import diff as compare

        here, there = (opened.look(name, headers_alone=False) for name in (model, diff))
        views.show(inspect_views.diff_view(here, there, compare(here, there, depth=depth)), output_format)
    elif stats:
        from mmt_cli.inspection.stats import stats_of

        contents = opened.look(model, headers_alone=False)
        rows = stats_of(contents, depth=depth, tensors=tensors)
        views.show(inspect_views.stats_view(contents, rows, tensors=tensors), output_format)
    else:
        from mmt_cli.inspection.summary import summary_of

        contents = opened.look(model)
        summary = summary_of(contents)
        asked = inspect_views.Asked(depth=depth, tensors=tensors, config=config, sha256=sha256)
        views.show(inspect_views.summary_view(contents, summary, asked), output_format)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """How model references are resolved."""

    settings: dict[str, Any]
    revision: str | None
    offline: bool
    quiet: bool

    def hub(self) -> "HubOptions":
        return console.hub_options(revision=self.revision, offline=self.offline, quiet=self.quiet)

    def look(self, reference: str, *, headers_alone: bool = True) -> "Contents":
        from mmt_cli.inspection.contents import look, look_at_file

        bare = None if self.settings or self.revision is not None else look_at_file(reference)
        return bare or look(reference, self.settings, self.hub(), headers_alone=headers_alone)


def _refuse_pairs(looks: Sequence[str]) -> None:
    if len(looks) > 1:
        raise UsageError(f"one look at a time ({looks[0]} and {looks[1]} given); leave one of them out")


def _refuse_alone(needed: str, looks: Sequence[str], given: Mapping[str, object]) -> None:
    """Raise UsageError for options that say how to do what is not asked for."""
    for name, value in given.items():
        if value not in (None, "auto") and not any(look in needed for look in looks):
            what = _WITHOUT.get(name, "nothing to save")
            told = name if value is True else f"{name} {shown(value)}"
            raise UsageError(f"{what} ({told}, {needed} missing); add {_WITH.get(needed, needed)}")


def _bytes(size: str) -> int:
    """Return `2GB` as 2,000,000,000 and `2GiB` as 2,147,483,648."""
    match = _SIZE.fullmatch(size)
    count = 0 if match is None else int(match[1]) * (1024 if match[3] else 1000) ** _SIZES.index(match[2].upper())
    if not count:
        raise options.refuse("--shard-size", size, "a size such as 2GB, 500MB or 1GiB")
    return count


def _check(opened: _Opened, model: str, tokenizer: str | None, output_format: Format) -> None:
    from mmt_cli.inspection.check import check, raise_if_broken

    if opened.settings:
        raise UsageError(f"a trained model keeps its config (--set, model {shown(model)}); leave --set out")
    report = check(model, opened.hub(), tokenizer=tokenizer)
    views.show(inspect_views.check_view(report), output_format)
    raise_if_broken(report)


def _show_gates(opened: _Opened, model: str, image: str, prompt: str | None, output_format: Format, depth: int) -> None:
    from mmt_cli.inspection.gates import read_gates
    from mmt_cli.inspection.summary import summarise

    if output_format in ("csv", "md"):
        raise UsageError(f"gates have no rows (--image {shown(image)}, --format {output_format}); use table or json")
    summary = summarise(model, opened.settings, opened.hub())
    gates = read_gates(model, image, prompt=prompt, hub=opened.hub())
    if output_format == "json":
        console.emit(json.dumps(summary.to_json(depth) | {"gates": gates.to_json()}) + "\n")
    else:
        show_gates(gates)
