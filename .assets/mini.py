"""Make `mini` again, the checkpoint that ships: three runs of `mmt train`, and what captions are decoded with.

    python .assets/mini.py FLICKR8K SENTENCES TOWER OUT

FLICKR8K is a folder with the shards train-000.tar … train-005.tar and dev-000.tar, SENTENCES a text file of captions
(.gz or not), TOWER the weights of EfficientNet-Lite2. What was stopped goes on where it was; `weights.md` says how long
it takes.
"""

import json
import subprocess
import sys
from pathlib import Path

SHAPE = """--preset mini --set vision.kind=efficientnet_lite2 --set vision.image_size=288
    --set text.num_layers=3 --set text.block.mlp_width=1024 --set connector.block.mlp_width=1024"""
LANGUAGE = f"""--objective language {SHAPE} --steps 350 -b 256 --lr 6e-4 --warmup 100
    --label-smoothing 0.05 --dropout 0.1"""
CAPTION = (
    """--freeze vision --cache-features --augment flip --epochs 6 --lr 5e-4 --warmup 100 --dropout 0.2 --ema 0.995"""
)
SCORED = """--objective scst --sample-temperature 0.5 --freeze vision --cache-features --augment flip
    --steps 955 --lr 5e-5 --warmup 30 --dropout 0 --weight-decay 0.01 --ema 0.98 --save-dtype float16"""
DECODING = {"num_beams": 5, "length_penalty": 1.0, "no_repeat_ngram_size": 2}


def train(recipe: str, *arguments: object, out: Path) -> None:
    """Run `mmt train`, from the start or from where it was stopped."""
    common = ["--out", out, "--precision", "bfloat16", "--resume", "auto"]
    command = [sys.executable, "-m", "mmt_cli", "train", *arguments, *recipe.split(), *common]
    subprocess.run(list(map(str, command)), check=True)


def main(flickr8k: Path, sentences: Path, tower: Path, out: Path) -> None:
    """Train the three stages into folders beside `out`, and leave the last one there."""
    photos = sorted(flickr8k.glob("train-*.tar"))
    scored = [*photos, "--val", flickr8k / "dev-000.tar"]
    language, caption = out.with_name(f"{out.name}-language"), out.with_name(f"{out.name}-caption")
    train(LANGUAGE, sentences, *photos, out=language)
    train(CAPTION, *scored, "--init", language, "--vision-init", tower, out=caption)
    train(SCORED, *scored, "--init", caption, out=out)
    decoding = out / "generation.json"
    defaults = json.loads(decoding.read_text(encoding="utf-8"))
    decoding.write_text(json.dumps(defaults | DECODING, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
