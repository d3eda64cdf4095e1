"""`python -m har_jax.prepare`: writes the datasets (and models) that training starts from.

Each subcommand has a function in `har_jax.preparation` that declares its arguments and names the
function to run.
"""

from __future__ import annotations

from collections.abc import Sequence

from har_jax.command_line import new_parser
from har_jax.errors import command
from har_jax.preparation.features import add_features
from har_jax.preparation.photographs import add_coco, add_flickr, add_folder, add_nocaps
from har_jax.preparation.scenes import add_foundation, add_scenes
from har_jax.preparation.verify import add_verify

SUBCOMMANDS = {
    "scenes": add_scenes,
    "coco": add_coco,
    "flickr": add_flickr,
    "nocaps": add_nocaps,
    "folder": add_folder,
    "foundation": add_foundation,
    "features": add_features,
    "verify": add_verify,
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

The result is a TFDS directory (ArrayRecord, the schema of coco_captions): read it with
tfds.builder_from_directory(DIR).as_data_source("train"), or give it to train as config.data.dir.
"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs one subcommand; see `--help`."""
    what = "Write a dataset, or the miniature foundation models, under --out."
    parser = new_parser("prepare", what, EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="|".join(SUBCOMMANDS))
    for add in SUBCOMMANDS.values():
        add(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
