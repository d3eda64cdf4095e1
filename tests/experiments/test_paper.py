"""The paper's table: its figures, what it says of them, and a page that nothing breaks out of."""

import json
import math
import pathlib
import types

import numpy as np
import pytest
import scipy.stats

from har_jax import command_line, reproduce
from har_jax.experiments import comparison, costs, evaluated, paper, systems
from har_jax.experiments.subset import first_images
from har_jax.files import write_json
from har_jax.reports.dots import Estimate, make_dots
from har_jax.reports.paper import Shown, chosen, markdown, page
from tests.experiments import worlds
from tests.reports.pages import Page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>|&"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A paper's table of three seeds, made by commands that only write."""
    place = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(command_line, "run", worlds.run)
        assert reproduce.main(["--table=paper", "--seeds=3", "--out=runs"]) == 0
    return place / "runs"


@pytest.fixture
def table(made):
    return json.loads((made / "paper.json").read_text())


def system(table, name):
    return next(s for s in table["systems"] if s["name"] == name)


def scores_of(made, *names):
    return [json.loads((made / name / "scores.json").read_text()) for name in names]


# ------------------------------------------------------------------------------------ figures


def test_means_and_deviations_are_those_of_the_evaluations(made, table):
    places = [f"scst-{n}/eval/test" for n in range(3)]
    row = system(table, "scst")
    assert row["parts"] == places and not row["deterministic"]
    for key in ("CIDEr", "Bleu_4", "CLIPScore"):
        values = [scores[key] for scores in scores_of(made, *places)]
        assert row["scores"][key]["values"] == pytest.approx(values)
        assert row["scores"][key]["mean"] == pytest.approx(np.mean(values))
        assert row["scores"][key]["std"] == pytest.approx(np.std(values, ddof=1))
    assert "METEOR" not in row["scores"]


def test_zerocap_runs_once_and_the_table_says_so(made, table):
    row = system(table, "zerocap")
    assert row["deterministic"] and row["parts"] == ["zerocap"]
    assert row["scores"]["CIDEr"]["std"] is None
    assert system(table, "zerocap-approx")["parts"] == [f"zerocap-approx-{n}" for n in range(3)]
    line = next(x for x in markdown(table).splitlines() if x.startswith("| ZeroCap |"))
    assert " deterministic |" in line and "±" not in line
    assert "ZeroCap is deterministic and ran once." in markdown(table)


def test_differences_over_seeds_are_scipys(made, table):
    found = {(c["system"], c["other"]): c for c in table["contrasts"]}
    assert set(found) == set(paper.CONTRASTS)
    values = {s["name"]: s["scores"]["CIDEr"]["values"] for s in table["systems"]}
    against_zerocap = np.subtract(values["scst"], values["zerocap"][0])
    expected = {
        ("scst", "mle"): scipy.stats.ttest_rel(values["scst"], values["mle"]),
        ("scst", "zerocap"): scipy.stats.ttest_1samp(against_zerocap, 0),
        ("scst", "zerocap-approx"): scipy.stats.ttest_ind(
            values["scst"], values["zerocap-approx"], equal_var=False
        ),
    }
    for names, test in expected.items():
        cider = found[names]["metrics"]["CIDEr"]
        assert cider["seeds"]["p"] == pytest.approx(test.pvalue), names
        assert cider["seeds"]["interval"] == pytest.approx(list(test.confidence_interval()))
        assert cider["basis"] == "images and seeds"
        assert len(found[names]["seed_by_seed"]) == 3
    assert found["scst", "mle"]["linked"] and not found["scst", "zerocap"]["linked"]


def test_costs(made, table):
    """20 steps at two a second; SCST's cost has that of its MLE run in it."""
    assert system(table, "zerocap")["training"] == {"steps": [], "seconds": None}
    assert system(table, "mle")["training"] == {"steps": [20], "seconds": [10.0] * 3}
    assert system(table, "scst")["training"] == {"steps": [20, 20], "seconds": [20.0] * 3}
    assert system(table, "scst")["captions_per_second"] == [12.5] * 3
    assert "| 12.5 | 20 + 20 steps, 0.3 min |" in markdown(table)


