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
    from har_jax.loading.writer import LoadedCaptioner

DESCRIPTION = """\
Writes a directory that transformers loads without har_jax.

  --format=llava    the whole captioner, for LlavaForConditionalGeneration and AutoProcessor
  --format=mistral  the decoder alone, for MistralForCausalLM, or as --config.model.lm of a new run
  --format=peft     LoRA's adapters, for peft.PeftModel upon the base decoder, and the projector
                    beside them (projector.safetensors); har_jax.load_captioner(DIR) reads both

LoRA's adapters are merged into the decoder, except by --format=peft, which writes them alone.
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
    parser.add_argument("--format", choices=["llava", "mistral", "peft"], default="llava")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """All that can be wrong is said before any weight is loaded."""
    from har_jax.checkpoint import resolve_step
    from har_jax.interchange.llava import check_expressible, text_input
    from har_jax.loading.blueprint import check_base, read_run, read_run_foundation

    out = pathlib.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={args.out} exists already; remove it or choose another name")
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out={args.out} cannot be made: {above} is not a directory to write in")
    config, info = read_run(args.checkpoint)
    foundation = read_run_foundation(config)
    if args.format == "peft" and not config.model.lora.rank:
        raise UserError(
            f"--checkpoint={args.checkpoint} was trained without LoRA (config.model.lora.rank=0), "
            "so it has no adapters; use --format=llava or --format=mistral"
        )
    if args.format == "llava":
        check_expressible(foundation.config)
        text_input(foundation.tokenizer, config.model.prompt)
    check_base(info, foundation, args.checkpoint)
    resolve_step(args.checkpoint, args.step)


def export_llava(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    """Writes into `out`; returns what to tell the user."""
    from har_jax.interchange.llava import save_llava, text_input

    assert captioner.preprocessor is not None, "check() refuses a captioner without an encoder"
    image_id = save_llava(
        captioner.structure.merge(captioner.params),
        captioner.tokenizer,
        captioner.preprocessor.to_hf(),
        out,
        max_tokens=captioner.config.data.max_tokens,
        prompt=captioner.config.model.prompt,
    )
    text = text_input(captioner.tokenizer, captioner.config.model.prompt)
    return f"LlavaForConditionalGeneration; <image> is id {image_id}; its text input is {text!r}"


def export_mistral(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    """Writes into `out`; returns what to tell the user."""
    from har_jax.interchange import hf_dir
    from har_jax.interchange.families.mistral import save_mistral
    from har_jax.interchange.llava import generation_config

    whole = captioner.structure.merge(captioner.params)
    save_mistral(whole.lm, out)
    contents = generation_config(whole.config, captioner.config.data.max_tokens)
    hf_dir.write_json(out / "generation_config.json", contents)
    base = hf_dir.resolve(captioner.config.model.lm)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    return "MistralForCausalLM"


def export_peft(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    """Writes into `out`; returns what to tell the user."""
    from har_jax.interchange import peft
    from har_jax.models.functional import part

    model = captioner.config.model

    def lasting(name: str) -> str:  # hub names as they are, directories from anywhere
        return os.path.abspath(name) if os.path.isdir(name) else name

    n_layers = captioner.structure.merge(captioner.params).config.lm.num_hidden_layers
    lm = part(captioner.params, "lm")
    peft.save_adapters(lm, model.lora, out, base=lasting(model.lm), n_layers=n_layers)
    settings = {
        "clip": lasting(model.clip),
        "max_tokens": captioner.config.data.max_tokens,
        **{key: getattr(model, key) for key in peft.PROJECTOR_SETTINGS},
    }
    peft.save_projector(part(captioner.params, "projector"), out, settings)
    return f"LoRA r={model.lora.rank} for PEFT upon {model.lm}, and the projector"


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    check(args)

    from har_jax.interchange import hf_dir
    from har_jax.loading.writer import load_captioner

    captioner = load_captioner(args.checkpoint, step=args.step, merge=args.format != "peft")
    write = {"llava": export_llava, "mistral": export_mistral, "peft": export_peft}[args.format]
    with hf_dir.staging(args.out) as made:
        told = write(captioner, made)
    print(f"wrote {args.out}: step {captioner.step} as {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
