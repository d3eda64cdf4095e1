"""Captions a split of a dataset with a run, and scores it."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from har_jax.data.dataset import Split, open_split
from har_jax.data.features.cache import FeatureCache
from har_jax.data.pipeline import eval_batches, visual
from har_jax.errors import UserError
from har_jax.evaluation.compare import check_covers, read_other
from har_jax.evaluation.domains import score_domains
from har_jax.evaluation.feature_source import features_for
from har_jax.evaluation.leak import check_unseen
from har_jax.evaluation.score import (
    ClipInput,
    Evaluation,
    check_out,
    evaluate_captions,
    write_evaluation,
    write_predictions,
)
from har_jax.loading.blueprint import read_run
from har_jax.loading.writer import LoadedCaptioner, Method, load_captioner
from har_jax.progress import progress
from har_jax.scorers.clip import ClipScorer, independence_warning


@dataclasses.dataclass(frozen=True)
class Captions:
    """What a captioner wrote.

    Attributes:
      texts: {image id: caption}, in the order of the split.
      ended: {image id: whether the caption reached EOS}; False: cut at the length limit.
    """

    texts: dict[int, str]
    ended: dict[int, bool]

    @property
    def cut_rate(self) -> float:
        """Share of captions, in [0, 1], that were cut."""
        return 1 - sum(self.ended.values()) / max(1, len(self.ended))


Generate = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(pixels float32 [B,H,W,3] or features [B,S,Dv], number of the batch) → (tokens int32 [B,T],
lengths [B])."""


def caption_batches(
    batches: Iterable[Mapping[str, np.ndarray]],
    generate: Generate,
    decode_texts: Callable[[np.ndarray, np.ndarray], list[str]],
    *,
    n_images: int,
    eos_id: int,
    desc: str = "captions",
) -> Captions:
    """Captions the first `n_images` of `eval_batches`."""
    texts: dict[int, str] = {}
    ended: dict[int, bool] = {}
    with progress(total=n_images, desc=desc, unit="images") as bar:
        for number, batch in enumerate(batches):
            tokens, lengths = generate(visual(batch), number)
            last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
            done = (last == eos_id) & (lengths > 0)
            written = decode_texts(tokens, lengths)
            before = len(texts)
            for image_id, valid, text, whole in zip(
                batch["image_id"].tolist(), batch["valid"], written, done.tolist(), strict=True
            ):
                if valid and len(texts) < n_images:
                    texts[image_id], ended[image_id] = text, whole
            bar.update(len(texts) - before)
            if len(texts) >= n_images:
                break
    return Captions(texts, ended)


def caption_split(
    captioner: LoadedCaptioner,
    split: Split,
    *,
    method: Method = "greedy",
    seed: int = 0,
    limit: int = 0,
    batch_size: int | None = None,
    features: FeatureCache | None = None,
    **settings: Any,
) -> Captions:
    """Captions a split, or its first `limit` images.

    Args:
      features: of the captioner's encoder; then no image is read.
      settings: `max_tokens`, `beams`, `temperature`, `top_k`, `top_p` of
        `LoadedCaptioner.generate_tokens`.

    Raises:
      UserError: an unknown method or a negative limit.
    """
    if limit < 0 or seed < 0:
        raise UserError(
            f"limit is {limit} and seed {seed}; limit must be at least 1, or 0 for all images, and "
            "seed at least 0"
        )
    size = batch_size or captioner.config.eval.batch_size
    size = -(-size // captioner.mesh.size) * captioner.mesh.size

    def generate(seen: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        # Every batch draws with a seed of its own, which no other batch of no other seed shares.
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)
        return captioner.generate_tokens(seen, method=method, seed=own, **settings)

    return caption_batches(
        eval_batches(split, captioner.preprocessor, batch_size=size, features=features),
        generate,
        captioner.decode_texts,
        n_images=min(limit or len(split), len(split)),
        eos_id=captioner.tokenizer.eos_id,
        desc=f"captions, {method}",
    )


def evaluate_run(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    step: str | int = "best",
    method: Method = "greedy",
    data: str | None = None,
    clip: str | None = None,
    control: str | None = None,
    against: str | None = None,
    limit: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    captioner: LoadedCaptioner | None = None,
    features: str | None = None,
    allow_overlap: bool = False,
    **settings: Any,
) -> Evaluation:
    """Captions a split with a run, scores the captions and writes the results into `out`.

    Args:
      data, clip: instead of the run's own `config.data.dir` and `config.eval.clip_score`.
      control: "shuffle", see `evaluation.control`.
      against: COCO results of another system, or its evaluation's directory.
      limit: the first so many images; 0: all.
      captioner: one loaded already, of the same run.
      features: a feature cache instead of the run's own `config.data.features`, or "none" to
        encode the images. The run's own is used where it holds the split.
      allow_overlap: only warn where images are scored that the run was trained on.
      settings: see `caption_split`.

    Raises:
      UserError: anything missing or misfitting. All that needs no device is checked before one is
        touched.
    """
    path = check_out(out)
    other = read_other(against) if against else None
    config, run = read_run(checkpoint)
    data = data or config.data.dir
    rows = open_split(data, split)
    n = min(limit or len(rows), len(rows))
    warnings = check_unseen(checkpoint, rows, allow=allow_overlap)
    if other is not None:
        check_covers(other, rows.image_ids[:n])
    cache = features_for(config, rows, features)
    clip = clip or config.eval.clip_score
    scorer = ClipScorer(clip, batch_size=config.eval.batch_size) if clip else None
    if scorer and (warning := independence_warning(scorer.fingerprint, run)):
        warnings.append(warning)
    captioner = captioner or load_captioner(checkpoint, step=step)
    captions = caption_split(
        captioner,
        rows,
        method=method,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        features=cache,
        **settings,
    )
    write_predictions(path, captions.texts)
    references = rows.references()
    evaluation = evaluate_captions(
        {image_id: references[image_id] for image_id in captions.texts},
        captions.texts,
        clip=ClipInput(scorer, lambda: images_of(rows, n)) if scorer else None,
        no_clip="neither --clip=HF_DIR nor the run's config.eval.clip_score names a scoring CLIP",
        ended=captions.ended,
        filenames=dict(zip(rows.image_ids, rows.filenames, strict=True)),
        control=control,
        against=other,
        seed=seed,
        source={
            "checkpoint": os.fspath(checkpoint),
            "stage": config.stage,
            "step": captioner.step,
            "data": data,
            "split": split,
            "method": method,
            "seed": seed,
            **({"features": str(cache.directory)} if cache else {}),
            **settings,
        },
        warnings=warnings,
    )
    if rows.listing.domains is not None:
        domains = dict(zip(rows.image_ids, rows.listing.domains, strict=True))
        evaluation.scores["domains"] = score_domains(
            domains, references, captions.texts, evaluation.per_image
        )
    write_evaluation(path, evaluation)
    return evaluation


def images_of(split: Split, n: int) -> Iterator[tuple[int, bytes]]:
    """(image id, encoded bytes) of the first n images of a split."""
    for i in itertools.islice(range(len(split)), n):
        example = split[i]
        yield example.image_id, example.image
