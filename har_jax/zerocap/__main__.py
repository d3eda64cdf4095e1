"""Captions images without any training: `python -m har_jax.zerocap IMAGE… --clip=… --lm=…`."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from har_jax.command_line import add_seed, new_parser
from har_jax.errors import UserError, command
from har_jax.zerocap.settings import PRESETS, Guidance

if TYPE_CHECKING:
    from har_jax.zerocap.captioner import ZeroCap

DESCRIPTION = """\
ZeroCap (Tewel et al. 2022): a GPT-2 writes, a CLIP guides it, and nothing is trained. Takes the
Hugging Face directories (or hub names) of any CLIP and any GPT-2.

Images are captioned as PATH<TAB>CAPTION, or with --json as a list of objects. With --data a split
of a prepared dataset is captioned and scored into --out, as `evaluate` does; what is written is
kept in OUT/captions.jsonl, and the same command goes on after a kill.

--preset=repo    what the authors' program does (default)
--preset=paper   the constants of their article
--preset=approx  one look at each word, log p + λ 100 cos over 50 candidates, then a draw

--plus and --minus add and subtract images, as in --plus=king.jpg --plus=woman.jpg --minus=man.jpg:
one caption of the sum of their features.
"""

EXAMPLES = """\
examples:
  python -m har_jax.zerocap photo.jpg --clip=openai/clip-vit-base-patch32 --lm=gpt2-medium
  python -m har_jax.zerocap photo.jpg --clip=DIR --lm=DIR --preset=approx --seed=1
  python -m har_jax.zerocap --plus=a.jpg --minus=b.jpg --clip=DIR --lm=DIR --end-factor=1.06 \\
      --fusion=0.95 --norm-exponent=0.95
  python -m har_jax.zerocap --data=data/coco --split=test --limit=100 --clip=DIR --lm=DIR \\
      --score-clip=models/clip-vit-base-patch16 --out=runs/zerocap
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("zerocap", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="*", help="image files")
    add("--plus", metavar="IMAGE", action="append", default=[], help="a term of a sum of images")
    add("--minus", metavar="IMAGE", action="append", default=[], help="a term that is subtracted")
    add("--clip", metavar="HF_DIR", required=True, help="the CLIP that guides")
    add("--lm", metavar="HF_DIR", required=True, help="the GPT-2 that writes")
    add("--preset", choices=list(PRESETS), default="repo")
    add("--batch-size", type=int, default=8, metavar="N", help="images at a time (default: 8)")
    add("--json", action="store_true", help="print JSON")
    add_seed(parser, of="--preset=approx, and of the bootstrap")
    add = parser.add_argument_group("a split of a dataset, captioned and scored").add_argument
    add("--data", metavar="DIR", help="a prepared dataset")
    add("--split", default="test", help="of the dataset (default: test)")
    add("--limit", type=int, default=0, metavar="N", help="first N images only")
    add("--score-clip", metavar="HF_DIR", help="another CLIP, for CLIPScore")
    add("--against", metavar="OTHER", help="another system: COCO results JSON, or its --out")
    add("--out", metavar="DIR", help="where the results go")
    group = parser.add_argument_group("settings, instead of the preset's")
    for field, kind in _settings():
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"how.{field.name}",
            metavar="|".join(kind) if isinstance(kind, tuple) else kind.__name__.upper(),
            help=f"{field.metadata['help']} (repo: {field.default})",
        )
    return parser.parse_args(argv)


def _settings() -> list[tuple[dataclasses.Field, type | tuple[str, ...]]]:
    """The settings, each with its type, ranges aside, or the words that are allowed."""
    hints = typing.get_type_hints(Guidance)
    kinds = {name: typing.get_args(hint) or hint for name, hint in hints.items()}
    return [(field, kinds[field.name]) for field in dataclasses.fields(Guidance)]


def guidance(args: argparse.Namespace) -> Guidance:
    """The preset with what the command line changes.

    Raises:
      UserError: a value is not of its setting's type or out of its range.
    """
    changes: dict[str, Any] = {}
    for field, kind in _settings():
        text = getattr(args, f"how.{field.name}")
        if text is not None:
            flag = f"--{field.name.replace('_', '-')}"
            changes[field.name] = text if isinstance(kind, tuple) else _value(text, kind, flag)
    return Guidance.preset(args.preset, changes)


def _value(text: str, kind: type, flag: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{flag}={text}: it must be true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{flag}={text}: it must be {what}") from None


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    given = [name for name in ("images", "data") if getattr(args, name)]
    given += ["plus and --minus"] * bool(args.plus or args.minus)
    if len(given) != 1:
        raise UserError(
            "give images to caption, or --data=DIR for a split of a dataset, or --plus and --minus "
            f"for a sum of images; got {' and '.join(given) or 'none of them'}"
        )
    if args.batch_size < 1 or args.limit < 0 or args.seed < 0:
        raise UserError(
            f"--batch-size={args.batch_size} --limit={args.limit} --seed={args.seed}: the first "
            "must be at least 1, the others at least 0"
        )
    if bool(args.data) != bool(args.out):
        raise UserError("--data and --out go together: a split's captions and scores go to --out")
    how = guidance(args)
    if args.data:
        return score_split(args, how)
    return caption_files(args, how)


def caption_files(args: argparse.Namespace, how: Guidance) -> int:
    """Prints a caption of each file, or of their sum."""
    from har_jax.data.images import Files

    files = Files([*args.images, *args.plus, *args.minus])
    files.check()

    import jax

    from har_jax.evaluation.run import write_captions
    from har_jax.files import dumps
    from har_jax.zerocap.writer import ZeroCapWriter

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
    if args.json:
        rows = [{"image": n, "caption": t} for n, t in zip(names, texts, strict=True)]
        print(dumps(rows, indent=1))
    else:
        for name, text in zip(names, texts, strict=True):
            print(f"{name}\t{text}")
    return 0


def score_split(args: argparse.Namespace, how: Guidance) -> int:
    """Captions a split and scores the captions, as `evaluate` does."""
    from har_jax.data.dataset import open_split
    from har_jax.evaluation.compare import check_covers, read_other
    from har_jax.evaluation.kept import NAME, KeptWriter
    from har_jax.evaluation.run import evaluate_writer
    from har_jax.evaluation.score import check_out
    from har_jax.reports.tables import scores_table
    from har_jax.scorers.clip import ClipScorer
    from har_jax.zerocap.writer import ZeroCapWriter

    out = check_out(args.out)
    split = open_split(args.data, args.split)
    other = read_other(args.against) if args.against else None
    if other is not None:
        check_covers(other, split.ids[: args.limit or len(split)])
    zerocap = load(args, how)
    scorer = ClipScorer(args.score_clip) if args.score_clip else None
    key = {"preset": args.preset, **zerocap.identity, "seed": args.seed * (how.method != "beam")}
    evaluation = evaluate_writer(
        KeptWriter(ZeroCapWriter(zerocap, args.seed), out / NAME, key),
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
    )
    print(scores_table(evaluation.scores))
    print(f"written to {pathlib.Path(args.out) / 'scores.json'}")
    return 0


def load(args: argparse.Namespace, how: Guidance) -> ZeroCap:
    from har_jax.zerocap.captioner import ZeroCap

    return ZeroCap(args.clip, args.lm, how, batch_size=args.batch_size)


if __name__ == "__main__":
    raise SystemExit(main())
