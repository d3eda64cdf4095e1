"""`prepare scenes` and `prepare foundation`: the embedded dataset, and miniature models on one."""

from __future__ import annotations

import argparse
import pathlib
from typing import Annotated, Any

from har_jax.command_line import path
from har_jax.preparation.arguments import add_words, print_report, subcommand
from har_jax.settings import Count, Part, Range, Seed, word

Images = Annotated[int, Range(at_least=0, at_most=10_000_000)]


def add_scenes(commands: Any) -> None:
    parser = subcommand(
        commands,
        "scenes",
        scenes,
        help="the embedded dataset: drawn images, five captions each (seconds)",
        description="Draw scenes and caption them. The same seed gives the same dataset anywhere.",
    )
    parser.add_argument("--seed", type=word(Seed), default=0, help="of everything (default: 0)")
    for split, size in (("train", 4000), ("val", 500), ("test", 500)):
        count = f"images (default: {size})"
        parser.add_argument(f"--{split}", type=word(Images), default=size, metavar="N", help=count)
    skew = "draw a person into each scene, whose gender this share of the training captions "
    skew += "guesses by a stereotype, such as 0.8; val and test are balanced (default: no persons)"
    parser.add_argument("--skew", type=word(Part), metavar="SHARE", help=skew)
    add_words(parser)


def scenes(arguments: argparse.Namespace) -> None:
    from har_jax.data import builder
    from har_jax.miniature import scenes
    from har_jax.progress import track
    from har_jax.text.words import find_words

    words = find_words(arguments.words)
    seed, skew = arguments.seed, arguments.skew
    sizes = {split: getattr(arguments, split) for split in scenes.SIZES}
    builder.check_free(arguments.out, overwrite=arguments.overwrite)
    examples = scenes.generate(seed, sizes, skew=skew)
    card = builder.write(
        arguments.out,
        track(examples, total=sum(sizes.values()), desc="drawing scenes", unit="images"),
        name="scenes",
        splits=list(sizes),
        description="Drawn scenes with five captions each, by annotators who differ.",
        settings={"seed": seed, "sizes": sizes} | ({} if skew is None else {"skew": skew}),
        ids=f"scenes-{seed}" + (f"-skew-{skew:g}" if skew is not None else ""),
        words=words,
        overwrite=arguments.overwrite,
    )
    print_report(arguments.out, card)


def add_foundation(commands: Any) -> None:
    parser = subcommand(
        commands,
        "foundation",
        foundation,
        help="miniature CLIPs and language models, trained on a prepared dataset",
        description=(
            "Train the miniature models that stand for CLIP ViT-L/14, for the independent ViT-B/32 "
            "that scores, for Mistral-7B and for GPT-2; written as Hugging Face directories under "
            "--out. --encoder and --decoder choose other families for the captioner's two, which "
            "then lie in OUT/FAMILY; a miniature DINOv2 is DINOv2 in its architecture alone: it "
            "learns from captions, beside a text tower that is thrown away."
        ),
    )
    data = "dataset, e.g. data/scenes"
    parser.add_argument("--data", type=path, required=True, metavar="DIR", help=data)
    parser.add_argument("--seed", type=word(Seed), default=0, help="of everything (default: 0)")
    more = "scenes drawn beyond a dataset of scenes, with captions, for the CLIPs alone "
    more += "(default: 12000; none beyond other datasets)"
    parser.add_argument("--scenes", type=word(Images), metavar="N", help=more)
    few = "at most so many steps of each training, for models that need not be good (default: 120 "
    few += "to 570, minutes)"
    parser.add_argument("--steps", type=word(Count), metavar="N", help=few)
    beside = "how many models are made at a time, each in a process on its share of the cores "
    beside += "(default: one for each core of CPUs; 1 on an accelerator, which one process holds)"
    parser.add_argument("--workers", type=word(Count), metavar="N", help=beside)
    for part, default, families in (
        ("encoder", "clip", "clip, siglip, dinov2, dinov2_with_registers"),
        ("decoder", "mistral", "mistral, llama, smollm3, qwen2, qwen3, gpt2"),
    ):
        text = f"family of the captioner's {part}: {families} (default: {default})"
        parser.add_argument(f"--{part}", default=default, metavar="FAMILY", help=text)


def foundation(arguments: argparse.Namespace) -> None:
    from har_jax.data import builder, dataset

    if not arguments.overwrite and not _begun(pathlib.Path(arguments.out)):
        builder.check_free(arguments.out, overwrite=False)
    dataset.open_split(arguments.data, "train")  # a mistake is told before JAX starts
    from har_jax.hardware import keep_memory
    from har_jax.miniature import models, workers

    keep_memory()
    models.build(
        data_dir=arguments.data,
        out_dir=arguments.out,
        seed=arguments.seed,
        scenes=arguments.scenes,
        steps=arguments.steps,
        encoder=arguments.encoder,
        decoder=arguments.decoder,
        workers=arguments.workers or workers.useful(),
    )


def _begun(out: pathlib.Path) -> bool:
    """Whether a directory holds models that this command made, and nothing else: then those that
    are missing are made, as after a kill."""
    if not out.is_dir():
        return False
    inside = [path for path in out.iterdir() if not path.name.startswith(".")]
    return all((path / "foundation.json").exists() for path in inside)
