"""Captions images without any training: `python -m har_jax.zerocap IMAGE… --clip=… --lm=…`."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from har_jax.command_line import add_scored, new_parser, path
from har_jax.errors import UserError, command
from har_jax.reports.tables import scores_table
from har_jax.settings import Count, word
from har_jax.zerocap.arguments import add_settings, guidance
from har_jax.zerocap.settings import PRESETS

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
    add("images", type=path, metavar="IMAGE", nargs="*", help="image files")
    terms: dict[str, Any] = dict(type=path, metavar="IMAGE", action="append", default=[])
    add("--plus", **terms, help="a term of a sum of images")
    add("--minus", **terms, help="a term that is subtracted")
    add("--clip", type=path, metavar="HF_DIR", required=True, help="the CLIP that guides")
    add("--lm", type=path, metavar="HF_DIR", required=True, help="the GPT-2 that writes")
    add("--preset", choices=list(PRESETS), default="repo")
    size = "images at a time (default: 8)"
    add("--batch-size", type=word(Count), default=8, metavar="N", help=size)
    add("--json", action="store_true", help="print JSON")
    group = parser.add_argument_group("a split of a dataset, captioned and scored")
    add_scored(group, "--preset=approx, and of the bootstrap")
    add = group.add_argument
    add("--data", type=path, metavar="DIR", help="a prepared dataset")
    add("--score-clip", type=path, metavar="HF_DIR", help="another CLIP, for CLIPScore")
    add("--out", type=path, metavar="DIR", help="where the results go")
    add_settings(parser)
    return parser.parse_args(argv)


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
    if bool(args.data) != bool(args.out):
        raise UserError("--data and --out go together: a split's captions and scores go to --out")
    how = guidance(args)
    from har_jax.hardware import keep_memory
    from har_jax.zerocap.run import caption_files, score_split

    keep_memory()
    if not args.data:
        caption_files(args, how)
        return 0
    print(scores_table(score_split(args, how)))
    print(f"written to {pathlib.Path(args.out) / 'scores.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
