"""The loss: which tokens are inputs, which are targets, and what padding and prefixes do."""

import torch
from torch.nn import functional

from mmt_cli.model.context import ImageTokens
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer, initialise
from mmt_cli.training.objectives import caption_loss

SEED_SMALL = {"vocab_size": 40, "img_size": 16, "patch_size": 8, "d_model": 16, "num_heads": 2, "num_layers": 2}


def build(name: str, settings: dict[str, object]) -> MultimodalTransformer:
    torch.manual_seed(0)
    model = MultimodalTransformer(preset(name, settings))
    initialise(model)
    return model.eval()


def test_the_loss_is_the_mean_over_every_word_and_the_end_token_and_no_padding() -> None:
    model = build("tiny", {"text.vocab_size": 40})
    image = ImageTokens(x_BND=torch.randn(2, 16, 32), grid=(4, 4))
    rows = [[1, 5, 6, 2], [1, 7, 2]]
    loss = caption_loss(model, image, rows, label_smoothing=0.0, generator=torch.Generator())
    words = []
    for index, row in enumerate(rows):
        logits_TV = model.read(torch.tensor([row[:-1]]), image[index : index + 1])[0]
        words.append(functional.cross_entropy(logits_TV, torch.tensor(row[1:]), reduction="none"))
    torch.testing.assert_close(loss, torch.cat(words).mean())


def test_a_single_readout_learns_the_word_behind_a_random_prefix() -> None:
    model = build("seed", SEED_SMALL)
    image_RND = model.see(torch.randn(1, 3, 16, 16))
    row = [1, 5, 6, 7, 2]
    losses = set()
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        losses.add(round(caption_loss(model, image_RND, [row], label_smoothing=0.0, generator=draw).item(), 4))
    expected = set()
    for end in range(1, len(row)):
        logits_1V = model.read(torch.tensor([row[:end]]), image_RND)[0]
        expected.add(round(functional.cross_entropy(logits_1V, torch.tensor([row[end]])).item(), 4))
    assert losses == expected
