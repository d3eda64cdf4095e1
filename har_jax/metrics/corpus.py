"""Scores a set of captions against references with the usual captioning metrics.

CIDEr, BLEU and ROUGE-L are this package's own, equal to pycocoevalcap's numbers and without Java.
METEOR and SPICE exist only as Java programs inside pycocoevalcap: they run when asked for and when
everything they need is there, otherwise their value is None and `skipped` says why. With "official"
among the metrics, pycocoevalcap computes all of them, its tokenizer included.
"""

from __future__ import annotations

import dataclasses
import itertools
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import shortened
from har_jax.ids import Id, NoId, read_id
from har_jax.metrics import official
from har_jax.metrics.bleu_counts import bleu_counts_of, bleu_of_counts
from har_jax.metrics.corpus_cider import cider_of
from har_jax.metrics.corpus_ngrams import count_ngrams
from har_jax.metrics.rouge_l import corpus_rouge
from har_jax.text.words import PTB, Words

if TYPE_CHECKING:
    from jaxtyping import Int64

METRICS = ("CIDEr", "Bleu", "ROUGE_L", "METEOR", "SPICE")
DEFAULT_METRICS = ("CIDEr", "Bleu", "ROUGE_L")
OFFICIAL = "official"


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
      reference_words, words: of the references and of each caption, in the same order (of PTB's
        the raw tokens).
      bleu_counts: a row of `metrics.bleu_counts.bleu_counts_of` per image; None without BLEU.
    """

    corpus: dict[str, float | None]
    per_image: dict[int, dict[str, float]]
    skipped: dict[str, str]
    n_images: int
    signature: str
    reference_words: dict[int, list[list[str]]]
    words: dict[int, list[str]]
    bleu_counts: Int64[np.ndarray, "I columns"] | None


RESULT_KEYS = {"image_id", "caption"}
"""Of an entry of COCO results."""


def predictions_from_results(results: Iterable[Any]) -> dict[Id, str]:
    """COCO results (`[{"image_id": 1, "caption": "..."}, ...]`) -> {image id: caption}, where ids
    are what `ids.read_id` makes of the written ones.

    Raises:
      UserError: an entry without these keys or with a value of another type, or an image twice.
    """
    predictions: dict[Id, str] = {}
    for i, result in enumerate(results):
        if not isinstance(result, Mapping) or not result.keys() >= RESULT_KEYS:
            raise UserError(
                f"entry {i} of the results is {reprlib.repr(result)}, not "
                '{"image_id": ..., "caption": ...}'
            )
        try:
            image_id, caption = read_id(result["image_id"]), result["caption"]
        except NoId as error:
            raise UserError(f"image_id of entry {i} of the results: {error}") from None
        if not isinstance(caption, str):
            shown = shortened(ascii(image_id), 60)
            raise UserError(f"the caption of image {shown} is {reprlib.repr(caption)}, not a text")
        if image_id in predictions:
            raise UserError(
                f"image {shortened(ascii(image_id), 60)} has two predictions; the metrics take one "
                "caption per image"
            )
        predictions[image_id] = caption
    return predictions


def score_captions(
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    *,
    metrics: Collection[str] = DEFAULT_METRICS,
    words: Words = PTB,
) -> CorpusScores:
    """Scores one caption per image; texts are raw and get divided into words here.

    CIDEr's document frequencies come from `references`, so they must be exactly the evaluated set.

    Args:
      metrics: some of `METRICS`; `OFFICIAL` among them (or alone, for all) has pycocoevalcap
        compute them.
      words: what is counted. METEOR, SPICE and the official metrics have PTB's alone.

    Raises:
      UserError: the images of the two differ, an image has no references, an unknown metric, or
        the official metrics cannot run here.
    """
    metrics, by_official = _chosen(metrics)
    _check_images(references, predictions)
    reference_words, written = _divided(references, predictions, words, by_official)
    run: dict[str, tuple[float, Mapping[int, float]]] = {}
    signature: list[str] = []
    skipped = {name: "not asked for" for name in METRICS if name not in metrics}
    bleu_counts = None
    if {"CIDEr", "Bleu"} & metrics:
        counted = count_ngrams(reference_words, written)
        if "CIDEr" in metrics:
            values = cider_of(counted)
            run["CIDEr"] = float(values.mean()), _by_image(written, values)
            signature.append(f"CIDEr-D[n4,s6.0,df=references,N={len(references)}]")
        if "Bleu" in metrics:
            bleu_counts = bleu_counts_of(counted)
            corpus, each = bleu_of_counts(bleu_counts.sum(0)), bleu_of_counts(bleu_counts)
            for k in range(4):
                run[f"Bleu_{k + 1}"] = float(corpus[k]), _by_image(written, each[:, k])
            signature.append("BLEU[n4,closest]")
    if "ROUGE_L" in metrics:
        run["ROUGE_L"] = corpus_rouge(reference_words, written)
        signature.append("ROUGE-L[b1.2]")
    if by_official:
        for metric in ("CIDEr", "Bleu", "ROUGE_L"):
            if metric in metrics:
                run |= official.scores(metric, reference_words, written)
    for name, function in (("METEOR", official.meteor), ("SPICE", official.spice)):
        if name in metrics:
            if words is not PTB:
                skipped[name] = f"{name} is made for English and PTB words, not {words.signature}"
                continue
            try:
                run[name] = function(reference_words, written)
                signature.append(f"{name}[pycocoevalcap]")
            except official.Unavailable as error:
                skipped[name] = str(error)
    signature.append(f"words={words.signature}")
    if by_official:
        signature.append("by=pycocoevalcap[official]")
    return CorpusScores(
        {key: run[key][0] if key in run else None for key in KEYS},
        {i: {key: values[i] for key, (_, values) in run.items()} for i in references},
        skipped,
        len(references),
        "+".join(signature),
        reference_words,
        written,
        bleu_counts,
    )


KEYS = ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "METEOR", "SPICE")
"""Of `CorpusScores.corpus`."""


def _chosen(metrics: Collection[str]) -> tuple[set[str], bool]:
    """(metrics to compute, whether by pycocoevalcap)."""
    allowed = (*METRICS, OFFICIAL)
    for name in metrics:
        if name not in allowed:
            near = did_you_mean(name, allowed)
            raise UserError(f"unknown metric {name!r}; choose from {', '.join(allowed)}{near}")
    chosen = set(metrics) - {OFFICIAL}
    return (chosen or set(METRICS), True) if OFFICIAL in metrics else (chosen, False)


def _divided(
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    words: Words,
    by_official: bool,
) -> tuple[dict[int, list[list[str]]], dict[int, list[str]]]:
    """The words of the references and of the predictions, in the order of the former."""
    if by_official:
        return _official_words(references, predictions, words)
    flat = iter(words.of_lines(list(itertools.chain.from_iterable(references.values()))))
    truth = {i: list(itertools.islice(flat, len(group))) for i, group in references.items()}
    written = words.of_lines([predictions[image_id] for image_id in references])
    return truth, dict(zip(references, written, strict=True))


def _official_words(
    references: Mapping[int, Sequence[str]], predictions: Mapping[int, str], words: Words
) -> tuple[dict[int, list[list[str]]], dict[int, list[str]]]:
    if words is not PTB:
        raise UserError(
            f"--metrics={OFFICIAL} counts the PTB words of pycocoevalcap, and these captions are "
            f"counted in words={words.signature}; leave it out to score with har_jax's own metrics"
        )
    try:
        return official.words(references, predictions)
    except official.Unavailable as error:
        raise UserError(
            f"--metrics={OFFICIAL} runs pycocoevalcap: {error}; leave it out to score with "
            "har_jax's own metrics, which have the same values and need no Java"
        ) from error


def _by_image(images: Iterable[int], values: np.ndarray) -> dict[int, float]:
    return dict(zip(images, values.tolist(), strict=True))


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
                f"image {image_id} has references {captions!r:.100}; give a list of at least one "
                "text"
            )
        for text in (*captions, predictions[image_id]):
            if not isinstance(text, str):
                raise UserError(f"image {image_id} has {reprlib.repr(text)}, not a text")


def _and_more(items: Sequence[int]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
