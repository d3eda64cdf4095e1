"""Predictions and references of other tools, and the command line that scores them."""

from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Iterator
from typing import Any

from har_jax.data.protocols import Images, Written
from har_jax.evaluate import main
from har_jax.evaluation.from_files import evaluate_files
from har_jax.evaluation.kept import KeptWriter
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt, command
from tests.fuzz.test_captions import coco_file, karpathy_file, texts


def predictions(rng: random.Random, references: dict[str, Any]) -> list[dict[str, Any]]:
    """One of each image, the id written in any way."""
    found = []
    for image in references["images"]:
        written = image.get("id", image.get("cocoid", image.get("imgid")))
        if isinstance(written, int) and not isinstance(written, bool) and rng.random() < 0.5:
            written = rng.choice([str(written), float(written) if written < 2**50 else written])
        if image.get("split", "test") == "test":
            found.append({"image_id": written, "caption": texts(rng).replace("\ud800", "")})
    return found


def files(rng: random.Random, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    whole = rng.choice([coco_file, karpathy_file])(rng, rng.choice([0.0, 0.0, 0.1]))
    results = predictions(rng, whole)
    truth, ours = folder / "captions.json", folder / "results.json"
    odd = rng.random()
    if odd < 0.2:
        ours.write_bytes(hostile.json_bytes(rng, results))
    elif odd < 0.4:
        lines = [json.dumps(row) for row in results] + [hostile.text(rng)] * (rng.random() < 0.3)
        ours.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    else:
        ours.write_text(json.dumps(results))
    if rng.random() < 0.2:
        truth.write_bytes(hostile.json_bytes(rng, whole))
    else:
        truth.write_text(json.dumps(whole))
    return ours, truth


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    ours, truth = files(rng, folder)
    against = None
    if rng.random() < 0.1:
        against = folder / "other"
        against.mkdir()
        for name in ("predictions.json", "scores.json", "per_image.json"):
            (against / name).write_bytes(hostile.json_bytes(rng, predictions(rng, coco_file(rng))))
    out = folder / "out"

    def score() -> None:
        found = evaluate_files(
            ours, truth, out, metrics=["CIDEr"], against=None if against is None else str(against)
        )
        rows = json.loads((out / "per_image.json").read_text())
        assert found.scores["n_images"] == len(rows) > 0

    return Case(score, [out])


def test_predictions_and_references(tmp_path, record_property):
    attempt("predictions, references", 3000, draw, tmp_path, record_property)


def draw_kept(rng: random.Random, folder: pathlib.Path) -> Case:
    path, key = folder / "captions.jsonl", {"beams": 5}
    row = {"image_id": 7, "caption": "a dog", "ended": True, "seconds": 0.5}
    lines = [{"key": key}, row, row | {"image_id": 8}]
    if rng.random() < 0.5:
        lines = hostile.damaged_json(rng, lines)
    data = "".join(json.dumps(line) + "\n" for line in (lines if isinstance(lines, list) else []))
    data = data.encode(errors="surrogatepass")
    path.write_bytes(data if rng.random() < 0.3 else hostile.damaged(rng, data))
    images = Pictures([7, 8, 9])
    return Case(lambda: KeptWriter(NoWriter(), path, key).check(images))


class Pictures:
    def __init__(self, ids: list[int]):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> bytes:
        return b"%d" % i


class NoWriter:
    def write(self, images: Images) -> Iterator[Written]:
        yield from ()


def test_kept_captions(tmp_path, record_property):
    attempt("kept captions", 500, draw_kept, tmp_path, record_property)


def draw_arguments(rng: random.Random, folder: pathlib.Path) -> Case:
    ours, truth = files(rng, folder)
    out = folder / "out"
    usual = {
        "predictions": ours,
        "references": truth,
        "out": out,
        "split": rng.choice(["test", "test", "train"]),
        "metrics": "CIDEr",
    }
    odd = {
        "limit": ["1", "2", "-1"],
        "seed": ["3", str(2**70)],
        "control": ["shuffle"],
        "against": [str(ours), str(truth), str(folder)],
        "images": [str(folder), str(ours)],
        "clip": [str(folder), "nowhere"],
        "metrics": ["CIDEr,Bleu", "ROUGE_L", "CIDER", ","],
        "split": ["train", "tset"],
        "checkpoint": [str(folder), "nowhere"],
        "batch-size": ["2", "0"],
        "step": ["best", "7"],
        "out": [str(folder / "a" / "b"), str(ours), str(folder / ("o" * 300)), f"{folder}/\0"],
        "predictions": [str(folder), f"{folder}/{'x' * 300}", f"{folder}/\0", "/proc/self/mem"],
        "references": [str(folder), str(ours), "/dev/null"],
    }
    settings = {key: str(value) for key, value in usual.items()}
    for key in rng.sample(list(odd), rng.choice([0, 1, 1, 2, 3])):
        text = rng.random() < 0.3 and key not in ("out", "checkpoint", "clip", "images")
        settings[key] = hostile.text(rng) if text else rng.choice(odd[key])
        if rng.random() < 0.05:
            del settings[key]
    argv = [f"--{key}={value}" for key, value in settings.items()]
    rng.shuffle(argv)
    if rng.random() < 0.1:
        argv.append(hostile.text(rng))
    return Case(lambda: command(main, argv), [out, folder / "a" / "b"])


def test_the_command_line(tmp_path, record_property, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt("evaluate's command line", 500, draw_arguments, tmp_path, record_property)
