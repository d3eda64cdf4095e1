"""What the evaluations of a system say, seed by seed."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from har_jax.evaluation.across_seeds import Scored
from har_jax.evaluation.bootstrap import Statistics
from har_jax.experiments.runs import read_scores
from har_jax.foreign import read_json
from har_jax.metrics.corpus import score_captions
from har_jax.miniature.truth import shapes_named
from har_jax.reports.paper import MEASURES
from har_jax.reports.tables import lookup
from har_jax.text.words import named_in


class Evaluated:
    """Evaluations of one system, their images sorted by id.

    Attributes:
      scores: the contents of each scores.json, with what was drawn in the scenes as "truth".
      image_ids: of each.
      scored: for `evaluation.across_seeds`.
    """

    def __init__(
        self, places: Sequence[pathlib.Path], deterministic: bool = False, scenes: str | None = None
    ):
        """
        Args:
          places: the directories, one for each seed.
          scenes: the dataset, where it is one of scenes.
        """
        listed = [dict(sorted(rows_of(place).items())) for place in places]
        self.scores: list[dict[str, Any]] = [dict(read_scores(place)) for place in places]
        self.image_ids = [list(rows) for rows in listed]
        statistics = []
        for rows, scores in zip(listed, self.scores, strict=True):
            captions = {i: row["caption"] for i, row in rows.items()}
            if scenes is not None:
                scores["truth"] = shapes_named(scenes, captions, "test").to_dict()
            references = {i: row["references"] for i, row in rows.items()}
            words = named_in(str(scores.get("signature", "")))
            counted = score_captions(references, captions, metrics=("Bleu",), words=words)
            statistics.append(Statistics.of(list(rows.values()), counted.bleu_counts))
        values = {m.key: [lookup(scores, m.key) for scores in self.scores] for m in MEASURES}
        known = {key: [x for x in own if x is not None] for key, own in values.items()}
        # A mean over some of the seeds would not compare.
        whole = {key: own for key, own in known.items() if len(own) == len(places)}
        self.scored = Scored(whole, statistics, deterministic)


def rows_of(directory: pathlib.Path) -> dict[int, dict[str, Any]]:
    """{image id: its object in per_image.json}, in their order."""
    listed = read_json(directory / "per_image.json", "the scores of each image")
    return {row["image_id"]: row for row in listed}
