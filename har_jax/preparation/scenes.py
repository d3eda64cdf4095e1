"""`prepare scenes`: the embedded dataset."""

from __future__ import annotations

import argparse
from typing import Any

from har_jax.preparation.arguments import add_out, print_report


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "scenes",
        help="the embedded dataset: drawn images, five captions each (half a minute)",
        description="Draw scenes and caption them. The same seed gives the same dataset anywhere.",
    )
    add_out(parser)
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    for split, size in (("train", 4000), ("val", 500), ("test", 500)):
        parser.add_argument(
            f"--{split}", type=int, default=size, metavar="N", help=f"images (default: {size})"
        )
    parser.add_argument(
        "--skew",
        type=float,
        metavar="SHARE",
        help="draw a person into each scene, whose gender this share of the training captions "
        "guesses by a stereotype, such as 0.8; val and test are balanced (default: no persons)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from har_jax.data import builder
    from har_jax.miniature import scenes
    from har_jax.progress import track

    sizes = {split: getattr(arguments, split) for split in scenes.SIZES}
    skew = arguments.skew
    builder.check_free(arguments.out, overwrite=arguments.overwrite)
    examples = track(
        scenes.generate(arguments.seed, sizes, skew=skew),
        total=sum(sizes.values()),
        desc="drawing scenes",
        unit="images",
    )
    card = builder.write(
        arguments.out,
        examples,
        name="scenes",
        splits=list(sizes),
        description="Drawn scenes with five captions each, by annotators who differ.",
        settings={
            "seed": arguments.seed,
            "sizes": sizes,
            **({} if skew is None else {"skew": skew}),
        },
        ids=f"scenes-{arguments.seed}" + (f"-skew-{skew:g}" if skew is not None else ""),
        overwrite=arguments.overwrite,
    )
    print_report(arguments.out, card)
