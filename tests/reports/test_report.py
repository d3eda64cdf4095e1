"""The report: one valid file that needs no other, from whatever a run directory holds."""

import contextlib
import json
import pathlib
import re
import shutil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from har_jax.data.builder import write
from har_jax.data.dataset import Example
from har_jax.errors import UserError
from har_jax.evaluation.score import evaluate_captions, write_evaluation, write_predictions
from har_jax.files import write_json
from har_jax.reports import page as pages
from har_jax.reports import paper
from har_jax.reports.page import render, templates, write_report
from har_jax.reports.run_view import (
    DatasetImages,
    RunView,
    Sample,
    ScoredSplit,
    examples_of,
    read_view,
)
from har_jax.training.loggers import JsonLines
from tests.reports.pages import Page, png

REFERENCES = {
    i: [f"a {colour} {shape}", f"one {colour} {shape} <here> & there"]
    for i, (colour, shape) in enumerate(
        (c, s) for c in ("red", "blue", "green", "grey") for s in ("circle", "square", "star")
    )
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset and two runs, MLE and the SCST that came from it."""
    root = tmp_path_factory.mktemp("world")
    rows = [("test", Example(i, f"{i}.png", png(i), list(r))) for i, r in REFERENCES.items()]
    write(root / "data", rows, name="toy", splits=["test"], description="", settings={})
    for stage in ("mle", "scst"):
        run = root / stage
        config = {"stage": stage, "steps": 40, "data": {"dir": str(root / "data")}}
        parent = {"run": str(root / "mle"), "step": 40} if stage == "scst" else None
        write_json(run / "config.json", config)
        write_json(
            run / "run.json",
            {
                "stage": stage,
                "parent": parent,
                "reward_signature": "CIDEr-D[eos]<&>" if parent else None,
                "base": {"clip": {"path": "m/clip", "fingerprint": "sha256:0123456789abcdef"}},
            },
        )
        with contextlib.closing(JsonLines(run)) as writer:
            for step in range(1, 41):
                nan = float("nan")
                writer.write(step, {"train/loss": 1 / step, "train/reward": nan, "train/odd": 1})
            writer.write(40, {"val/CIDEr": 1.5 if parent else 1.0})
            writer.samples(40, "test", [{"image_id": 1, "caption": "x", "references": ["y"]}])
        good = REFERENCES if parent else {i: ["a red circle"] for i in REFERENCES}
        texts = {i: good[i][0] for i in REFERENCES}
        source = {"data": str(root / "data"), "method": "greedy", "step": 40}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shutil.which", lambda name: None)  # no Java: METEOR would take seconds
            evaluation = evaluate_captions(
                REFERENCES, texts, control="shuffle", source=source, warnings=["beware <b>"]
            )
        write_predictions(run / "eval" / "test", texts)
        write_evaluation(run / "eval" / "test", evaluation)
    return root


def test_the_whole_report(world, tmp_path):
    out = tmp_path / "r.html"
    assert write_report(world / "scst", out=out, n_images=6) == out
    text = out.read_text()
    page = Page(text)
    seen = " ".join(page.text)
    for expected in ("MLE", "SCST", "CIDEr", "BLEU-4", "CIDEr-D[eos]<&>", "beware <b>", "shuffled"):
        assert expected in seen, expected
    assert {"biggest gains", "biggest losses", "random"} <= set(page.text)
    cards = page.values("article", "class")
    for group in ("gain", "loss", "random"):
        assert sum(group in v.split() for v in cards) == 6
    assert page.tags.count("svg") >= 3
    assert "<here>" in seen, "references are escaped, not lost"


def test_what_guards_did_is_told_by_step(world, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(world / "scst", copy)
    with contextlib.closing(JsonLines(copy)) as writer:
        trip = {"guard": "length", "action": "rollback", "text": "31 tokens <above>", "value": 31.0}
        writer.event(30, trip)
        writer.event(30, {"rollback": True, "step": 30, "to": 20, "lr_scale": 0.5})
    page = Page(write_report(copy).read_text())
    notices = "\n".join(page.text)
    assert "step 30: guard length: 31 tokens <above> (rollback)" in notices
    assert "step 30: back to the checkpoint of step 20, learning rate × 0.5" in notices
    assert "value" not in read_view(copy).series


def test_it_is_self_contained(world, tmp_path):
    text = write_report(world / "scst", out=tmp_path / "r.html").read_text()
    page = Page(text)
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    sources = page.values("img", "src")
    assert len(sources) >= len(REFERENCES)
    assert all(source.startswith("data:image/") for source in sources)
    assert all(page.values("img", "alt"))


def filled(text, name):
    """A run in which every text that a file may hold is `text`."""
    caption = {"caption": text, "references": [text, text]}
    scores = {
        "CIDEr": 1.0,
        "n_images": 1,
        "warnings": [text],
        "skipped": {text: text},
        "signature": text,
        "source": {"data": text, "method": text, "step": text},
        "control": {"CIDEr_shuffled": 0.5, "ratio": 0.5},
    }
    config = {"stage": text, "steps": 9, "batch_size": text, "seed": text, text: {text: text}}
    config["data"] = {"dir": text, "val_split": text}
    info = {
        "stage": text,
        "parent": {"run": text, "step": text},
        "reward_signature": text,
        "base": {text: {"path": text, "fingerprint": text}},
        "versions": {text: text},
        "devices": text,
        "created": text,
    }
    return RunView(
        pathlib.Path(text + name),
        config,
        info,
        {key: [(1, 1.0), (2, 3.0)] for key in (text, "val/CIDEr", "train/reward")},
        [Sample(1, image_id=text, split=text, **caption)],
        [
            {"step": text, "guard": text, "text": text, "action": text},
            {"step": text, "rollback": True, "to": text, "lr_scale": text},
        ],
        {text: ScoredSplit(scores, {7: {"CIDEr": 1.0, "filename": text, **caption}})},
    )


def page_of(text, uri):
    class Images(DatasetImages):
        reason = text

        def __init__(self, directory, split):
            pass

        def references(self, ids):
            return {}

        def data_uri(self, image_id):
            return uri

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "DatasetImages", Images)
        return Page(render(filled(text, "a"), filled(text, "b"), 3))


@given(
    st.lists(st.sampled_from([*"<>\"'&;/=# x{}%!-", "script", "u", "{{ 1 }}", "]]>"]), max_size=12),
    st.sampled_from([None, "data:image/png;base64,AA=="]),
)
@example(["<script>alert(1)</script>"], None)
@example(['" onload="alert(1)'], "data:image/png;base64,AA==")
def test_no_text_of_a_run_becomes_markup(pieces, uri):
    """Whatever the files hold, the page has the same elements and attributes, and says the text."""
    text = "x" + "".join(pieces)

    def structure(page):  # words that no reference has are underlined, however many they are
        return [tag for tag in page.tags if tag != "u"], [(t, k) for t, k, _ in page.attributes]

    page = page_of(text, uri)
    assert structure(page) == structure(page_of("plain", uri))
    assert "".join(page.text).count(text) >= 30
    assert uri is None or text in page.values("img", "alt")


def test_escaping_is_the_default_of_all_templates():
    """By construction: nothing is marked as safe, and no page is built outside of a template."""
    assert templates().autoescape is True
    room = pathlib.Path(pages.__file__).parent
    for template in room.glob("templates/*.j2"):
        text = re.sub(r"\{#.*?#\}", "", template.read_text(), flags=re.S)
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", text), template.name
        page = template.name.endswith(".html.j2")  # the model card has blocks of Python
        assert not (page and re.search(r"=\{\{", text)), f"{template.name}: without quotes"
    for file in pathlib.Path(room.parent).rglob("*.py"):
        assert not re.search(r"\bMarkup\b|autoescape=False", file.read_text()), file.name
        if file.parent == room:
            assert not re.search(r"</?(div|span|p|td|li|img|svg|html)\b", file.read_text()), (
                file.name
            )


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onload="alert(1)'])
def test_ids_of_images_are_texts_like_others(tmp_path, text):
    """They come from files, and are no numbers where somebody means harm."""
    run = tmp_path / "run"
    (run / "eval" / "test").mkdir(parents=True)
    row = {"image_id": text, "step": 1, "split": text, "caption": "a dog", "references": [text]}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    write_json(run / "eval" / "test" / "per_image.json", [row, row | {"image_id": 3}])
    page = Page(write_report(run).read_text())
    assert "script" not in page.tags and not page.values("img", "onload")
    assert f"image {text}" in page.text
    shown = [paper.Shown(text, "", uri, [], [("A", "a dog", None)]) for uri in (None, "data:,")]
    empty = dict.fromkeys(("systems", "rows", "warnings", "notes", "charts", "tested", "tests"), ())
    template = templates().get_template("paper.html.j2")
    drawn = Page(template.render(title="", about="", level="", origin=(), shown=shown, **empty))
    assert "script" not in drawn.tags and not drawn.values("img", "onload")
    assert f"image {text}" in drawn.text and text in drawn.text


def test_a_report_keeps_what_it_can(world, tmp_path):
    """Each was a traceback: a part of another kind is left out, and the rest is shown."""
    copy = shutil.copytree(world / "scst", tmp_path / "copy")
    write_json(copy / "config.json", {"steps": "many", "data": {"dir": 5}, "seed": [1]})
    write_json(
        copy / "run.json",
        {
            "stage": "scst",
            "parent": {"run": 7},
            "base": {"clip": {"fingerprint": 3}},
            "parameters": 1,
        },
    )
    scores = json.loads((copy / "eval" / "test" / "scores.json").read_text())
    scores |= {"warnings": 3, "skipped": [], "n_images": "x", "source": "y", "control": 0}
    write_json(copy / "eval" / "test" / "scores.json", scores)
    with (copy / "samples.jsonl").open("a") as file:
        whole = {"step": 41, "split": "test", "image_id": 1, "caption": "x"}
        for odd in ({"step": 10**400}, {"caption": 3}, {"caption": "\ud800"}, {"image_id": []}):
            file.write(json.dumps(whole | odd) + "\n")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "train/loss": NaN, "train/reward": 1e999}\n')
        file.write('{"step": 41, "train/loss": ' + "9" * 400 + "}\n" + "[" * 100_000 + "\n")
    page = Page(write_report(copy).read_text())
    assert "CIDEr" in page.text and page.tags.count("svg") >= 3
    scores["CIDEr"] = int("9" * 400)
    write_json(copy / "eval" / "test" / "scores.json", scores)
    Page(write_report(copy).read_text())


def test_a_run_without_parent(world, tmp_path):
    page = Page(write_report(world / "mle", out=tmp_path / "r.html").read_text())
    assert {"best", "worst"} <= set(page.text) and "change" not in page.text


def test_the_default_place_is_the_run_directory(world):
    assert write_report(world / "mle") == world / "mle" / "report.html"


@pytest.mark.parametrize(
    "missing",
    [
        ["data"],
        ["scst/config.json"],
        ["scst/run.json"],
        ["scst/metrics.jsonl", "scst/samples.jsonl"],
        ["scst/eval"],
        ["mle/eval"],
        ["mle"],
        ["scst/eval/test/per_image.json", "mle/eval/test/per_image.json"],
        ["scst/eval/test/scores.json"],
        ["scst/eval/test/per_image.json", "data"],
        ["scst/" + name for name in ("config.json", "run.json", "metrics.jsonl", "eval")],
    ],
    ids=lambda names: ",".join(names),
)
def test_whatever_is_missing(world, tmp_path, missing):
    copy = tmp_path / "copy"
    shutil.copytree(world, copy)
    for path in [*copy.rglob("*.json")]:
        path.write_text(path.read_text().replace(str(world), str(copy)))
    for name in missing:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Page(write_report(copy / "scst").read_text())


def test_broken_files_do_not_stop_a_report(world, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(world / "scst", copy)
    (copy / "run.json").write_text("{")
    (copy / "eval" / "test" / "scores.json").write_text("[]")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "tra')
    Page(write_report(copy).read_text())


def test_no_such_run(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        write_report(tmp_path / "absent")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="no run directory"):
        write_report(tmp_path / "run", compare_with=tmp_path / "absent")


def test_cider_is_computed_where_it_is_missing(world):
    split = read_view(world / "scst").splits["test"]
    bare = [{"image_id": i, "caption": row["caption"]} for i, row in split.rows.items()]
    without = ScoredSplit(split.scores, {row["image_id"]: row for row in bare})
    full = examples_of({"SCST": split}, {})
    again = examples_of({"SCST": without}, REFERENCES)
    assert [e.captions for e in full] == [e.captions for e in again]
