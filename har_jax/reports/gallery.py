"""The images of a report with their captions, and what a run wrote below some as it learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from har_jax.reports.run_view import (
    DatasetImages,
    Example,
    ImageSource,
    RunView,
    ScoredSplit,
    choose_examples,
    examples_of,
)

GROUPS = {
    True: {"gain": "biggest gains", "loss": "biggest losses", "random": "random"},
    False: {"gain": "best", "loss": "worst", "random": "random"},
}


def gallery(columns: Mapping[str, ScoredSplit], images: DatasetImages | None, n_images: int) -> str:
    ids = list(list(columns.values())[-1].rows)
    known = images.references(ids) if images else {}
    examples = examples_of(columns, known)
    if not examples:
        return ""
    chosen = choose_examples(examples, n_images)
    by_id = {example.image_id: example for example in examples}
    wanted = dict.fromkeys(i for group in chosen.values() for i in group)
    uris: ImageSource = images.data_uri if images else (lambda _: None)
    cards = [_card(by_id[i], chosen, uris(i), len(columns) > 1) for i in wanted]
    labels = GROUPS[len(columns) > 1]
    radios = "".join(
        f'<input class="pick" type="radio" name="pick" id="pick-{group}"'
        f"{' checked' if i == 0 else ''}>"
        for i, group in enumerate(chosen)
    )
    buttons = "".join(f'<label for="pick-{g}">{escape(labels[g])}</label>' for g in chosen)
    reason = ""
    if images is None or images.reason:
        why = escape(images.reason if images else "the run's configuration names no dataset")
        reason = f'<p class="soft small">The images are not shown: {why}</p>'
    return (
        "<h2>Images and captions</h2>\n"
        '<p class="soft small">Numbers are the CIDEr of each caption. Dotted: words that none of '
        f"the image's references has.</p>{reason}\n"
        f'<div>{radios}<div class="choice">{buttons}</div>\n'
        f'<div class="cards">\n{"".join(cards)}</div></div>\n'
    )


def _card(
    example: Example, chosen: Mapping[str, Sequence[int]], uri: str | None, compared: bool
) -> str:
    groups = {
        g: ids.index(example.image_id) for g, ids in chosen.items() if example.image_id in ids
    }
    style = ";".join(f"--{group}:{place}" for group, place in groups.items())
    if uri:
        alt = example.references[0] if example.references else f"image {example.image_id}"
        picture = f'<img loading="lazy" src="{uri}" alt="{escape(alt)}">'
    else:
        picture = f'<span class="missing">image {example.image_id}</span>'
    lines = []
    for i, (name, (text, value)) in enumerate(example.captions.items()):
        last = " last" if i == len(example.captions) - 1 else ""
        cider = "" if value is None else f"{value:.2f}"
        lines.append(
            f'<div class="caption{last}"><span class="who">{escape(name)}</span>'
            f'<span class="text">{_marked(text, example.references)}</span>'
            f'<span class="cider">{cider}</span></div>'
        )
    delta = ""
    if compared and example.scored:
        kind = "better" if example.gain > 0.005 else "worse" if example.gain < -0.005 else "same"
        delta = f'<span class="delta {kind}">{example.gain:+.2f}</span>'
    references = "".join(f"<li>{escape(text)}</li>" for text in example.references)
    references = f'<ul class="refs">{references}</ul>' if references else ""
    return (
        f'<article class="card {" ".join(groups)}" style="{style}">'
        f'<div class="picture">{picture}</div><div class="body">{"".join(lines)}{references}'
        f'<div class="foot"><span>{escape(example.filename or str(example.image_id))}</span>'
        f"{delta}</div></div></article>\n"
    )


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def _marked(caption: str, references: Sequence[str]) -> str:
    """The caption with words underlined that no reference has."""
    if not caption.strip():
        return '<span class="soft">(empty)</span>'
    if not references:
        return escape(caption)
    known = {word.lower() for text in references for word in _WORD.findall(text)}
    pieces, at = [], 0
    for match in _WORD.finditer(caption):
        pieces.append(escape(caption[at : match.start()]))
        word = escape(match.group())
        pieces.append(word if match.group().lower() in known else f"<u>{word}</u>")
        at = match.end()
    return "".join([*pieces, escape(caption[at:])])


def stories(run: RunView, images: DatasetImages | None) -> str:
    """The same image's caption at several steps, from samples.jsonl."""
    stories: dict[int, dict[int, dict[str, Any]]] = {}
    for row in run.samples:
        stories.setdefault(row.get("image_id", 0), {})[row["step"]] = row
    if not stories:
        return ""
    if images is None and run.setting("data.dir"):
        images = DatasetImages(run.setting("data.dir"), run.samples[-1].get("split", ""))
    parts = []
    for image_id, by_step in list(stories.items())[:6]:
        steps = sorted(by_step)
        stride = max(1, -(-len(steps) // 8))
        shown = sorted({*steps[::stride], steps[-1]})
        references = by_step[steps[-1]].get("references", [])
        items = "".join(
            f'<li><span class="step">step {step:,}</span>'
            f"<span>{_marked(by_step[step]['caption'], references)}</span></li>"
            for step in shown
        )
        uri = images.data_uri(image_id) if images else None
        picture = (
            f'<img src="{uri}" alt="image {image_id}">'
            if uri
            else f'<span class="soft small">image {image_id}</span>'
        )
        texts = "".join(f"<li>{escape(text)}</li>" for text in references[:3])
        parts.append(
            f'<div class="panel story"><div>{picture}</div><div><ol>{items}</ol>'
            f'<ul class="refs" style="margin-top:8px">{texts}</ul></div></div>'
        )
    return f"<h2>Captions while it learned</h2>\n{''.join(parts)}\n"
