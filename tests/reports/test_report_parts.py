"""What a report is made of: its examples, its images, its charts."""

import json

import numpy as np
import pytest

from har_jax.reports.charts import Line, make_plot, nice_ticks, smoothed
from har_jax.reports.page import templates
from har_jax.reports.run_view import (
    ScoredSplit,
    choose_examples,
    data_uri,
    examples_of,
)
from tests.reports.pages import Page, png


def test_examples_are_chosen_by_gain():
    rows = {i: {"caption": "x", "CIDEr": 0.0, "references": ["r"]} for i in range(30)}
    after = {i: {**row, "CIDEr": float(i - 10)} for i, row in rows.items()}
    chosen = choose_examples(
        examples_of({"A": ScoredSplit({}, rows), "B": ScoredSplit({}, after)}, {}), 3
    )
    assert chosen["gain"] == [29, 28, 27] and chosen["loss"] == [0, 1, 2]
    assert len(set(chosen["random"])) == 3


def test_large_images_are_scaled_and_small_ones_left():
    small = png(0)
    assert json.dumps(data_uri(small)) and data_uri(small).startswith("data:image/png")
    large = data_uri(png(0, side=800))
    assert large.startswith("data:image/jpeg") and len(large) < 200_000
    assert data_uri(b"nothing") is None


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 5.0), (2, 5.0)], [(0, -1e-9), (10, 1e9)]])
def test_charts_of_few_or_odd_points(points):
    plot = make_plot([Line("a & b", points)], description="<x>", percent=True)
    svg = templates().get_template("charts.html.j2").module.svg(plot)
    Page(svg)
    assert "nan" not in svg and "a &amp; b" in svg


def test_ticks_enclose_the_values():
    for low, high in ((0, 1), (0.013, 0.0131), (-7, 1200), (3, 3)):
        ticks = nice_ticks(low, high, 5)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8


def test_smoothing_keeps_a_straight_line():
    line = [(x, 2.0 * x) for x in range(50)]
    assert np.allclose(smoothed(line)[10:40], line[10:40])
