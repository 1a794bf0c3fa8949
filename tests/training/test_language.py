"""Sentences alone: how they are read, and a run that learns them without an image."""

import gzip
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import DataError, DivergedError, UsageError
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.data import open_dataset
from mmt_cli.training.evaluate import score_language
from mmt_cli.training.events import Evaluated, Started, Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.options import TrainOptions
from mmt_cli.training.sentences import open_sentences

SMALL_MINI = {
    "vision.image_size": 64,
    "connector.block.width": 16,
    "connector.block.num_heads": 2,
    "connector.block.mlp_width": 32,
    "text.block.width": 16,
    "text.block.num_heads": 2,
    "text.block.mlp_width": 32,
    "text.num_layers": 1,
}
SENTENCES = ["A red square .", "A green ball .", "A blue dog runs .", "The dog runs ."] * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def options(data: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(data),),
        "out": data.parent / "out",
        "preset": "tiny",
        "objective": "language",
        "steps": 80,
        "eval_every": 80,
        "batch_size": 12,
        "lr": 5e-3,
        "warmup": 5,
        "label_smoothing": 0.0,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def problem(*sources: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_sentences(sources)
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message
    return message


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "A.TXT"])
def test_a_file_holds_a_sentence_a_line_and_blank_lines_are_skipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = "\ufeffOne  two .\r\n\r\n \u00a0\t\n three\u2028four\nfünf\rsix".encode()
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert open_sentences([path]) == ["One two .", "three four", "fünf", "six"]


def test_captions_of_a_data_set_are_sentences_and_sources_keep_their_order(squares: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"part-{number}.txt").write_text(f"Part {number} .\n", encoding="utf-8")
    captions = [caption for example in open_dataset([squares]) for caption in example.captions]
    assert len(captions) == 24
    found = open_sentences([tmp_path / "part-{2..1}.txt", squares])
    assert found == ["Part 2 .", "Part 1 .", *captions]


