"""`prepare coco`, `flickr`, `nocaps` and `folder`: captions files, and the images they name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from har_jax.command_line import path
from har_jax.errors import UserError
from har_jax.preparation.arguments import add_words, print_report, subcommand
from har_jax.settings import Part, word

if TYPE_CHECKING:
    from har_jax.data.entries import Problems, Reading

CAPTIONS: dict[str, Any] = dict(type=path, required=True, metavar="FILE", help="captions file")


def add_coco(commands: Any) -> None:
    parser = subcommand(
        commands,
        "coco",
        coco,
        help="COCO captions: annotation files and image folders",
        description=(
            "Read COCO captions JSON (one split per file) or Karpathy's dataset_coco.json (all "
            "splits in one), and the images they name. Images keep their bytes; those that do not "
            "decode are dropped and reported. Broken off, the same command continues."
        ),
    )
    _add_photographs(parser)
    files = "annotation file; repeat it for several splits"
    several: dict[str, Any] = {**CAPTIONS, "help": files}
    parser.add_argument("--captions", action="append", **several)
    split = "split that a COCO file makes: one --split per --captions, in the same order "
    split += "(default for a single file: train)"
    parser.add_argument("--split", action="append", metavar="NAME", help=split)
    restval = "Karpathy's restval images: into train (the usual practice), kept as a split of "
    restval += "their own, or left out (default: train)"
    choices = ("train", "keep", "drop")
    parser.add_argument("--restval", choices=choices, default="train", help=restval)


def coco(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import coco

    how: dict[str, Any] = dict(splits=arguments.split, restval=arguments.restval)
    _write(
        arguments,
        lambda problems: coco.read_files(arguments.captions, problems=problems, **how),
        "coco",
        "Images and captions in COCO's format.",
        restval=arguments.restval,
    )


def add_flickr(commands: Any) -> None:
    parser = subcommand(
        commands,
        "flickr",
        flickr,
        help="Flickr8k or Flickr30k: Karpathy's JSON, or a token file, and the images",
        description=(
            "Read Karpathy's dataset_flickr8k.json or dataset_flickr30k.json (with their splits), "
            "or a token file (Flickr8k.token.txt, results_20130124.token), which names no splits: "
            "--val and --test draw them. Broken off, the same command continues."
        ),
    )
    _add_photographs(parser)
    parser.add_argument("--captions", **CAPTIONS)
    _add_shares(parser)


def flickr(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import flickr
    from har_jax.data.readers.shares import Shares

    shares = Shares(arguments.val, arguments.test)
    _write(
        arguments,
        lambda problems: flickr.read_file(arguments.captions, shares=shares, problems=problems),
        "flickr",
        "Photographs of Flickr with captions.",
        val=shares.val,
        test=shares.test,
    )


def add_nocaps(commands: Any) -> None:
    parser = subcommand(
        commands,
        "nocaps",
        nocaps,
        help="nocaps (validation set), with its in-, near- and out-domain",
        description=(
            "Read nocaps_val_4500_captions.json and its images. The domain of each image is kept: "
            "evaluate then scores each domain besides the whole. Broken off, the same command "
            "continues."
        ),
    )
    _add_photographs(parser)
    parser.add_argument("--captions", **CAPTIONS)
    parser.add_argument("--split", default="val", metavar="NAME", help="its name (default: val)")


def nocaps(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers.coco import read_nocaps

    path, split = arguments.captions, arguments.split
    _write(
        arguments,
        lambda problems: read_nocaps(path, split=split, problems=problems),
        "nocaps",
        "nocaps: images of objects that COCO's captions do not mention.",
    )


def add_folder(commands: Any) -> None:
    parser = subcommand(
        commands,
        "folder",
        folder,
        help="your own data: a folder of images, captions in CSV or JSONL",
        description=(
            "Read captions from CSV (a header such as image,caption; one row per caption) or JSON "
            'lines ({"image": ..., "captions": [...]}), and the images they name, relative to '
            "--images. Without --captions, metadata.csv or metadata.jsonl in the folder is read, "
            "as Hugging Face's imagefolder has it. The split is a column `split`, or the first "
            "folder of the name (train/, val/, test/), or drawn by --val and --test; else all is "
            "train. Broken off, the same command continues."
        ),
    )
    _add_photographs(parser, "folder of images")
    files = "CSV or JSONL file; repeatable"
    some: dict[str, Any] = dict(type=path, action="append", default=[], metavar="FILE")
    parser.add_argument("--captions", **some, help=files)
    for what in ("image", "caption"):
        unusual = f"of the {what}, if it is unusual"
        parser.add_argument(f"--{what}-column", default="", metavar="NAME", help=unusual)
    parser.add_argument("--split", metavar="NAME", help="the one split that all images make")
    _add_shares(parser)


def folder(arguments: argparse.Namespace) -> None:
    from har_jax.data.readers import folder
    from har_jax.data.readers.shares import Shares

    if len(arguments.images) > 1:
        raise UserError(
            f"prepare folder takes one --images, got {len(arguments.images)}; give the folder "
            "above them, and in the captions file each image's path below it"
        )
    shares = Shares(arguments.val, arguments.test)
    columns = folder.Columns(arguments.image_column, arguments.caption_column)
    how: dict[str, Any] = dict(shares=shares, columns=columns, split=arguments.split)
    _write(
        arguments,
        lambda problems: folder.read_folder(
            arguments.images[0], arguments.captions, problems=problems, **how
        ),
        "folder",
        "A folder of images with captions.",
        val=shares.val,
        test=shares.test,
    )


SEVERAL = "folder of images; repeat it to search several, for any of the captions files"


def _add_photographs(parser: argparse.ArgumentParser, images: str = SEVERAL) -> None:
    """--images, and the options of `data.photographs`."""
    add = parser.add_argument
    add("--images", type=path, action="append", required=True, metavar="DIR", help=images)
    add("--strict", action="store_true", help="stop, with a list, instead of dropping anything")
    out = "leave out images that are in this prepared dataset, by id (where both have ids of one "
    out += "kind) and by content"
    sets: dict[str, Any] = dict(type=path, action="append", default=[])
    add("--exclude", **sets, metavar="DATASET[:SPLIT]", help=out)
    twice = "of the same file under two ids in two splits: stop, or leave out the one that is "
    twice += "trained on (default: refuse)"
    add("--duplicates", choices=("refuse", "drop"), default="refuse", help=twice)
    add_words(parser)
    lengths = "also report the lengths of captions in its tokens"
    add("--tokenizer", type=path, metavar="HF_DIR", help=lengths)


def _add_shares(parser: argparse.ArgumentParser) -> None:
    for split in ("val", "test"):
        share = f"share of the images drawn into {split}, such as 0.05, by a hash of their names "
        share += "(default: 0)"
        shares: dict[str, Any] = dict(type=word(Part), default=0.0, metavar="SHARE")
        parser.add_argument(f"--{split}", **shares, help=share)


def _write(
    arguments: argparse.Namespace,
    read: Callable[[Problems], Reading],
    name: str,
    description: str,
    **settings: Any,
) -> None:
    """Prepares what `read` finds, and prints the report."""
    from har_jax.data import photographs

    named = ("images", "exclude", "captions")
    options = {key: getattr(arguments, key) for key in photographs.Options.__annotations__}
    options["exclude"] = tuple(arguments.exclude)
    card, dropped = photographs.prepare(
        arguments.out,
        read,
        arguments.images,
        name=name,
        description=description,
        settings={**{key: getattr(arguments, key) for key in named}, **settings},
        options=photographs.Options(**options),
    )
    print_report(arguments.out, card, dropped)
