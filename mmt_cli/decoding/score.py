"""How likely texts are that are written already.

Shapes: R rows (texts that go on), V vocabulary.
"""

from collections.abc import Sequence

import torch

from mmt_cli.decoding.generate import Stepper, finite


def score(stepper: Stepper, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return the log-probability of each text, read token by token as it would be written.

    Args:
        stepper: The model, with a prompt for each text given and `start` not yet called.
        texts: Token ids after the prompt, at least one each; lengths may differ, for a text that has ended leaves.

    Returns:
        Sums of natural-log probabilities, before any filter or penalty.

    Raises:
        ModelError: The model gave logits that are NaN or infinite.
    """
    assert all(texts), "a text without tokens"
    totals = [0.0] * len(texts)
    live = list(range(len(texts)))
    logits_RV = stepper.start()
    for length in range(1, max(map(len, texts)) + 1):
        token_R = torch.tensor([texts[row][length - 1] for row in live], device=logits_RV.device)
        logprob_R = logits_RV.log_softmax(dim=-1).gather(1, token_R[:, None]).squeeze(1)
        for row, logprob in zip(live, finite(logprob_R.tolist()), strict=True):
            totals[row] += logprob
        going_on = [place for place, row in enumerate(live) if len(texts[row]) > length]
        if not going_on:
            break
        if len(going_on) < len(live):
            place_R = torch.tensor(going_on, device=logits_RV.device)
            stepper.reorder(place_R)
            live, token_R = [live[place] for place in going_on], token_R[place_R]
        logits_RV = stepper.step(token_R)
    return totals
