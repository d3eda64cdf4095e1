"""A trained run as a Hugging Face model: `python -m har_jax.export --checkpoint=RUN --out=DIR`."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from har_jax.errors import UserError, command

if TYPE_CHECKING:
    from har_jax.inference import LoadedCaptioner

DESCRIPTION = """\
Writes a directory that transformers loads without har_jax.

  --format=llava    the whole captioner, for LlavaForConditionalGeneration and AutoProcessor
  --format=mistral  the decoder alone, for MistralForCausalLM, or as --config.model.lm of a new run

LLaVA has no place for a captioner with a pooled projector; its native format stays. The directory
appears when it is complete; one that holds files already is left alone.
"""

EXAMPLES = """\
examples:
  python -m har_jax.export --checkpoint=runs/scst --out=exported
  python -m har_jax.export --checkpoint=runs/scst --out=decoder --format=mistral --step=latest

then, in another program:
  processor = AutoProcessor.from_pretrained("exported")
  model = LlavaForConditionalGeneration.from_pretrained("exported")
  inputs = processor(images=image, text="<image>", return_tensors="pt")
  ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]
  print(processor.batch_decode(ids, skip_special_tokens=True))
A run with a prompt takes another text, which the command prints.
"""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m har_jax.export",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", metavar="RUN", required=True, help="run directory of har_jax.train"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="a directory to make")
    parser.add_argument("--step", default="best", help="best (default), latest, or a number")
    parser.add_argument("--format", choices=["llava", "mistral"], default="llava")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """All that can be wrong is said before any weight is loaded."""
    from har_jax.assembly import check_base, read_foundation, read_run
    from har_jax.checkpoint import resolve_step
    from har_jax.interchange.llava import check_expressible, text_input

    out = pathlib.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={args.out} exists already; remove it or choose another name")
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out={args.out} cannot be made: {above} is not a directory to write in")
    config, info = read_run(args.checkpoint)
    foundation = read_foundation(config.model)
    if args.format == "llava":
        check_expressible(foundation.config)
        text_input(foundation.tokenizer, config.model.prompt)
    check_base(info, foundation, args.checkpoint)
    resolve_step(args.checkpoint, args.step)


def export_llava(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    """Writes into `out`; returns what to tell the user."""
    from har_jax.interchange.llava import save_llava, text_input

    image_id = save_llava(
        captioner.structure.merge(captioner.params),
        captioner.tokenizer,
        captioner.preprocessor.to_hf(),
        out,
        max_tokens=captioner.config.data.max_tokens,
    )
    text = text_input(captioner.tokenizer, captioner.config.model.prompt)
    return f"LlavaForConditionalGeneration; <image> is id {image_id}; its text input is {text!r}"


def export_mistral(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    """Writes into `out`; returns what to tell the user."""
    from har_jax.interchange import hf_dir
    from har_jax.interchange.llava import generation_config
    from har_jax.interchange.mistral import save_mistral

    whole = captioner.structure.merge(captioner.params)
    save_mistral(whole.lm, out)
    contents = generation_config(whole.config, captioner.config.data.max_tokens)
    hf_dir.write_json(out / "generation_config.json", contents)
    base = hf_dir.resolve(captioner.config.model.lm)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    return "MistralForCausalLM"


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    check(args)

    from har_jax.inference import load_captioner
    from har_jax.interchange import hf_dir

    captioner = load_captioner(args.checkpoint, step=args.step)
    write = export_llava if args.format == "llava" else export_mistral
    with hf_dir.staging(args.out) as made:
        told = write(captioner, made)
    print(f"wrote {args.out}: step {captioner.step} as {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
