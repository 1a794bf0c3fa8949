"""Logit filters against the logits processors of transformers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmt_cli.decoding.filters import (
    BadWords,
    Filter,
    ForcedFirst,
    ForcedLast,
    History,
    MinNewTokens,
    NoRepeatNgram,
    RepetitionPenalty,
    SuppressFirst,
    SuppressTokens,
    Temperature,
    TopK,
    TopP,
    apply_filters,
    build_filters,
)
from mmt_cli.decoding.options import GenerationOptions
from mmt_cli.errors import ModelError

VOCABULARY = 40
ROWS = 6
CPU = torch.device("cpu")


def _scores(seed: int, ties: bool = False) -> Tensor:
    scores_RV = 3.0 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return scores_RV.round() if ties else scores_RV


def _history(seed: int, length: int, alphabet: int = VOCABULARY) -> History:
    ids_RT = torch.randint(alphabet, (ROWS, length), generator=torch.Generator().manual_seed(seed))
    return History(ids_RT.tolist(), CPU)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Temperature(0.4), TemperatureLogitsWarper(0.4)),
        (Temperature(1.9), TemperatureLogitsWarper(1.9)),
        *[(TopK(k), TopKLogitsWarper(k)) for k in (1, 2, 7, 39, 40, 1000)],
        *[(TopP(p), TopPLogitsWarper(p)) for p in (1e-6, 0.3, 0.9, 0.999)],
        *[(RepetitionPenalty(p), RepetitionPenaltyLogitsProcessor(p)) for p in (0.5, 1.3)],
        *[(NoRepeatNgram(n), NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 4)],
        *[(BadWords(words), NoBadWordsLogitsProcessor(words)) for words in ([[7]], [[0, 9], [1, 8], [2]], [[1, 2, 3]])],
        (SuppressTokens((3, 8)), SuppressTokensLogitsProcessor([3, 8])),
    ],
)
def test_a_filter_equals_its_counterpart(ours: Filter, theirs: Any, ties: bool) -> None:
    changed = False
    for seed in range(10):
        scores_RV, history = _scores(seed, ties), _history(seed, length=12, alphabet=3)
        before_RV = scores_RV.clone()
        filtered_RV = ours(scores_RV, history)
        torch.testing.assert_close(filtered_RV, theirs(history.ids_RT, scores_RV.clone()), rtol=0, atol=0)
        assert torch.equal(scores_RV, before_RV), "a filter must leave its argument as it was"
        changed |= not torch.equal(filtered_RV, before_RV)
    assert changed or ours in (TopK(40), TopK(1000))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_ngrams_of_short_texts(size: int, length: int) -> None:
    history = _history(seed=1, length=length, alphabet=2)
    filtered_RV = NoRepeatNgram(size)(_scores(1), history)
    theirs_RV = NoRepeatNGramLogitsProcessor(size)(history.ids_RT, _scores(1)) if length else _scores(1)
    assert torch.equal(filtered_RV, theirs_RV)


@pytest.mark.parametrize("generated", [0, 2, 3, 4])
def test_the_minimum_length_counts_generated_tokens(generated: int) -> None:
    history = _history(seed=1, length=5)
    for _ in range(generated):
        history.append(torch.full((ROWS,), 7))
    theirs = MinNewTokensLengthLogitsProcessor(5, 3, torch.tensor([2, 9]))
    filtered_RV = MinNewTokens(3, (2, 9))(_scores(1), history)
    assert torch.equal(filtered_RV, theirs(history.ids_RT, _scores(1)))
    assert torch.isinf(filtered_RV[:, [2, 9]]).all() == (generated < 3)


@pytest.mark.parametrize("prompt", [1, 2])
@pytest.mark.parametrize("forced", [False, True])
def test_first_and_last_tokens_in_each_step(prompt: int, forced: bool) -> None:
    """A forced first token needs a prompt of one token, and then puts off what is suppressed at the beginning."""
    begin = prompt + 1 if prompt == 1 and forced else prompt
    pairs: list[tuple[Filter, Any]] = [
        (ForcedFirst(4), ForcedBOSTokenLogitsProcessor(4)),
        (ForcedLast(2, (5, 6)), ForcedEOSTokenLogitsProcessor(prompt + 3, [5, 6])),
        (SuppressFirst((7, 8), after_forced=forced), SuppressTokensAtBeginLogitsProcessor([7, 8], begin)),
    ]
    history, changed = _history(seed=1, length=prompt), 0
    for _ in range(4):
        for ours, theirs in pairs:
            filtered_RV = ours(_scores(1), history)
            assert torch.equal(filtered_RV, theirs(history.ids_RT, _scores(1)))
            changed += not torch.equal(filtered_RV, _scores(1))
        history.append(torch.full((ROWS,), 7))
    assert changed == (3 if prompt == 1 else 2)


def test_prompts_of_unequal_length_begin_each_for_itself() -> None:
    prompts = [[1], [1, 2, 3]]
    scores_RV = _scores(4)[:2]
    together, alone = History(prompts, CPU), [History([ids], CPU) for ids in prompts]
    for _ in range(3):
        for logit_filter in (ForcedFirst(3), SuppressFirst((3, 4), after_forced=True), BadWords([[1, 2], [2, 9, 5]])):
            expected = [logit_filter(scores_RV[[row]], history) for row, history in enumerate(alone)]
            assert torch.equal(logit_filter(scores_RV, together), torch.cat(expected))
        for history in (together, *alone):
            history.append(torch.full((history.ids_RT.shape[0],), 9))


def test_a_forced_token_beyond_the_vocabulary_is_an_error() -> None:
    with pytest.raises(ModelError, match=rf"forced token .*\({VOCABULARY}, {VOCABULARY} tokens\); mend"):
        ForcedFirst(VOCABULARY)(_scores(1), _history(seed=1, length=1))


def test_a_single_end_token_is_no_bad_word() -> None:
    options = GenerationOptions(bad_words_ids=((3,), (3, 4)), end_token_ids=(3,))
    filtered_RV = apply_filters(build_filters(options), _scores(1), _history(seed=1, length=2, alphabet=2))
    assert torch.equal(filtered_RV, _scores(1))
    assert build_filters(GenerationOptions(bad_words_ids=((3,),), end_token_ids=(3,))) == []


def test_padding_of_shorter_prompts_marks_nothing() -> None:
    """Prompts of unequal length in one batch give each row what it gets alone."""
    prompts = [[], [1], [1, 1], [2, 1, 2, 1], [3, 3, 3, 3, 3]]
    scores_RV = _scores(4)[: len(prompts)]
    for logit_filter in (RepetitionPenalty(1.5), NoRepeatNgram(1), NoRepeatNgram(2), NoRepeatNgram(3)):
        together_RV = logit_filter(scores_RV, History(prompts, CPU))
        alone = [logit_filter(scores_RV[[row]], History([ids], CPU)) for row, ids in enumerate(prompts)]
        assert torch.equal(together_RV, torch.cat(alone))


def test_ids_beyond_the_vocabulary_are_passed_over() -> None:
    """Placeholders of image tokens may stand in a prompt, and a checkpoint may name an end token it does not have."""
    scores_RV = _scores(3)
    strange, plain = [[VOCABULARY, 4, 10**12, 4]] * ROWS, [[4, 4]] * ROWS
    for logit_filter in (RepetitionPenalty(2.0), NoRepeatNgram(1), BadWords([[4, 6], [4, VOCABULARY + 1]])):
        expected_RV = logit_filter(scores_RV, History(plain, CPU))
        assert torch.equal(logit_filter(scores_RV, History(strange, CPU)), expected_RV)
    filtered_RV = MinNewTokens(1, (2, VOCABULARY, 10**30))(scores_RV, History(plain, CPU))
    assert filtered_RV.isinf().sum() == ROWS


def test_history_follows_its_rows() -> None:
    history = History([[1], [2, 3]], CPU)
    history.append(torch.tensor([4, 5]))
    history.keep(torch.tensor([1, 0, 1]))
    history.append(torch.tensor([6, 7, 8]))
    assert history.ids_RT[[0, 2]].tolist() == [[2, 3, 5, 6], [2, 3, 5, 8]]
    assert history.ids_RT[1, 1:].tolist() == [1, 4, 7]
    assert history.generated == 2


def test_filters_come_in_the_order_of_transformers() -> None:
    options = GenerationOptions(
        temperature=0.6,
        top_k=12,
        top_p=0.8,
        repetition_penalty=1.7,
        no_repeat_ngram_size=2,
        bad_words_ids=((1, 6), (8,)),
        min_new_tokens=2,
        max_new_tokens=2,
        end_token_ids=(3,),
        forced_end_token_ids=(3, 10, 11),
        suppress_tokens=(10, 12),
        begin_suppress_tokens=(11, 13),
    )
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.7),
            NoRepeatNGramLogitsProcessor(2),
            NoBadWordsLogitsProcessor([[1, 6], [8]]),
            MinNewTokensLengthLogitsProcessor(6, 2, torch.tensor([3])),
            ForcedEOSTokenLogitsProcessor(8, [3, 10, 11]),
            SuppressTokensLogitsProcessor([10, 12]),
            SuppressTokensAtBeginLogitsProcessor([11, 13], 6),
            TemperatureLogitsWarper(0.6),
            TopKLogitsWarper(12),
            TopPLogitsWarper(0.8),
        ]
    )
    for seed in range(20):
        history = _history(seed, length=6, alphabet=4)
        for _ in range(2):
            filtered_RV = apply_filters(build_filters(options), _scores(seed), history)
            torch.testing.assert_close(filtered_RV, theirs(history.ids_RT, _scores(seed)), rtol=0, atol=0)
            history.append(torch.ones(ROWS, dtype=torch.int64))


def test_options_that_change_nothing_build_no_filter() -> None:
    options = GenerationOptions(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=3)
    assert build_filters(options) == []


def test_a_row_with_everything_ruled_out_stays_so() -> None:
    scores_RV = torch.full((2, 4), -math.inf)
    history = History([[1], [2]], CPU)
    filtered_RV = apply_filters([RepetitionPenalty(1.5), Temperature(0.5), TopK(2)], scores_RV, history)
    assert torch.equal(filtered_RV, scores_RV)
