"""`mmt bench`: parses, calls, prints."""

from pathlib import Path

from mmt_cli.cli import bench_options as given
from mmt_cli.cli import console, options


def bench(
    reference: given.Positional = None,
    model: given.Models = None,
    set_: options.Settings = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    phase: given.PhaseName = "caption",
    image: given.ImageFile = None,
    batch_size: given.BatchSizes = "1",
    prompt_tokens: given.PromptTokens = "2",
    gen_tokens: given.GenTokens = "20",
    cold_starts: given.ColdStarts = 1,
    repetitions: given.Repetitions = 5,
    warmup: given.Warmup = 2,
    layers: given.Layers = True,
    against: given.Against = None,
    baseline: given.BaselineFile = None,
    fail_above: given.FailAbove = None,
    output_format: given.OutputFormat = "table",
    save_svg: given.SaveSvg = None,
    save_chart: given.SaveChart = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Time models, phase by phase and layer by layer: captions, or steps of training."""
    limit = given.part(fail_above, baseline)
    lengths = {
        "batch_sizes": given.sizes("--batch-size", batch_size),
        "prompt_tokens": given.sizes("--prompt-tokens", prompt_tokens),
        "gen_tokens": given.sizes("--gen-tokens", gen_tokens),
    }

    from mmt_cli.benchmark.baseline import Baseline, check_speed, with_baseline
    from mmt_cli.benchmark.chart import chart
    from mmt_cli.benchmark.options import BenchOptions
    from mmt_cli.benchmark.run import run_benchmark
    from mmt_cli.cli.bench_views import save_drawing, show_report
    from mmt_cli.device import keep_freed_memory, set_threads

    wanted = BenchOptions(
        models=tuple(dict.fromkeys([*(reference or []), *(model or [])])) or ("mini",),
        settings=options.parse_settings(set_ or []),
        hub=console.hub_options(revision=revision, offline=offline, quiet=quiet),
        phase=phase,
        image=Path(image) if image else None,
        **lengths,
        cold_starts=cold_starts,
        repetitions=repetitions,
        warmup=warmup,
        layers=layers,
        against=against,
        device=device,
        dtype=dtype,
        quantize=quantize,
        seed=seed,
    )
    old = Baseline(Path(baseline)) if baseline else None
    draw = chart(Path(save_chart)) if save_chart else None
    keep_freed_memory()
    set_threads(threads)
    note = (lambda _: None) if quiet else console.note
    report = run_benchmark(wanted, note=note)
    if old:
        report = with_baseline(report, old, note)
    show_report(report, output_format)
    if save_svg:
        save_drawing(report, Path(save_svg))
    if draw:
        draw(report)
    if limit is not None:
        check_speed(report.baseline, limit)
