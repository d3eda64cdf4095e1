"""Captions a split of a dataset with anything that writes, and scores the captions."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from har_jax.config import Config
from har_jax.data.dataset import Split, open_split, words_of
from har_jax.data.features.cache import FeatureCache
from har_jax.data.protocols import Images, Part, Writer
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.evaluation.compare import Other, check_covers, read_other
from har_jax.evaluation.extras import objects_of
from har_jax.evaluation.kept import KeptWriter
from har_jax.evaluation.leak import check_unseen
from har_jax.evaluation.references import numbers_of
from har_jax.evaluation.score import (
    ClipInput,
    Evaluation,
    check_out,
    evaluate_captions,
    write_evaluation,
    write_predictions,
)
from har_jax.loading.captioner import LoadedCaptioner, load_captioner
from har_jax.loading.parts import read_parts
from har_jax.loading.sources import Source, read_source
from har_jax.loading.writer import CaptionerWriter
from har_jax.metrics.corpus import METRICS
from har_jax.metrics.embedding_scores import CLIP, PAC
from har_jax.progress import progress
from har_jax.scorers.clip import ClipScorer, independence_warning

log = logging.getLogger(__name__)

_BATCH_GAP = 5e-3  # seconds between two captions of which the second is another batch's


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a writer wrote.

    Attributes:
      texts: {image id: caption}, in the order of the images.
      ended: {image id: whether the caption came to its end}, False: it was cut at a length limit;
        without those of which the writer does not know.
      per_second: captions a second, see `rate`.
    """

    texts: dict[int, str]
    ended: dict[int, bool]
    per_second: float | None = dataclasses.field(default=None, compare=False)

    @property
    def cut_rate(self) -> float | None:
        """Share of captions, in [0, 1], that were cut; None where that is not known of all."""
        if len(self.ended) < len(self.texts):
            return None
        return 1 - sum(self.ended.values()) / max(1, len(self.ended))


def write_captions(
    writer: Writer, images: Images, *, limit: int = 0, desc: str = "captions"
) -> Predictions:
    """Captions images, or the first `limit` of them.

    Raises:
      UserError: a negative limit, or a writer that wrote more or fewer captions than there are
        images.
    """
    if limit < 0:
        raise UserError(f"limit is {limit}; it must be at least 1, or 0 for all images")
    if 0 < limit < len(images):
        images = Part(images, 0, limit)
    texts: dict[int, str] = {}
    ended: dict[int, bool] = {}
    written = iter(writer.write(images))
    times = [time.perf_counter()]
    with progress(total=len(images), desc=desc, unit="images") as bar:
        for image_id, found in zip(images.ids, written, strict=False):
            times.append(time.perf_counter())
            texts[image_id] = found.text
            if found.ended is not None:
                ended[image_id] = found.ended
            bar.update(1)
    if len(texts) < len(images) or next(written, None) is not None:
        raise UserError(
            f"the writer gave {len(texts)} captions or more for {len(images)} images; it must "
            "yield one for each, in their order"
        )
    return Predictions(texts, ended, rate(times))


def rate(times: Sequence[float]) -> float | None:
    """Captions a second, from when each came; the first of `times` is when the work began.

    Captions come in batches, and the first of these has compiling in it: it is left out where
    others follow. None without captions.
    """
    began, *came = times
    if not came:
        return None
    gaps = [b - a for a, b in itertools.pairwise(came)]
    # Within a batch they are a fraction of a millisecond apart.
    first = next((i for i, gap in enumerate(gaps, 1) if gap > _BATCH_GAP), len(came))
    if first == len(came):
        return len(came) / max(came[-1] - began, 1e-9)
    return (len(came) - first) / (came[-1] - came[first - 1])


