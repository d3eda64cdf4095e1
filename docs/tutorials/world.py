"""The miniature world of the tutorials: a dataset of drawn scenes, small models, and a captioner.

`enter()` makes it once, in a directory that the tutorials share, and goes there; so each of them
can be executed alone. Its commands are those of the first tutorial.
"""

import os
import pathlib
import subprocess
import sys

COMMANDS = {
    "data/scenes/dataset.json": "prepare scenes --out=data/scenes --train=600 --val=64 --test=64",
    "models/scenes/gpt2/config.json": (
        "prepare foundation --data=data/scenes --out=models/scenes --steps=40 --scenes=400"
    ),
    "runs/mle/report.html": (
        "train --config=mle:tiny --workdir=runs/mle --config.steps=60 --config.eval.images=32"
    ),
    "runs/scst/report.html": (
        "train --config=scst:tiny --workdir=runs/scst --config.init_from=runs/mle"
        " --config.steps=20 --config.eval.images=32"
    ),
}
"""What a command leaves at its end, and the command."""


def enter(upto: str = "runs/scst") -> None:
    """Goes to the shared directory, and makes there what is missing, up to a part of it."""
    root = pathlib.Path(os.environ["HAR_TUTORIALS"]).resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    for left, command in COMMANDS.items():
        if not (root / left).exists():
            module, *arguments = command.split()
            run = [sys.executable, "-m", f"har_jax.{module}", *arguments]
            done = subprocess.run(run, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{command}\n{done.stderr[-3000:]}")
        if left.startswith(upto):
            return


if __name__ == "__main__":
    enter()
