"""`mmt inspect`: parses, calls, prints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmt_cli.cli import console, inspect_views, options, views
from mmt_cli.cli import inspect_options as asked
from mmt_cli.cli.views import Format
from mmt_cli.errors import UsageError, shown

if TYPE_CHECKING:
    from mmt_cli.checkpoint.reference import HubOptions
    from mmt_cli.inspection.contents import Contents

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(I?)B?", re.IGNORECASE)
_SIZES = ("", "K", "M", "G", "T")
_WITHOUT = {"--prompt": "no image to caption", "--tokenizer": "no text to read"}
_WITH = {"--image": "--image FILE", "--save": "--save DIR", "--attention": "--attention OUT.png"}
_DRAWING = ("--attention", "--layer", "--head", "--rollout")
_PLANNING = ("--batch-size", "--image-size", "--tiles", "--prompt-tokens", "--gen-tokens", "--num-beams")
_WITHOUT |= dict.fromkeys(_DRAWING, "nothing to draw") | dict.fromkeys(_PLANNING, "nothing to plan")


def inspect(
    model: asked.Reference = "mini",
    set_: options.Settings = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    tokenizer: options.Tokenizer = None,
    output_format: asked.OutputFormat = "table",
    depth: asked.Depth = 2,
    tensors: asked.Tensors = False,
    config: asked.Config = False,
    sha256: asked.Sha256 = False,
    check: asked.Check = False,
    stats: asked.Stats = False,
    diff: asked.Diff = None,
    tokens: asked.Tokens = None,
    image: asked.Image = None,
    prompt: asked.Prompt = None,
    attention: asked.Attention = None,
    layer: asked.Layer = None,
    head: asked.Head = None,
    rollout: asked.Rollout = False,
    plan: asked.Plan = False,
    batch_size: asked.BatchSize = None,
    image_size: asked.ImageSize = None,
    tiles: asked.Tiles = None,
    prompt_tokens: asked.PromptTokens = None,
    gen_tokens: asked.GenTokens = None,
    num_beams: asked.NumBeams = None,
    save: asked.Save = None,
    save_format: asked.SaveFormat = "auto",
    dtype: asked.SaveDtype = "auto",
    shard_size: asked.ShardSize = None,
    only_safetensors: asked.OnlySafetensors = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of, check it, compare it, convert it."""
    looks = _looks(check=check, stats=stats, diff=diff, tokens=tokens, image=image, plan=plan, save=save)
    sizes = {"--batch-size": batch_size, "--image-size": image_size, "--tiles": tiles}
    sizes |= {"--prompt-tokens": prompt_tokens, "--gen-tokens": gen_tokens, "--num-beams": num_beams}
    _refuse_alone("--image", looks, {"--prompt": prompt, "--attention": attention})
    chosen = {"--layer": layer, "--head": head, "--rollout": rollout or None}
    _refuse_alone("--attention", ["--attention"] if attention is not None else looks, chosen)
    _refuse_alone("--plan", looks, sizes)
    saving = {"--save-format": save_format, "--shard-size": shard_size, "--only-safetensors": only_safetensors or None}
    _refuse_alone("--save", looks, saving)
    _refuse_alone("--save or --plan", looks, {"--dtype": dtype})
    _refuse_alone("--tokens or --check", looks, {"--tokenizer": tokenizer})
    opened = _Opened(
        model=model,
        settings=options.parse_settings(set_ or []),
        revision=revision,
        offline=offline,
        quiet=quiet,
        output_format=output_format,
        depth=depth,
    )
    if "--image" in looks:
        _show_image(opened, image or "", prompt, attention, (layer, head, rollout))
    elif plan:
        _plan(opened, sizes, dtype)
    elif check:
        _check(opened, tokenizer)
    elif tokens is not None:
        _show_tokens(opened, tokens, tokenizer, image)
    elif save is not None:
        _save(opened, save, save_format, dtype, shard_size, only_safetensors)
    elif diff is not None:
        _diff(opened, diff)
    elif stats:
        _stats(opened, tensors=tensors)
    else:
        _summary(opened, inspect_views.Asked(depth=depth, tensors=tensors, config=config, sha256=sha256))


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """Which model, how references are resolved, and how results are shown."""

    model: str
    settings: dict[str, Any]
    revision: str | None
    offline: bool
    quiet: bool
    output_format: Format
    depth: int

    def hub(self) -> "HubOptions":
        return console.hub_options(revision=self.revision, offline=self.offline, quiet=self.quiet)

    def look(self, reference: str | None = None, *, headers_alone: bool = True) -> "Contents":
        from mmt_cli.inspection.contents import look, look_at_file

        name = self.model if reference is None else reference
        bare = None if self.settings or self.revision is not None else look_at_file(name)
        return bare or look(name, self.settings, self.hub(), headers_alone=headers_alone)

    def show(self, view: views.View) -> None:
        views.show(view, self.output_format)


