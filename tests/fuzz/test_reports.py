"""Reports from runs whose files hold anything: pages are written, and no text becomes markup."""

from __future__ import annotations

import functools
import html.parser
import json
import pathlib
import random
import shutil
from typing import Any

import pytest

from har_jax.data import builder
from har_jax.reports import paper
from har_jax.reports.page import write_report
from har_jax.reports.tables import comparison_table
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt
from tests.fuzz.test_datasets import example

EVIL = ["<script>", '"><img src=x onerror=alert(1)>', "</style><script>", "&lt;b&gt;", "' onload='"]
SCORES = {
    "CIDEr": 1.1,
    "Bleu_4": 0.3,
    "n_images": 5,
    "signature": "s",
    "skipped": {"SPICE": "no Java"},
    "health": {"mean_length": 9.1, "bad_end_rate": 0.1},
    "bias": {"neutral_rate": 0.5},
    "warnings": ["beware"],
    "source": {"data": "DATA", "method": "greedy", "step": 40},
    "control": {"CIDEr_shuffled": 0.1, "ratio": 0.2},
}
ROWS = [
    {
        "image_id": i,
        "caption": "a red ball",
        "references": ["a ball"],
        "CIDEr": 1.0,
        "filename": "f",
    }
    for i in range(5)
]
RUN = {
    "stage": "scst",
    "parent": {"run": "PARENT", "step": 40},
    "reward_signature": "c",
    "base": {"clip": {"path": "m", "fingerprint": "sha256:01"}},
    "parameters": {"total": 10, "trained": 3},
    "versions": {"jax": "1"},
    "devices": "cpu",
    "created": "now",
}
CONFIG = {
    "stage": "scst",
    "steps": 40,
    "batch_size": 3,
    "seed": 0,
    "data": {"dir": "DATA", "val_split": "val"},
    "optim": {"lr": 1e-3},
}
LINES = [
    {"step": 1, "train/loss": 3.0, "train/reward": 0.1, "odd": 1},
    {"step": 2, "train/loss": 2.0, "val/CIDEr": 0.5},
    {"step": 3, "event": {"guard": "length", "text": "long", "action": "rollback"}},
    {"step": 3, "event": {"rollback": True, "to": 2, "lr_scale": 0.5}},
]
SAMPLES = [
    {"step": s, "split": "val", "image_id": i, "caption": "a ball", "references": ["b"]}
    for i in range(2)
    for s in (1, 2)
]


class Markup(html.parser.HTMLParser):
    """Fails where a text has become markup."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "link"), tag
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name != "src" or (value or "").startswith("data:image/"), value


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "data"
    examples = [("test", example(i)) for i in range(5)]
    builder.write(directory, examples, name="d", splits=["test"], description="", settings={})
    return directory


def some_evil(rng: random.Random, value: Any) -> Any:
    """The value with some of its texts, and names, replaced by markup."""
    if isinstance(value, dict):
        named = {key if rng.random() < 0.95 else rng.choice(EVIL): v for key, v in value.items()}
        return {key: some_evil(rng, item) for key, item in named.items()}
    if isinstance(value, list):
        return [some_evil(rng, item) for item in value]
    return rng.choice(EVIL) if rng.random() < 0.2 else value


def written(rng: random.Random, path: pathlib.Path, value: Any) -> None:
    lines = path.suffix == ".jsonl"
    what = rng.random()
    if what < 0.3:
        value = some_evil(rng, value)
    elif what < 0.6:
        value = hostile.damaged_json(rng, value)
    elif what < 0.7:
        path.write_bytes(hostile.json_bytes(rng, value))
        return
    elif what < 0.73:
        path.mkdir()
        return
    rows = value if lines and isinstance(value, list) else [value]
    text = "\n".join(json.dumps(row) for row in rows)
    path.write_bytes(text.encode(errors="surrogatepass"))


def draw(data: pathlib.Path, rng: random.Random, folder: pathlib.Path) -> Case:
    whole = json.dumps([SCORES, RUN, CONFIG])
    names = str(data) if rng.random() < 0.8 else rng.choice(["DATA", hostile.text(rng)])
    parent = str(folder / "mle")
    for stage in ("mle", "scst"):
        run = folder / stage
        (run / "eval" / "test").mkdir(parents=True)
        quoted = [json.dumps(text)[1:-1] for text in (names, parent)]
        scores, info, config = json.loads(
            whole.replace("DATA", quoted[0]).replace("PARENT", quoted[1])
        )
        for path, value in (
            (run / "config.json", config),
            (run / "run.json", info),
            (run / "metrics.jsonl", LINES),
            (run / "samples.jsonl", SAMPLES),
            (run / "eval" / "test" / "scores.json", scores),
            (run / "eval" / "test" / "per_image.json", ROWS),
        ):
            if rng.random() < 0.95:
                written(rng, path, value)
    if rng.random() < 0.1:
        shutil.rmtree(folder / "mle")

    def report() -> None:
        page = write_report(folder / "scst", n_images=3, out=folder / "r.html").read_text()
        markup = Markup()
        markup.feed(page)
        markup.close()
        assert markup.get_starttag_text() is not None

    return Case(report, [folder / "r.html"])


def test_reports(data, tmp_path, record_property):
    attempt("reports", 800, functools.partial(draw, data), tmp_path, record_property)


def tables(rng: random.Random, folder: pathlib.Path) -> Case:
    """Scores of several seeds, as the tables of sweeps and pages of systems take them."""
    columns = {
        rng.choice(["A", *EVIL]): [
            scores if isinstance(scores, dict) else {}
            for scores in (hostile.damaged_json(rng, SCORES) for _ in range(2))
        ]
        for _ in range(2)
    }
    evil = rng.choice(EVIL)
    rows = {1: {"caption": evil, "references": [evil], "filename": evil, "CIDEr": 0.1}}

    def show() -> None:
        comparison_table(columns)
        shown = paper.chosen({evil: rows}, None)
        assert shown[0].captions == [(evil, evil, 0.1)]

    return Case(show)


def test_tables(tmp_path, record_property):
    attempt("tables of scores", 300, tables, tmp_path, record_property)
