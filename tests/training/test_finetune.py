"""Fine-tuning Hugging Face captioners: what is learned, and that transformers reads the result as we do."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from mmt_cli.captioning.captioner import Captioner
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.training.events import Stepped
from mmt_cli.training.loop import Trainer
from mmt_cli.training.objectives.masked import mask_words
from mmt_cli.training.objectives.tokens import IGNORED
from mmt_cli.training.options import TrainOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint/families"))
pytest.importorskip("transformers")

from hf.build import build, opened
from hf.images import photos
from hf.reference import reference, reference_logits

TRAINED = ("git", "blip", "vit-gpt2", "smolvlm")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
QUESTION = {"smolvlm": "Describe the image."}  # others continue


@dataclass(frozen=True)
class Run:
    """A source, what was made of it, and what was seen on the way."""

    source: Path
    out: Path
    losses: list[float]
    unchanged: bool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    for name, colour in COLOURS.items():
        picture = PIL.Image.new("RGB", (40, 32), colour)
        picture.paste((250, 250, 240), (0, 0, 15, 10))  # no two parts of a picture are alike
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A {name} square .\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a family's folder, built once."""
    kept: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in kept:
            kept[family] = build(family, tmp_path_factory.mktemp(family)).folder
        return kept[family]

    return get


@pytest.fixture(scope="module")
def tuned(source: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Return a function that trains a family's model for a few steps, once."""
    kept: dict[str, Run] = {}

    def get(family: str) -> Run:
        if family not in kept:
            folder, out = source(family), tmp_path_factory.mktemp("tuned") / family
            before = digests(folder)
            losses = train(data, folder, out)
            kept[family] = Run(folder, out, losses, before == digests(folder))
        return kept[family]

    return get


def options(data: Path, init: Path | None, out: Path, **changes: Any) -> TrainOptions:
    defaults: dict[str, Any] = {
        "data": (str(data),),
        "out": out,
        "init": None if init is None else str(init),
        "steps": 15,
        "eval_every": 100,  # the last step is scored and saved in any case
        "batch_size": 3,
        "lr": 3e-3,
        "warmup": 3,
        "label_smoothing": 0.0,
        "device": "cpu",
    }
    return TrainOptions(**{**defaults, **changes})


def train(data: Path, init: Path, out: Path, **changes: Any) -> list[float]:
    events = Trainer(options(data, init, out, **{"log_every": 1, **changes})).run()
    return [event.loss for event in events if isinstance(event, Stepped)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("family", TRAINED)
def test_a_run_learns_and_leaves_its_source_as_it_was(tuned: Callable[[str], Run], family: str) -> None:
    run = tuned(family)
    assert run.losses[-1] < 0.6 * run.losses[0]
    assert run.unchanged
    before, after = (load_file(folder / "model.safetensors") for folder in (run.source, run.out))
    assert before.keys() == after.keys()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert all("pooler" in name for name in still)
    images = [Captioner.load(folder, device="cpu").preprocessing for folder in (run.source, run.out)]
    assert images[1] == images[0].without_split()


@pytest.mark.parametrize("family", TRAINED)
def test_transformers_gives_the_logits_and_tokens_that_we_give(tuned: Callable[[str], Run], family: str) -> None:
    out = tuned(family).out
    theirs, ours, question = opened(family, out), Captioner.load(out, device="cpu"), QUESTION.get(family)
    images = [PIL.Image.new("RGB", (40, 32), COLOURS["red"]), *photos(2)]
    assert ours.tokenizer is not None
    for image in images:
        wanted = reference_logits(theirs, image, question, more=ours.tokenizer.encode("a red"))
        picture = ours.read(image)
        given = ours.encode_prompt(None, ours.layout(picture)).ids
        assert wanted.ids[: len(given)] == list(given)
        with torch.inference_mode():
            found_TV = ours.model.read(torch.tensor([wanted.ids]), ours.see([picture]))[0]
        torch.testing.assert_close(found_TV, wanted.values_TV, rtol=0, atol=1e-4)
    captions = ours.caption(images, num_beams=1, max_new_tokens=20)
    assert [list(caption.tokens) for caption in captions] == reference(theirs, images, question).ids


@pytest.mark.parametrize("family", TRAINED)
def test_a_second_run_goes_on_from_the_first(
    tuned: Callable[[str], Run], data: Path, tmp_path: Path, family: str
) -> None:
    first = tuned(family)
    losses = train(data, first.out, tmp_path / "out", steps=1, lr=1e-9, warmup=0)
    assert losses[0] < 1.2 * first.losses[-1]
    before, after = (load_file(folder / "model.safetensors") for folder in (first.out, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all((before[name] - after[name]).abs().max() < 1e-6 for name in before)


@pytest.mark.parametrize("family", TRAINED)
def test_the_words_and_the_end_are_learned_and_nothing_of_what_is_given(
    source: Callable[[str], Path], data: Path, tmp_path: Path, family: str
) -> None:
    """By hand from transformers' logits: the mean over the caption's tokens, with the one generation stops at."""
    trainer = Trainer(options(data, source(family), tmp_path / "out"))
    list(trainer.task.prepare())
    batch = trainer.task.batch([0])
    theirs = opened(family, source(family))
    [row] = batch.rows
    assert row[-1] in theirs.end_ids
    words = theirs.tokenizer.decode(row[batch.start : -1])
    assert words == {"git": "a blue square.", "blip": "a blue square.", "smolvlm": " A blue square."}.get(
        family, "A blue square."
    )
    whole = {"do_image_splitting": False} if family == "smolvlm" else {}
    for name, value in whole.items():
        setattr(theirs.image_processor, name, value)
    picture = PIL.Image.open(data / "blue.png").convert("RGB")
    wanted = reference_logits(theirs, picture, QUESTION.get(family), more=row[batch.start :])
    assert wanted.ids == list(row)
    target = torch.tensor(row[batch.start :])
    expected = functional.cross_entropy(wanted.values_TV[batch.start - 1 : -1], target)
    loss = trainer.task.objective(batch, torch.Generator())["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("git", {"objective": "masked"}),
        ("git", {"objective": "caption+contrastive"}),
        ("git", {"freeze": "text", "save_dtype": "bfloat16"}),
        ("blip", {"grad_checkpointing": True, "precision": "bfloat16", "dropout": 0.1}),
        ("blip", {"objective": "masked"}),
        ("vit-gpt2", {"freeze": "vision", "cache_features": True}),
        ("smolvlm", {"freeze": "vision", "cache_features": True}),
        ("smolvlm", {"objective": "masked", "grad_checkpointing": True}),
    ],
)
def test_every_way_to_train_works_for_families(
    source: Callable[[str], Path], data: Path, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    losses = train(data, source(family), tmp_path / "out", steps=4, batch_size=3, **changes)
    assert min(losses[2:]) < losses[0]
    captioner = Captioner.load(tmp_path / "out", device="cpu")
    assert captioner.caption([data / "red.png"], max_new_tokens=3)[0].tokens
    before, after = (load_file(folder / "model.safetensors") for folder in (source(family), tmp_path / "out"))
    assert before.keys() == after.keys()


def test_no_word_of_a_question_is_hidden() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        _, [targets] = mask_words([(*range(10, 20), 5, 6, 7)], 1, {7}, generator, start=10)
        assert targets[:10] == (IGNORED,) * 10
        assert set(targets[10:]) in ({IGNORED, 5}, {IGNORED, 6})


def test_sentences_alone_are_learned(source: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A red square .\nA dog runs .\n", encoding="utf-8")
    losses = train(tmp_path / "text.txt", source("git"), tmp_path / "out", objective="language", steps=4)
    assert losses[-1] < losses[0]


def test_a_frozen_part_comes_back_to_the_bit(source: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    train(data, source("smolvlm"), tmp_path / "out", freeze="text", steps=2)
    before, after = (load_file(folder / "model.safetensors") for folder in (source("smolvlm"), tmp_path / "out"))
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"vision_model", "connector"}


def test_a_matrix_that_the_source_holds_twice_stays_one(
    source: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source("vit-gpt2"), tmp_path / "twice"))
    tensors = load_file(folder / "model.safetensors")
    tokens, head = "decoder.transformer.wte.weight", "decoder.lm_head.weight"
    save_file({**tensors, head: tensors[tokens].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    train(data, folder, tmp_path / "out", steps=2)
    after = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(after[tokens], after[head])
    assert not torch.equal(after[tokens], tensors[tokens])


def test_the_source_may_change_and_go_while_the_run_goes_on(
    source: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source("vit-gpt2"), tmp_path / "source"))
    before = load_file(source("vit-gpt2") / "model.safetensors")
    trainer = Trainer(options(data, folder, tmp_path / "out", steps=1, lr=1e-9, warmup=0))
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes(size))
    shutil.rmtree(folder)
    list(trainer.run())
    after = load_file(tmp_path / "out/model.safetensors")
    assert all((before[name] - after[name]).abs().max() < 1e-6 for name in before)
    assert Captioner.load(tmp_path / "out", device="cpu").tokenizer is not None


def test_what_an_earlier_run_left_is_not_taken_for_this_model_s(
    source: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "metrics.jsonl", "vocab.txt"):
        (out / name).write_text("{}", encoding="utf-8")
    train(data, source("git"), out, steps=1)
    assert not (out / "vocab.txt").exists()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("git", {"save_format": "mmt"}, "--save-format mmt, --init .*git"),
        ("git", {"tokenizer": "words"}, "--tokenizer 'words', --init .*git"),
        ("vit-gpt2", {"objective": "masked"}, "--objective masked, mask_token and pad_token"),
        ("smolvlm", {"objective": "language"}, "--objective language, --init .*idefics3"),
        ("blip", {"objective": "caption+contrastive"}, "--objective caption.contrastive, .*image 40, text 48"),
        ("blip-vqa", {}, "--init .*blip-vqa, --objective caption"),
        ("paligemma", {}, "--init .*paligemma, fusion.visibility prompt"),
    ],
)
def test_what_a_family_cannot_do_is_refused_before_anything_is_written(
    source: Callable[[str], Path], tmp_path: Path, family: str, changes: dict[str, Any], words: str
) -> None:
    run = options(tmp_path / "no data", source(family), tmp_path / "out", **changes)
    with pytest.raises(UsageError, match=words):
        Trainer(run)
    assert not (tmp_path / "out").exists()


def test_a_model_of_ours_is_not_written_as_a_hugging_face_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--save-format hf, --preset tiny"):
        options(data, None, tmp_path / "out", preset="tiny", save_format="hf")
    train_tiny = options(data, None, tmp_path / "tiny", preset="tiny", steps=1)
    list(Trainer(train_tiny).run())
    with pytest.raises(UsageError, match=r"--save-format hf, --init .*mmt"):
        Trainer(options(data, tmp_path / "tiny", tmp_path / "out", save_format="hf"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("objective", "settings", "words"),
    [
        (
            "caption",
            {"fusion.kind": "splice", "fusion.visibility": "prompt"},
            "--preset tiny, fusion.visibility prompt",
        ),
        ("caption+contrastive", {"fusion.kind": "cross", "text.block.width": 64}, "--preset tiny: image 32, text 64"),
    ],
)
def test_what_a_new_model_cannot_learn_is_refused_too(
    data: Path, tmp_path: Path, objective: str, settings: dict[str, Any], words: str
) -> None:
    run = options(data, None, tmp_path / "out", preset="tiny", settings=settings, objective=objective)
    with pytest.raises(UsageError, match=words):
        Trainer(run)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_is_named(source: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source("git"), tmp_path / "mute"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for objective in ("caption", "masked"):
        with pytest.raises(ModelError, match="no tokenizer"):
            Trainer(options(data, folder, tmp_path / "out", objective=objective))
    assert not (tmp_path / "out").exists()
