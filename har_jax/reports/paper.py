"""The table of systems with error bars, from the contents of `paper.json`: as Markdown, and as a
page with charts, tests and the systems' captions side by side.

As in `page`, this module decides what is shown; `templates/paper.html.j2` says how, and escapes
every value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from har_jax.reports import tables
from har_jax.reports.dots import Dots, Estimate, make_dots
from har_jax.reports.page import templates
from har_jax.reports.run_view import DatasetImages
from har_jax.reports.tables import Cell, Measure, format_cell, format_value, signed

_SCORES = ("CIDEr", "Bleu_4", "ROUGE_L", "METEOR", "SPICE", "CLIPScore", "RefCLIPScore")
MEASURES = (
    *(measure for measure in tables.MEASURES if measure.key in _SCORES),
    Measure("truth/captions_true", "shapes true", "rate"),
    Measure("health/mean_length", "words", "words", "neither"),
)
"""The columns; one that no system has is left out."""
_IN_MARKDOWN = ("CIDEr", "Bleu_4", "CLIPScore")
N_IMAGES = 24
"""Images whose captions the page shows."""

Table = Mapping[str, Any]  # the contents of paper.json


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image with what each system wrote: (label, caption, its CIDEr or None)."""

    image_id: int | str
    filename: str
    uri: str | None
    references: list[str]
    captions: list[tuple[str, str, float | None]]


