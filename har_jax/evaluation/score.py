"""Scores captions of a set of images, and writes what `evaluate` promises.

DIR/predictions.json   COCO results: [{"image_id": 1, "caption": "..."}, ...]
DIR/scores.json        CIDEr, Bleu_1 .. Bleu_4, ROUGE_L, METEOR, SPICE, CLIPScore, RefCLIPScore,
                       where they were asked for PAC-S, RefPAC-S, CHAIRi, CHAIRs (evaluation/
                       extras.py); n_images, signature, captions_per_second (of what was
                       captioned here); skipped (why a value is null), health, bias (gendered
                       words, metrics/gender.py; null where there are none), warnings, source,
                       confidence (intervals, see evaluation/bootstrap.py), control and
                       against (evaluation/compare.py) where they were asked for, and domains
                       (of nocaps) where the images have some
DIR/per_image.json     one object per image: its references, its caption and the scores of it
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.errors import UserError
from har_jax.evaluation.bootstrap import MEANS, Statistics, confidence
from har_jax.evaluation.compare import IN_PYTHON, Other, compare
from har_jax.evaluation.extras import EXTRA_KEYS, Asked, ClipInput, extra_scores, split_metrics
from har_jax.files import followed, write_json
from har_jax.metrics import gender, health
from har_jax.metrics.corpus import METRICS, CorpusScores, score_captions
from har_jax.text.words import PTB, Words

PREDICTIONS = "predictions.json"
SCORES = "scores.json"
PER_IMAGE = "per_image.json"
KEYS = (
    *("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "METEOR", "SPICE"),
    *("CLIPScore", "RefCLIPScore"),
)
BIAS_LISTS = "lic"
"""The gendered words of `scores.json["bias"]`, see `metrics.gender`."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    scores: dict[str, Any]  # scores.json
    per_image: list[dict[str, Any]]  # per_image.json


def evaluate_captions(
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    *,
    clip: ClipInput | None = None,
    no_clip: str = "no scoring CLIP was given (--clip=HF_DIR)",
    pac: ClipInput | None = None,
    objects: Mapping[int, Collection[str]] | None = None,
    ended: Mapping[int, bool] | None = None,
    filenames: Mapping[int, str] | None = None,
    metrics: Collection[str] = METRICS,
    control: str | None = None,
    against: Other | None = None,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    domains: Mapping[int, str] | None = None,
    words: Words = PTB,
) -> Evaluation:
    """Scores one caption per image with everything that can run here.

    Args:
      no_clip: why `clip` is None, for `skipped`.
      pac: for PAC-S, by another CLIP.
      objects: COCO's categories in each image, for CHAIR, which is computed where they are given.
      ended: whether each caption reached EOS, where that is known.
      metrics: some of `metrics.corpus.METRICS`, the others are skipped; with `OFFICIAL` among
        them pycocoevalcap computes them. CHAIR too.
      against: another system, to compare with over the same images.
      seed: of the control and of the bootstrap.
      control: "shuffle" also scores every caption against another image's references.
      source: what was scored (run, step, split, method), copied into the scores.
      domains: of all images, where they have some: each is scored by itself as well.
      words: what all of it counts, the other system's captions too.

    Raises:
      UserError: references and predictions do not belong together, or an unknown control.
    """
    if control not in (None, "shuffle"):
        raise UserError(f"control {control!r} is unknown; allowed: shuffle")
    ids = list(predictions)
    references = {i: list(references[i]) for i in ids if i in references}
    metrics, chair = split_metrics(metrics)
    found = score_captions(references, predictions, metrics=metrics, words=words)
    corpus: dict[str, float | None] = {**dict.fromkeys(KEYS), **found.corpus}
    skipped = dict(found.skipped)
    per_image = {i: dict(found.per_image[i]) for i in ids}
    signature = found.signature
    asked = Asked(clip, no_clip, pac, chair or objects is not None, objects, words)
    for extra in extra_scores(references, predictions, asked):
        corpus |= extra.corpus
        skipped |= extra.skipped
        per_image = {i: {**row, **extra.per_image.get(i, {})} for i, row in per_image.items()}
        signature += f"+{extra.signature}" if extra.signature else ""

    cut_rate = None if ended is None else 1 - sum(ended.values()) / len(ended)
    scores: dict[str, Any] = {
        **{key: corpus[key] for key in (*KEYS, *EXTRA_KEYS) if key in corpus},
        "n_images": found.n_images,
        "signature": signature,
        "skipped": skipped,
        "health": {**health.summary(found.words.values()), "cut_rate": cut_rate},
        "bias": _bias(found),
        "warnings": list(warnings),
        "source": dict(source or {}),
    }
    if found.n_images == 1:
        scores["warnings"].append("CIDEr of a single image is 0: every n-gram occurs in all images")
    statistics = Statistics.of([per_image[i] for i in ids], found.bleu_counts)
    scores["confidence"] = confidence(statistics, seed=seed)
    if against is not None:
        told: dict[str, Any] = {"signature": signature, "seed": seed, "words": words}
        scores["against"] = compare(against, statistics, references, ids, **told)
    if control == "shuffle":
        scores["control"] = shuffle_control(references, predictions, corpus["CIDEr"], seed, words)
    if domains is not None:
        scores["domains"] = _score_domains(domains, references, predictions, per_image, words)
    given = (("filename", filenames), ("caption", predictions), ("references", references))
    columns = [(name, of) for name, of in (*given, ("ended", ended)) if of is not None]
    return Evaluation(scores, [_row(i, columns) | per_image[i] for i in ids])


