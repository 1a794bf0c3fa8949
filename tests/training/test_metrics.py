import contextlib
import io
import math
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from mmt_cli.training.metrics import BleuScorer, CiderScorer, bleu, cider, tokenize

EXACT = {"rel": 1e-6, "abs": 1e-6}


def words_joined(text):
    return " ".join(tokenize(text))


def tool_scores(candidates, references):
    """CIDEr, CIDEr an image and BLEU-1 to 4 from the COCO tool."""
    results = {image: [words_joined(text)] for image, text in enumerate(candidates)}
    truths = {image: [words_joined(text) for text in texts] for image, texts in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        corpus, each = Cider().compute_score(truths, results)
        bleus, _ = Bleu(4).compute_score(truths, results)
    return float(corpus), [float(score) for score in each], tuple(bleus)


def assert_equal_to_tool(candidates, references):
    corpus, each, bleus = tool_scores(candidates, references)
    ours, ours_each = cider(candidates, references)
    assert ours == pytest.approx(corpus, **EXACT)
    assert ours_each == pytest.approx(each, **EXACT)
    assert bleu(candidates, references) == pytest.approx(bleus, **EXACT)


def random_corpus(images, seed, vocabulary=60, references=5):
    """Sentences of Zipf-like words, so that n-grams repeat within and between images."""
    draw = random.Random(seed)
    words = [f"w{rank}" for rank in range(vocabulary)]
    weights = [1 / (rank + 1) for rank in range(vocabulary)]

    def sentence():
        return " ".join(draw.choices(words, weights, k=draw.randint(1, 16)))

    truths = [[sentence() for _ in range(references)] for _ in range(images)]
    candidates = [
        draw.choice([sentence(), draw.choice(texts), " ".join(draw.choice(texts).split()[:-1])]) for texts in truths
    ]
    return candidates, truths


sentences = st.lists(st.sampled_from(["a", "dog", "runs", "the", "dog's", "2"]), max_size=9).map(" ".join)
some_words = st.lists(st.sampled_from(["a", "dog", "runs", "cat"]), min_size=1, max_size=9).map(" ".join)
corpora = st.lists(st.tuples(sentences, some_words, st.lists(sentences, max_size=3)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(corpora)
def test_scores_equal_the_tool_on_small_corpora(corpus):
    candidates = [candidate for candidate, _, _ in corpus]
    assert_equal_to_tool(candidates, [[first, *others] for _, first, others in corpus])


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_tool_on_random_corpora(seed):
    assert_equal_to_tool(*random_corpus(images=40, seed=seed, references=seed + 1))


@pytest.mark.parametrize(
    ("candidates", "references"),
    [
        (["", "a dog runs"], [["a cat sits"], ["a dog runs fast"]]),
        (["...", "!"], [["a cat sits"], ["a dog runs fast"]]),
        (["a", "dog"], [["a cat"], ["dog"]]),
        (["the the the the the the the", "a a"], [["the cat is on the mat"], ["a a a a", "a"]]),
        (["a dog runs"], [["a dog runs", "the dog is running"]]),
        (["a b c d e", "x y"], [["", "a b c d"], ["x y z", ""]]),
        (["a b c d e f", "x"], [["a b c d", "a b c d e f g h"], ["x y"]]),
        (["Ein Mädchen läuft", "子供 a ball"], [["ein mädchen rennt", "Das Mädchen"], ["a ball", "子供"]]),
        (["A dog's ball , isn't it ?", "DON'T 'quote' rock'n'roll"], [["a dog's ball"], ["don't quote rock'n'roll"]]),
        (["a cat", "a cat"], [["a cat"], ["a cat"]]),
    ],
    ids=["empty", "punctuation", "short", "repeated", "one-image", "empty-reference", "closest", "unicode",
         "apostrophe", "same-images"],
)  # fmt: skip
def test_scores_equal_the_tool_at_the_edges(candidates, references):
    assert_equal_to_tool(candidates, references)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A Dog , running !", ["a", "dog", "running"]),
        ("the dog's 2nd ball", ["the", "dog's", "2nd", "ball"]),
        ("'quoted' rock'n'roll", ["quoted", "rock'n", "roll"]),
        ("t-shirt\tred/blue\n", ["t", "shirt", "red", "blue"]),
        ("café ÀB 子供", ["caf", "b"]),
        ("1960's 3'4", ["1960's", "3", "4"]),
        ("", []),
    ],
)
def test_tokens_are_lower_case_words_with_one_apostrophe_part(text, tokens):
    assert tokenize(text) == tokens


def test_the_reference_itself_scores_the_maximum():
    references = [["a dog runs on grass"], ["two children sit near water"]]
    candidates = ["A dog runs on grass.", "Two children sit near water"]
    assert cider(candidates, references) == (pytest.approx(10.0), [pytest.approx(10.0)] * 2)
    assert bleu(candidates, references) == pytest.approx((1.0, 1.0, 1.0, 1.0))


def test_one_image_weighs_every_ngram_zero():
    assert cider(["a dog runs"], [["a dog runs"]]) == (0.0, [0.0])


def test_a_difference_in_length_costs_a_gaussian_of_six_words():
    _, (same, _) = cider(["dog", "x"], [["dog"], ["y"]])
    _, (longer, _) = cider(["dog", "x"], [["dog a b c d e f"], ["y"]])
    assert same == pytest.approx(2.5)  # one n-gram length of four
    assert longer == pytest.approx(2.5 / math.sqrt(7) * math.exp(-(6**2) / (2 * 6**2)))


def test_nothing_in_common_and_nothing_at_all_score_zero():
    assert cider(["", "zebra"], [["a dog"], ["a cat"]])[0] == 0.0
    assert bleu(["", ""], [["a dog"], ["a cat"]]) == (0.0, 0.0, 0.0, 0.0)
    assert cider(["", ""], [["!"], ["?"]])[0] == 0.0


def test_a_scorer_can_be_used_again_and_keeps_no_memory():
    candidates, references = random_corpus(images=10, seed=7)
    first, second = CiderScorer(references), BleuScorer(references)
    before = first.score(candidates), second.score(candidates)
    first.score(["zebra stripes"] * 10)
    second.score(["zebra stripes"] * 10)
    assert (first.score(candidates), second.score(candidates)) == before


def test_candidates_and_references_must_be_as_many():
    with pytest.raises(AssertionError, match="2 candidates for 1 images"):
        cider(["a", "b"], [["a"]])
    with pytest.raises(AssertionError, match="2 candidates for 1 images"):
        bleu(["a", "b"], [["a"]])


def test_references_are_lists_of_at_least_one_text():
    for references in ([], [[]], ["a dog"]):
        with pytest.raises(AssertionError):
            CiderScorer(references)


def test_the_metrics_need_neither_torch_nor_numpy():
    code = "import sys, mmt_cli.training.metrics; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_thousand_images_take_less_than_two_seconds():
    candidates, references = random_corpus(images=1000, seed=1, vocabulary=3000)
    start = time.process_time()
    cider(candidates, references)
    bleu(candidates, references)
    assert time.process_time() - start < 2
