"""Text to token ids and back, over the `tokenizers` library."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.tokenizer_file import read_tokenizer_file

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class Tokenizer:
    """A byte-level BPE tokenizer with the three special tokens of our checkpoints."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.encode_special_tokens = True  # no prompt can smuggle in a special token
        self.vocab_size: int = backend.get_vocab_size()
        self.pad_id, self.bos_id, self.eos_id = (self._special(token) for token in (PAD, BOS, EOS))

    def _special(self, token: str) -> int:
        index: int | None = self.backend.token_to_id(token)
        if index is None:
            known = f"{self.vocab_size} tokens"
            raise ModelError(f"the tokenizer lacks a special token ({token}, found {known}); use a tokenizer of ours")
        return index

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens; special tokens written in it are plain text."""
        # A lone surrogate (an undecodable byte of the command line) cannot be encoded as UTF-8.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = self.backend.encode(clean, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; special tokens and ids outside the vocabulary give nothing."""
        # The library fails on ids that fit no 32 bits.
        known = [index for index in token_ids if 0 <= index < self.vocab_size]
        text: str = self.backend.decode(known, skip_special_tokens=True)
        return text.strip()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self.backend.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a `tokenizer.json`, or the one in a folder.

        Raises:
            ModelError: there is none, or it is none of ours.
        """
        file = Path(path, "tokenizer.json") if os.path.isdir(path) else Path(path)  # noqa: PTH112 — raises nothing
        content = read_tokenizer_file(file)
        try:
            backend = Backend.from_str(content)
        except BaseException as error:
            # The library's panics are no Exceptions.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ModelError(f"the tokenizer cannot be read ({file}, {shown(str(error))}); use another file") from error
        return cls(backend)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2) of at most `vocab_size` entries."""
    backend = Backend(models.BPE())
    # The prefix space makes a caption's first word the same tokens as that word elsewhere.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
