"""The README's figures of loading: seconds and memory, ours and transformers' in turn, a process each.

    python .assets/loading.py                       # GIT-base and ViT-GPT2 with random weights, five rounds

The models are written into a temporary folder (1.7 GB) and lie in the system's file cache when they are read.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5

MAKE = """
import sys, torch, transformers as T
torch.manual_seed(0)
if sys.argv[1] == "git-base":
    model = T.GitForCausalLM(T.GitConfig())
else:
    parts = T.ViTConfig(), T.GPT2Config(add_cross_attention=True, is_decoder=True)
    model = T.VisionEncoderDecoderModel(T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts))
model.save_pretrained(sys.argv[2])
"""
READ = """
import resource, sys, time
import torch
if sys.argv[1] == "transformers":
    import transformers
    kinds = transformers.GitForCausalLM, transformers.VisionEncoderDecoderModel
    def load(folder): return kinds["vit" in folder].from_pretrained(folder, dtype=torch.float32)
else:
    from mmt_cli.checkpoint.load import load_model
    from mmt_cli.checkpoint.reference import open_reference
    import mmt_cli.captioning.captioner
    def load(folder): return load_model(open_reference(folder), device=torch.device("cpu"), dtype=torch.float32)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
model = load(sys.argv[2])
seconds = time.perf_counter() - start
parameters = {id(p): p for p in model.parameters()}.values()
for parameter in parameters:
    parameter.sum()  # reads what is only mapped so far
print(seconds, (peak() - before) / sum(p.nbytes for p in parameters))
"""


def run(program: str, *arguments: str) -> str:
    """Return what a Python program prints."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Print a table."""
    print("| model | library | seconds (range) | growth over the model's bytes |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("git-base", "vit-gpt2"):
            folder = str(Path(temporary, name))
            run(MAKE, name, folder)
            found: dict[str, list[list[float]]] = {"transformers": [], "mmt": []}
            for _ in range(ROUNDS):
                for library, results in found.items():
                    results.append([float(value) for value in run(READ, library, folder).split()])
            for library, results in found.items():
                seconds, growth = zip(*results, strict=True)
                middle = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
                print(f"| {name} | {library} | {middle} | {max(growth):.2f} |", flush=True)


if __name__ == "__main__":
    main()
