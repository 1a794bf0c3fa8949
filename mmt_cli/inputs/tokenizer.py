"""Text to token ids and back, over the `tokenizers` library."""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mmt_cli.errors import ModelError, shown
from mmt_cli.inputs.tokenizer_build import Read, Recipe, folder_recipe
from mmt_cli.inputs.tokenizer_file import parse_tokenizer, read_file
from mmt_cli.inputs.tokenizer_rules import flags
from mmt_cli.inputs.user_text import UserText

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
_OURS = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
# transformers' repairs of WordPiece's spaces, in this order.
_CLEAN_UP = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'")]
_CLEAN_UP += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]


class Tokenizer:
    """A tokenizer with its special tokens by name."""

    def __init__(self, recipe: Recipe) -> None:
        """Build it; `recipe.data` must be checked already.

        Raises:
            ModelError: the library refuses it.
        """
        self.names: Mapping[str, str] = dict(recipe.names)
        self._clean_up = recipe.clean_up
        # No text of ours takes the special tokens that it would add, so the library need not see it.
        self._post_processor: Any = recipe.data.get("post_processor")
        with _library("the tokenizer cannot be read"):
            self.backend: Backend = Backend.from_str(
                json.dumps({**recipe.data, "post_processor": None}, ensure_ascii=False)
            )
            self.backend.add_tokens([AddedToken(token["content"], **flags(token)) for token in recipe.added])
        self.backend.encode_special_tokens = True  # no prompt can smuggle in a special token
        self._specials_lock = threading.Lock()
        ids: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values(), default=-1) + 1
        added: dict[int, AddedToken] = self.backend.get_added_tokens_decoder()
        self._reserved = {index for index, token in added.items() if token.special}
        self._reserved |= {ids[name] for name in self.names.values() if name in ids}
        self._unknown_id = self.token_id(self.names.get("unk_token", ""))

    def token_id(self, content: str) -> int | None:
        """Return the id of one token, None where there is no such token."""
        index: int | None = self.backend.token_to_id(content)
        return index

    def named_id(self, name: str) -> int | None:
        """Return the id of a special token by its name (`bos_token`, `sep_token`, `image_token` …), None without."""
        return self.token_id(self.names[name]) if name in self.names else None

    @property
    def pad_id(self) -> int:
        """Id of the padding token; ModelError where there is none, like the next two."""
        return self._special("pad_token")

    @property
    def bos_id(self) -> int:
        """Id of the token that begins a text."""
        return self._special("bos_token")

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a text."""
        return self._special("eos_token")

    def _special(self, name: str) -> int:
        index = self.named_id(name)
        if index is None:
            token, known = self.names.get(name, name), f"{self.vocab_size} tokens"
            raise ModelError(f"the tokenizer lacks a special token ({token}, found {known}); use a tokenizer of ours")
        return index

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens; special tokens written in it are plain text.

        Raises:
            ModelError: the tokenizer has no token for a part of it.
        """
        with _library("the text cannot be encoded"):
            ids: list[int] = self.backend.encode(_clean(text), add_special_tokens=False).ids
        return ids

    def encode_template(self, parts: Sequence[str | UserText]) -> list[int]:
        """Return the ids of a prompt that a template and a user wrote together.

        Special tokens count in the template's pieces, and are plain text in the user's. Without any in the user's
        text, the prompt is encoded as one text, as transformers does it; else piece by piece.

        Args:
            parts: the template's pieces as `str`, the user's as `UserText`.

        Raises:
            ModelError: the tokenizer has no token for a part of it.
        """
        pieces = [(_clean(part.text), True) if isinstance(part, UserText) else (part, False) for part in parts]
        whole, foreign = "".join(text for text, _ in pieces), bytearray()
        for text, users in pieces:
            foreign += bytes([users]) * len(text)
        encoding = self._with_specials(whole)
        if not self._smuggled(encoding, whole, foreign):
            return list(encoding.ids)
        ids: list[int] = []
        for text, users in pieces:
            ids += self._plain(text) if users else self._with_specials(text).ids
        return ids

    def _with_specials(self, text: str) -> Any:
        """Return the library's encoding of a text in which special tokens count."""
        with self._specials_lock, _library("the text cannot be encoded"):
            self.backend.encode_special_tokens = False
            try:
                return self.backend.encode(text, add_special_tokens=False)
            finally:
                self.backend.encode_special_tokens = True

    def _smuggled(self, encoding: Any, text: str, foreign: bytes | bytearray) -> list[tuple[int, int]]:
        """Return where special tokens of an encoding stand, in part at least, in the user's text.

        Args:
            encoding: the library's, of `text`.
            text: what was encoded.
            foreign: a byte for each character, 1 where it is the user's.
        """
        spans: list[tuple[int, int]] = []
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if index not in self._reserved:
                continue
            # Some special tokens take the spaces around them along.
            written = text[start:stop]
            first, last = start + len(written) - len(written.lstrip()), stop - len(written) + len(written.rstrip())
            # Text that the vocabulary lacks is the unknown token's, which is no smuggling.
            unknown = index == self._unknown_id and written.strip() != self.names.get("unk_token")
            if not unknown and any(foreign[first:last]):
                spans.append((first, last))
        return spans

    def _plain(self, text: str) -> list[int]:
        """Return the ids of the user's text, the names of special tokens in it broken in two.

        Most are kept apart by the library already; some files do not mark their image token as special.
        """
        ids: list[int] = []
        todo = [text]
        while todo:
            piece = todo.pop()
            with _library("the text cannot be encoded"):
                encoding = self.backend.encode(piece, add_special_tokens=False)
            spans = self._smuggled(encoding, piece, b"\1" * len(piece))
            edges = [0, *(last - 1 for first, last in spans if last - first > 1), len(piece)]
            if len(edges) == 2:
                ids += encoding.ids
            else:
                todo += [piece[start:stop] for start, stop in pairwise(edges)][::-1]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; special tokens and ids outside the vocabulary give nothing."""
        # The library fails on ids that fit no 32 bits.
        known = [index for index in token_ids if 0 <= index < self.vocab_size]
        with _library("the tokens cannot be decoded"):
            text: str = self.backend.decode(known, skip_special_tokens=True)
        for found, wanted in _CLEAN_UP if self._clean_up else []:
            text = text.replace(found, wanted)
        return text.strip()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`."""
        content = self.backend.to_str()
        if self._post_processor is not None:
            content = json.dumps({**json.loads(content), "post_processor": self._post_processor}, ensure_ascii=False)
        Path(path).write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a `tokenizer.json` of ours, or the one in a folder.

        Raises:
            ModelError: there is none, it is broken or hostile, or lacks our special tokens.
        """
        file = Path(path, "tokenizer.json") if os.path.isdir(path) else Path(path)  # noqa: PTH112 — raises nothing
        tokenizer = cls(_file_recipe(file, _OURS))
        for name in _OURS:
            tokenizer._special(name)
        return tokenizer

    @classmethod
    def from_folder(cls, folder: Path, read: Read | None = None) -> "Tokenizer | None":
        """Read the tokenizer of a Hugging Face folder, None where it has none.

        Args:
            folder: the folder; a `tokenizer.json` alone is taken too.
            read: returns the bytes of a file of the folder by its name, None where there is none; by default any
                regular file that the folder holds or links to.

        Raises:
            ModelError: a file is broken or hostile, or only SentencePiece's own format is there.
        """
        if read is None and folder.is_file():
            return cls(_file_recipe(folder, {}))
        recipe = folder_recipe(read or (lambda name: read_file(folder / name)), str(folder))
        return None if recipe is None else cls(recipe)


def _file_recipe(path: Path, names: Mapping[str, str]) -> Recipe:
    content = read_file(path)
    if content is None:
        raise ModelError(f"no tokenizer ({path}, found no such file); give --tokenizer FILE or DIR")
    return Recipe(data=parse_tokenizer(content, str(path)), added=(), names=names, clean_up=False)


def _clean(text: str) -> str:
    """Return the text as UTF-8 can hold it: an undecodable byte of the command line is a lone surrogate."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Turn the library's failures into ours; its panics are no Exceptions."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what} ({shown(str(error))}); use another tokenizer") from error


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
    return Tokenizer(Recipe(data=json.loads(backend.to_str()), added=(), names=_OURS, clean_up=False))