def test_the_time_of_training_is_that_of_its_steps(tmp_path):
    rows = [
        {"step": 10, "time": 5, "train/steps_per_second": 2.0},
        {"step": 10, "time": 6, "val/CIDEr": 1.0},
        {"step": 20, "time": 9000, "train/steps_per_second": 5.0},  # after a kill
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert costs.training_cost(tmp_path) == (20, 7.0)
    assert costs.training_cost(tmp_path / "nothing") == (0, None)
    assert costs.total_cost([[tmp_path], [tmp_path / "nothing"]])["seconds"] is None


def test_one_seed_has_no_deviation_and_says_what_its_intervals_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "run", worlds.run)
    argv = ["--table=paper", "--seeds=1", "--limit=4", "--out=runs"]
    assert reproduce.main(argv) == 0
    found = json.loads(pathlib.Path("runs/paper.json").read_text())
    assert found["n_images"] == 4
    assert system(found, "mle")["parts"] == ["mle-0/eval/test-first-4"]
    assert found["contrasts"][0]["metrics"]["CIDEr"]["basis"] == "images"
    text = pathlib.Path("runs/paper.md").read_text()
    assert "one seed." in text and "the spread over images alone" in text
    assert "--limit=4`" in text


# ------------------------------------------------------------------------ warnings and truth


@pytest.mark.usefixtures("untyped")
def test_warnings_of_evaluations_are_told_once(table):
    assert table["warnings"] == []
    text = "CLIPScore is not independent <script>"
    read = {"zerocap": types.SimpleNamespace(scores=[{"warnings": [text]}, {"warnings": [text]}])}
    found = paper._warnings([systems.System("zerocap", "ZeroCap", [])], read)
    assert found == [f"ZeroCap: {text}"]
    assert f"- warning: ZeroCap: {text}" in markdown({**table, "warnings": found})
    assert text in "".join(Page(page({**table, "warnings": found}, [])).text)


def test_what_is_true_of_scenes_is_in_the_scores(made, monkeypatch):
    class Truth:
        def to_dict(self):
            return {"captions_true": 0.5}

    monkeypatch.setattr(evaluated, "shapes_named", lambda data, captions, split: Truth())
    found = evaluated.Evaluated([made / "mle-0/eval/test"], scenes="data")
    assert found.scored.values["truth/captions_true"] == [0.5]
    assert (
        "truth/captions_true" not in evaluated.Evaluated([made / "mle-0/eval/test"]).scored.values
    )


