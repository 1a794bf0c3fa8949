"""The README's figure of a whole folder: `mmt caption` against a script that calls transformers once per image.

    python .assets/folder.py PHOTOS [--count 200] [--dtype float32]

Both are timed as whole processes, from cold start, in turn, on the same random GIT-base (176.6 M parameters, 20 new
tokens, greedy) and the same photos of a folder or WebDataset shard; their captions must be equal. Needs transformers.
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

MAKE = """
import sys, tokenizers, torch, transformers as T
torch.manual_seed(0)
model = T.GitForCausalLM(T.GitConfig())
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3)
model.generation_config.max_new_tokens = 20
model.generation_config.bos_token_id, model.generation_config.eos_token_id = 101, 102
model.generation_config.pad_token_id = 0
model.save_pretrained(sys.argv[1])
words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
words += [f"w{i}" for i in range(model.config.vocab_size - len(words))]
open(sys.argv[1] + "/vocab.txt", "w").write("\\n".join(words))
T.BertTokenizerFast(vocab_file=sys.argv[1] + "/vocab.txt").save_pretrained(sys.argv[1])
T.CLIPImageProcessorPil().save_pretrained(sys.argv[1])
"""
SCRIPT = """
import sys, torch
from pathlib import Path
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, GitForCausalLM
folder, photos, dtype = sys.argv[1:]
model = GitForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
words, images = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder, backend="pil")
for photo in sorted(Path(photos).iterdir()):
    pixels = images(Image.open(photo).convert("RGB"), return_tensors="pt").pixel_values.to(model.dtype)
    with torch.no_grad():
        ids = model.generate(pixel_values=pixels, do_sample=False)
    print(f"{photo}\\t{words.decode(ids[0], skip_special_tokens=True)}")
"""


def timed(*command: str) -> tuple[float, list[str]]:
    """Return a process's seconds and its lines."""
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout.splitlines()


def main() -> None:
    """Print both times of each round and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--mmt", nargs="*", default=[], help="more options of mmt caption")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, photos = f"{temporary}/git", f"{temporary}/photos"
        Path(photos).mkdir()
        with tarfile.open(given.photos) as archive:
            members = [member for member in archive if member.name.endswith(".jpg")][: given.count]
            for number, member in enumerate(members):
                Path(photos, f"{number:04}.jpg").write_bytes(archive.extractfile(member).read())
        subprocess.run([sys.executable, "-c", MAKE, folder], check=True, capture_output=True)
        ratios = []
        for _ in range(given.rounds):
            theirs, expected = timed(sys.executable, "-c", SCRIPT, folder, photos, given.dtype)
            ours, found = timed(
                *(sys.executable, "-m", "mmt_cli", "caption", photos, "-m", folder, "--dtype", given.dtype, *given.mmt)
            )
            same = sum(a == b for a, b in zip(expected, found, strict=True))
            ratios.append(theirs / ours)
            print(f"transformers {theirs:.1f} s, mmt {ours:.1f} s: {ratios[-1]:.2f} x, {same} of {len(found)} alike")
        print(f"{len(members)} photos, {given.dtype}: {statistics.median(ratios):.2f} x")


if __name__ == "__main__":
    main()
