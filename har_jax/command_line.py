"""What the commands share: their names, arguments that several take, settings, and messages."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from har_jax.errors import UserError, did_you_mean, one_line
from har_jax.settings import Beams, CountOrZero, LengthPenalty, Path, Positive, Seed, word

COMMANDS = {
    "prepare": "write a dataset, a feature cache, or miniature models",
    "train": "train a captioner: maximum likelihood, then self-critical training",
    "doctor": "look at a run of self-critical training before it starts",
    "preflight": "compile a run for devices that need not be there: does it fit?",
    "evaluate": "score a run, or captions that another tool wrote",
    "report": "write the page of a run, or of several beside each other",
    "caption": "caption images with a run",
    "zerocap": "caption images with a GPT-2 that a CLIP guides, without training",
    "export": "write a run as a Hugging Face model",
    "reproduce": "make the tables of the documentation",
    "env": "what is installed and what the machine has, for a report of a fault",
}
"""Each is a module `har_jax.NAME`, or a room with a `__main__`, with a function `main(argv)`."""


def run(name: str, argv: Sequence[str]) -> int:
    """Runs a command in this process; returns its exit code."""
    module = importlib.import_module(f"har_jax.{name}")
    if not hasattr(module, "main"):
        module = importlib.import_module(f"har_jax.{name}.__main__")
    return module.main(list(argv))


WORDS = "ptb, whitespace, icu, or a function of yours, package.module:function"
"""What `--words` takes, see `text.words`."""

path = word(Path)
"""`type=` of every argument that names a file or a directory; numbers are `word(Count)` and so on.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are `UserError`s: one line, as those of all else."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """
        Raises:
          UserError: always.
        """
        told = message.removeprefix("argument ")
        if choice := re.fullmatch(r"(.*: invalid choice: ('.*')) \((choose from .*)\)", told, re.S):
            allowed = [name.strip(" '") for name in choice[3][len("choose from") :].split(",")]
            told = f"{choice[1]}{did_you_mean(choice[2][1:-1], allowed)}; {choice[3]}"
        raise UserError(f"{told}; {self.prog} --help explains")


def new_parser(name: str, description: str, examples: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command, with texts that are printed as they are written."""
    return Parser(
        prog=f"python -m har_jax.{name}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def counts(text: str, separator: str) -> tuple[int, int] | None:
    """`100:105` as (100, 105); None where it is no such pair."""
    found = re.fullmatch(rf"([0-9]{{1,9}}){separator}([0-9]{{1,9}})", text)
    return (int(found[1]), int(found[2])) if found else None


def steps(text: str) -> tuple[int, int]:
    """`type=` of an argument such as `100:105`, the first step and the last."""
    found = counts(text, ":")
    if found is None or not 1 <= found[0] <= found[1]:
        given = f"it is {one_line(text)!r}"
        raise argparse.ArgumentTypeError(f"{given}; give the first and the last step, as 100:105")
    return found


steps.hint = tuple[int, int]  # type: ignore[attr-defined]  # as of `settings.word`


def add_run(arguments: argparse._ActionsContainer, *, required: bool = True) -> None:
    """Declares `--checkpoint` and `--step`: a trained run."""
    add = arguments.add_argument
    add("--checkpoint", type=path, metavar="RUN", required=required, help="run directory of train")
    add("--step", default="best", help="best (default), latest, or a number")


_PARTS = {
    "encoder": "where the encoder is: of a run or PEFT directory that was moved, or of parts",
    "lm": "where the decoder is, likewise",
    "projector": "the projector of parts that lie apart: a run, or a directory that holds one",
    "adapter": "LoRA adapters upon these parts, as PEFT saves them",
}


def add_captioner(arguments: argparse._ActionsContainer) -> None:
    """Declares what `load_captioner` takes: `--checkpoint` and `--step`, and parts that lie apart;
    for `captioner_of`."""
    add = arguments.add_argument
    source = "run directory of train, LLaVA or PEFT directory"
    add("--checkpoint", type=path, metavar="RUN", help=source)
    add("--step", default="best", help="of a run: best (default), latest, or a number")
    for name, told in _PARTS.items():
        add(f"--{name}", type=path, metavar="DIR", help=told)
    add("--prompt", help="text between image and caption (default: as the captioner says)")


def captioner_of(args: argparse.Namespace) -> tuple[str | None, dict[str, Any]]:
    """What `load_captioner` is to be called with: its source, and its keyword arguments.

    Raises:
      UserError: neither a checkpoint nor parts were given.
    """
    found = {name: getattr(args, name) for name in (*_PARTS, "prompt")}
    parts = {name: value for name, value in found.items() if value is not None}
    if not args.checkpoint and "projector" not in parts:
        raise UserError(
            "--checkpoint is missing; give a run of train or a directory of a captioner, or "
            "--encoder=DIR, --lm=DIR and --projector=DIR"
        )
    return args.checkpoint, {"step": args.step, **parts}


_STOPPING = {"false": False, "true": True, "never": "never"}
"""Words of a command line for `decoding.beam.EarlyStopping`."""


def add_decoding(arguments: argparse._ActionsContainer) -> None:
    """Declares `--method` and what belongs to one, for `decoding`."""
    arguments.add_argument("--method", choices=["greedy", "sample", "beam"], default="greedy")
    add = arguments.add_argument
    add("--beams", type=word(Beams), default=5, help="of --method=beam (default: 5)")
    longer = "of --method=beam: log P is divided by length ** N (default: 1; 0: not at all)"
    add("--length-penalty", type=word(LengthPenalty), default=1.0, metavar="N", help=longer)
    done = "of --method=beam: an image is done with as many ended captions as beams (true), when "
    done += "no beam seems to become better (false, the default), or when none can (never)"
    add("--early-stopping", choices=list(_STOPPING), default="false", help=done)
    add("--temperature", type=word(Positive), default=1.0, help="of --method=sample")


def add_seed(arguments: argparse._ActionsContainer, of: str = "--method=sample") -> None:
    """Declares `--seed`."""
    arguments.add_argument("--seed", type=word(Seed), default=0, help=f"of {of}")


def add_scored(arguments: argparse._ActionsContainer, seed: str) -> None:
    """Declares `--split`, `--limit`, `--against`, `--words` and `--seed`: what is scored, beside
    what, in which words, and what is drawn for it."""
    add_seed(arguments, seed)
    add = arguments.add_argument
    add("--split", default="test", help="of the dataset (default: test)")
    add("--limit", type=word(CountOrZero), default=0, metavar="N", help="first N images only")
    other = "another system: COCO results JSON, or its --out"
    add("--against", type=path, metavar="OTHER", help=other)
    words = f"what is counted of captions: {WORDS} (default: the dataset's)"
    add("--words", default="", metavar="NAME", help=words)


def add_metrics(arguments: argparse._ActionsContainer) -> None:
    """Declares `--metrics`, for `metrics_of`."""
    metrics = "of CIDEr,Bleu,ROUGE_L,METEOR,SPICE,CHAIR (default: the first three, without Java, "
    metrics += "and of a captioner all that can run but CHAIR); official (or official,CIDEr,Bleu): "
    metrics += "pycocoevalcap computes them, with Java"
    arguments.add_argument("--metrics", metavar="A,B", help=metrics)


def metrics_of(args: argparse.Namespace) -> dict[str, Any]:
    """`metrics`, where they were given."""
    if args.metrics is None:
        return {}
    names = tuple(name.strip() for name in args.metrics.split(",") if name.strip())
    if not names:
        raise UserError("--metrics is empty; choose from CIDEr,Bleu,ROUGE_L,METEOR,SPICE")
    return {"metrics": names}


def decoding(args: argparse.Namespace) -> dict[str, Any]:
    """How to write captions, as keyword arguments: the method, what belongs to it, and the seed."""
    beam = {"beams": args.beams, "length_penalty": args.length_penalty}
    beam["early_stopping"] = _STOPPING[args.early_stopping]
    own = {"beam": beam, "sample": {"temperature": args.temperature}}
    return {"method": args.method, "seed": args.seed, **own.get(args.method, {})}


def read_overrides(rest: Sequence[str], command: str) -> dict[str, str]:
    """`--config.KEY=VALUE` (or `--config.KEY VALUE`) among the words that a parser left over.

    Raises:
      UserError: any other word, or a key without a value.
    """
    overrides: dict[str, str] = {}
    left = list(rest)
    while left:
        word = left.pop(0)
        if not word.startswith("--config."):
            raise UserError(
                f"unknown argument {word!r}; settings are given as --config.KEY=VALUE, and "
                f"{command} --help explains the rest"
            )
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not left:
                raise UserError(f"{word} needs a value: {word}=VALUE")
            value = left.pop(0)
        overrides[key] = value
    return overrides


_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def print_captions(rows: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """Prints (image's name, caption) in a line each, with a tab between, or as a JSON list.

    Line breaks and other control characters of a caption are spaces in a line, those of a name are
    escaped, so that there are as many lines as images.
    """
    if as_json:
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        values = [{"image": name, "caption": text} for name, text in rows]
        print(json.dumps(values, indent=1, ensure_ascii=not utf8))
        return
    for name, text in rows:
        shown = _BREAKS.sub(lambda found: ascii(found[0])[1:-1], name)
        print(f"{shown}\t{_BREAKS.sub(' ', text)}")


class AboveBars(logging.Handler):
    """Writes to stderr without tearing a progress bar that is being drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        from har_jax.progress import write  # tqdm: not needed where nothing is said

        write(self.format(record))


def setup_logging() -> None:
    """Messages with the time; third parties only when something is wrong."""
    handler = AboveBars()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("har_jax").setLevel(logging.INFO)