def _looks(**given: object) -> list[str]:
    """Return the ways to look that are asked for; one at most."""
    looks = [f"--{name}" for name, value in given.items() if value is not None and value is not False]
    if given["tokens"] is not None and "--image" in looks:  # where the image's tokens are counted
        looks.remove("--image")
    if len(looks) > 1:
        raise UsageError(f"one look at a time ({looks[0]} and {looks[1]} given); leave one of them out")
    return looks


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


def _summary(opened: _Opened, wanted: inspect_views.Asked) -> None:
    from mmt_cli.inspection.summary import summary_of

    contents = opened.look()
    opened.show(inspect_views.summary_view(contents, summary_of(contents), wanted))


def _stats(opened: _Opened, *, tensors: bool) -> None:
    from mmt_cli.inspection.stats import stats_of

    contents = opened.look(headers_alone=False)
    rows = stats_of(contents, depth=opened.depth, tensors=tensors)
    opened.show(inspect_views.stats_view(contents, rows, tensors=tensors))


def _diff(opened: _Opened, other: str) -> None:
    from mmt_cli.inspection.diff import diff

    here, there = (opened.look(name, headers_alone=False) for name in (opened.model, other))
    opened.show(inspect_views.diff_view(here, there, diff(here, there, depth=opened.depth)))


def _show_tokens(opened: _Opened, text: str, tokenizer: str | None, image: str | None) -> None:
    from mmt_cli.inspection.tokens import read_tokens

    reading = read_tokens(
        opened.model, text, settings=opened.settings, tokenizer=tokenizer, image=image, hub=opened.hub()
    )
    opened.show(inspect_views.tokens_view(reading))


def _save(
    opened: _Opened,
    folder: str,
    save_format: Literal["auto", "mmt", "hf"],
    dtype: Literal["auto", "float32", "bfloat16", "float16"],
    shard_size: str | None,
    only_safetensors: bool,
) -> None:
    from mmt_cli.inspection.convert import SaveOptions, save

    how = SaveOptions(
        folder=Path(folder),
        format=save_format,
        dtype=dtype,
        shard_size=None if shard_size is None else _bytes(shard_size),
        only_safetensors=only_safetensors,
    )
    opened.show(inspect_views.saved_view(folder, save(opened.look(headers_alone=False), how)))


def _check(opened: _Opened, tokenizer: str | None) -> None:
    from mmt_cli.inspection.check import check, raise_if_broken

    if opened.settings:
        raise UsageError(f"a trained model keeps its config (--set, model {shown(opened.model)}); leave --set out")
    report = check(opened.model, opened.hub(), tokenizer=tokenizer)
    opened.show(inspect_views.check_view(report))
    raise_if_broken(report)


def _plan(opened: _Opened, sizes: Mapping[str, int | None], dtype: str) -> None:
    from mmt_cli.cli.inspect_plan import plan_view
    from mmt_cli.inspection.plan import config_of, fits, load_of, plan

    config = config_of(opened.model, opened.settings, opened.hub())
    load = load_of(config, {name: size for name, size in sizes.items() if size is not None}, dtype)
    planned = plan(config, load)
    opened.show(plan_view(opened.model, planned, fits(config, planned.load)))


def _show_image(
    opened: _Opened,
    image: str,
    prompt: str | None,
    attention: str | None,
    chosen: tuple[int | None, int | None, bool],
) -> None:
    from mmt_cli.cli.inspect_image import Asked, show_image

    wanted = Asked(image=image, prompt=prompt, attention=attention, chosen=chosen)
    show_image(opened.model, opened.settings, opened.hub(), wanted, opened.output_format, opened.depth)
