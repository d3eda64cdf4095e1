"""Scores captions that another tool wrote, from files. Needs a device for CLIPScore only."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping

from har_jax.data.dataset import captions_path, open_split, words_of
from har_jax.data.description import CARD
from har_jax.data.image_files import ImageFiles
from har_jax.data.readers.predictions import read_predictions
from har_jax.errors import UserError
from har_jax.evaluation.compare import check_covers, read_other
from har_jax.evaluation.extras import clip_input, objects_of
from har_jax.evaluation.references import (
    by_number,
    read_references,
    restrict,
)
from har_jax.evaluation.score import (
    Evaluation,
    check_out,
    evaluate_captions,
    write_evaluation,
    write_predictions,
)
from har_jax.metrics.corpus import DEFAULT_METRICS
from har_jax.metrics.embedding_scores import CLIP, PAC
from har_jax.text.words import PTB, Words, find_words

_NO_CLIP = "no scoring CLIP was given (--clip=HF_DIR, and --images=DIR with the image files)"


def evaluate_files(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    clip: str | None = None,
    images: str | None = None,
    pac: str | None = None,
    instances: str | None = None,
    metrics: Collection[str] = DEFAULT_METRICS,
    control: str | None = None,
    against: str | None = None,
    limit: int = 0,
    seed: int = 0,
    words: str = "",
) -> Evaluation:
    """Scores captions (`data.readers.predictions`) against COCO captions, Karpathy's file, rows of
    image and caption, or a prepared dataset; writes into `out`.

    Args:
      references: a file, a dataset, or DATASET:SPLIT.
      split: of Karpathy's file, or of the dataset.
      clip: HF directory of the CLIP that scores; `images` is the folder of the image files.
      pac: HF directory of the CLIP of PAC-S, which needs `images` too.
      instances: COCO's instances JSON, for CHAIR; the references' objects count in any case.
      metrics: some of `metrics.corpus.METRICS`, and CHAIR; those that start Java are of no default.
      against: COCO results of another system, or its evaluation's directory.
      limit: score the first so many predictions; 0: all.
      words: the name of those that are counted; "": the dataset's that the references belong to,
        and PTB's of other files.

    Raises:
      UserError: anything wrong with the files; nothing is written then.
    """
    path = check_out(out)
    place, split = _split_in(os.fspath(references), split)
    references, counted = _counted(pathlib.Path(place), split, words)
    given = read_predictions(predictions)
    known = read_references(references, split)
    named = by_number(known, given)
    texts = {number: given.captions[written] for number, written in named.items()}
    truth, warning = restrict(known, texts)
    warnings = [warning] if warning else []
    if 0 < limit < len(texts):
        texts = dict(itertools.islice(texts.items(), limit))
        warnings.append(f"only the first {limit} predictions were scored (limit)")
    other = read_other(against, known.numbers) if against else None
    if other is not None:
        check_covers(other, list(texts))
    if pac and not images:
        raise UserError("--pac needs --images=DIR, the image files")
    why = "no images were given (--images=DIR with the image files)" if clip else _NO_CLIP
    paths = image_files(images, known.filenames, texts) if images and (clip or pac) else {}
    objects = objects_of(instances, known.numbers, texts) if instances else None
    evaluation = evaluate_captions(
        truth,
        texts,
        clip=clip_input(clip, CLIP, paths),
        pac=clip_input(pac, PAC, paths),
        objects=objects,
        no_clip=why,
        filenames=known.filenames,
        metrics=metrics,
        control=control,
        against=other,
        seed=seed,
        source={"predictions": os.fspath(predictions), "references": known.name},
        warnings=warnings,
        domains=known.domains if known.domains.keys() >= texts.keys() else None,
        words=counted,
    )
    # As the predictions have them: numbers are ours.
    rows = [{**row, "image_id": named[row["image_id"]]} for row in evaluation.per_image]
    evaluation = dataclasses.replace(evaluation, per_image=rows)
    write_predictions(path, {named[number]: text for number, text in texts.items()}, given.names)
    write_evaluation(path, evaluation)
    return evaluation


def _split_in(references: str, split: str) -> tuple[str, str]:
    """DATASET:SPLIT as its two parts; anything that is there as it is."""
    place, mark, named = references.rpartition(":")
    if mark and named and not os.path.exists(references) and os.path.isdir(place):
        return place, named
    return references, split


def _counted(references: pathlib.Path, split: str, words: str) -> tuple[pathlib.Path, Words]:
    """The file of references, of a dataset the captions of its split; and the words to be counted.

    Raises:
      UserError: a directory that is no dataset or has no such split, and see `words_of`.
    """
    if os.path.isdir(references):
        found = open_split(references, split)
        return captions_path(found.directory, split), words_of(found.directory, words)
    name = references.name
    if name.startswith("captions.") and os.path.isfile(references.parent / CARD):
        return references, words_of(references.parent, words)
    return references, find_words(words or PTB.name)


def image_files(
    folder: str | os.PathLike[str], names: Mapping[int, str], image_ids: Iterable[int]
) -> dict[int, pathlib.Path]:
    """The file of every image, below `folder` as the references name it or by its bare name.

    Raises:
      UserError: an image without a file.
    """
    files, found = ImageFiles([folder]), {}
    for image_id in image_ids:
        name = names.get(image_id, "")
        path = files.find([name, pathlib.Path(name).name]) if name else None
        if path is None:
            told = f"{name!r:.80}{files.near(name)}" if name else "the references name none"
            raise UserError(
                f"--images={os.fspath(folder)}: no file of image {image_id} ({told}); give the "
                "folder that holds the images, or leave --images out"
            )
        found[image_id] = path
    return found