def test_systems_of_different_images_are_refused(made, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(made.parent)
    file = made / "zerocap-approx-1/per_image.json"
    kept = file.read_text()
    try:
        write_json(file, json.loads(kept)[:-1])
        assert reproduce.main(["--table=paper", "--seeds=3", "--out=runs"]) == 2
    finally:
        file.write_text(kept)
    error = capsys.readouterr().err
    assert "zerocap-approx was scored on other images than zerocap" in error


# --------------------------------------------------------------------------------- the page


def test_the_page_shows_images_chosen_by_rule(made, table):
    text = (made / "paper.html").read_text()
    found = Page(text)
    assert found.tags.count("article") == 6
    assert all(uri.startswith("data:image/png") for uri in found.values("img", "src"))
    assert len(found.values("svg", "role")) == 4  # CIDEr, BLEU-4, ROUGE-L, CLIPScore
    assert "prefers-color-scheme: dark" in text and "<script" not in text
    words = "".join(found.text)
    assert "deterministic" in words and "20 + 20 steps, 0.3 min" in words
    rows = {i: {"caption": str(i), "references": []} for i in range(100, 200)}
    shown = chosen({"A": rows, "B": rows}, None, 4)
    assert [image.image_id for image in shown] == [100, 125, 150, 175]
    assert shown[1].captions == [("A", "125", None), ("B", "125", None)]
    assert len(chosen({"A": dict(list(rows.items())[:3])}, None, 4)) == 3


def evil(value):
    """The same, with every text replaced."""
    if isinstance(value, dict):
        return {k: v if k == "name" else evil(v) for k, v in value.items()}
    if isinstance(value, list):
        return [evil(v) for v in value]
    return EVIL if isinstance(value, str) else value


def test_no_field_breaks_out_of_the_page(table):
    shown = [Shown(1, EVIL, None, [EVIL], [(EVIL, EVIL, 1.0), (EVIL, "", None)])]
    worst = {**evil(table), "skipped": {EVIL: EVIL}, "warnings": [EVIL], "made_by": EVIL}
    found = Page(page(worst, shown))
    assert "script" not in found.tags and "img" not in found.tags
    assert not [k for _, k, _ in found.attributes if k.startswith("on")]
    assert EVIL in "".join(found.text)
    # A bar in a label would end a cell of the Markdown.
    lines = [line for line in markdown(worst).splitlines() if line.startswith("| ")]
    counts = {line.replace("\\|", "").count("|") for line in lines[:5]}
    assert len(counts) == 1


def test_dots_lie_on_their_axis():
    chart = make_dots(
        "CIDEr",
        [
            Estimate("a", 1.0, "1.000", (0.9, 1.1), [0.95, 1.05]),
            Estimate("a very long label indeed", 2.0, "2.000"),
        ],
    )
    first, second = chart.rows
    ticks = {text: x for x, text in chart.ticks}
    assert math.isclose(first.x, ticks["1.0"]) and math.isclose(second.x, ticks["2.0"])
    assert chart.left <= first.low < first.seeds[0] < first.x < first.seeds[1] < first.high
    assert second.low == second.high == second.x <= chart.right and not second.seeds
    assert second.label.endswith("…") and "a very long label indeed: 2" in second.hint
    assert "a: 1, 0.9 to 1.1, 2 seeds" in chart.description


# ------------------------------------------------------------------------- `make demo`'s rows


def test_zerocap_is_beside_the_others_on_its_images(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "run", worlds.run)
    monkeypatch.setattr(comparison, "ZEROCAP_IMAGES", 3)
    assert reproduce.main(["--seeds=1", "--out=runs"]) == 0
    printed = capsys.readouterr().out
    assert "zerocap --data=data/scenes" in printed and "--limit=3" in printed
    table = printed[printed.index("ZeroCap is slow: the first 3 images only") :]
    rows = [line.split("  ")[0] for line in table.splitlines()[3:6]]
    assert rows == ["ZeroCap (no training)", "MLE", "SCST"]
    assert "report: runs/scst-0/report.html" in printed
    places = {"a": made / "zerocap", "b": made / "mle-0/eval/test"}
    whole = first_images(places, 100)
    for name, scores in zip(("zerocap", "mle-0/eval/test"), whole.values(), strict=True):
        (expected,) = scores_of(made, name)
        assert scores["n_images"] == 6
        for key in ("CIDEr", "Bleu_4", "ROUGE_L", "CLIPScore"):
            assert scores[key] == pytest.approx(expected[key]), key


def test_the_ablations_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "run", worlds.run)
    argv = ["--table=ablations", "--only=mle,k2", "--seeds=2", "--out=runs"]
    assert reproduce.main(argv) == 0
    text = pathlib.Path("runs/ablations.md").read_text()
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| HAR: patch, greedy baseline, full, K = 5, τ = 1, CIDEr-D, clip-l",
        "| stages: MLE alone",
        "| samples: K = 2",
    ]
    kept = json.loads(pathlib.Path("runs/ablations.json").read_text())
    assert kept["rows"]["k2"]["scst"] == {"scst.samples": 2}
    values = {n: [s["CIDEr"] for s in r["scores"].values()] for n, r in kept["rows"].items()}
    difference = np.mean(values["mle"]) - np.mean(values["har"])
    assert f"MLE alone, against the first row: CIDEr {difference:+.3f} (" in text
    assert "--only=mle,k2`" in text
    capsys.readouterr()
    assert reproduce.main(["--table=ablations", "--list"]) == 0
    assert "samples      K = 2" in capsys.readouterr().out
