"""`prepare foundation`: miniature CLIPs and a language model, trained on a prepared dataset."""

from __future__ import annotations

import argparse
from typing import Any

from har_jax.preparation.arguments import add_out


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "foundation",
        help="miniature CLIPs and a language model, trained on a prepared dataset",
        description=(
            "Train the miniature models that stand for CLIP ViT-L/14, for the independent ViT-B/32 "
            "that scores, and for Mistral-7B; written as Hugging Face directories under --out."
        ),
    )
    add_out(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset, e.g. data/scenes")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from har_jax.data import builder, dataset

    if not arguments.overwrite:
        builder.check_free(arguments.out, overwrite=False)
    dataset.open_split(arguments.data, "train")  # a mistake is told before JAX starts
    from har_jax.miniature import models as foundation

    foundation.build(data_dir=arguments.data, out_dir=arguments.out, seed=arguments.seed)
