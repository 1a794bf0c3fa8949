"""A caption read back is the caption that was written, and its words looked where the model looked when it wrote."""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmt_cli import Captioner
from mmt_cli.captioning.inference import inference
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inputs.preprocess import Preprocessing
from mmt_cli.inputs.tiling import Tiling
from mmt_cli.inputs.tokenizer import train_tokenizer
from mmt_cli.inspection.attention import Choice, look, looking_layers
from mmt_cli.inspection.photo import read_photo
from mmt_cli.inspection.reading import Script, joined, read_words, write
from mmt_cli.inspection.recording import recorded
from mmt_cli.model.presets import preset

PHOTOS = Path(__file__).parent.parent / "data"
DOG = str(PHOTOS / "dog.jpg")
_PAINT = {"kind": "sliding_window", "image_window": 3, "text_window": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "concat": {},
    "text-first": {"fusion.order": "text_first", "vision.class_token": True},
    "causal": {"fusion.visibility": "causal"},
    "bidirectional": {"fusion.visibility": "bidirectional", "vision.class_token": True},
    "bidirectional-text-first": {
        "fusion.visibility": "bidirectional",
        "fusion.order": "text_first",
        "vision.class_token": True,
    },
    "splice": {"fusion": {"kind": "splice"}},
    "splice-prefix": {"fusion": {"kind": "splice", "visibility": "prefix"}},
    "splice-prompt": {"fusion": {"kind": "splice", "visibility": "prompt"}, "text.block.rope": "1d"},
    "cross": {"fusion": {"kind": "cross", "every": 2}, "text.num_layers": 3},
    "gated-cross": {"fusion": {"kind": "gated_cross", "gate": "tanh"}},
    "window": {"text.block.kernel": _PAINT},
    "performer": {"text.block.kernel": {"kind": "performer", "features": 32}},
    "experts": {"text.block.experts": "attention+mlp"},
}


def build(tools: ModuleType, settings: dict[str, Any], **generation: Any) -> Captioner:
    """Return a captioner with strong random weights and a tokenizer of as many entries as its model, but one."""
    config = preset("tiny", {"text.vocab_size": 291, **settings})
    return Captioner(
        model=tools.build_model(config),
        tokenizer=train_tokenizer(["A dog runs through the grass .", "Two dogs play in snow ."] * 4, 290),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(**{"max_new_tokens": 7, **generation}),
    )


@pytest.fixture(params=SETTINGS)
def captioner(request: pytest.FixtureRequest, tools: ModuleType) -> Captioner:
    return build(tools, SETTINGS[request.param])


@pytest.mark.parametrize("prompt", [None, "A dog"])
def test_words_are_as_likely_as_when_they_were_written(captioner: Captioner, prompt: str | None) -> None:
    script = write(captioner, DOG, prompt)
    words = read_words(script)
    new = [word for word in words if not word.given]
    assert sum(math.log(word.probability) for word in new) == pytest.approx(script.caption.logprob, abs=2e-3)
    assert " ".join(word.text for word in words if word.text) == " ".join(script.caption.text.split())
    assert words[0].given is (prompt is not None)


def written_weights(script: Script, layer: int) -> list[Tensor]:
    """Return each token's attention to the image, recorded while the caption is written word by word."""
    model = script.captioner.model
    found: list[Tensor] = []
    cross = not model.config.joint

    def keep(name: str, weights: Tensor) -> None:
        if name.startswith(f"{layer}.") and ("cross_attention" in name) == cross:
            found.append(weights[0].mean(dim=0)[-1])

    with inference(model), recorded(model.blocks, keep):
        stepper = script.captioner.author.stepper([script.prompt], script.image, len(script.caption.tokens))
        stepper.start()
        for token in script.caption.tokens[:-1]:
            stepper.step(torch.tensor([token]))
    return found


@pytest.mark.parametrize("name", ["cross", "gated-cross", "splice", "splice-prompt", "concat", "causal", "window"])
def test_words_looked_where_they_looked_when_they_were_written(tools: ModuleType, name: str) -> None:
    captioner = build(tools, SETTINGS[name])
    script = write(captioner, DOG)
    layer = looking_layers(captioner.model.config)[-1]
    sight = look(script, Choice(layer=layer))
    rows = written_weights(script, layer)
    tokens = script.image.x_BND.shape[1]
    start = 0
    if captioner.model.config.placeholder_id is not None:
        start = script.prompt.ids.index(captioner.model.config.placeholder_id)
    for one in sight.sights:
        expected = torch.stack([rows[place][start : start + tokens] for place in one.word.tokens]).mean(dim=0)
        torch.testing.assert_close(one.weights_TRC.flatten(), expected, rtol=0, atol=1e-4)
        assert one.share == pytest.approx(float(expected.sum()), abs=1e-4)


def test_the_mean_is_over_all_layers_that_look(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["cross"])
    script = write(captioner, DOG)
    layers = looking_layers(captioner.model.config)
    assert layers == [0, 2]
    each = [look(script, Choice(layer=layer)).sights[0].weights_TRC for layer in layers]
    mean = look(script, Choice()).sights[0].weights_TRC
    torch.testing.assert_close(mean, torch.stack(each).mean(dim=0))
    heads = [look(script, Choice(head=head)).sights[0].weights_TRC for head in range(2)]
    torch.testing.assert_close(mean, torch.stack(heads).mean(dim=0))


