"""Steps that are recorded once and replayed give what steps one by one give; here a tape stands for a CUDA graph.

Like a graph it holds the very tensors that a step has read and written, and does the same to them again.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmt_cli import Captioner
from mmt_cli.benchmark.subject import made_up_words
from mmt_cli.captioning import recording, stepper
from mmt_cli.captioning.inference import inference
from mmt_cli.captioning.recording import can_replay, is_recorded, memory_given_back
from mmt_cli.captioning.stepper import CachedStepper, ReplayStepper, build_stepper
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.generate import Generated, generate
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.model.cache import KVCache
from mmt_cli.model.fixed_cache import FixedCache, can_be_fixed
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer
from mmt_cli.training.evaluate import Evaluator
from mmt_cli.training.examples import Example

PROMPTS = {"alike": [[3, 14], [9, 5], [26, 8]], "unlike": [[3, 14, 15], [9], [26, 5, 35, 8, 9]]}
GREEDY = GenerationOptions(max_new_tokens=14, min_new_tokens=3, end_token_ids=(1, 2, 3, 4), suppress_tokens=(96,))
WAYS = {
    "greedy": GREEDY,
    "sampling": replace(GREEDY, temperature=2.0, top_k=40, num_captions=2),
    "beams": replace(GREEDY, num_beams=4, num_captions=3),
}
# What a GPU would have to be waited for, which no graph can hold.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "unique")


class Tape(TorchDispatchMode):
    """Notes what is done to which tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it and note it."""
        made = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        """Do all of it again."""
        for func, args, kwargs, made in self.done:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """Record on tapes wherever steps can be of one shape."""
    made: list[Tape] = []

    def record(step: Callable[[], Tensor], undo: Callable[[], None], device: torch.device) -> Callable[[], Tensor]:
        tape = Tape()
        with tape:
            logits = step()
        undo()
        made.append(tape)

        def replay() -> Tensor:
            tape.play()
            return logits

        return replay

    monkeypatch.setattr(recording, "record", record)
    monkeypatch.setattr(stepper, "can_replay", lambda model, device: can_be_fixed(model.config))
    yield made
    recording._recordings.clear()


def _write(kind: Any, model: MultimodalTransformer, tools: ModuleType, way: str, lengths: str, seed: int) -> list[Any]:
    pixels = tools.random_pixels(model.config, 3, seed=seed).to(next(model.parameters()).device)
    generators, prompts = [torch.Generator().manual_seed(seed + row) for row in range(3)], PROMPTS[lengths]
    with inference(model):
        return generate(kind(model, model.see(pixels), prompts, 14), prompts, WAYS[way], generators)


def _assert_same(one: list[list[Generated]], other: list[list[Generated]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert [text.tokens for text in a] == [text.tokens for text in b]
        assert [text.logprob for text in a] == pytest.approx([text.logprob for text in b], abs=1e-3)


@pytest.mark.parametrize("lengths", PROMPTS)
@pytest.mark.parametrize("way", WAYS)
def test_replayed_steps_write_what_steps_one_by_one_write(
    model: MultimodalTransformer, tools: ModuleType, tapes: list[Tape], way: str, lengths: str
) -> None:
    """The first batch from its ninth step on, if all rows are left then; those that follow from their first."""
    if not can_be_fixed(model.config):
        image = model.see(tools.random_pixels(model.config, 3))
        assert not isinstance(build_stepper(model, image, PROMPTS[lengths], 14), ReplayStepper)
        return
    for seed in range(3):
        wanted = _write(CachedStepper, model, tools, way, lengths, seed)
        _assert_same(_write(build_stepper, model, tools, way, lengths, seed), wanted)
    [tape] = tapes
    for func, args, _, _ in tape.done:
        assert not any(word in str(func) for word in WAITS), func
        picks = str(func).startswith("aten.index") and isinstance(args[1], list | tuple)
        assert not (picks and any(isinstance(at, Tensor) and at.dtype is torch.bool for at in args[1])), func


@pytest.fixture
def git(tools: ModuleType) -> MultimodalTransformer:
    """A model whose image and text are one sequence."""
    made: MultimodalTransformer = tools.build_model(preset("tiny")).eval().requires_grad_(False)
    return made


def _stepper(model: MultimodalTransformer, tools: ModuleType, seed: int = 0) -> Any:
    image = model.see(tools.random_pixels(model.config, 3, seed=seed))
    built = build_stepper(model, image, PROMPTS["alike"], 14)
    built.start()
    return built


def _step(built: Any) -> Tensor:
    logits: Tensor = built.step(torch.tensor([5, 6, 7]))
    return logits


def test_two_that_write_at_once_do_not_share_a_recording(
    git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape]
) -> None:
    with inference(git):
        wanted = [_step(_stepper(git, tools, seed)) for seed in (1, 2, 3)]
        alone = _stepper(git, tools, 1)
        wanted_again = [_step(alone) for _ in range(2)][1]
        del alone
        first = _stepper(git, tools, 1)
        first_logits = _step(first)
        second = _stepper(git, tools, 2)
        second_logits = _step(second)
        again = _step(first)
        del first
        found = [first_logits, second_logits, _step(_stepper(git, tools, 3))]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(again, wanted_again)


def test_two_threads_that_begin_at_once_do_not_share_a_recording(
    git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    with inference(git):
        for seed in (1, 2):
            _step(_stepper(git, tools, seed))
        wanted = [_step(_stepper(git, tools, seed)) for seed in (3, 4)]
    others: list[Future[Tensor]] = []
    load = FixedCache.load

    def step_of_another() -> Tensor:
        with inference(git):
            return _step(_stepper(git, tools, 4))

    def load_slowly(self: FixedCache, cache: KVCache) -> None:
        load(self, cache)
        if not others:  # another thread comes just here, before the first has said that it writes
            others.append(pool.submit(step_of_another))
            with suppress(TimeoutError):
                others[0].result(timeout=1.0)

    monkeypatch.setattr(FixedCache, "load", load_slowly)
    with ThreadPoolExecutor(1) as pool, inference(git):
        first = _stepper(git, tools, 3)
        torch.testing.assert_close([_step(first), others[0].result()], wanted)


def test_a_row_that_has_finished_stays_within_the_positions_that_there_are(
    git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape]
) -> None:
    room = git.config.text.max_length
    prompts = [tools.random_ids(1, length, seed=length)[0].tolist() for length in (room - 3, 2)]

    def logits(kind: Any) -> list[Tensor]:
        built = kind(git, git.see(tools.random_pixels(git.config, 2)), prompts, 14)
        found = [built.start(), built.step(torch.tensor([5, 6]))]
        built.reorder(torch.tensor([1]))
        return found + [built.step(torch.tensor([7 + step])) for step in range(10)]

    with inference(git):
        wanted = logits(CachedStepper)
        for _ in range(2):
            torch.testing.assert_close(logits(build_stepper), wanted)
    assert len(tapes) == 1


def test_steps_that_somebody_watches_are_not_replayed(git: MultimodalTransformer) -> None:
    device = torch.device("cuda")
    assert can_replay(git, device)
    handle = git.blocks[0].register_forward_hook(lambda *_: None)
    assert not can_replay(git, device)
    handle.remove()
    assert can_replay(git, device) and not can_replay(git, torch.device("cpu"))


def test_other_weights_are_another_recording(git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape]) -> None:
    with inference(git):
        for _ in range(3):
            _step(_stepper(git, tools))
        assert len(tapes) == 1
        git.head.projection.weight = torch.nn.Parameter(git.head.projection.weight * 2, requires_grad=False)
        before = [_step(_stepper(git, tools)) for _ in range(2)]
    assert len(tapes) == 2
    torch.testing.assert_close(before[0], before[1])


@pytest.mark.parametrize("way", WAYS)
def test_where_steps_cannot_be_recorded_they_are_made_one_by_one(
    git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def refuse(step: Callable[[], Tensor], undo: Callable[[], None], device: torch.device) -> Any:
        step()
        undo()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recording, "record", refuse)
    for seed in range(2):
        wanted = _write(CachedStepper, git, tools, way, "unlike", seed)
        _assert_same(_write(build_stepper, git, tools, way, "unlike", seed), wanted)
    assert recording.recordings_of(git)._refused and not tapes


def test_recordings_go_where_memory_runs_out(git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape]) -> None:
    with inference(git):
        _step(_stepper(git, tools))
        assert not is_recorded(git)
        _step(_stepper(git, tools))
    assert is_recorded(git)
    with pytest.raises(MemoryError), memory_given_back(git):
        raise MemoryError
    assert not is_recorded(git)


def test_a_look_at_the_validation_images_leaves_no_recording_to_training(
    git: MultimodalTransformer, tools: ModuleType, tapes: list[Tape]
) -> None:
    config = git.config
    captioner = Captioner(
        model=git,
        tokenizer=made_up_words(config.text.vocab_size),
        preprocessing=default_preprocessing(config),
        generation=GREEDY,
    )
    with inference(git):
        seen = git.see(tools.random_pixels(config, 5))
        captioner.generate_from(seen)
        captioner.generate_from(seen)
    assert is_recorded(git)
    examples = [Example(key=str(index), captions=("a dog",), file=Path("/nowhere")) for index in range(5)]
    Evaluator(examples).score(captioner, lambda indices: seen[torch.tensor(indices)])
    assert not is_recorded(git)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["git-base", "blip-base", "vit-gpt2"])
def test_on_a_gpu_graphs_write_what_steps_one_by_one_write(tools: ModuleType, name: str) -> None:
    model = tools.build_model(tools.small_config(name)).to("cuda")
    for way in WAYS:
        for seed in range(3):
            wanted = _write(CachedStepper, model, tools, way, "unlike", seed)
            _assert_same(_write(build_stepper, model, tools, way, "unlike", seed), wanted)
