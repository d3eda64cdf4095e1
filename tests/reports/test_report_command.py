"""`har_jax.report` and `prepare view`, and what `train` says at its end."""

import json
import logging
import pathlib
import shlex
import shutil

import pytest

from har_jax import config_file, prepare, report, train
from har_jax.errors import UserError
from har_jax.presets.scst import get_config
from har_jax.reports import ending
from har_jax.reports.charts import compared_charts
from har_jax.reports.comparison import differing, write_comparison
from har_jax.reports.run_view import read_view
from har_jax.reports.tables import interval_of, scores_table, step_of
from tests.conftest import ROOT
from tests.reports import hostile
from tests.reports.pages import Page


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset and two runs with plain texts."""
    root = tmp_path_factory.mktemp("world")
    data = hostile.dataset(root / "data", "plain")
    for k in (1, 2):
        hostile.run(root / f"run-{k}", "plain", data=data, value=float(k))
    return root


def refused(capsys, main, *argv):
    assert main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_the_page_of_a_run(world, capsys, tmp_path):
    assert report.main([str(world / "run-1")]) == 0
    page = world / "run-1" / "report.html"
    assert capsys.readouterr().out == f"report: {page}\n"
    text = " ".join(Page(page.read_text()).text)
    # By hand: CIDEr is 1 - step / 100 at steps 20 and 40; the interval is 1 ± 0.1.
    assert "step 20, by validation: CIDEr 0.800, BLEU-4 0.300, loss 2.000" in text
    assert "0.900 – 1.100" in text and "its 95 % interval" in text and "step plain" in text
    for title in ("Learning rate", "Shares of time", "Validation loss"):
        assert title in text
    assert report.main([str(world / "run-1"), f"--out={tmp_path / 'a' / 'b.html'}"]) == 0
    assert (tmp_path / "a" / "b.html").read_text() == page.read_text()


def test_a_run_at_work_that_is_not_evaluated(world, tmp_path):
    run = shutil.copytree(world / "run-1", tmp_path / "run")
    shutil.rmtree(run / "eval")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 7]
    (run / "metrics.jsonl").write_text("\n".join(kept) + '\n{"step": 8, "tr')
    assert report.main([str(run)]) == 0
    text = " ".join(Page((run / "report.html").read_text()).text)
    assert "7 of 40 steps" in text and "Not evaluated yet" in text and "by validation" not in text


def test_what_is_no_run(world, capsys, tmp_path):
    assert "there is no run directory" in refused(capsys, report.main, tmp_path / "absent")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # as Hugging Face's have it
    told = refused(capsys, report.main, tmp_path / "model")
    assert "is no run directory (it has none of run.json, metrics.jsonl" in told
    run = world / "run-1"
    told = refused(capsys, report.main, run, "--against", world / "data")
    assert "is no run directory" in told
    assert "given 2 times" in refused(
        capsys, report.main, run, "--against", world / "data" / ".." / "run-1"
    )
    assert "is a directory" in refused(capsys, report.main, run, f"--out={tmp_path}")
    many = [shutil.copytree(run, tmp_path / f"run-{i}") for i in range(8)]
    assert "up to 8 runs, got 9" in refused(capsys, report.main, run, "--against", *many)
    assert not list(tmp_path.glob("**/comparison.html"))


def test_a_parent_that_is_no_run(world, tmp_path):
    """A run may begin from a directory of anybody's."""
    run = shutil.copytree(world / "run-1", tmp_path / "run")
    (tmp_path / "llava").mkdir()
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"parent": {"run": str(tmp_path / "llava")}}))
    assert report.main([str(run)]) == 0


