"""Hides what a model looked at, and as much at random, and prints what each takes from its captions' probability.

    python .assets/faithfulness.py SHARD.tar [MODEL] [COUNT] [--rollout]

SHARD.tar holds photos as WebDataset shards do. The first COUNT (100) of them are captioned.
"""

import io
import json
import statistics
import sys
import tarfile

import torch
from PIL import Image

from mmt_cli import Captioner
from mmt_cli.inspection.attention import Choice
from mmt_cli.inspection.faithfulness import drop_of
from mmt_cli.inspection.reading import write_picture


def main() -> None:
    """Print one JSON object."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    shard, model, count = given[0], (given[1:2] or ["mini"])[0], int((given[2:3] or ["100"])[0])
    captioner, choice = Captioner.load(model), Choice(rollout="--rollout" in sys.argv)
    generator = torch.Generator().manual_seed(0)
    drops = []
    with tarfile.open(shard) as archive:
        for member in archive:
            if not member.name.endswith(".jpg"):
                continue
            data = archive.extractfile(member)
            assert data is not None
            photo = Image.open(io.BytesIO(data.read())).convert("RGB")
            drops.append(drop_of(write_picture(captioner, captioner.read(photo)), choice, generator))
            if len(drops) == count:
                break
    found = {
        "photos": len(drops),
        "attended_nats": statistics.mean(drop.attended for drop in drops),
        "random_nats": statistics.mean(drop.random for drop in drops),
        "attended_is_more": sum(drop.attended > drop.random for drop in drops) / len(drops),
    }
    print(json.dumps(found))


main()
