"""Tokenizers of the families' kinds, learned from a few sentences by a learner that breaks ties by name."""

from collections import Counter
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

SENTENCES = (
    "a photo of a dog on the beach",
    "a photo of two cats on a red sofa",
    "a man in a blue shirt rides a bicycle down the street",
    "a woman is holding an umbrella in the rain",
    "three children are playing with a ball on the grass",
    "a plate of food is on the wooden table",
    "a large airplane is flying over the city",
    "Describe this image.",
    "What is on the table?",
    "How many dogs are there?",
    "The picture shows a small house near a lake.",
    "answer en what is on the table? caption en",
    "What does the image describe?",
    "Describe in detail what is shown in the image.",
    "USER: ASSISTANT: User: Assistant: system user assistant",
    "She said: it's 12 o'clock, isn't it?",
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!:;'-<>/"


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's, with the ids that its special tokens have in the real vocabulary; its words are listed, not learned."""
    words = sorted({word.strip(".,?!:").lower() for line in SENTENCES for word in line.split()})
    words = [word for word in words if word.isalpha() and len(word) > 1]
    listed = ["[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    listed += [*_LETTERS, *(f"##{letter}" for letter in _LETTERS), "##ing", "##s", *words]
    return BertTokenizer(vocab={word: index for index, word in enumerate(listed)})


def byte_level(specials: list[str], trailing: list[str], merges: int = 150) -> Tokenizer:
    """A byte-level BPE tokenizer: special tokens first or last, as in the real vocabulary."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for line in SENTENCES for word, _ in split.pre_tokenize_str(line))
    learned = _learn(Counter({tuple(word): count for word, count in words.items()}), merges)
    listed = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in learned)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(listed))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=learned))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*specials, *trailing)])
    return tokenizer


def sentencepiece(specials: list[str], trailing: list[str], prefix: bool, merges: int = 150) -> Tokenizer:
    """A BPE tokenizer with ▁ for spaces and bytes for what it does not know, as Llama's (with `prefix`) and Gemma's."""
    words = Counter(tuple("▁" + word) for line in SENTENCES for word in line.split())
    learned = _learn(words, merges)
    letters = sorted({letter for word in words for letter in word} | set(_LETTERS) | {"\n"})
    listed = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in learned)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(listed))}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=learned, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*specials, *trailing)])
    return tokenizer


def begin(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """Make the tokenizer put a token before every text."""
    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
    return tokenizer


def enclose(tokenizer: Tokenizer) -> Tokenizer:
    """Make the tokenizer put `<s>` before and `</s>` after every text, as RoBERTa's and BART's."""
    ends = (("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return tokenizer


def wrapped(tokenizer: Tokenizer, **roles: object) -> PreTrainedTokenizerFast:
    """Return the transformers tokenizer; roles are bos_token, eos_token, ..."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def _learn(words: Counter[tuple[str, ...]], merges: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges; equally frequent pairs go by name, so that the ids never change."""
    learned = []
    for _ in range(merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        words = Counter({_merge(word, best): count for word, count in words.items()})
    return learned


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for part in word:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)
