"""`mmt caption`: parses, calls, prints."""

import typer

from mmt_cli.cli import caption_options as given
from mmt_cli.cli import options


def caption(
    context: typer.Context,
    paths: given.Paths = None,
    prompt: given.Prompt = None,
    recursive: given.Recursive = False,
    files_from: given.FilesFrom = None,
    null: given.Null = False,
    shard: given.Shard = None,
    max_pixels: given.MaxPixels = None,
    max_errors: given.MaxErrors = None,
    dry_run: given.DryRun = False,
    output_format: given.OutputFormat = "text",
    output: given.Output = None,
    resume: given.Resume = False,
    sidecar: given.Sidecar = False,
    sidecar_ext: given.SidecarExt = ".txt",
    if_exists: given.IfExists = "skip",
    prefix: given.Prefix = "",
    suffix: given.Suffix = "",
    stream: given.Stream = None,
    report: given.Report = None,
    grounding: given.Grounding = False,
    model: options.Model = "mini",
    revision: options.Revision = None,
    offline: options.Offline = False,
    tokenizer: options.Tokenizer = None,
    no_split: given.NoSplit = False,
    system: given.System = None,
    max_new_tokens: given.MaxNewTokens = None,
    min_new_tokens: given.MinNewTokens = None,
    num_beams: given.NumBeams = None,
    length_penalty: given.LengthPenalty = None,
    early_stopping: given.EarlyStopping = None,
    temperature: given.Temperature = None,
    top_k: given.TopK = None,
    top_p: given.TopP = None,
    repetition_penalty: given.RepetitionPenalty = None,
    no_repeat_ngram_size: given.NoRepeatNgramSize = None,
    num_captions: given.NumCaptions = None,
    stop_loops: given.StopLoops = None,
    batch_size: given.BatchSize = "auto",
    workers: given.Workers = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a caption for each image."""
    from mmt_cli.cli.caption_request import Request
    from mmt_cli.cli.caption_run import run

    run(Request(**context.params))
