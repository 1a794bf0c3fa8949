"""Whether a model needs what it looked at: a caption's probability once the most attended part of the photo is hidden.

T tiles, H height, W width in pixels.
"""

import dataclasses
from dataclasses import dataclass

import torch

from mmt_cli.captioning.inference import inference
from mmt_cli.inputs.preprocess import Picture
from mmt_cli.inspection.attention import Choice, Sight, look
from mmt_cli.inspection.reading import Script, asked, logprobs_of, passes

SHARE = 0.1  # of the cells that are hidden


@dataclass(frozen=True, kw_only=True)
class Drop:
    """By how many nats a caption loses probability.

    Attributes:
        attended: when the cells that it looked at most are hidden.
        random: when as many others are hidden, drawn at random; the mean of several draws.
    """

    attended: float
    random: float


def drop_of(script: Script, choice: Choice, generator: torch.Generator, draws: int = 3) -> Drop:
    """Return what hiding a tenth of a photo's cells takes from its caption.

    Hidden pixels take the mean colour that preprocessing takes off: what the tower reads are zeros.

    Args:
        script: the caption.
        choice: whose attention says which cells are hidden.
        generator: draws the random ones.
        draws: how many times.

    Raises:
        UsageError: the model has no such layer or head, or its image tokens lie nowhere.
    """
    sight = look(script, choice)
    total = sum(one.weights_TRC for one in sight.sights)
    assert isinstance(total, torch.Tensor), "a caption without words"
    count = max(round(SHARE * total.numel()), 1)
    whole = logprob(script)
    attended = logprob(_without(sight, total.flatten().topk(count).indices))
    others = [torch.randperm(total.numel(), generator=generator)[:count] for _ in range(draws)]
    random = sum(logprob(_without(sight, cells)) for cells in others) / draws
    return Drop(attended=whole - attended, random=whole - random)


def logprob(script: Script) -> float:
    """Return the log-probability of a script's caption for its image, in nats."""
    first = len(script.prompt.ids) - script.first
    with inference(script.captioner.model):
        rows = [logprobs_of(script.captioner.model, one) for one in passes(script, asked(script))]
    logprob_RV = torch.cat(rows)[first:]
    token_R1 = torch.tensor(script.caption.tokens, device=logprob_RV.device)[:, None]
    return float(logprob_RV.gather(1, token_R1).sum())


def _without(sight: Sight, cells: torch.Tensor) -> Script:
    """Return the script with these cells of its picture hidden."""
    script, layout = sight.script, sight.cells
    picture = script.picture
    samples_THWC = picture.samples_NHWC.clone()
    height, width = picture.how.height * layout.height / layout.rows, picture.how.width * layout.width / layout.columns
    colour = (torch.tensor(picture.how.mean) / picture.how.rescale).round().clamp(0, 255).to(torch.uint8)
    for cell in cells.tolist():
        tile, place = divmod(cell, layout.rows * layout.columns)
        row, column = divmod(place, layout.columns)
        rows = slice(round(row * height), round((row + 1) * height))
        columns = slice(round(column * width), round((column + 1) * width))
        samples_THWC[tile, rows, columns] = colour
    hidden = Picture(samples_NHWC=samples_THWC, rows=picture.rows, columns=picture.columns, how=picture.how)
    return dataclasses.replace(script, picture=hidden, image=script.captioner.see([hidden]))
