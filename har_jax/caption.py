"""Captions images with a trained captioner: `python -m har_jax.caption --checkpoint=RUN IMAGE…`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from har_jax.command_line import (
    add_captioner,
    add_decoding,
    add_seed,
    captioner_of,
    decoding,
    new_parser,
    path,
    print_captions,
    setup_logging,
)
from har_jax.errors import UserError, command
from har_jax.hardware import keep_memory
from har_jax.settings import Count, Tokens, word

DESCRIPTION = """\
Writes one caption per image, as PATH<TAB>CAPTION, or with --json as a JSON list of
{"image": PATH, "caption": CAPTION}. All images are checked before the model is loaded.

With --out=FILE.jsonl, .json or .csv any number of images is captioned into a file, which
`evaluate --predictions=FILE` reads; after a kill the same command goes on where it was. Images that
do not decode are skipped and listed in FILE.skipped.jsonl. Each row has image_id (the number that
the file's name consists of, as COCO's do, else the name), image (its name, below DIR) and caption.
"""

EXAMPLES = """\
examples:
  python -m har_jax.caption --checkpoint=runs/scst photo.jpg
  python -m har_jax.caption --checkpoint=runs/scst --method=beam --json a.jpg b.jpg > out.json
  python -m har_jax.caption --checkpoint=runs/scst holiday --out=captions.jsonl
  python -m har_jax.caption --checkpoint=exported 'photos/**/*.jpg' --out=captions.csv
  python -m har_jax.caption --checkpoint=runs/mle --method=sample --temperature=0.7 --seed=1 a.png
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("caption", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    images = "image files, folders of them, or patterns in quotes"
    add("images", type=path, metavar="IMAGE", nargs="+", help=images)
    add_captioner(parser)
    add_decoding(parser)
    add_seed(parser)
    add("--max-tokens", type=word(Tokens), metavar="N", help="default: as in training")
    add("--json", action="store_true", help="print JSON")
    add("--out", type=path, metavar="FILE", help="captions.jsonl, .json or .csv")
    add("--batch-size", type=word(Count), metavar="N", help="images per device call, with --out")
    add("--overwrite", action="store_true", help="replace --out, or begin it anew")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    keep_memory()
    if args.out:
        return into_file(args)
    for flag in ("batch_size", "overwrite"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} goes with --out=FILE")
    from har_jax.data.decode import decode
    from har_jax.data.image_list import paths_of

    paths = paths_of(args.images)
    for name in paths:
        decode(name)

    from har_jax.loading.captioner import load_captioner

    source, settings = captioner_of(args)
    captioner = load_captioner(source, **settings)
    captions = captioner.generate(paths, max_tokens=args.max_tokens, **decoding(args))
    print_captions(list(zip(paths, captions, strict=True)), as_json=args.json)
    return 0


def into_file(args: argparse.Namespace) -> int:
    """What needs no model first, then one batch after the other."""
    from har_jax.data.image_list import ImageList
    from har_jax.distributed import join_if_asked
    from har_jax.evaluation import captions_file

    if args.json:
        raise UserError("--json is of what is printed; give --out=FILE.json")
    captions_file.check_out(args.out, overwrite=args.overwrite)
    images = ImageList.of(args.images)
    source, settings = captioner_of(args)
    setup_logging()
    join_if_asked()

    import jax

    from har_jax.decoding.settings import DecodeSettings
    from har_jax.loading.captioner import load_captioner

    settled: dict[str, Any] = decoding(args) | {"max_tokens": args.max_tokens}
    drawn = {"seed": settled.pop("seed"), "batch_size": args.batch_size}
    captioner = load_captioner(source, **settings)
    begun = {"source": {"checkpoint": source, **settings}, "overwrite": args.overwrite}
    how = DecodeSettings(**settled)
    made = captions_file.caption_into(captioner, images, args.out, how, **begun, **drawn)
    if jax.process_index() == 0:
        captions_file.tell(made, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
