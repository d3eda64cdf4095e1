"""`prepare features`: what the frozen encoder says of every image, once and for all."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from har_jax.command_line import counts, path
from har_jax.errors import UserError
from har_jax.preparation.arguments import subcommand
from har_jax.settings import Count, Layer, tell_renamed, word

if TYPE_CHECKING:
    from har_jax.data.dataset import Split
    from har_jax.data.features.build import Build

DESCRIPTION = """\
Encode the images of a dataset and keep the features, so that training need not encode
them again: --config.data.features=DIR. A build that is killed continues with the same command; on
several machines that share --out, give each its --part. --import takes features of any encoder
instead; then --config.model.encoder= stays empty.
"""


def add_features(commands: Any) -> None:
    parser = subcommand(
        commands,
        "features",
        features,
        help="a cache of the frozen encoder's features, or features of your own",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=path, metavar="DIR", help="dataset, e.g. data/coco")
    add("--split", action="append", metavar="NAME", help="repeat it for several (default: all)")
    encoder = "a CLIP, a SigLIP or a DINOv2"
    add("--encoder", type=path, metavar="HF_DIR", help=encoder)
    add("--clip", type=path, metavar="HF_DIR", help=argparse.SUPPRESS)  # its name once
    kind = parser.add_mutually_exclusive_group().add_argument
    kind("--layer", type=word(Layer), default=-2, help="whose patch tokens are kept (default: -2)")
    kind("--pooled", action="store_true", help="one vector per image (model.projector=pooled)")
    kept = "which tokens of it, as config.model.vision_tokens (default: patches)"
    choices = ["patches", "all", "after_first"]
    add("--vision-tokens", choices=choices, default="patches", help=kept)
    stored = "of the stored features (default: float32; of --import: its own)"
    add("--dtype", choices=["float32", "bfloat16", "float16"], help=stored)
    computed = "what the encoder computes in: config.model.dtype of the runs that read the "
    computed += "features, to give them their own encoder's (default: float32)"
    choices = ["float32", "bfloat16"]
    add("--compute-dtype", choices=choices, default="float32", help=computed)
    add("--batch-size", type=word(Count), default=64, metavar="N", help="default: 64")
    part = "write the I-th of N parts, counted from 0"
    add("--part", default="0/1", metavar="I/N", help=part)
    add("--import", type=path, dest="array", metavar="FILE", help="[N,Dv] or [N,S,Dv] .npy")
    add("--ids", type=path, metavar="FILE", help="of --import: image ids, .npy, .json or text")
    add("--name", help="of --import: the encoder's (default: that of the file)")
    verify = "check every byte of the cache at --out, and stop (as `prepare verify`)"
    add("--verify", action="store_true", help=verify)


def features(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return _verify(arguments.out)
    part = _part(arguments.part)
    if not arguments.data:
        raise UserError("--data is missing; give the dataset whose images have the features")
    if arguments.clip:
        tell_renamed("--clip", "--encoder")
        arguments.encoder = arguments.encoder or arguments.clip
    if bool(arguments.encoder) == bool(arguments.array):
        raise UserError(
            "give either --encoder=HF_DIR, to encode images, or --import=FILE --ids=FILE"
        )
    splits = _splits(arguments.data, arguments.split)
    from har_jax.data.features.build import is_complete, write

    build, rows = (_imported if arguments.array else _encoded)(arguments, splits)
    if not arguments.overwrite and is_complete(build):
        print(f"{arguments.out} is complete already: {build.describe()}")
        return 0
    print(f"{arguments.out}: {build.describe()}", flush=True)
    if not write(build, rows, part=part, overwrite=arguments.overwrite):
        left, of = len(build.missing()), len(build.shards)
        print(f"part {part[0]} of {part[1]} is done; {left} of {of} shards are left to the others")
        return 0
    print(f"train with --config.data.features={arguments.out}")
    return 0


def _encoded(arguments: argparse.Namespace, splits: dict[str, Split]) -> tuple[Build, Any]:
    from har_jax.hardware import keep_memory
    from har_jax.preparation import encoding

    keep_memory()
    build = encoding.plan_build(
        arguments.out,
        arguments.encoder,
        splits,
        kind="pooled" if arguments.pooled else "patch",
        layer=arguments.layer,
        tokens=arguments.vision_tokens,
        dtype=arguments.dtype or "float32",
        compute_dtype=arguments.compute_dtype,
        dataset=arguments.data,
    )
    return build, encoding.encoder_rows(build, batch_size=arguments.batch_size)


def _imported(arguments: argparse.Namespace, splits: dict[str, Split]) -> tuple[Build, Any]:
    from har_jax.data.features.build import Build
    from har_jax.data.features.cache import Origin, file_digest
    from har_jax.data.features.imported import open_import
    from har_jax.evaluation.references import numbers_of
    from har_jax.ids import Id

    if not arguments.ids:
        raise UserError("--import needs --ids=FILE, the image id of every row")
    numbers: dict[Id, int] = {}
    for split in splits.values():
        numbers |= numbers_of(split)
    found = open_import(arguments.array, arguments.ids).known_as(numbers)
    for split in splits.values():
        found.check_covers(split)
    dtype = arguments.dtype or ("float16" if found.array.dtype.itemsize == 2 else "float32")
    name = f"imported:{arguments.name or found.path.stem}"
    origin = Origin(name, file_digest(found.path), found.kind, None, {})
    out = pathlib.Path(arguments.out)
    return Build(out, origin, found.shape, dtype, splits, arguments.data), found.rows


def _splits(data: str, names: list[str] | None) -> dict[str, Split]:
    from har_jax.data.dataset import open_split, split_names

    splits = {name: open_split(data, name) for name in names or split_names(data)}
    seen: dict[int, str] = {}
    for name, split in splits.items():
        for image_id in split.ids:
            if seen.setdefault(image_id, name) != name:
                raise UserError(
                    f"image id {image_id} is in the splits {seen[image_id]!r} and {name!r} of "
                    f"{data}: features are found by id; make a cache for each split"
                )
    return splits


def _part(text: str) -> tuple[int, int]:
    part = counts(text, "/")
    if part is None or part[0] >= part[1]:
        raise UserError(f"--part={text}; give I/N with I from 0 to N-1, such as 0/4")
    return part


def _verify(out: str) -> int:
    from har_jax.preparation.verify import verify

    return verify(argparse.Namespace(directory=out))
