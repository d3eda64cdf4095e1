"""What each reward and baseline of SCST does, side by side: a Markdown table over seeds.

    text = markdown({"MLE": [scores, ...], "SCST": [scores, ...]}, MEASURES)

`scores` are the contents of `scores.json`, one for each seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.reports.tables import Measure, comparison_rows, format_cell, lookup

Scores = Mapping[str, Any]

QUALITY = (
    Measure("CIDEr", "CIDEr"),
    Measure("Bleu_4", "BLEU-4"),
    Measure("CLIPScore", "CLIPScore"),
    Measure("health/mean_length", "words", "words", "neither"),
    Measure("health/bad_end_rate", "bad endings", "rate", "lower"),
    Measure("health/repetition_rate", "repeated bigrams", "rate", "lower"),
)
GENDER = (
    Measure("CIDEr", "CIDEr"),
    Measure("CLIPScore", "CLIPScore"),
    Measure("bias/unsupported_rate", "unsupported words", "rate", "lower"),
    Measure("bias/contradiction_rate", "contradicting words", "rate", "lower"),
    Measure("bias/neutral_rate", "neutral captions", "rate", "neither"),
    Measure("bias/recall_male", "men called so", "rate", "higher"),
    Measure("bias/recall_female", "women called so", "rate", "higher"),
)


def markdown(systems: Mapping[str, Sequence[Scores]], measures: Sequence[Measure]) -> str:
    """A row for each system, a column for each measure that at least one of them has."""
    rows = comparison_rows(systems, measures)
    lines = [
        "| | " + " | ".join(row.measure.label for row in rows) + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for i, name in enumerate(systems):
        cells = [format_cell(row.cells[i], row.measure.kind) for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(
    systems: Mapping[str, Sequence[Scores]],
    name: str,
    other: str,
    measures: Sequence[Measure],
) -> dict[str, list[float] | None]:
    """{measure's key: name minus other, seed by seed}; None where a score is missing."""
    found: dict[str, list[float] | None] = {}
    for measure in measures:
        pairs = [
            (lookup(a, measure.key), lookup(b, measure.key))
            for a, b in zip(systems[name], systems[other], strict=True)
        ]
        values = [a - b for a, b in pairs if a is not None and b is not None]
        found[measure.key] = values if len(values) == len(pairs) else None
    return found


def sentence(
    systems: Mapping[str, Sequence[Scores]],
    name: str,
    other: str,
    measures: Sequence[Measure],
) -> str:
    """`A against B: CIDEr +0.103 (+0.080 to +0.120), ...`: means and ranges over the seeds."""
    parts = []
    for measure in measures:
        values = differences(systems, name, other, measures)[measure.key]
        if not values:
            continue
        scale, form, unit = (100, "+.1f", " pt") if measure.kind == "rate" else (1, "+.3f", "")
        mean, low, high = (
            format(scale * x, form) for x in (sum(values) / len(values), min(values), max(values))
        )
        spread = f" ({low}{unit} to {high}{unit})" if len(values) > 1 else ""
        parts.append(f"{measure.label} {mean}{unit}{spread}")
    return f"{name} against {other}: " + ", ".join(parts)
