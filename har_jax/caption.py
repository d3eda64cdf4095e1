"""Captions images with a trained run: `python -m har_jax.caption --checkpoint=RUN IMAGE…`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from har_jax.command_line import (
    add_decoding,
    add_run,
    add_seed,
    decoding,
    new_parser,
    path,
    print_captions,
)
from har_jax.errors import command
from har_jax.settings import Tokens, word

DESCRIPTION = """\
Writes one caption per image, as PATH<TAB>CAPTION, or with --json as a JSON list of
{"image": PATH, "caption": CAPTION}. All images are checked before the model is loaded.
"""

EXAMPLES = """\
examples:
  python -m har_jax.caption --checkpoint=runs/scst photo.jpg
  python -m har_jax.caption --checkpoint=runs/scst --method=beam --json holiday/*.jpg > out.json
  python -m har_jax.caption --checkpoint=runs/mle --method=sample --temperature=0.7 --seed=1 a.png
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("caption", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("images", type=path, metavar="IMAGE", nargs="+", help="image files")
    add_run(parser)
    add_decoding(parser)
    add_seed(parser)
    add("--max-tokens", type=word(Tokens), metavar="N", help="default: as in training")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from har_jax.data.decode import Files, decode

    files = Files(args.images)
    images = [files.read(i) for i in files.ids]
    for name, image in zip(args.images, images, strict=True):
        decode(image, name=name)

    from har_jax.loading.captioner import load_captioner

    captioner = load_captioner(args.checkpoint, step=args.step)
    captions = captioner.generate(images, max_tokens=args.max_tokens, **decoding(args))
    print_captions(list(zip(args.images, captions, strict=True)), as_json=args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
