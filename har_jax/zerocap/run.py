"""What the command does: captions of files, of a sum of images, of a split that is scored."""

from __future__ import annotations

import argparse
from typing import Any

import jax

from har_jax.command_line import print_captions
from har_jax.data.dataset import open_split, words_of
from har_jax.data.decode import Files
from har_jax.evaluation.compare import check_covers, read_other
from har_jax.evaluation.kept import NAME, KeptWriter
from har_jax.evaluation.references import numbers_of
from har_jax.evaluation.run import evaluate_writer, write_captions
from har_jax.evaluation.score import check_out
from har_jax.scorers.clip import ClipScorer
from har_jax.zerocap.captioner import ZeroCap
from har_jax.zerocap.settings import Guidance
from har_jax.zerocap.writer import ZeroCapWriter


def caption_files(args: argparse.Namespace, how: Guidance) -> None:
    """Prints a caption of each file, or of their sum."""
    files = Files([*args.images, *args.plus, *args.minus])
    files.check()
    zerocap = load(args, how)
    if args.images:
        texts = list(write_captions(ZeroCapWriter(zerocap, args.seed), files).texts.values())
        names = args.images
    else:
        features = zerocap.features([files.read(i) for i in files.ids])
        n = len(args.plus)
        total = features[:n].sum(axis=0, keepdims=True) - features[n:].sum(axis=0, keepdims=True)
        texts = [zerocap.write(total, [jax.random.key(args.seed)])[0].text]
        names = [" ".join([*(f"+{p}" for p in args.plus), *(f"-{m}" for m in args.minus)])]
    print_captions(list(zip(names, texts, strict=True)), as_json=args.json)


def score_split(args: argparse.Namespace, how: Guidance) -> dict[str, Any]:
    """Captions a split and scores the captions, as `evaluate` does; returns `scores.json`."""
    out = check_out(args.out)
    split = open_split(args.data, args.split)
    words_of(split.directory, args.words)  # refused before anything is loaded
    other = read_other(args.against, numbers_of(split)) if args.against else None
    if other is not None:
        check_covers(other, split.ids[: args.limit or len(split)])
    zerocap = load(args, how)
    scorer = ClipScorer(args.score_clip) if args.score_clip else None
    key = {"preset": args.preset, **zerocap.identity, "seed": args.seed * (how.method != "beam")}
    writer = KeptWriter(ZeroCapWriter(zerocap, args.seed), out / NAME, key)
    writer.check(split)
    evaluation = evaluate_writer(
        writer,
        split,
        out,
        scorer=scorer,
        no_clip="--score-clip=HF_DIR names no scoring CLIP",
        against=other,
        limit=args.limit,
        seed=args.seed,
        source={"stage": "zerocap", "data": args.data, "split": args.split, **key},
        warnings=zerocap.dependence(scorer.fingerprint) if scorer else [],
        desc=f"captions, {args.preset}",
        words=args.words,
    )
    return evaluation.scores


def load(args: argparse.Namespace, how: Guidance) -> ZeroCap:
    return ZeroCap(args.clip, args.lm, how, batch_size=args.batch_size)