def evaluate_writer(
    writer: Writer,
    split: Split,
    out: str | os.PathLike[str],
    *,
    scorer: ClipScorer | None = None,
    no_clip: str = "no scoring CLIP was given",
    pac: ClipScorer | None = None,
    objects: Mapping[int, Collection[str]] | None = None,
    control: str | None = None,
    against: Other | None = None,
    limit: int = 0,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    warnings: list[str] | None = None,
    desc: str = "captions",
    words: str = "",
    metrics: Collection[str] = METRICS,
) -> Evaluation:
    """Captions a split, scores the captions and writes the results into `out`.

    Args:
      writer: a captioner, or anything else that turns images into texts.
      scorer: for CLIPScore; `no_clip` says why there is none.
      pac: for PAC-S.
      objects: COCO's categories in each image, for CHAIR.
      control: "shuffle", see `evaluation.score.shuffle_control`.
      against: another system, to compare with over the same images.
      limit: the first so many images; 0: all.
      seed: of the control and of the bootstrap.
      source: what was scored, copied into the scores.
      words: the name of those that are counted, if not the dataset's own (`words_of`).
      metrics: some of `metrics.corpus.METRICS`: all, since captioning takes longer than Java.

    Raises:
      UserError: anything missing or misfitting.
    """

    def pairs() -> Iterator[tuple[int, bytes]]:
        return zip(split.ids, map(split.read, range(len(found.texts))), strict=False)

    path = check_out(out)
    counted = words_of(split.directory, words)
    found = write_captions(writer, split, limit=limit, desc=desc)
    speed = found.per_second
    if isinstance(writer, KeptWriter):  # some may be of processes before this one
        speed = len(found.texts) / max(writer.seconds, 1e-9)
    write_predictions(path, found.texts)
    references, domains = split.references(), split.listing.domains
    evaluation = evaluate_captions(
        {image_id: references[image_id] for image_id in found.texts},
        found.texts,
        clip=ClipInput(scorer, pairs) if scorer else None,
        no_clip=no_clip,
        pac=ClipInput(pac, pairs) if pac else None,
        objects=objects,
        ended=found.ended if found.cut_rate is not None else None,
        filenames=dict(zip(split.ids, split.filenames, strict=True)),
        control=control,
        against=against,
        seed=seed,
        source=source,
        warnings=warnings or (),
        domains=dict(zip(split.ids, domains, strict=True)) if domains is not None else None,
        words=counted,
        metrics=metrics,
    )
    # Of a single batch, and of what is kept, compiling is in it.
    evaluation.scores["captions_per_second"] = speed
    write_evaluation(path, evaluation)
    return evaluation


def evaluate_run(
    checkpoint: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    step: str | int = "best",
    method: str = "greedy",
    data: str | None = None,
    clip: str | None = None,
    pac: str | None = None,
    instances: str | None = None,
    control: str | None = None,
    against: str | None = None,
    limit: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    captioner: LoadedCaptioner | None = None,
    features: str | None = None,
    allow_overlap: bool = False,
    words: str = "",
    given: Mapping[str, Any] | None = None,
    metrics: Collection[str] = METRICS,
    **settings: Any,
) -> Evaluation:
    """`evaluate_writer` of a run, or of another captioner. All that needs no device is checked
    before one is touched.

    Args:
      checkpoint: what `load_captioner` takes; of one that is no run `data` has to be given.
      data, clip: instead of the run's own `config.data.dir` and `config.eval.clip_score`.
      pac: HF directory of the CLIP of PAC-S.
      instances: COCO's instances JSON, for CHAIR; the references' objects count in any case.
      against: COCO results of another system, or its evaluation's directory.
      captioner: one loaded already, of the same run.
      features: a feature cache instead of the run's own `config.data.features`, or "none" to
        encode the images. The run's own is used where it holds the split.
      allow_overlap: only warn where images are scored that the run was trained on.
      words: as in `evaluate_writer`; a function has to be named here, whatever the run says.
      given: what else `load_captioner` takes: `encoder`, `lm`, `projector`, `adapter`, `prompt`.
      metrics: as in `evaluate_writer`.
      settings: of `decoding.settings.DecodeSettings`.
    """
    # 1. What is to be scored, and whether it may be.
    check_out(out)
    how = DecodeSettings(method, **settings)
    described = read_source(checkpoint, given or {}, step)
    config, kind = described.config, described.kind
    rows, warnings = _rows(described, data, split, allow=allow_overlap)
    words_of(rows.directory, words)  # refused before anything is loaded
    scored = rows.ids[: limit or len(rows)]
    other = read_other(against, numbers_of(rows)) if against else None
    if other is not None:
        check_covers(other, scored)
    objects = _objects(instances, rows, scored) if instances else None
    cache = features_for(config, rows, features)
    # 2. Who scores, and who writes.
    judges, told = _judges(described, clip, pac)
    captioner = captioner or load_captioner(checkpoint, step=step, **(given or {}))
    source = {"checkpoint": described.name, "step": captioner.step}
    source |= {"stage": config.stage if kind == "run" else kind}
    source |= {"data": data or config.data.dir, "split": split, "method": method, "seed": seed}
    source |= {"features": str(cache.directory)} if cache else {}
    return evaluate_writer(
        CaptionerWriter(captioner, how, seed, batch_size, cache),
        rows,
        out,
        scorer=judges.get(CLIP.key),
        pac=judges.get(PAC.key),
        objects=objects,
        no_clip="neither --clip=HF_DIR nor the run's config.eval.clip_score names a scoring CLIP",
        control=control,
        against=other,
        limit=limit,
        seed=seed,
        source=source | settings,
        warnings=warnings + told,
        desc=f"captions, {method}",
        words=words,
        metrics=metrics,
    )


