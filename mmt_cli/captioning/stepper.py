"""What decoding drives: the model behind a prompt and an image, with or without a cache.

B items, R rows (beams, draws), T text tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmt_cli.captioning.recording import STEPS_BEFORE, Recording, can_replay, recordings_of
from mmt_cli.decoding.generate import Stepper
from mmt_cli.model.context import ImageTokens
from mmt_cli.model.transformer import MultimodalTransformer


class CachedStepper:
    """Reads the prompt once and then one token a step."""

    def __init__(
        self, model: MultimodalTransformer, image: ImageTokens, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        self.model = model
        self.image = image
        self.device = image.x_BND.device
        self.token_ids_BT, self.valid_BT = pad(prompt_ids, self.device)
        self.capacity = self.token_ids_BT.shape[1] + max_new_tokens

    def start(self) -> Tensor:
        """Return logits_BV after the prompts."""
        logits_BV, self.cache = self.model.prefill(
            self.token_ids_BT, self.image, valid_BT=self.valid_BT, capacity=self.capacity
        )
        return logits_BV

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Return logits_RV after one more token a row."""
        logits_RV = self.model.step(token_ids_R.to(self.device)[:, None], self.cache)
        self.cache.advance(1)
        return logits_RV

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order."""
        self.cache.reorder(row_R.to(self.device))


class ReplayStepper(CachedStepper):
    """The same on a GPU: once its steps are recorded, each row has a place there, which it keeps as others finish."""

    def __init__(
        self, model: MultimodalTransformer, image: ImageTokens, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        super().__init__(model, image, prompt_ids, max_new_tokens)
        self._steps = 0
        self._recording: Recording | None = None
        self._places: list[int] = []  # of each row
        self._images: list[int] = []  # of each place

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Return logits_RV after one more token a row."""
        if self._recording is None and self._steps in (0, STEPS_BEFORE):
            self._find_recording()
        self._steps += 1
        if self._recording is None:
            return super().step(token_ids_R)
        self._recording.token_ids_R1[self._place_R, 0] = token_ids_R.to(self.device)
        return self._recording.replay()[self._place_R]

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order; a row that comes twice is copied to a place of its image that is free."""
        if self._recording is None:
            super().reorder(row_R)
            return
        origins = [self._places[row] for row in row_R.tolist()]
        free: dict[int, list[int]] = {}
        for place in set(range(len(self._images))) - set(origins):
            free.setdefault(self._images[place], []).append(place)
        places, copied = [], {}
        for origin in origins:
            place = origin if origin not in places else free[self._images[origin]].pop()
            places.append(place)
            if place != origin:
                copied[place] = origin
        self._stand(places)
        if copied:
            sources, targets = (torch.tensor(list(of), device=self.device) for of in (copied.values(), copied.keys()))
            self._recording.cache.copy_rows(sources, targets)

    def _find_recording(self) -> None:
        images = self.cache.image_B.tolist()
        self._recording = recordings_of(self.model).find(self.model, self.cache, self, first=self._steps == 0)
        if self._recording is not None:
            self._images = images
            self._stand(list(range(len(images))))
            self.cache = self._recording.cache

    def _stand(self, places: list[int]) -> None:
        self._places, self._place_R = places, torch.tensor(places, device=self.device)


class RecomputeStepper:
    """Reads everything again at each step: for models without a cache, and the reference for those with one."""

    def __init__(
        self, model: MultimodalTransformer, image: ImageTokens, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        self.model = model
        self.image = image
        self.device = image.x_BND.device
        self.rows = [list(ids) for ids in prompt_ids]

    def start(self) -> Tensor:
        """Return logits_BV after the prompts."""
        token_ids_RT, valid_RT = pad(self.rows, self.device)
        logits_RTV = self.model.read(token_ids_RT, self.image, valid_BT=valid_RT)
        if logits_RTV.shape[1] == 1:
            return logits_RTV[:, 0]
        last_R = torch.tensor([len(row) - 1 for row in self.rows], device=logits_RTV.device)
        return logits_RTV[torch.arange(len(self.rows), device=logits_RTV.device), last_R]

    def step(self, token_ids_R: Tensor) -> Tensor:
        """Return logits_RV after one more token a row."""
        for row, token in zip(self.rows, token_ids_R.tolist(), strict=True):
            row.append(token)
        return self.start()

    def reorder(self, row_R: Tensor) -> None:
        """Keep these rows, in this order."""
        self.rows = [list(self.rows[row]) for row in row_R.tolist()]
        self.image = self.image[row_R.to(self.device)]


def build_stepper(
    model: MultimodalTransformer, image: ImageTokens, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int
) -> Stepper:
    """Return the stepper that keeps what was read where the model can, else the one that reads it again."""
    kind: type[CachedStepper | RecomputeStepper] = CachedStepper if model.config.cacheable else RecomputeStepper
    if can_replay(model, image.x_BND.device):
        kind = ReplayStepper
    return kind(model, image, prompt_ids, max_new_tokens)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return token_ids_BT with zeros behind the shorter rows, and valid_BT, None when all are of one length."""
    longest = max(map(len, rows))
    token_ids_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return token_ids_BT, None
    length_B = torch.tensor([len(row) for row in rows], device=device)
    return token_ids_BT, torch.arange(longest, device=device)[None] < length_B[:, None]