def test_several_runs(world, capsys):
    one, two = world / "run-1", world / "run-2"
    assert report.main([str(one), "--against", str(two)]) == 0
    page = Page((one / "comparison.html").read_text())
    assert capsys.readouterr().out == f"report: {one / 'comparison.html'}\n"
    text = " ".join(page.text)
    for told in ("run-1 beside run-2", "1.900 – 2.100", "-50.0 %", "Settings that differ"):
        assert told in text
    # Settings: exactly those in which hostile.run makes the two differ.
    runs = {"run-2": read_view(two), "run-1": read_view(one)}
    found = dict(differing(runs))
    assert found == {
        "plain.plain": ["2.0", "1.0"],
        "run.json.reward_signature": ["plain2.0", "plain1.0"],
    }
    # Each series of both is a chart with a line for each, in each run's colour.
    known, others = compared_charts({name: run.series for name, run in runs.items()})
    assert len(known) + len(others) == len(runs["run-1"].series)
    loss = next(panel for panel in known if panel.title == "Training loss")
    assert [(line.label, line.colour) for line in loss.plot.lines] == [("run-2", 0), ("run-1", 1)]
    assert next(panel for panel in others if panel.title == "plain")


def test_runs_of_one_name_are_told_apart(world, tmp_path):
    other = shutil.copytree(world / "run-1", tmp_path / "run-1")
    page = Page(write_comparison(world / "run-1", [other], out=tmp_path / "c.html").read_text())
    assert str(other) in page.text and str(world / "run-1") in page.text


def test_runs_that_cannot_be_compared_say_so(world, tmp_path):
    other = shutil.copytree(world / "run-2", tmp_path / "other")
    scores = other / "eval" / "val" / "scores.json"
    changed = json.loads(scores.read_text()) | {"n_images": 2, "signature": "others"}
    scores.write_text(json.dumps(changed))
    third = shutil.copytree(world / "run-2", tmp_path / "third")
    shutil.rmtree(third / "eval")
    page = write_comparison(world / "run-1", [other, third], out=tmp_path / "c.html")
    text = " ".join(Page(page.read_text()).text)
    assert "third was not evaluated on val" in text and "different numbers of images" in text
    assert "scored by different metrics" in text


def test_a_page_of_a_dataset(world, capsys, tmp_path):
    data, out = world / "data", tmp_path / "page.html"
    assert prepare.main(["view", str(data), f"--out={out}", "--limit=2"]) == 0
    assert capsys.readouterr().out == f"page: {out}\n"
    page = Page(out.read_text())
    text = " ".join(page.text)
    for told in ("shortest captions", "3 plain", "Length of captions in val", "directory"):
        assert told in text
    cards = page.values("article", "class")
    members = [sum(f"g{k}" in card.split() for card in cards) for k in range(4)]
    assert members == [2, 2, 2, 2]  # two splits; shortest, longest
    # By hand, of images 0 to 4 with one, two, three, one and two captions: "a dog plain", "b".
    row = page.text[page.text.index("train") :][:8]
    assert row == ["train", "5", "9", "1 – 3", "4", "2.1 (3)", "3", "–"]
    assert prepare.main(["view", str(data), "--split=val", f"--out={out}"]) == 0
    assert len(Page(out.read_text()).values("article", "class")) == 3
    told = refused(capsys, prepare.main, "view", data, "--split=vall")
    assert "did you mean 'val'?" in told
    assert "is not a dataset" in refused(capsys, prepare.main, "view", world / "run-1")
    assert prepare.main(["view", str(data)]) == 0 and (data / "view.html").is_file()