def _objects(instances: str, rows: Split, scored: Collection[int]) -> dict[int, set[str]]:
    """See `evaluation.extras.objects_of`."""
    return objects_of(instances, numbers_of(rows) or {i: i for i in rows.ids}, scored)


def _judges(
    captioner: Source, clip: str | None, pac: str | None
) -> tuple[dict[str, ClipScorer], list[str]]:
    """The networks that score, by the key of their score, and warnings; `clip` is the captioner's
    own choice where it is None."""
    config = captioner.config.eval
    given = ((CLIP, clip or config.clip_score), (PAC, pac))
    judges = {
        kind.key: ClipScorer(path, batch_size=config.batch_size, kind=kind)
        for kind, path in given
        if path
    }
    told = (independence_warning(x.fingerprint, captioner.run, k) for k, x in judges.items())
    return judges, [text for text in told if text]


def _rows(
    captioner: Source, data: str | None, split: str, *, allow: bool
) -> tuple[Split, list[str]]:
    """What is scored, and warnings about it; see `evaluate_run`."""
    if captioner.kind == "run":
        rows = open_split(data or captioner.config.data.dir, split)
        return rows, check_unseen(captioner.name, rows, allow=allow)
    if not data:
        raise UserError(
            f"{captioner.name} is no run of har_jax.train and names no dataset; give one, "
            "--data=DIR"
        )
    unknown = f"what {captioner.name} was trained on is not known: overlap was not looked for"
    return open_split(data, split), [unknown]


def features_for(config: Config, split: Split, given: str | None) -> FeatureCache | None:
    """The cache that holds a split for a run, or None: its images are to be encoded.

    Args:
      given: the directory of another cache, or "none" to encode the images.

    Raises:
      UserError: the cache is stale or damaged, one that was asked for lacks the split, or there is
        none and the run cannot encode images.
    """
    imported = not config.model.encoder
    if given == "none":
        if imported:
            raise UserError(
                "this run reads imported features and cannot encode images: --features=none cannot "
                "be; give a cache of its features"
            )
        return None
    directory = given or config.data.features
    if not directory:
        return None
    needed = imported or given is not None
    if not needed and not os.path.exists(directory):
        log.info("the run's feature cache %s is gone; images are encoded", directory)
        return None
    cache = FeatureCache(directory)
    if not imported:
        read_parts(config.model, cache)  # refuses a stale one
    elif given is not None:
        _same_import(FeatureCache(config.data.features), cache)
    own_data = split.directory == pathlib.Path(config.data.dir)
    if not needed and not (own_data and cache.covers(split)):
        return None
    cache.of(split)
    return cache


def _same_import(own: FeatureCache, other: FeatureCache) -> None:
    """Imports have no weights to compare: their names and shapes must agree."""
    if (own.origin.encoder, own.shape) != (other.origin.encoder, other.shape):
        raise UserError(
            f"--features={other.directory} holds {other.shape} of {other.origin.encoder!r}, but "
            f"the run was trained on {own.shape} of {own.origin.encoder!r}; import features of the "
            "same encoder under the same --name"
        )