def chosen(
    systems: Mapping[str, Mapping[int, Mapping[str, Any]]],
    images: DatasetImages | None,
    n: int = N_IMAGES,
) -> list[Shown]:
    """Images at even distances in the order of the split: a rule that knows nothing of captions.

    Args:
      systems: {label: {image id: its object in per_image.json}}.
    """
    first = next(iter(systems.values()))
    ids = [i for i in first if all(i in rows for rows in systems.values())]
    n = min(n, len(ids))
    found = []
    for image_id in (ids[k * len(ids) // n] for k in range(n)):
        row = first[image_id]
        captions = [
            (label, str(rows[image_id]["caption"]), rows[image_id].get("CIDEr"))
            for label, rows in systems.items()
        ]
        name, uri = str(row.get("filename", "")), images.data_uri(image_id) if images else None
        found.append(Shown(image_id, name, uri, list(row.get("references", [])), captions))
    return found


def columns(table: Table) -> list[Measure]:
    """The measures that at least one system has."""
    return [m for m in MEASURES if any(m.key in s["scores"] for s in table["systems"])]


def rows(table: Table) -> list[list[str]]:
    """The table's cells: label, one for each of `columns`, over how many seeds, speed, training."""
    return [
        [
            system["label"],
            *(_score(system, measure) for measure in columns(table)),
            _over(system),
            _speed(system),
            _training(system),
        ]
        for system in table["systems"]
    ]


def header(table: Table) -> list[str]:
    labels = [measure.label for measure in columns(table)]
    return ["", *labels, "± over", "captions/s", "training"]


def markdown(table: Table) -> str:
    """The table, what is between the systems, and what is to be known of both."""
    lines = [f"# {title(table)}", "", f"{about(table)} Made by `{table['made_by']}`.", ""]
    lines += _markdown_rows(header(table), rows(table))
    lines += ["", f"Differences, with {_percent(table)} intervals and p-values:", ""]
    names = [m.label for m in MEASURES if m.key in _IN_MARKDOWN]
    tests = [
        [f"{c['labels'][0]} − {c['labels'][1]}", *(_tested(c, key).text for key in _IN_MARKDOWN)]
        for c in table["contrasts"]
    ]
    lines += _markdown_rows(["", *names], tests)
    lines += ["", *(f"- {text}" for text in notes(table))]
    lines += [f"- warning: {text}" for text in table["warnings"]]
    return "\n".join(lines) + "\n"


def page(table: Table, shown: Sequence[Shown]) -> str:
    """The page as text: one file without links."""
    measures = [m for m in MEASURES if m.key in _SCORES and m in columns(table)]
    body = [row[1:] for row in rows(table)]
    tests = [
        (f"{c['labels'][0]} − {c['labels'][1]}", [_tested(c, m.key) for m in measures])
        for c in table["contrasts"]
    ]
    return (
        templates()
        .get_template("paper.html.j2")
        .render(
            title=title(table),
            about=about(table),
            systems=[system["label"] for system in table["systems"]],
            rows=list(zip(header(table)[1:], zip(*body, strict=True), strict=True)),
            warnings=table["warnings"],
            notes=notes(table),
            charts=list(charts(table)),
            tested=[m.label for m in measures],
            tests=tests,
            level=_percent(table),
            shown=shown,
            origin=origin(table),
        )
    )


def title(table: Table) -> str:
    labels = [system["label"] for system in table["systems"]]
    return ", ".join(labels[:-1]) + f" and {labels[-1]}" if len(labels) > 1 else labels[0]


def about(table: Table) -> str:
    n, seeds = table["n_images"], len(table["seeds"])
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return f"{n:,} images of the {table['split']} split, {over}."


def notes(table: Table) -> list[str]:
    """How the figures came about, and which are missing."""
    once = [s["label"] for s in table["systems"] if s["deterministic"]]
    verb = "is" if len(once) == 1 else "are"
    found = [f"{', '.join(once)} {verb} deterministic and ran once."] if once else []
    if len(table["seeds"]) > 1:
        found.append(
            "An interval or p-value has the spread over images (paired bootstrap of the means over "
            f"the seeds, {table['resamples']:,} resamples) and the spread over seeds (Student's t: "
            "paired where SCST started from that MLE run, Welch's otherwise) in it; paper.json has "
            "each by itself, and seed by seed."
        )
    else:
        found.append(
            "With one seed an interval or p-value has the spread over images alone in it (paired "
            f"bootstrap, {table['resamples']:,} resamples)."
        )
    found.append(
        "p-values are not corrected for the number of comparisons. Time of training has compiling "
        "in it, and not validation; captions a second are of the batches after the first, and of "
        "all where ZeroCap wrote them."
    )
    reasons: dict[str, list[str]] = {}
    for name, why in table["skipped"].items():
        reasons.setdefault(why, []).append(name)
    return found + [f"Not computed: {', '.join(n)} ({why})." for why, n in reasons.items()]


def charts(table: Table) -> Iterator[Dots]:
    """A chart for each measure that is tested; the last one for speed."""
    for measure in columns(table):
        if measure.better == "neither":
            continue
        estimates = []
        for system in table["systems"]:
            score = system["scores"].get(measure.key)
            if score is None:
                continue
            interval = (score["interval"][0], score["interval"][1]) if score["interval"] else None
            value = format_value(score["mean"], measure.kind)
            estimates.append(
                Estimate(system["label"], score["mean"], value, interval, score["values"])
            )
        yield make_dots(measure.label, estimates, percent=measure.kind == "rate")


def origin(table: Table) -> list[tuple[str, str]]:
    """Pairs for the end of the page."""
    found = [("command", table["made_by"])]
    found += [(system["label"], ", ".join(system["parts"])) for system in table["systems"]]
    return found


def _score(system: Mapping[str, Any], measure: Measure) -> str:
    score = system["scores"].get(measure.key)
    if score is None:
        return "–"
    return format_cell(Cell(score["mean"], score["std"], len(score["values"])), measure.kind)


def _over(system: Mapping[str, Any]) -> str:
    n = max((len(score["values"]) for score in system["scores"].values()), default=0)
    return "deterministic" if system["deterministic"] else f"{n} seed{'s' if n != 1 else ''}"


def _speed(system: Mapping[str, Any]) -> str:
    known = [x for x in system["captions_per_second"] if x is not None]
    return f"{sum(known) / len(known):.3g}" if known else "–"


def _training(system: Mapping[str, Any]) -> str:
    """`500 + 350 steps, 2.1 min`."""
    training = system["training"]
    if not training["steps"]:
        return "none"
    text = " + ".join(f"{steps:,}" for steps in training["steps"]) + " steps"
    if training["seconds"]:
        seconds = sum(training["seconds"]) / len(training["seconds"])
        text += f", {seconds / 3600:.1f} h" if seconds >= 5400 else f", {seconds / 60:.1f} min"
    return text


@dataclasses.dataclass(frozen=True)
class _Tested:
    """A difference as it is printed; `interval` and `p` are "" where they are not known."""

    verdict: str  # better, worse, or same
    difference: str
    interval: str = ""
    p: str = ""

    @property
    def text(self) -> str:
        return (
            f"{self.difference} ({self.interval}), {self.p}" if self.interval else self.difference
        )


def _tested(contrast: Mapping[str, Any], key: str) -> _Tested:
    found = contrast["metrics"].get(key)
    if found is None:
        return _Tested("same", "–")
    if found["both"] is None:
        return _Tested("same", signed(found["difference"]))
    low, high = found["both"]["interval"]
    p = found["both"]["p"]
    return _Tested(
        "better" if low > 0 else "worse" if high < 0 else "same",
        signed(found["difference"]),
        f"{signed(low)} to {signed(high)}",
        f"p = {p:.3f}" if p >= 0.001 else "p < 0.001",
    )


def _markdown_rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    # A bar in a label would end its cell.
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *body)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    return [first, "|---|" + "---:|" * (len(head) - 1), *others]


def _percent(table: Table) -> str:
    return f"{100 * table['level']:g} %"