@pytest.mark.parametrize("text", [hostile.EVIL, '" onload="alert(1)', "</style><script>x</script>"])
def test_no_text_becomes_markup(world, tmp_path, text):
    """The same elements and attributes as with plain texts, and the text is told."""
    name = text.replace("/", "\\")
    data = hostile.dataset(tmp_path / "data", text)
    runs = [hostile.run(tmp_path / f"{name}{k}", text, data=data, value=k) for k in (1, 2)]
    plain = [world / "run-1", world / "run-2"]

    def compared(one, other):
        return Page(write_comparison(one, [other], out=tmp_path / "c.html").read_text())

    def shown(of):
        out = tmp_path / "d.html"
        assert prepare.main(["view", str(of), f"--out={out}"]) == 0
        return Page(out.read_text())

    # Bars are as many as there are lengths, and words that no reference has are underlined.
    drawn = ("u", "line", "text", "rect", "title")

    def structure(page):
        tags = [tag for tag in page.tags if tag not in drawn]
        return tags, [(t, k) for t, k, _ in page.attributes if t not in drawn]

    for page, other in (
        (compared(*runs), compared(*plain)),
        (shown(data), shown(world / "data")),
    ):
        assert structure(page) == structure(other)
        assert "".join(page.text).count(text) >= 10


def test_the_step_stands_beside_the_scores():
    scores = {"CIDEr": 1.0, "n_images": 5, "source": {"stage": "mle", "step": 350, "split": "test"}}
    assert "mle, step 350, test: 5 images" in scores_table(scores)
    assert step_of({"source": "x"}) == "" and step_of({}) == ""
    for odd in (
        {},
        {"intervals": 3},
        {"intervals": {"CIDEr": [1]}},
        {"intervals": {"CIDEr": "ab"}},
    ):
        assert interval_of({"confidence": odd}, "CIDEr") is None


# ------------------------------------------------------------------------- what `train` ends with


def test_the_last_lines_of_a_run(world, caplog):
    with caplog.at_level(logging.INFO):
        ending.end_of_run(str(world / "run-1"))
    told = [record.getMessage().split(None, 1) for record in caplog.records]
    assert dict(told) == {
        "best": "step 20, by validation: CIDEr 0.800, BLEU-4 0.300, loss 2.000",
        "report": str(world / "run-1" / "report.html"),
        # its dataset has no test split
        "next": shlex.join(
            [
                *("python", "-m", "har_jax.evaluate", f"--checkpoint={world / 'run-1'}"),
                *("--split=val", f"--out={world / 'run-1' / 'eval' / 'val'}"),
            ]
        ),
    }


def test_after_mle_comes_scst(world, tmp_path, monkeypatch):
    """The command as it is told is one that `train` takes, with the same data and models."""
    monkeypatch.chdir(ROOT)
    run = shutil.copytree(world / "run-1", tmp_path / "a run" / "mle-0")
    own = {"data.dir": str(world / "data"), "model.lm": "it's", "optim.lr": "1e-5", "steps": "90"}
    settings = config_file.load("mle:tiny", own).to_dict()
    (run / "config.json").write_text(json.dumps(settings))
    # Of a run that does not say what it was begun with, what differs from SCST's presets is told.
    for spec in ("configs/mle.py:tiny", "mle:tiny", ""):
        (run / "run.json").write_text(json.dumps({"stage": "mle", "config": spec}))
        words = shlex.split(ending.next_command(read_view(run)))
        assert words[:3] == ["python", "-m", "har_jax.train"]
        arguments, overrides = train.parse(words[3:])
        assert arguments.workdir == str(tmp_path / "a run" / "scst-0")
        config = config_file.load(arguments.config, overrides)
        assert config.stage == "scst" and config.init_from == str(run)
        assert (config.data.dir, config.model.lm) == (own["data.dir"], "it's")
        assert config.model == config_file.Config.from_dict(settings).model
        if spec:
            assert len(words) == 8, "no more than what differs"
            preset = get_config("tiny")
            assert (config.optim.lr, config.steps) == (preset.optim.lr, preset.steps)


def test_a_report_that_cannot_be_written_is_one_line(world, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ending, "write_report", full)
    with caplog.at_level(logging.INFO):
        ending.end_of_run(str(world / "run-1"))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "No space left" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_file_where_a_directory_is_named():
    with pytest.raises(UserError, match="no run directory"):
        read_view(pathlib.Path(__file__))
