"""Commands that only write what a sweep reads, so that a whole sweep takes a second.

As a program it runs `har_jax.reproduce` with them: `python -m tests.experiments.worlds ARGUMENTS`.
Each command is noted in `log.txt` of the working directory when it begins and when it has ended.
Where the environment names one in SLOW ("scst-0"), that command takes a minute.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import sys
import time

import numpy as np
import safetensors.numpy
from PIL import Image

from har_jax import command_line, reproduce
from har_jax.data.builder import write
from har_jax.data.dataset import Example
from har_jax.data.features.cache import MANIFEST
from har_jax.evaluation.score import evaluate_captions, write_evaluation, write_predictions

COLOURS = ("red", "blue", "green", "grey", "black", "white")
REFERENCES = {
    100 + i: [f"a {colour} circle on a table", f"one {colour} ball here"]
    for i, colour in enumerate(COLOURS)
}
CAPTIONS = {
    "mle": "a {colour} circle",
    "scst": "a {colour} circle on a table",
    "zerocap": "image of a {colour} thing",
}


def run(name: str, argv: list[str]) -> int:
    """In place of `command_line.run`."""
    flags = dict(word.split("=", 1) for word in argv if word.startswith("--"))
    out = pathlib.Path(flags.get("--workdir") or flags["--out"])
    note(f"begun {name} {out}")
    if os.environ.get("SLOW") == out.name:
        out.mkdir(parents=True, exist_ok=True)
        (out / "partial").write_text("half of it")
        time.sleep(60)
    {"prepare": prepare, "train": train, "evaluate": evaluate, "zerocap": zerocap}[name](
        out, argv, flags
    )
    note(f"ended {name} {out}")
    return 0


def note(line: str) -> None:
    with pathlib.Path("log.txt").open("a") as file:
        print(line, file=file, flush=True)


def prepare(out, argv, flags):
    if argv[0] == "scenes":
        examples = [
            ("test", Example(i, f"{i}.png", png(i), list(texts))) for i, texts in REFERENCES.items()
        ]
        write(out, examples, name="toy", splits=["test"], description="", settings={})
        return
    if argv[0] == "features":
        out.mkdir(parents=True)
        (out / MANIFEST).write_text("{}")
        return
    for seed, model in enumerate(("clip-l", "clip-b", "mistral", "gpt2")):
        (out / model).mkdir(parents=True, exist_ok=True)
        (out / model / "config.json").write_text("{}")
        tensors = {"w": np.full(3, seed, np.float32)}
        safetensors.numpy.save_file(tensors, out / model / "model.safetensors")


def train(out, argv, flags):
    steps = int(flags.get("--config.steps", 20))
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    rows = [{"step": s, "time": s, "train/steps_per_second": 2.0} for s in (10, steps)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = flags["--config"].partition(":")[0]
    (out / "run.json").write_text(json.dumps({"stage": stage}))
    (out / "seed").write_text(flags["--config.seed"])


def evaluate(out, argv, flags):
    run = pathlib.Path(flags["--checkpoint"])
    stage = json.loads((run / "run.json").read_text())["stage"]
    score(out, stage, int((run / "seed").read_text()), flags)


def zerocap(out, argv, flags):
    score(out, "zerocap", int(flags.get("--seed", 0)), flags)


def score(out, kind, seed, flags):
    """Seed n has n + 1 images wrong."""
    limit = int(flags.get("--limit", 0)) or None
    ids = list(REFERENCES)[:limit]
    colours = {i: COLOURS[k] for k, i in enumerate(ids)}
    colours |= dict.fromkeys(ids[: seed + 1], "pink")
    captions = {i: CAPTIONS[kind].format(colour=colours[i]) for i in ids}
    found = evaluate_captions(
        {i: REFERENCES[i] for i in ids},
        captions,
        filenames={i: f"{i}.png" for i in ids},
        metrics=("CIDEr", "Bleu", "ROUGE_L"),
        source={"stage": kind, "split": "test"},
    )
    found.scores["captions_per_second"] = 12.5
    for i, row in enumerate(found.per_image):
        row["CLIPScore"] = 0.5 + i / 100 + (kind == "scst") / 10
    found.scores["CLIPScore"] = float(np.mean([row["CLIPScore"] for row in found.per_image]))
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out, captions)
    write_evaluation(out, found)


def png(i):
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    command_line.run = run
    raise SystemExit(reproduce.main(sys.argv[1:]))
