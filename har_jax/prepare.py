"""`python -m har_jax.prepare`: writes the datasets (and models) that training starts from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from har_jax.errors import command

EXAMPLES = """\
examples:
  python -m har_jax.prepare scenes --out=data/scenes
  python -m har_jax.prepare foundation --data=data/scenes --out=models/scenes
  python -m har_jax.prepare coco --out=data/coco --images=train2014 --images=val2014 \\
      --captions=dataset_coco.json --restval=train
  python -m har_jax.prepare coco --out=data/coco2017 --images=train2017 --images=val2017 \\
      --captions=captions_train2017.json --split=train \\
      --captions=captions_val2017.json --split=val

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
    for add in (_add_scenes, _add_coco, _add_foundation):
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
    from har_jax.data import scenes, writer
    from har_jax.progress import track

    sizes = {split: getattr(arguments, split) for split in scenes.SIZES}
    writer.check_free(arguments.out, overwrite=arguments.overwrite)
    examples = track(
        scenes.generate(arguments.seed, sizes),
        total=sum(sizes.values()),
        desc="drawing scenes",
        unit="images",
    )
    card = writer.write(
        arguments.out,
        examples,
        name="scenes",
        splits=list(sizes),
        description="Drawn scenes with five captions each, by annotators who differ.",
        settings={"seed": arguments.seed, "sizes": sizes},
        overwrite=arguments.overwrite,
    )
    _report(arguments.out, card)


def _add_coco(commands: Any) -> None:
    parser = commands.add_parser(
        "coco",
        help="COCO captions: annotation files and image folders",
        description=(
            "Read COCO captions JSON (one split per file) or Karpathy's dataset_coco.json (all "
            "splits in one), and the images they name. Images keep their bytes; those that do not "
            "decode are dropped and reported."
        ),
    )
    _add_out(parser)
    parser.add_argument(
        "--images",
        action="append",
        required=True,
        metavar="DIR",
        help="folder of images; repeat it to search several, for any of the captions files",
    )
    parser.add_argument(
        "--captions",
        action="append",
        required=True,
        metavar="FILE",
        help="annotation file; repeat it for several splits",
    )
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="split that a COCO file makes: one --split per --captions, in the same order "
        "(default for a single file: train)",
    )
    parser.add_argument(
        "--restval",
        choices=("train", "keep", "drop"),
        default="train",
        help="Karpathy's restval images: into train (the usual practice), kept as a split of their "
        "own, or left out (default: train)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop, with a list, instead of dropping anything"
    )
    parser.set_defaults(run=_coco)


def _coco(arguments: argparse.Namespace) -> None:
    from har_jax.data import coco

    card, problems = coco.prepare(
        arguments.out,
        captions=arguments.captions,
        images=arguments.images,
        splits=arguments.split,
        restval=arguments.restval,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
    )
    _report(arguments.out, card, problems.lines())


def _add_foundation(commands: Any) -> None:
    parser = commands.add_parser(
        "foundation",
        help="miniature CLIPs and a language model, trained on a prepared dataset",
        description=(
            "Train the miniature models that stand for CLIP ViT-L/14, for the independent ViT-B/32 "
            "that scores, and for Mistral-7B; written as Hugging Face directories under --out."
        ),
    )
    _add_out(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset, e.g. data/scenes")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.set_defaults(run=_foundation)


def _foundation(arguments: argparse.Namespace) -> None:
    from har_jax.data import dataset, writer

    if not arguments.overwrite:
        writer.check_free(arguments.out, overwrite=False)
    dataset.open_split(arguments.data, "train")  # a mistake is told before JAX starts
    from har_jax.stages import foundation

    foundation.build(data_dir=arguments.data, out_dir=arguments.out, seed=arguments.seed)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="where the result is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")


def _report(out: str, card: dict[str, Any], dropped: Sequence[str] = ()) -> None:
    """What was written, and what was not, on stdout."""
    from har_jax.data import writer

    print(f"{card['name']} -> {out}")
    for line in writer.report(card):
        print(line)
    for line in dropped:
        print(f"  dropped {line}")


if __name__ == "__main__":
    raise SystemExit(main())
