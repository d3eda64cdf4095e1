"""Scores a set of captions against references with the usual captioning metrics.

CIDEr, BLEU and ROUGE-L are this package's own, equal to pycocoevalcap's numbers and without Java.
METEOR and SPICE exist only as Java programs inside pycocoevalcap: they run when asked for and when
everything they need is there, otherwise their value is None and `skipped` says why.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from har_jax.errors import UserError, did_you_mean
from har_jax.metrics.bleu import corpus_bleu
from har_jax.metrics.cider_d import corpus_cider
from har_jax.metrics.rouge import corpus_rouge
from har_jax.text import ptb

METRICS = ("CIDEr", "Bleu", "ROUGE_L", "METEOR", "SPICE")
DEFAULT_METRICS = ("CIDEr", "Bleu", "ROUGE_L")

_SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"


@dataclasses.dataclass(frozen=True)
class CorpusScores:
    """What `score_captions` found.

    Attributes:
      corpus: CIDEr, Bleu_1 .. Bleu_4, ROUGE_L, METEOR, SPICE -> value as the official tools print
        it (CIDEr 1.2, not 120), or None when the metric did not run.
      per_image: {image id: {the same keys, of the metrics that ran}}.
      skipped: {metric: why it did not run}.
      n_images: how many images were scored.
      signature: what has to agree for two values to be comparable.
    """

    corpus: dict[str, float | None]
    per_image: dict[int, dict[str, float]]
    skipped: dict[str, str]
    n_images: int
    signature: str


def predictions_from_results(results: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """COCO results (`[{"image_id": 1, "caption": "..."}, ...]`) -> {image id: caption}.

    Raises:
      UserError: an entry without these keys or with a value of another type, or an image twice.
    """
    predictions: dict[int, str] = {}
    for i, result in enumerate(results):
        if not isinstance(result, Mapping) or not {"image_id", "caption"} <= set(result):
            raise UserError(
                f"entry {i} of the results is {str(result)[:80]!r}, not "
                '{"image_id": ..., "caption": ...}'
            )
        image_id, caption = result["image_id"], result["caption"]
        if not isinstance(caption, str):
            raise UserError(f"the caption of image {image_id} is {caption!r}, not a text")
        if isinstance(image_id, bool) or not isinstance(image_id, int):
            raise UserError(f"entry {i} of the results has image_id {image_id!r}, not an integer")
        if image_id in predictions:
            raise UserError(
                f"image {image_id} has two predictions; the metrics take one caption per image"
            )
        predictions[image_id] = caption
    return predictions


def score_captions(
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    *,
    metrics: Collection[str] = DEFAULT_METRICS,
) -> CorpusScores:
    """Scores one caption per image; texts are raw and get tokenized here, as COCO does.

    CIDEr's document frequencies come from `references`, so they must be exactly the evaluated set.

    Args:
      metrics: some of `METRICS`.

    Raises:
      UserError: the images of the two differ, an image has no references, an unknown metric.
    """
    for name in metrics:
        if name not in METRICS:
            raise UserError(
                f"unknown metric {name!r}; choose from {', '.join(METRICS)}"
                + did_you_mean(name, METRICS)
            )
    _check_images(references, predictions)
    flat = iter(ptb.words_of_lines([text for captions in references.values() for text in captions]))
    reference_words = {
        image_id: [next(flat) for _ in captions] for image_id, captions in references.items()
    }
    predicted = ptb.words_of_lines([predictions[image_id] for image_id in references])
    predicted_words = dict(zip(references, predicted, strict=True))

    # ROUGE-L splits at spaces only, the other metrics at any white space.
    split_references = {i: [_resplit(w) for w in group] for i, group in reference_words.items()}
    split_predictions = {i: _resplit(w) for i, w in predicted_words.items()}

    corpus: dict[str, float | None] = {}
    per_image: dict[int, dict[str, float]] = {image_id: {} for image_id in references}
    skipped: dict[str, str] = {}
    signature = []

    def add(key: str, value: float, values: Mapping[int, float]) -> None:
        corpus[key] = value
        for image_id, score in values.items():
            per_image[image_id][key] = score

    if "CIDEr" in metrics:
        add("CIDEr", *corpus_cider(split_references, split_predictions))
        signature.append(f"CIDEr-D[n4,s6.0,df=references,N={len(references)}]")
    else:
        corpus["CIDEr"] = None
    if "Bleu" in metrics:
        bleu, bleu_of = corpus_bleu(split_references, split_predictions)
        for k, value in enumerate(bleu):
            add(f"Bleu_{k + 1}", value, {i: values[k] for i, values in bleu_of.items()})
        signature.append("BLEU[n4,closest]")
    else:
        corpus |= dict.fromkeys(("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"))
    if "ROUGE_L" in metrics:
        add("ROUGE_L", *corpus_rouge(reference_words, predicted_words))
        signature.append("ROUGE-L[b1.2]")
    else:
        corpus["ROUGE_L"] = None
    for name, run in (("METEOR", _meteor), ("SPICE", _spice)):
        corpus[name] = None
        if name not in metrics:
            continue
        try:
            add(name, *run(reference_words, predicted_words))
            signature.append(f"{name}[pycocoevalcap]")
        except _Unavailable as error:
            skipped[name] = str(error)
    for name in METRICS:
        if name not in metrics:
            skipped[name] = "not asked for"
    return CorpusScores(
        corpus, per_image, skipped, len(references), "+".join([*signature, "words=ptb"])
    )


def _resplit(words: list[str]) -> list[str]:
    """Splits tokens that hold a non-breaking space, such as "1 1/2"."""
    return " ".join(words).split() if any("\xa0" in word for word in words) else words


def _check_images(references: Mapping[int, Sequence[str]], predictions: Mapping[int, str]) -> None:
    if not references:
        raise UserError("there are no references to score against")
    unknown = [image_id for image_id in predictions if image_id not in references]
    if unknown:
        raise UserError(
            f"image {unknown[0]}{_and_more(unknown)} has a prediction but no references; "
            "score predictions of the split the references belong to"
        )
    missing = [image_id for image_id in references if image_id not in predictions]
    if missing:
        raise UserError(
            f"image {missing[0]}{_and_more(missing)} has references but no prediction; "
            "a score of some images is not comparable: predict all, or pass fewer references"
        )
    for image_id, captions in references.items():
        if isinstance(captions, str) or not captions:
            raise UserError(
                f"image {image_id} has references {captions!r}; give a list of at least one text"
            )


def _and_more(items: Sequence[int]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


class _Unavailable(Exception):
    """An optional metric cannot run here; the text says why."""


def _pycocoevalcap() -> pathlib.Path:
    """Where pycocoevalcap is, given that Java is there too."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise _Unavailable("pycocoevalcap is not installed (pip install pycocoevalcap)")
    if shutil.which("java") is None:
        raise _Unavailable("Java is not installed")
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _as_texts(
    references: Mapping[int, Sequence[Sequence[str]]], predictions: Mapping[int, Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return (
        {i: [" ".join(words) for words in captions] for i, captions in references.items()},
        {i: [" ".join(words)] for i, words in predictions.items()},
    )


def _meteor(references, predictions) -> tuple[float, dict[int, float]]:
    if not (_pycocoevalcap() / "meteor" / "meteor-1.5.jar").exists():
        raise _Unavailable("meteor-1.5.jar is missing from pycocoevalcap")
    try:
        from pycocoevalcap.meteor.meteor import Meteor

        truth, results = _as_texts(references, predictions)
        value, values = Meteor().compute_score(truth, results)
    except Exception as error:  # a Java program at the end of a pipe fails in many ways
        raise _Unavailable(f"METEOR failed: {type(error).__name__}: {error}") from error
    return float(value), dict(zip(truth, map(float, values), strict=True))


def _spice(references, predictions) -> tuple[float, dict[int, float]]:
    if not (_pycocoevalcap() / "spice" / "lib" / _SPICE_MODELS).exists():
        # pycocoevalcap would start to download 400 MB here.
        raise _Unavailable(f"SPICE's models ({_SPICE_MODELS}) are not in pycocoevalcap/spice/lib")
    try:
        from pycocoevalcap.spice.spice import Spice

        truth, results = _as_texts(references, predictions)
        value, values = Spice().compute_score(truth, results)
    except Exception as error:  # see _meteor
        raise _Unavailable(f"SPICE failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise _Unavailable(f"SPICE gave {value}")
    per_image = (float(scores["All"]["f"]) for scores in values)
    return float(value), dict(zip(sorted(truth), per_image, strict=True))
