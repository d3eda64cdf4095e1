"""The comparison table, and what it takes for better and worse."""

import math

from har_jax.reports.tables import comparison_rows, comparison_table, lookup, scores_table


def scores(cider, bad=0.01, **more):
    return {
        "CIDEr": cider,
        "Bleu_4": 0.3,
        "METEOR": None,
        "n_images": 500,
        "health": {"mean_length": 9.0, "bad_end_rate": bad},
        **more,
    }


def row(rows, key):
    return next(r for r in rows if r.measure.key == key)


def test_one_seed():
    columns = {"MLE": [scores(1.0)], "SCST": [scores(1.2, bad=0.02)]}
    rows = comparison_rows(columns)
    assert math.isclose(row(rows, "CIDEr").change, 0.2)
    assert row(rows, "CIDEr").verdict == "better"
    assert math.isclose(row(rows, "health/bad_end_rate").change, 0.01)  # in points, not relative
    assert row(rows, "health/bad_end_rate").verdict == "worse"
    assert row(rows, "health/mean_length").verdict == "same"
    text = comparison_table(columns)
    line = next(line for line in text.splitlines() if line.startswith("CIDEr"))
    assert line.split() == ["CIDEr", "1.000", "1.200", "+20.0", "%"]
    assert "METEOR" not in text  # nobody has it
    assert text.startswith("500 images")


def test_columns_are_aligned():
    columns = {"MLE": [scores(1.0), scores(10.0)], "SCST": [scores(0.5), scores(0.25)]}
    lines = comparison_table(columns).splitlines()[2:-1]
    ends = {len(line) for line in lines}
    assert len(ends) == 1, "right-aligned: all lines end in the same column"


def test_several_seeds_give_mean_and_sample_deviation():
    columns = {"MLE": [scores(1.0), scores(1.2)], "SCST": [scores(1.5), scores(1.5)]}
    cell = row(comparison_rows(columns), "CIDEr").cells[0]
    assert math.isclose(cell.mean, 1.1) and math.isclose(cell.std, math.sqrt(0.02))
    text = comparison_table(columns)
    assert "1.100 ± 0.141" in text and "1.500 ± 0.000" in text and "2 seeds" in text


def test_values_that_are_missing():
    columns = {
        "MLE": [scores(1.0, CLIPScore=None), scores(1.0, CLIPScore=0.7)],
        "SCST": [scores(0.0, CLIPScore=0.7), scores(0.0, CLIPScore=0.8)],
    }
    rows = comparison_rows(columns)
    clip = row(rows, "CLIPScore")
    assert clip.cells[0].mean is None, "a mean over other seeds would not compare"
    assert clip.change is None and clip.verdict == "same"
    assert "–" in comparison_table(columns)
    zero = comparison_rows({"MLE": [scores(0.0)], "SCST": [scores(1.0)]})
    assert row(zero, "CIDEr").change is None  # nothing to relate to


def test_lookup():
    assert lookup({"a": {"b": 1}}, "a/b") == 1.0
    assert lookup({"a": None}, "a/b") is None
    assert lookup({"a": float("nan")}, "a") is None
    assert lookup({"a": True}, "a") is None


def test_different_numbers_of_images_are_told():
    text = comparison_table({"MLE": [scores(1.0)], "SCST": [scores(1.0, n_images=3)]})
    assert "not comparable" in text.splitlines()[0]


def test_one_evaluation():
    text = scores_table(
        scores(
            1.0,
            skipped={"CLIPScore": "no CLIP", "RefCLIPScore": "no CLIP"},
            warnings=["beware"],
            control={"CIDEr": 1.0, "CIDEr_shuffled": 0.25, "ratio": 0.25},
            source={"stage": "mle", "split": "test", "method": "greedy"},
        )
    )
    assert "mle, test, greedy: 500 images" in text
    assert "25.0 % of it" in text
    assert "not computed: CLIPScore, RefCLIPScore (no CLIP)" in text
    assert "warning: beware" in text
