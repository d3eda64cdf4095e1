"""`python -m har_jax.prepare`: writes the datasets (and models) that training starts from.

Each subcommand has a function in `har_jax.preparation` that declares its arguments and names the
function to run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from har_jax.command_line import new_parser, path
from har_jax.errors import UserError, command
from har_jax.preparation.features import add_features
from har_jax.preparation.photographs import add_coco, add_flickr, add_folder, add_nocaps
from har_jax.preparation.scenes import add_foundation, add_scenes
from har_jax.preparation.verify import add_verify
from har_jax.settings import Count, word


def add_view(commands: Any) -> None:
    """`view` stands here, as its page is of a room that stands beside `preparation`."""
    what = "write a page of a dataset: images, captions, lengths, splits, what was dropped"
    parser = commands.add_parser("view", help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.set_defaults(run=view)
    add = parser.add_argument
    add("directory", type=path, metavar="DIR", help="a prepared dataset")
    add("--out", type=path, metavar="FILE", help="the page (default: DIR/view.html)")
    add("--split", default="", metavar="NAME", help="the only one to show (default: all)")
    images = "images of each split (default: 24)"
    add("--limit", type=word(Count), default=24, metavar="N", help=images)


def view(arguments: argparse.Namespace) -> int:
    from har_jax.reports.dataset import write_dataset_page

    out, named = arguments.out, {"split": arguments.split, "limit": arguments.limit}
    if out and os.path.isdir(out):
        raise UserError(f"--out={out} is a directory; give a file, such as page.html")
    print(f"page: {write_dataset_page(arguments.directory, out=out, **named)}")
    return 0


SUBCOMMANDS = {
    "scenes": add_scenes,
    "coco": add_coco,
    "flickr": add_flickr,
    "nocaps": add_nocaps,
    "folder": add_folder,
    "foundation": add_foundation,
    "features": add_features,
    "verify": add_verify,
    "view": add_view,
}

EXAMPLES = """\
examples:
  python -m har_jax.prepare scenes --out=data/scenes
  python -m har_jax.prepare foundation --data=data/scenes --out=models/scenes
  python -m har_jax.prepare features --data=data/coco --encoder=models/clip-vit-large-patch14 \\
      --dtype=bfloat16 --out=data/coco-clip-l
  python -m har_jax.prepare coco --out=data/coco --images=train2014 --images=val2014 \\
      --captions=dataset_coco.json --restval=train
  python -m har_jax.prepare coco --out=data/coco2017 --images=train2017 --images=val2017 \\
      --captions=captions_train2017.json --split=train \\
      --captions=captions_val2017.json --split=val
  python -m har_jax.prepare flickr --out=data/flickr30k --images=flickr30k-images \\
      --captions=dataset_flickr30k.json
  python -m har_jax.prepare nocaps --out=data/nocaps --images=nocaps/val \\
      --captions=nocaps_val_4500_captions.json
  python -m har_jax.prepare folder --out=data/mine --images=pictures --captions=captions.csv \\
      --val=0.05 --test=0.05
  python -m har_jax.prepare verify data/coco
  python -m har_jax.prepare view data/coco --out=coco.html

The result is a TFDS directory (ArrayRecord, the schema of coco_captions): read it with
tfds.builder_from_directory(DIR).as_data_source("train"), or give it to train as config.data.dir.
"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs one subcommand; see `--help`."""
    what = "Write a dataset, or the miniature foundation models, under --out."
    parser = new_parser("prepare", what, EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in SUBCOMMANDS.values():
        add(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
