"""Comparisons with transformers, on presets of its shapes made small."""

import importlib

import pytest

from mmt_cli.benchmark import foreign
from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.run import run_benchmark
from mmt_cli.errors import UsageError

BLOCK = {"width": 48, "num_heads": 3, "mlp_width": 80}
SMALL = {
    **{f"{part}.block.{key}": value for part in ("text", "vision") for key, value in BLOCK.items()},
    "vision.image_size": 32,
    "vision.num_layers": 1,
    "text.num_layers": 2,
    "text.vocab_size": 97,
}
SMALLER = {
    "git-base": {"connector.width": 48},
    "blip-base": {},
    "vit-gpt2": {},
    "smolvlm-256m": {
        "vision.image_size": 64,
        "text.vocab_size": 49_280,
        "connector.width": 48,
        "text.block.num_heads": 6,
        "text.block.num_kv_heads": 2,
    },
}
QUICK = {"repetitions": 2, "warmup": 1, "gen_tokens": (5,), "device": "cpu", "layers": False, "against": "transformers"}


@pytest.fixture
def missing(monkeypatch):
    """Let transformers not be installed."""

    def fail(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)


@pytest.mark.parametrize("name", SMALLER)
def test_presets_of_its_shapes_write_the_same_tokens(name):
    pytest.importorskip("transformers")
    options = BenchOptions(models=(f"preset:{name}",), settings=SMALL | SMALLER[name], batch_sizes=(2,), **QUICK)
    caption, first = run_benchmark(options).to_json()["against"]
    assert (caption["name"], first["name"]) == ("caption", "first token")
    assert (caption["tokens"], caption["equal_tokens"]) == (10, 10)
    assert (first["tokens"], first["equal_tokens"]) == (2, 2)
    assert len(caption["ours_samples_ms"]) == len(caption["theirs_samples_ms"]) == 2
    assert caption["ratio_low"] <= caption["ratio"] <= caption["ratio_high"]
    assert caption["other"].startswith("transformers 5.")


def test_tokens_that_differ_are_counted(monkeypatch):
    pytest.importorskip("transformers")
    generate = foreign.Foreign.generate
    monkeypatch.setattr(
        foreign.Foreign, "generate", lambda *given: [[row[0] + 1, *row[1:]] for row in generate(*given)]
    )
    options = BenchOptions(models=("preset:vit-gpt2",), settings=SMALL, batch_sizes=(3,), **QUICK)
    caption, first = run_benchmark(options).to_json()["against"]
    assert (caption["tokens"], caption["equal_tokens"]) == (15, 12)
    assert (first["tokens"], first["equal_tokens"]) == (3, 0)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("preset:tiny", {}, r"no counterpart in transformers \(preset:tiny, there is one of git-base"),
        ("mini", {}, r"no counterpart in transformers \(mini of family mmt"),
        ("preset:git-base", SMALL | {"connector.width": 48, "text.block.norm": "pre"}, "change sizes alone"),
    ],
)
def test_models_that_transformers_lacks_are_named(model, settings, words):
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match=words):
        run_benchmark(BenchOptions(models=(model,), settings=settings, **QUICK))


def test_without_transformers_one_line_says_how_to_get_it(missing):
    with pytest.raises(
        UsageError, match=r"not installed \(--against transformers.*pip install 'mmt-cli\[transformers\]'"
    ):
        run_benchmark(BenchOptions(models=("nowhere",), **QUICK))