def test_bytes_that_are_no_utf_8_are_named_by_file_and_line_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\nbad \xff\nworse \xfe\x1b\ngood\n")
    assert "a.txt line 3 is not UTF-8" in problem(path)
    assert problem(path).startswith("2 problems in the data")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt.gz", gzip.compress(b"one\ntwo\n" * 500, mtime=0)[:-9], "not a whole gzip file"),
        (
            "a.txt.gz",
            gzip.compress(random.Random(0).randbytes(5000).hex().encode(), mtime=0)[:900],
            "not a whole gzip file",
        ),
        ("a.txt.gz", b"plain text\n", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(bytes(50_000_000), mtime=0), "a line of 400002 bytes or more"),
        ("a.txt", b"x" * 100_001 + b"\n", "a.txt line 1 has a caption of 100001 characters"),
        ("a.txt", b"\n \n", "no sentences in"),
        ("a.txt", b"", "no sentences in"),
        ("a.zip", b"one\n", "not a data set that can be read"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert words in problem(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "missing.txt" in problem(tmp_path / "missing.txt")


def test_text_given_for_captioning_is_told_where_it_belongs(text: Path) -> None:
    with pytest.raises(DataError, match="--objective language"):
        Trainer(options(text, objective="caption"))


def test_a_run_learns_the_sentences_and_its_model_goes_on_with_images(text: Path, squares: Path) -> None:
    run = options(text, val=(str(text),), eval_every=40)
    events = list(Trainer(run).run())
    started = events[0]
    assert isinstance(started, Started)
    assert (started.unit, started.train_count, started.val_count) == ("sentences", 12, 12)
    steps = [event for event in events if isinstance(event, Stepped)]
    assert steps[-1].loss < 0.3 * steps[0].loss
    early, late = (event.scores.figures["perplexity"] for event in events if isinstance(event, Evaluated))
    assert late < early < 300
    tuned = options(squares, objective="caption", preset=None, init=str(run.out), out=text.parent / "tuned", steps=60)
    losses = [event.loss for event in Trainer(tuned).run() if isinstance(event, Stepped)]
    assert losses[-1] < 0.5 * losses[0]
    assert Captioner.load(tuned.out, device="cpu").caption([squares / "0.png"])[0].text


def test_perplexity_is_e_to_the_mean_nll_of_every_token_but_the_first() -> None:
    torch.manual_seed(0)
    model = MultimodalTransformer(preset("tiny", {"text.vocab_size": 40}))
    initialise(model)
    rows = [(1, 5, 6, 2), *[(1, 7, 2)] * 60, (1, 8, 9, 4, 5, 2)]
    nats = []
    for row in rows:
        logits_TV = model.read(torch.tensor([row[:-1]]), None)[0]
        nats += functional.cross_entropy(logits_TV, torch.tensor(row[1:]), reduction="none").tolist()
    assert len(nats) == 3 + 120 + 5
    scores = score_language(model, rows)
    assert scores.figures == {"perplexity": pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)}
    assert scores.rank == pytest.approx(-sum(nats) / len(nats), rel=1e-5)


def test_a_hopeless_model_scores_infinity() -> None:
    model = MultimodalTransformer(preset("tiny", {"text.vocab_size": 40}))
    with torch.no_grad():
        model.head.norm.weight.zero_()
        model.head.norm.bias.fill_(1.0)
        model.text.tokens.weight[5] = 1e6
    assert score_language(model, [(1, 6, 2)]).figures == {"perplexity": math.inf}


@pytest.mark.parametrize(("name", "settings"), [("tiny", {}), ("mini", SMALL_MINI)])
def test_the_image_side_keeps_every_bit_and_the_text_side_moves(
    text: Path, name: str, settings: dict[str, Any]
) -> None:
    trainer = Trainer(options(text, preset=name, settings=settings, steps=3, weight_decay=0.5, val=(str(text),)))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    started = next(trainer.run())
    assert isinstance(started, Started) and started.trainable < started.parameters
    list(trainer.run())
    moved = {key for key, tensor in trainer.model.state_dict().items() if not torch.equal(before[key], tensor)}
    assert not any(key.startswith(("vision.", "connector.")) or "cross_attention" in key for key in moved)
    assert {"text.tokens.weight", "blocks.0.mlp.inner.up.weight", "head.norm.weight"} <= moved


def test_images_of_a_captioned_data_set_are_never_read(squares: Path) -> None:
    for image in squares.glob("*.png"):
        image.write_bytes(b"no image")
    events = list(Trainer(options(squares, steps=2, val=(str(squares),))).run())
    assert isinstance(events[0], Started) and events[0].train_count == 24


def test_throughput_counts_sentences(text: Path) -> None:
    list(Trainer(options(text, steps=1, val=(str(text),))).run())
    train, scored = (json.loads(line) for line in (text.parent / "out/metrics.jsonl").read_text().splitlines())
    assert list(train) == ["step", "kind", "loss", "lr", "sentences_per_s"]
    assert list(scored) == ["step", "kind", "perplexity"]


def test_the_model_card_says_what_was_learned(text: Path) -> None:
    list(Trainer(options(text, steps=1, val=(str(text),))).run())
    card = (text.parent / "out/README.md").read_text(encoding="utf-8")
    assert "- objective: language\n" in card
    assert "- perplexity: " in card


def test_a_loss_that_is_no_number_names_sentences(text: Path) -> None:
    trainer = Trainer(options(text, steps=2))
    with torch.no_grad():
        trainer.model.head.norm.weight[0] = math.nan
    with pytest.raises(DivergedError, match=r"step 1 .* sentences '(A|The) .*', "):
        list(trainer.run())


def test_a_readout_at_the_image_is_refused(text: Path) -> None:
    settings = {"d_model": 16, "num_heads": 2, "num_layers": 1, "img_size": 32}
    with pytest.raises(UsageError, match=r"--objective language, fusion\.visibility bidirectional"):
        Trainer(options(text, preset="seed", settings=settings))
    assert not (text.parent / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": "vision", "cache_features": True}, "--objective language, --cache-features"),
        ({"freeze": "text"}, "--objective language, --freeze text"),
    ],
)
def test_options_that_make_no_sense_without_images_are_refused(text: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(text, **changes)


@pytest.mark.skipif("MMT_TEST_DATA" not in os.environ, reason="needs the sentences of Flickr30k")
def test_the_sentences_of_flickr30k_are_read() -> None:
    sentences = open_sentences([Path(os.environ["MMT_TEST_DATA"]) / "flickr30k-train-captions.txt.gz"])
    assert len(sentences) == 136_178
