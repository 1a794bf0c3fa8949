"""Makes terminal.svg of real commands and what they print; run it from the top of the repository."""

import io
import os
import shlex
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMANDS = (
    'mmt caption tests/data/dog.jpg --prompt "A"',
    "mmt caption tests/data --quiet",
    "mmt inspect mini --depth 1",
)
WIDTH = 92

console = Console(record=True, width=WIDTH, file=io.StringIO())
for command in COMMANDS:
    console.print(Text(f"$ {command}", style="bold"))
    shell = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True, env=shell)
    console.print(Text.from_ansi(done.stdout.rstrip("\n")))
    console.print()
console.save_svg(str(Path(__file__).with_name("terminal.svg")), title="mmt")
