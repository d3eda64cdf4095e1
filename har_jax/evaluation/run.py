"""Captions a split of a dataset with a run, and scores it."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from har_jax.assembly import read_run
from har_jax.data.dataset import Split, open_split
from har_jax.data.pipeline import eval_batches
from har_jax.errors import UserError
from har_jax.evaluation.clip_scorer import ClipScorer, independence_warning
from har_jax.evaluation.score import (
    ClipInput,
    Evaluation,
    check_out,
    evaluate_captions,
    write_evaluation,
    write_predictions,
)
from har_jax.inference import LoadedCaptioner, Method, load_captioner
from har_jax.progress import progress


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
"""(pixels float32 [B,H,W,3], number of the batch) → (tokens int32 [B,T], lengths [B])."""


def caption_batches(
    batches: Iterable[Mapping[str, np.ndarray]],
    generate: Generate,
    decode_texts: Callable[[np.ndarray, np.ndarray], list[str]],
    *,
    n_images: int,
    eos_id: int,
    desc: str = "captions",
) -> Captions:
    """Captions the first `n_images` images of `eval_batches`: `image`, `image_id` and `valid`."""
    texts: dict[int, str] = {}
    ended: dict[int, bool] = {}
    with progress(total=n_images, desc=desc, unit="images") as bar:
        for number, batch in enumerate(batches):
            tokens, lengths = generate(batch["image"], number)
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
    **settings: Any,
) -> Captions:
    """Captions a split, or its first `limit` images.

    Args:
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

    def generate(pixels: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        # Every batch draws with a seed of its own, which no other batch of no other seed shares.
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)
        return captioner.generate_tokens(pixels, method=method, seed=own, **settings)

    return caption_batches(
        eval_batches(split, captioner.preprocessor, batch_size=size),
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
    limit: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    captioner: LoadedCaptioner | None = None,
    **settings: Any,
) -> Evaluation:
    """Captions a split with a run, scores the captions and writes the results into `out`.

    Args:
      data, clip: instead of the run's own `config.data.dir` and `config.eval.clip_score`.
      control: "shuffle", see `evaluation.control`.
      limit: the first so many images; 0: all.
      captioner: one loaded already, of the same run.
      settings: see `caption_split`.

    Raises:
      UserError: anything missing or misfitting. All that needs no device is checked before one is
        touched.
    """
    path = check_out(out)
    config, run = read_run(checkpoint)
    data = data or config.data.dir
    rows = open_split(data, split)
    n = min(limit or len(rows), len(rows))
    clip = clip or config.eval.clip_score
    scorer = ClipScorer(clip, batch_size=config.eval.batch_size) if clip else None
    warning = independence_warning(scorer.fingerprint, run) if scorer else None
    captioner = captioner or load_captioner(checkpoint, step=step)
    captions = caption_split(
        captioner, rows, method=method, seed=seed, limit=limit, batch_size=batch_size, **settings
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
        seed=seed,
        source={
            "checkpoint": os.fspath(checkpoint),
            "stage": config.stage,
            "step": captioner.step,
            "data": data,
            "split": split,
            "method": method,
            "seed": seed,
            **settings,
        },
        warnings=[warning] if warning else [],
    )
    write_evaluation(path, evaluation)
    return evaluation


def images_of(split: Split, n: int) -> Iterator[tuple[int, bytes]]:
    """(image id, encoded bytes) of the first n images of a split."""
    for i in itertools.islice(range(len(split)), n):
        example = split[i]
        yield example.image_id, example.image
