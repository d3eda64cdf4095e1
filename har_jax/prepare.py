"""`python -m har_jax.prepare`: writes the datasets (and models) that training starts from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from har_jax.errors import UserError, command

EXAMPLES = """\
examples:
  python -m har_jax.prepare scenes --out=data/scenes
  python -m har_jax.prepare foundation --data=data/scenes --out=models/scenes
  python -m har_jax.prepare coco --out=data/coco --images=train2014 --images=val2014 \\
      --captions=dataset_coco.json --restval=train
  python -m har_jax.prepare coco --out=data/mini --images=train2017 --captions=captions_train2017.json

The result is a TFDS directory (ArrayRecord, the schema of coco_captions): read it with
tfds.builder_from_directory(DIR).as_data_source("train"), or give it to train as config.data.dir.
"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs one subcommand; see `--help`."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m har_jax.prepare",
        description="Write a dataset, or the miniature foundation models, under --out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="scenes|coco|foundation")
    for add in (_add_scenes,):
        add(commands)
    return parser


def _add_scenes(commands: Any) -> None:
    parser = commands.add_parser(
        "scenes",
        help="the embedded dataset: drawn images, five captions each (half a minute)",
        description="Draw scenes and caption them. The same seed gives the same dataset anywhere.",
    )
    _add_out(parser)
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    for split, size in (("train", 4000), ("val", 500), ("test", 500)):
        parser.add_argument(
            f"--{split}", type=int, default=size, metavar="N", help=f"images (default: {size})"
        )
    parser.set_defaults(run=_scenes)


def _scenes(arguments: argparse.Namespace) -> None:
    from har_jax.data import dataset, scenes
    from har_jax.progress import track

    sizes = {split: getattr(arguments, split) for split in scenes.SIZES}
    dataset.check_free(arguments.out, overwrite=arguments.overwrite)
    examples = track(
        scenes.generate(arguments.seed, sizes),
        "drawing scenes",
        total=sum(sizes.values()),
        unit="images",
    )
    card = dataset.write(
        arguments.out,
        examples,
        name="scenes",
        splits=list(sizes),
        description="Drawn scenes with five captions each, by annotators who differ.",
        settings={"seed": arguments.seed, "sizes": sizes},
        overwrite=arguments.overwrite,
    )
    _report(arguments.out, card)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="where the result is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")


def _report(out: str, card: dict[str, Any]) -> None:
    """What was written, on stdout."""
    print(f"{card['name']} -> {out}")
    for split, figures in card["splits"].items():
        references = figures["references_per_image"]
        spread = ", ".join(f"{n} of {count} images" for n, count in references.items())
        words = figures["words_per_caption"]
        print(f"  {split}: {figures['images']} images, {figures['captions']} captions")
        print(f"    references per image: {spread}")
        print(
            f"    words per caption: {words['mean']} on average, {words['max']} at most; "
            f"vocabulary of {figures['vocabulary']} words"
        )


if __name__ == "__main__":
    raise SystemExit(main())
