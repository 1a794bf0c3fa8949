import pytest

from mmt_cli.benchmark.options import BenchOptions
from mmt_cli.benchmark.run import run_benchmark
from mmt_cli.benchmark.workload import random_questions, random_text
from mmt_cli.checkpoint.load import save_checkpoint
from mmt_cli.checkpoint.parts import default_preprocessing
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import UsageError
from mmt_cli.model.presets import preset


def test_text_is_random_but_repeatable_and_of_the_vocabulary():
    config = preset("tiny", {"text.vocab_size": 5})
    first, same, other = (random_text(config, 2, 40, seed) for seed in (0, 0, 1))
    assert first == same != other
    assert [len(row) for row in first] == [40, 40]
    assert first[0] != first[1]
    assert {token for row in first for token in row} == set(range(5))


def test_image_has_its_placeholders_before_the_text_and_none_in_it():
    config = preset("tiny", {"text.vocab_size": 3, "fusion": {"kind": "splice"}})
    (row,) = random_text(config, 1, 20, 0)
    assert row[:16] == [2] * 16
    assert set(row[16:]) == {0, 1}


def test_a_question_has_the_image_in_it_where_the_encoder_reads_both(tools):
    config = tools.small_config("question-spliced")
    first, same, other = (random_questions(config, 2, 6, seed) for seed in (0, 0, 1))
    assert first.shape == (2, 16)
    assert first[:, :10].eq(1_000).all()
    assert first[:, 10:].lt(tools.VOCABULARY).all()
    assert first.equal(same)
    assert not first.equal(other)
    assert random_questions(tools.small_config("question"), 2, 6, 0).shape == (2, 6)
    assert random_questions(preset("tiny"), 2, 6, 0) is None
    assert len(random_text(config, 1, 6, 0)[0]) == 6, "the answer stands without the image"


@pytest.mark.parametrize("phase", ["caption", "train"])
@pytest.mark.parametrize("name", ["question", "question-spliced"])
def test_models_that_are_asked_are_measured_with_their_question(tools, tmp_path, name, phase):
    model = tools.build_model(tools.small_config(name))
    save_checkpoint(
        tmp_path / name,
        model,
        tokenizer=None,
        preprocessing=default_preprocessing(model.config),
        generation=GenerationOptions(),
        card="",
    )
    wanted = {"models": (str(tmp_path / name),), "phase": phase, "repetitions": 1, "warmup": 0, "device": "cpu"}
    found = run_benchmark(BenchOptions(**wanted, prompt_tokens=(4,), gen_tokens=(3,))).to_json()
    encoding = {row["phase"] for row in found["layers"] if row["name"].startswith("prompt_encoder.")}
    assert encoding == {"prefill" if phase == "caption" else "forward"}
    with pytest.raises(UsageError, match="--prompt-tokens 78 "):
        run_benchmark(BenchOptions(**wanted, prompt_tokens=(78,), gen_tokens=(3,)))