@pytest.mark.parametrize("rollout", [False, True])
def test_every_model_shows_where_its_words_looked(captioner: Captioner, rollout: bool) -> None:
    sight = look(write(captioner, DOG), Choice(rollout=rollout))
    assert len(sight.sights) == len([word for word in sight.words if word.text])
    for one in sight.sights:
        assert one.weights_TRC.shape == (1, sight.cells.rows, sight.cells.columns)
        assert 0 < one.share < 1.0001
        assert float(one.weights_TRC.sum()) <= one.share + 1e-4


def test_a_class_token_is_on_the_photo_but_nowhere_in_it(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["text-first"])
    one = look(write(captioner, DOG), Choice()).sights[0]
    assert float(one.weights_TRC.sum()) < one.share - 1e-4


@pytest.mark.parametrize("name", ["question", "question-spliced"])
@pytest.mark.parametrize("rollout", [False, True])
def test_a_question_is_followed_through_to_the_image(tools: ModuleType, name: str, rollout: bool) -> None:
    from mmt_cli.inputs.prompt import Prompt

    config = tools.small_config(name)
    captioner = Captioner(
        model=tools.build_model(config),
        tokenizer=train_tokenizer(["A dog runs ."] * 2, 97 + 250),
        preprocessing=default_preprocessing(config),
        generation=GenerationOptions(max_new_tokens=5),
    )
    count = config.num_image_tokens
    places = [] if config.placeholder_id is None else [config.placeholder_id] * count
    prompt = Prompt(ids=(1,), encoder_ids=(5, *places, 6, 7))
    picture = captioner.read(DOG)
    seen = captioner.see([picture])
    [[caption]] = captioner.author.write([prompt], seen, GenerationOptions(max_new_tokens=5), [0])
    script = Script(captioner=captioner, picture=picture, image=seen, prompt=prompt, caption=caption)
    sight = look(script, Choice(rollout=rollout))
    assert any("encoder" in note for note in sight.notes)
    for one in sight.sights:
        assert 0 < float(one.weights_TRC.sum()) <= one.share + 1e-4 < 1.001


def test_tiles_each_have_their_own_cells(tools: ModuleType) -> None:
    captioner = build(tools, {"fusion": {"kind": "splice"}, "text.max_length": 400})
    size = captioner.preprocessing.height
    captioner.preprocessing = Preprocessing(
        height=size,
        width=size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        tiling=Tiling(kind="internvl", min_tiles=1, max_tiles=4),
    )
    script = write(captioner, DOG)
    assert len(script.picture) == 1 + script.picture.rows * script.picture.columns > 2
    assert (
        math.log(1)
        >= script.caption.logprob
        == pytest.approx(sum(math.log(word.probability) for word in read_words(script)), abs=2e-3)
    )
    for rollout in (False, True):
        sight = look(script, Choice(rollout=rollout))
        assert {one.weights_TRC.shape[0] for one in sight.sights} == {len(script.picture)}


def test_layers_and_heads_that_are_not_there_are_refused(tools: ModuleType) -> None:
    script = write(build(tools, SETTINGS["cross"]), DOG)
    for choice, said in (
        (Choice(layer=1), "--layer 1, these do: 0, 2"),
        (Choice(head=4), "--head 4, the model has 0 to 1"),
        (Choice(layer=0, rollout=True), "--rollout, --layer 0"),
    ):
        with pytest.raises(UsageError, match=said):
            look(script, choice)


def test_merged_tokens_lie_nowhere(tools: ModuleType) -> None:
    captioner = build(tools, {"vision.merged_tokens": 2, "vision.num_layers": 2})
    with pytest.raises(UsageError, match="merged image tokens"):
        look(write(captioner, DOG), Choice())
    assert read_photo(captioner, DOG).steps[-1].detail == "merged tokens, in no rows and columns"


def test_a_caption_needs_a_tokenizer(tools: ModuleType) -> None:
    captioner = build(tools, {})
    captioner.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer"):
        write(captioner, DOG)


def test_tokens_are_joined_to_the_words_that_they_spell() -> None:
    tokenizer = train_tokenizer(["A dog runs through the grass ."] * 4, 280)
    text = "A dogged naïve 🐕 runs"
    ids = tokenizer.encode(text)
    words, groups = joined(tokenizer, ids)
    assert words == text.split()
    assert [place for group in groups for place in group] == list(range(len(ids)))
    assert [tokenizer.decode([ids[place] for place in group]) for group in groups] == words


def test_a_caption_of_nothing_has_no_words() -> None:
    tokenizer = train_tokenizer(["A dog runs through the grass ."] * 4, 280)
    assert joined(tokenizer, []) == ([], [])


def test_runners_up_are_the_likeliest_others(tools: ModuleType) -> None:
    captioner = build(tools, SETTINGS["cross"], num_beams=1)
    reading = read_photo(captioner, DOG)
    for word in reading.words:
        rivals = [value for _, value in word.runners_up]
        assert len(rivals) == 3
        assert rivals == sorted(rivals, reverse=True)
        if len(word.tokens) == 1:  # greedy: nothing is likelier
            assert word.probability >= rivals[0]


def test_steps_are_those_of_the_file(tools: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    captioner = build(tools, {})
    side = captioner.preprocessing.height
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (side * 8, side * 6)).save(path, exif=exif)
    steps = read_photo(captioner, str(path)).steps
    assert [(step.name, step.width, step.height) for step in steps] == [
        ("file", side * 8, side * 6),
        ("decode", side * 2, side * 6 // 4),
        ("turn upright", side * 6 // 4, side * 2),
        ("resize", side, side),
        ("scale", side, side),
        ("cells", steps[-1].width, steps[-1].height),
    ]
