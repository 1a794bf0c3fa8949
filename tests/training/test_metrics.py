import contextlib
import io
import math
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mmt_cli.training.metrics.bleu import BleuScorer
from mmt_cli.training.metrics.cider import CiderScorer
from mmt_cli.training.metrics.rouge import RougeScorer
from mmt_cli.training.metrics.words import tokenize

EXACT = {"rel": 1e-6, "abs": 1e-6}
SCORERS = (CiderScorer, BleuScorer, RougeScorer)


def scores(scorer, candidates):
    """Figures of the corpus and of each image, by name."""
    rows = scorer.rows(candidates)
    corpus = scorer.figures([math.fsum(column) for column in zip(*rows, strict=True)])
    each = zip(*map(scorer.figures, rows), strict=True)
    return dict(zip(scorer.names, zip(corpus, map(list, each), strict=True), strict=True))


def cider(candidates, references):
    return scores(CiderScorer(references), candidates)["cider"]


def bleu(candidates, references):
    return tuple(corpus for corpus, _ in scores(BleuScorer(references), candidates).values())


def rouge(candidates, references):
    return scores(RougeScorer(references), candidates)["rouge_l"]


def words_joined(text):
    return " ".join(tokenize(text))


def tool_scores(candidates, references):
    """Figures of the corpus and of each image from the COCO tool, by our names."""
    results = {image: [words_joined(text)] for image, text in enumerate(candidates)}
    truths = {image: [words_joined(text) for text in texts] for image, texts in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        found = {"cider": Cider().compute_score(truths, results), "rouge_l": Rouge().compute_score(truths, results)}
        corpus, each = Bleu(4).compute_score(truths, results)
    found |= {f"bleu{n}": pair for n, pair in enumerate(zip(corpus, each, strict=True), start=1)}
    return {name: (float(corpus), [float(score) for score in each]) for name, (corpus, each) in found.items()}


def assert_equal_to_tool(candidates, references):
    found = {}
    for kind in SCORERS:
        found |= scores(kind(references), candidates)
    plain, each_plain = found.pop("cider_plain")
    assert each_plain == pytest.approx(plain_cider(candidates, references), **EXACT)
    assert plain == pytest.approx(sum(each_plain) / len(each_plain), **EXACT)
    expected = tool_scores(candidates, references)
    assert found.keys() == expected.keys()
    for name, (corpus, each) in expected.items():
        assert found[name][0] == pytest.approx(corpus, **EXACT), name
        assert found[name][1] == pytest.approx(each, **EXACT), name


def plain_cider(candidates, references):
    """The paper's formula (Vedantam et al. 2015, equations 1 to 3) term by term, without stemming, times 10."""

    def grams(text, n):
        words = tokenize(text)
        return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]

    seen = Counter(
        gram for texts in references for gram in {g for t in texts for n in range(1, 5) for g in grams(t, n)}
    )

    def cosine(text, other, n):
        first, second = (
            {gram: own.count(gram) * math.log(len(references) / max(1, seen[gram])) for gram in own}
            for own in (grams(text, n), grams(other, n))
        )
        norms = [math.sqrt(sum(value**2 for value in each.values())) for each in (first, second)]
        dot = sum(value * second.get(gram, 0.0) for gram, value in first.items())
        return dot / math.prod(norms) if all(norms) else 0.0

    return [
        10 * sum(cosine(text, other, n) / len(texts) for n in range(1, 5) for other in texts) / 4
        for text, texts in zip(candidates, references, strict=True)
    ]


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
    assert rouge(candidates, references) == (1.0, [1.0, 1.0])


def test_one_image_weighs_every_ngram_zero():
    assert cider(["a dog runs"], [["a dog runs"]]) == (0.0, [0.0])


def test_a_difference_in_length_costs_a_gaussian_of_six_words():
    _, (same, _) = cider(["dog", "x"], [["dog"], ["y"]])
    _, (longer, _) = cider(["dog", "x"], [["dog a b c d e f"], ["y"]])
    assert same == pytest.approx(2.5)  # one n-gram length of four
    assert longer == pytest.approx(2.5 / math.sqrt(7) * math.exp(-(6**2) / (2 * 6**2)))


def test_only_plain_cider_pays_for_a_word_said_again_and_only_the_other_for_length():
    references = [["dog"], ["cat"]]
    found = scores(CiderScorer(references), ["dog dog", "cat a b c d e f"])
    assert found["cider_plain"][1] == pytest.approx([2.5, 2.5 / math.sqrt(7)])
    once = math.exp(-1 / 72)  # clipped to one dog in the dot product, not in the norm
    assert found["cider"][1] == pytest.approx([2.5 / 2 * once, 2.5 / math.sqrt(7) * math.exp(-36 / 72)])


def test_rouge_takes_the_best_precision_and_the_best_recall_of_different_references():
    # The longest runs: "a dog on grass" of 5 words in the first (4/5 and 4/7), "a dog" in the second (2/5 and 2/2).
    mean, [score] = rouge(["a dog sleeps on grass"], [["a big dog runs fast on grass", "a dog"]])
    assert mean == score == pytest.approx((1 + 1.44) * 0.8 * 1.0 / (1.0 + 1.44 * 0.8))


def test_an_image_s_own_bleu_is_that_of_a_corpus_of_one():
    candidates, references = random_corpus(images=10, seed=3)
    found = scores(BleuScorer(references), candidates)
    for n in range(1, 5):
        alone = [bleu([candidate], [texts])[n - 1] for candidate, texts in zip(candidates, references, strict=True)]
        assert found[f"bleu{n}"][1] == pytest.approx(alone)


def test_nothing_in_common_and_nothing_at_all_score_zero():
    assert cider(["", "zebra"], [["a dog"], ["a cat"]])[0] == 0.0
    assert bleu(["", ""], [["a dog"], ["a cat"]]) == (0.0, 0.0, 0.0, 0.0)
    assert cider(["", ""], [["!"], ["?"]])[0] == 0.0
    assert rouge(["", "zebra"], [["a dog"], ["a cat"]]) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize("kind", SCORERS)
def test_a_scorer_can_be_used_again_and_keeps_no_memory(kind):
    candidates, references = random_corpus(images=10, seed=7)
    scorer = kind(references)
    before = scorer.rows(candidates)
    scorer.rows(["zebra stripes"] * 10)
    assert scorer.rows(candidates) == before


@pytest.mark.parametrize("kind", SCORERS)
def test_candidates_and_references_must_be_as_many(kind):
    with pytest.raises(AssertionError, match="2 candidates for 1 images"):
        kind([["a"]]).rows(["a", "b"])


@pytest.mark.parametrize("kind", SCORERS)
def test_references_are_lists_of_at_least_one_text(kind):
    for references in ([], [[]], ["a dog"]):
        with pytest.raises(AssertionError):
            kind(references)


def test_the_last_bits_are_the_same_in_every_process():
    code = """
from mmt_cli.training.metrics.cider import CiderScorer
texts = [" ".join(f"w{(7 * image + 3 * place) % 19}" for place in range(12)) for image in range(8)]
print(CiderScorer([[text, text[::-1]] for text in texts]).rows(texts[1:] + texts[:1]))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_the_metrics_need_neither_torch_nor_numpy():
    code = "from mmt_cli.training.metrics import bleu, cider, rouge"
    code += "; import sys; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_thousand_images_take_less_than_two_seconds():
    candidates, references = random_corpus(images=1000, seed=1, vocabulary=3000)
    start = time.process_time()
    for kind in SCORERS:
        kind(references).rows(candidates)
    assert time.process_time() - start < 2