def _row(image_id: int, columns: Sequence[tuple[str, Mapping[int, Any]]]) -> dict[str, Any]:
    found = {name: of[image_id] for name, of in columns if image_id in of}
    return {"image_id": image_id, **found}


def _score_domains(
    domains: Mapping[int, str],
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    per_image: Mapping[int, Mapping[str, Any]],
    words: Words,
) -> dict[str, dict[str, Any]]:
    """{domain: {"n_images", "CIDEr", "Bleu_1" .., "ROUGE_L", and what else was scored}}.

    Each as nocaps' users do: the document frequencies of its CIDEr are those of its own references.
    Averages over the domains are therefore not the score of the whole.
    """
    found: dict[str, dict[str, Any]] = {}
    for domain in sorted({domains[i] for i in predictions}):
        own = {i: text for i, text in predictions.items() if domains[i] == domain}
        truth = {i: references[i] for i in own}
        scores = score_captions(truth, own, metrics=IN_PYTHON, words=words)
        row: dict[str, Any] = {"n_images": len(own)}
        row |= {key: value for key, value in scores.corpus.items() if value is not None}
        for key in MEANS[2:]:  # the others are there already
            values = [per_image[i][key] for i in own if key in per_image[i]]
            if len(values) == len(own):
                row[key] = sum(values) / len(values)
        found[domain] = row
    return found


def _bias(found: CorpusScores) -> dict[str, Any] | None:
    """None where no caption has a gendered word and no image asks for one."""
    figures = gender.summary(found.reference_words, found.words, lists=BIAS_LISTS)
    asked = figures["recall_male"] is not None or figures["recall_female"] is not None
    return {"lists": BIAS_LISTS, **figures} if asked or figures["neutral_rate"] != 1 else None


def check_out(out: str | os.PathLike[str]) -> pathlib.Path:
    """A directory that results can be written into, found out before the work is done.

    Raises:
      UserError: it is a file, may not be written, or cannot be there.
    """
    path = pathlib.Path(out)
    try:
        path = followed(out)
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # such as a name that is too long, or has NUL in it
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--out={str(out)!r:.80}: {why}; give another directory") from None
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"--out={out}: {str(existing)!r} is a file; give a directory")
    if not os.access(existing, os.W_OK):
        what = f"{str(existing)!r} may not be written"
        raise UserError(f"--out={out}: {what}; give another directory")
    return path


def write_predictions(
    out: pathlib.Path, predictions: Mapping[Any, str], names: Mapping[Any, str] | None = None
) -> None:
    """Writes `predictions.json`, and removes the scores of whatever stood there before.

    Args:
      names: of the images' files, where the predictions came with them.
    """
    for stale in (SCORES, PER_IMAGE):
        (out / stale).unlink(missing_ok=True)
    named = {i: {"image": name} for i, name in (names or {}).items()}
    rows = [{"image_id": i, **named.get(i, {}), "caption": t} for i, t in predictions.items()]
    write_json(out / PREDICTIONS, rows, indent=None)


def write_evaluation(out: pathlib.Path, evaluation: Evaluation) -> None:
    """Writes `per_image.json`, then `scores.json`: where that is, all of it is."""
    write_json(out / PER_IMAGE, evaluation.per_image, indent=None)
    write_json(out / SCORES, evaluation.scores)


def derangement(n: int, seed: int) -> np.ndarray:
    """A permutation of `range(n)` that leaves nothing in its place, uniform among the cyclic ones.

    Raises:
      UserError: fewer than two things cannot be deranged.
    """
    if n < 2:
        raise UserError(f"--control=shuffle needs at least 2 images, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, -1)
    return found


def shuffled(texts: Mapping[int, str], seed: int) -> dict[int, str]:
    """Every image gets another one's caption: the control that shows whether vision matters."""
    ids = list(texts)
    other = derangement(len(ids), seed)
    return {image_id: texts[ids[j]] for image_id, j in zip(ids, other, strict=True)}


def shuffle_control(
    references: Mapping[int, Sequence[str]],
    predictions: Mapping[int, str],
    real: float | None,
    seed: int,
    words: Words = PTB,
) -> dict[str, Any]:
    """CIDEr when every image is captioned as another one. A blind captioner has a ratio near 1.

    Args:
      real: the CIDEr of the unshuffled captions.
    """
    other = shuffled(predictions, seed)
    control = score_captions(references, other, metrics=("CIDEr",), words=words)
    value = control.corpus["CIDEr"]
    ratio = value / real if value is not None and real else None
    return {"kind": "shuffle", "seed": seed, "CIDEr": real, "CIDEr_shuffled": value, "ratio": ratio}
